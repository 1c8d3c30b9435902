"""What Ray Tune tells of its trials, passed on to `progress.py`. A trial is a group of workers, which works on pack after pack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune import Callback

from w2s_ray.scheduling.progress import Progress
from w2s_ray.scheduling.searcher import DagSearcher


class TuneProgress(Callback):
    def __init__(self, progress: Progress, searcher: DagSearcher) -> None:
        self.progress = progress
        self.searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore, which is never used here."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        slots = self.progress.slots
        for trial_id, (pack, _began_s) in self.searcher.packs.items():
            if trial_id not in slots or slots[trial_id].pack is not pack:
                self.progress.begin_pack(trial_id, pack)
        self.progress.look()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.progress.take(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.progress.end_pack(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        said = Path(trial.error_file) if trial.error_file else None
        self.progress.end_pack(trial.trial_id, error=said.read_text() if said and said.exists() else "no traceback")
