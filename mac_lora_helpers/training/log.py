"""The log of a training: every optimizer step's loss in memory, a row per logging step in ``train_log.jsonl``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mac_lora_helpers.artifacts import RunDir

#: Seconds between two writes of the file; a write replaces the whole file, so a killed run leaves whole lines.
WRITE_EVERY = 1.0


class RunLog:
    """Collects rows, writes them and hands them to a live figure.

    Args:
        run: where ``train_log.jsonl`` goes.
        every: optimizer steps between two rows; the first and the last step always get one.
        on_log: called with all rows so far after each new one.
        quietly: keep the rows, write and show nothing: a process that is not the first of several.
    """

    def __init__(
        self, run: RunDir, every: int, on_log: Callable[[list[dict[str, Any]]], None] | None = None, quietly: bool = False
    ) -> None:
        self.run, self.every, self.quietly = run, every, quietly
        self.on_log = None if quietly else on_log
        self.tracker: Any = None
        self.rows: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.tokens = self.supervised = 0
        self._seconds_before = 0.0
        self._start = self._written = time.perf_counter()
        self._since_row: list[float] = []

    @property
    def seconds(self) -> float:
        """Seconds spent training so far, over all the processes that took part."""
        return self._seconds_before + time.perf_counter() - self._start

    def begin(self, progress: dict[str, Any] | None) -> None:
        """Starts the clock; ``progress`` is what a checkpoint kept of an earlier part of this training."""
        progress = progress or {}
        self.rows, self.losses = list(progress.get("rows", [])), list(progress.get("losses", []))
        self.tokens, self.supervised = progress.get("tokens", 0), progress.get("supervised", 0)
        self._seconds_before, self._since_row = progress.get("seconds", 0.0), list(progress.get("since_row", []))
        self._start = self._written = time.perf_counter()

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps of the log."""
        return {
            "rows": self.rows,
            "losses": self.losses,
            "tokens": self.tokens,
            "supervised": self.supervised,
            "seconds": self.seconds,
            "since_row": self._since_row,
        }

    def step(self, step: int, last: bool, loss: float, **values: Any) -> None:
        """Records one optimizer step; adds a row when one is due.

        Args:
            step: optimizer steps done, from 1.
            last: whether this is the final one.
            loss: mean over the step's supervised tokens.
            values: ``grad_norm``, ``learning_rate``, ``epoch`` and ``memory_bytes``.
        """
        self.losses.append(loss)
        self._since_row.append(loss)
        if not (step == 1 or last or step % self.every == 0):
            return
        mean = sum(self._since_row) / len(self._since_row)
        self._since_row = []
        self.rows.append({"step": step, "loss": mean, "tokens": self.tokens, "seconds": round(self.seconds, 3), **values})
        if last or time.perf_counter() - self._written >= WRITE_EVERY:
            self.write()
        self._show()
        if self.tracker is not None:
            self.tracker.rows(self.rows)

    def write(self) -> None:
        """Writes ``train_log.jsonl``, whole."""
        if not self.quietly:
            self.run.write_lines("train_log", self.rows)
        self._written = time.perf_counter()

    def _show(self) -> None:
        if self.on_log is None:
            return
        try:
            self.on_log(self.rows)
        except Exception as error:
            self.on_log = None
            print(f"The live figure is off, training goes on ({type(error).__name__}: {error}).")
