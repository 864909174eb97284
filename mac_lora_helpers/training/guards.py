"""When to stop a training, as plain decisions over numbers; the trainer feeds them and acts."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.text import size

#: Steps in a row above the limit, and steps that the level at the start is taken from.
EXPLODING_STEPS = 3
LEVEL_STEPS = 5
#: From this many rows a step, the first loss alone tells the level: it is the only one before any update.
STEADY_ROWS = 4
#: Seconds between two looks at the machine's memory.
LOOK_EVERY = 5.0


class TrainingStopped(CheckFailed):
    """A guard stopped the training; what was good before is on disk."""


def unstable_advice(learning_rate: float, max_seq_length: int, dtype: str) -> str:
    """The reference's advice for a loss that is NaN or explodes, with this run's numbers."""
    first = "" if dtype == "float32" else f"set dtype=float32 (it was {dtype}); "
    return (
        f"{first}lower the learning rate (learning_rate={learning_rate / 2:.1e}, then {learning_rate / 4:.1e}); "
        f"shorten the sequences (max_seq_length={max(8, max_seq_length * 3 // 4)}); "
        "on MPS compare with device=cpu, which tells a bad step from a bad kernel"
    )


def not_finite(loss: float, grad_norm: float) -> str:
    """What is not finite in this step, or an empty text."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return "" if math.isfinite(grad_norm) else f"the gradient norm is {grad_norm}"


class LossGuard:
    """Watches for an exploding loss: ``EXPLODING_STEPS`` losses in a row above a limit.

    The level at the start is the median of the first ``LEVEL_STEPS`` losses, or the first one if that is lower and a
    step has at least ``STEADY_ROWS`` rows. The limit is twice the level and at least 2 nats above it; with a known
    vocabulary it is never more than 1 nat above the loss of guessing, ln V, unless the level itself is.

    Args:
        losses: of the steps before, for a training that goes on.
        rows: per optimizer step.
        vocabulary: entries; 0 if unknown.
    """

    def __init__(self, losses: list[float] | None = None, rows: int = 1, vocabulary: int = 0) -> None:
        self.losses, self.rows = list(losses or []), rows
        self.guessing = math.log(vocabulary) if vocabulary > 1 else math.inf

    def explodes(self, loss: float) -> bool:
        """Takes the next step's loss and says whether to stop."""
        self.losses.append(loss)
        if len(self.losses) < LEVEL_STEPS + EXPLODING_STEPS:
            return False
        return min(self.losses[-EXPLODING_STEPS:]) > self.limit

    @property
    def limit(self) -> float:
        """The loss above which a step counts as too high; infinite before the level is known."""
        if len(self.losses) < LEVEL_STEPS:
            return math.inf
        level = statistics.median(self.losses[:LEVEL_STEPS])
        if self.rows >= STEADY_ROWS:
            level = min(level, self.losses[0])
        return min(max(2 * level, level + 2), max(self.guessing + 1, level + 2))


@dataclass(frozen=True)
class MemoryState:
    """The machine's memory at one moment, in bytes; ``pressure``: macOS's level 1 normal, 2 warning, 4 critical."""

    total: int
    available: int
    swap_used: int
    pressure: int = 1


def read_memory_state() -> MemoryState:
    """This machine's memory now."""
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return MemoryState(memory.total, memory.available, swap.used, _macos_pressure() if sys.platform == "darwin" else 1)


def _macos_pressure() -> int:
    """``kern.memorystatus_vm_pressure_level`` by ``sysctlbyname``; 1 where it cannot be read."""
    import ctypes

    level, size = ctypes.c_int(1), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    try:
        libc = ctypes.CDLL(None)
        failed = libc.sysctlbyname(b"kern.memorystatus_vm_pressure_level", ctypes.byref(level), ctypes.byref(size), None, 0)
    except (OSError, AttributeError):
        return 1
    return 1 if failed else level.value


class MemoryGuard:
    """Stops a training that has begun to swap: macOS swaps instead of failing, and the run would never end.

    Stops when swap grew since the start by more than a tenth of the memory (at least 1 GB), when macOS calls the
    pressure critical twice in a row, or when less than 2 % of the memory is left twice in a row.

    Args:
        read: gives a ``MemoryState``.
        every: seconds between two looks.
    """

    def __init__(self, read: Callable[[], MemoryState] = read_memory_state, every: float = LOOK_EVERY) -> None:
        self.read, self.every = read, every
        self._start: MemoryState | None = None
        self._looked = -math.inf
        self._tight = 0

    def problem(self, now: float | None = None) -> str:
        """What is wrong with the memory, or an empty text; looks at most once in ``every`` seconds."""
        now = time.monotonic() if now is None else now
        if now - self._looked < self.every:
            return ""
        self._looked, state = now, self.read()
        self._start = self._start or state
        grown = state.swap_used - self._start.swap_used
        if grown > max(state.total // 10, 10**9):
            return f"swap grew by {size(grown)} since the training began ({size(state.available)} of {size(state.total)} are free)"
        self._tight = self._tight + 1 if state.pressure >= 4 or state.available < state.total // 50 else 0
        if self._tight < 2:
            return ""
        level = "critical memory pressure" if state.pressure >= 4 else "almost no free memory"
        return f"{level}: {size(state.available)} of {size(state.total)} are free"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch or Python says that memory ran out (CUDA, MPS or CPU)."""
    names = {kind.__name__ for kind in type(error).__mro__}
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "buffer size")
    told = str(error).lower()
    return (
        "OutOfMemoryError" in names or "MemoryError" in names or (isinstance(error, RuntimeError) and any(word in told for word in words))
    )
