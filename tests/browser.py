"""A headless Chromium for tests that look at a page: it is driven through a pipe, with nothing but the standard library.

Example:
    with Browser(chromium) as browser:
        page = browser.open(path, width=390)
        page.evaluate("document.documentElement.scrollWidth")
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ON_DESCRIPTORS_3_AND_4 = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads commands from descriptor 3 and answers on 4."""
READY = """new Promise((resolve) => {
  const look = () => (document.querySelectorAll(".drawing").length === document.querySelectorAll(".drawing svg").length
    ? requestAnimationFrame(() => resolve(true)) : setTimeout(look, 50));
  document.readyState === "complete" ? look() : addEventListener("load", look);
})"""
"""Waits until every figure is drawn."""


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome on this machine; `$CHROMIUM` goes first."""
    return next(
        (path for name in (os.environ.get("CHROMIUM", ""), *NAMES) if name and (path := shutil.which(name))), None
    )


class Browser:
    """A running Chromium. It ends, with its folder of settings, when the `with` block does."""

    def __init__(self, chromium: str) -> None:
        self._chromium = chromium
        self._num_sent = 0

    def __enter__(self) -> Browser:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        read_end, self._write = os.pipe()
        self._read, write_end = os.pipe()
        flags = (
            "--headless --no-sandbox --disable-gpu --hide-scrollbars --remote-debugging-pipe --disable-dev-shm-usage"
        )
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", ON_DESCRIPTORS_3_AND_4, str(read_end), str(write_end)),
                *(self._chromium, *flags.split(), f"--user-data-dir={self._folder.name}", "about:blank"),
            ],
            pass_fds=(read_end, write_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_end)
        os.close(write_end)
        self._pending = b""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._folder.cleanup()

    def open(self, path: Path, *, width: int, height: int = 900, is_dark: bool = False, is_print: bool = False) -> Page:
        """Show a local file in a window of this width, without a network, and wait until its figures are drawn."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session)
        page.send("Page.enable")
        page.send("Network.enable")
        page.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        page.send("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        page.send("Emulation.setEmulatedMedia", media="print" if is_print else "", features=features)
        page.send("Page.navigate", url=path.resolve().as_uri())
        page.evaluate(READY)
        return page

    def send(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        """Send a command of the DevTools protocol and wait for its answer."""
        self._num_sent += 1
        message = {"id": self._num_sent, "method": method, "params": params} | (
            {"sessionId": session} if session else {}
        )
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._num_sent:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            received = os.read(self._read, 1 << 16)
            if not received:
                raise RuntimeError("Chromium ended")
            self._pending += received
        message, _, self._pending = self._pending.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@dataclass(frozen=True)
class Page:
    """A page in its own tab."""

    browser: Browser
    session: str

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, params, self.session)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page, also what lies below the window, as PNG."""
        image = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it is printed."""
        printed = self.send("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        path.write_bytes(base64.b64decode(printed["data"]))
