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
        for trial_id in self.searcher.packs:
            self._look_at_pack(trial_id)
        self.progress.look()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self._look_at_pack(trial.trial_id)
        self.progress.take(trial.trial_id, result)

    def _look_at_pack(self, trial_id: str) -> None:
        """Notice a pack that a group of workers has got since the last look. Tune tells of trials alone."""
        pack, _ = self.searcher.packs.get(trial_id, (None, 0.0))
        slot = self.progress.slots.get(trial_id)
        if pack is not None and (slot is None or slot.pack is not pack):
            self.progress.begin_pack(trial_id, pack)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.progress.end_pack(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        said = Path(trial.error_file) if trial.error_file else None
        self.progress.end_pack(trial.trial_id, error=said.read_text() if said and said.exists() else "no traceback")
