"""What a training step allocates and frees, in order, recorded on the meta device: shapes only, no weights, no numbers.

A step's forward and backward pass runs on PyTorch's ``meta`` device under a dispatch mode that sees every new storage and
every one that dies. The tape of that is exact for any architecture and needs no constant fitted to one. The order of
allocations does not depend on the sizes, so a few recordings at small shapes give each block's size as a polynomial in
rows, tokens and rank; any other shape is then computed without torch.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Marks on a tape: (name, number of events before it).
Marks = dict[str, int]


@dataclass(frozen=True)
class Tape:
    """Events of one step: ``block[i]`` is the block that event i allocates or frees, ``size[i]`` its bytes.

    Attributes:
        block: (events,) numbers of blocks, counted from 0 in the order of allocation.
        sign: (events,) +1 where it is allocated, −1 where it is freed.
        size: (events,) bytes.
        marks: places by name, such as the loss's forward and backward pass.
    """

    block: np.ndarray
    sign: np.ndarray
    size: np.ndarray
    marks: Marks

    @property
    def live(self) -> np.ndarray:
        """Bytes alive after each event."""
        return np.cumsum(self.sign * self.size)

    def alive_at(self, mark: str) -> int:
        """Bytes alive at a mark."""
        place = self.marks[mark]
        return int(self.live[place - 1]) if place else 0

    def same_order(self, other: Tape) -> bool:
        """Whether two tapes have the same events in the same order."""
        return len(self.sign) == len(other.sign) and bool((self.block == other.block).all()) and self.marks == other.marks


class Recorder:
    """Records a tape while ``recording``; ``mark`` names the current place."""

    def __init__(self, ignored: Iterable[Any] = ()) -> None:
        # storages that were there before; kept alive so that their address is not given to a new one
        self._ignored = [tensor.untyped_storage() for tensor in ignored]
        self._known: dict[int, Any] = {storage._cdata: None for storage in self._ignored}
        self._events: list[tuple[int, int, int]] = []
        self._blocks = 0
        self.marks: Marks = {}

    def mark(self, name: str) -> None:
        self.marks.setdefault(name, len(self._events))

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Everything allocated inside; the garbage collector waits, so that two recordings have the same order."""
        collects = gc.isenabled()
        gc.disable()
        try:
            with _mode(self._see):
                yield
        finally:
            if collects:
                gc.enable()

    def tape(self) -> Tape:
        """What was recorded so far."""
        events = np.array(self._events, dtype=np.int64).reshape(-1, 3)
        return Tape(events[:, 0], events[:, 1], events[:, 2], dict(self.marks))

    def _see(self, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        key, size, block = storage._cdata, storage.nbytes(), self._blocks
        if key in self._known or size == 0:
            return
        self._blocks += 1
        self._events.append((block, 1, size))

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self._events.append((block, -1, size))

        self._known[key] = weakref.ref(storage, gone)


def _mode(see: Callable[[Any], None]) -> Any:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for item in tree_iter(out):
                if isinstance(item, torch.Tensor):
                    see(item)
            return out

    return Mode()


@dataclass(frozen=True)
class Form:
    """A tape for every shape: each event's bytes as a polynomial in rows, tokens and rank.

    Attributes:
        pattern: a tape with this order.
        coefficients: (features, events).
    """

    pattern: Tape
    coefficients: np.ndarray

    def at(self, rows: int, tokens: int, rank: int) -> Tape:
        """The tape of one shape."""
        size = np.rint(_features(rows, tokens, rank) @ self.coefficients).astype(np.int64)
        return Tape(self.pattern.block, self.pattern.sign, size, self.pattern.marks)


def _features(rows: int, tokens: int, rank: int) -> np.ndarray:
    """With one row, as with many, sizes are sums of these; rows come in with tokens only."""
    return np.array([1, rank, tokens, tokens**2, rows * tokens, rows * tokens**2, rows * tokens * rank], dtype=np.float64)


#: (rows, tokens, rank) to record at: enough to tell the features apart. One row is a case of its own: reshaping copies less.
SAMPLES = {
    False: [(2, 64, 8), (2, 128, 8), (3, 64, 8), (3, 128, 8), (2, 192, 8), (3, 192, 8), (2, 64, 16), (2, 128, 16)],
    True: [(1, 64, 8), (1, 128, 8), (1, 192, 8), (1, 64, 16), (1, 128, 16), (1, 192, 16)],
}


def record_form(record: Callable[[int, int, int], Tape], one_row: bool) -> Form | None:
    """Fits the polynomials to recordings at small shapes; None where the order depends on the shape.

    Args:
        record: (rows, tokens, rank) → tape.
        one_row: for batches of one row, or of several.
    """
    samples = SAMPLES[one_row]
    tapes = [record(*sample) for sample in samples]
    if not all(tape.same_order(tapes[0]) for tape in tapes):
        return None
    features, sizes = np.stack([_features(*sample) for sample in samples]), np.stack([tape.size for tape in tapes])
    coefficients, *_ = np.linalg.lstsq(features, sizes.astype(np.float64), rcond=None)
    if np.abs(features @ coefficients - sizes).max(initial=0) > 64:
        return None
    return Form(tapes[0], coefficients)
