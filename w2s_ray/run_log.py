"""`run.log`: what a run said and did, for whoever asks later why something failed.

It has the lines that the terminal showed, each Fit's start and end, the traceback of each failure, and the warnings of
libraries and workers. A run appends to what earlier runs left in the file.

Promise: a command that is refused writes nothing. So lines are kept until `begin`, when a run has been found to be possible.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from w2s_ray.errors import InputError

LOG = "run.log"
LOGGERS = ("w2s_ray", "ray", "ray.tune", "ray.train")
"""Whose messages go into the file: each has handlers of its own otherwise, or passes nothing on."""
LINE = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")

log = logging.getLogger(__name__)


class RunLog(logging.Handler):
    """Keeps messages until `begin`, and writes them to the file from then on."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.file: TextIO | None = None
        self.early: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = LINE.format(record)  # not `self.format`: Ray gives the handlers that it finds a format of its own
        if self.file is None:
            self.early.append(line)
        else:
            self.file.write(f"{line}\n")
            self.file.flush()

    def begin(self) -> TextIO:
        """Open the file, write what was kept, and return the file, for what others print to standard error."""
        with self.lock or contextlib.nullcontext():
            take_over(self)
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("a", encoding="utf-8")
                self.file.writelines(f"{line}\n" for line in self.early)
                self.file.flush()
            return self.file

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
        super().close()


def take_over(handler: logging.Handler) -> None:
    """Send messages here alone. Once more after Ray's import, which brings a handler that prints them."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False


@contextlib.contextmanager
def run_log(path: Path) -> Iterator[RunLog]:
    """Send the messages of this package and of Ray to the file, until the run ends. How it ends goes there too."""
    handler = RunLog(path)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    take_over(handler)
    logging.getLogger("w2s_ray").setLevel(logging.INFO)
    try:
        yield handler
        handler.begin()
    except InputError as error:
        log.error("refused: %s", error)  # lost with the rest, unless the run had begun
        raise
    except Exception:
        log.exception("the run ended with an error")
        handler.begin()
        raise
    except KeyboardInterrupt:
        log.info("stopped")
        raise
    finally:
        for logger, level, propagate, handlers in before:
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers
        handler.close()
