"""The log of a training: every optimizer step's loss in memory, a row per logging step in ``train_log.jsonl``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mac_lora_helpers.artifacts import RunDir

#: Seconds between two writes of the file; a write replaces the whole file, so a killed run leaves whole lines.
WRITE_EVERY = 1.0


class RunLog:
    """Collects rows, writes them and tells whoever watches.

    Args:
        run: where ``train_log.jsonl`` goes.
        every: optimizer steps between two rows; the first, the last and those with a validation loss always get one.
        watch: called at the start and after each step with all rows so far and ``now`` (``step of loss seconds_left``).
        quietly: keep the rows, write and show nothing: a process that is not the first of several.
    """

    def __init__(self, run: RunDir, every: int, watch: Callable[..., None] | None = None, quietly: bool = False) -> None:
        self.run, self.every, self.quietly = run, every, quietly
        self.watch = None if quietly else watch
        self.rows: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.tokens = self.supervised = 0
        self.eval_seconds = self._seconds_before = 0.0
        self.steps = self._first = 0
        self._start = self._written = time.perf_counter()
        self._since_row: list[float] = []
        self._second: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds spent training so far, over all the processes that took part."""
        return self._seconds_before + time.perf_counter() - self._start

    def begin(self, progress: dict[str, Any] | None, steps: int = 0) -> None:
        """Starts the clock; ``progress`` is what a checkpoint kept of an earlier part of this training of ``steps`` steps."""
        progress = progress or {}
        self.rows, self.losses = [dict(row) for row in progress.get("rows", [])], list(progress.get("losses", []))
        self.tokens, self.supervised = progress.get("tokens", 0), progress.get("supervised", 0)
        self._seconds_before, self._since_row = progress.get("seconds", 0.0), list(progress.get("since_row", []))
        self.eval_seconds = progress.get("eval_seconds", 0.0)
        self._start = self._written = time.perf_counter()
        self.steps, self._first, self._second = steps, len(self.losses), None
        self._tell()

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps of the log."""
        return {
            "rows": self.rows,
            "losses": self.losses,
            "tokens": self.tokens,
            "supervised": self.supervised,
            "seconds": self.seconds,
            "eval_seconds": self.eval_seconds,
            "since_row": self._since_row,
        }

    def step(self, step: int, due: bool, loss: float, **values: Any) -> None:
        """Records one optimizer step; adds a row when one is due.

        Args:
            step: optimizer steps done, from 1.
            due: whether it gets a row in any case.
            loss: mean over the step's supervised tokens.
            values: ``grad_norm``, ``learning_rate``, ``epoch`` and ``memory_bytes``.
        """
        self.losses.append(loss)
        self._since_row.append(loss)
        if step == self._first + 1:
            self._second = time.perf_counter()  # the first step of a process warms up and tells nothing of the others
        if step == 1 or due or step % self.every == 0:
            mean = sum(self._since_row) / len(self._since_row)
            self._since_row = []
            self.rows.append({"step": step, "loss": mean, "tokens": self.tokens, "seconds": round(self.seconds, 3), **values})
            if time.perf_counter() - self._written >= WRITE_EVERY:
                self.write()
        self._tell()

    def validated(self, loss: float, seconds: float) -> None:
        """Adds the validation loss to the newest row, the one of this step."""
        self.rows[-1]["eval_loss"] = loss
        self.eval_seconds += seconds
        self._tell()

    def write(self) -> None:
        """Writes ``train_log.jsonl``, whole."""
        if not self.quietly:
            self.run.write_lines("train_log", self.rows)
        self._written = time.perf_counter()

    def end(self) -> None:
        """Writes the file and tells that the training is over, finished or not."""
        self.write()
        self._tell(over=True)

    def now(self) -> dict[str, Any]:
        """The newest figures; ``seconds_left`` from this process's own second step on."""
        done = len(self.losses)
        timed = done - self._first - 1
        pace = (time.perf_counter() - self._second) / timed if self._second and timed > 0 else None
        left = pace * (self.steps - done) if pace is not None else None
        return {"step": done, "of": self.steps, "loss": self.losses[-1] if self.losses else None, "seconds_left": left}

    def _tell(self, over: bool = False) -> None:
        if self.watch is None:
            return
        try:
            self.watch(self.rows, {**self.now(), "over": over})
        except Exception as error:
            self.watch = None
            print(f"The live figure is off, training goes on ({type(error).__name__}: {error}).")
