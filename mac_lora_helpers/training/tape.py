"""What a training step allocates and frees, in order, recorded on the meta device: shapes only, no weights, no numbers.

A step's forward and backward pass runs on PyTorch's ``meta`` device under a dispatch mode that sees every new storage and
every one that dies. The tape of that is exact for any architecture and needs no constant fitted to one. The order of
allocations does not depend on the sizes, so one recording more, at a shape of prime numbers, tells each block's size for every
shape; from then on the tape is computed without torch.
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


#: (rows, tokens, rank) of the recording that a form is read off: primes, and tokens − 1 twice a prime, that hardly any model has
#: among its sizes. Nothing is computed on the meta device, so a large shape costs no more than a small one.
MARKERS = (53, 479, 127)


@dataclass(frozen=True)
class Form:
    """A tape for every shape: each block's bytes as a number times powers of rows, tokens, tokens − 1 and rank.

    Attributes:
        pattern: a tape with this order.
        numbers: (events,) what the shape leaves alone.
        powers: (4, events) of rows, tokens, tokens − 1 (positions with a next token) and rank.
    """

    pattern: Tape
    numbers: np.ndarray
    powers: np.ndarray

    def at(self, rows: int, tokens: int, rank: int) -> Tape:
        """The tape of one shape."""
        bases = np.array([[rows], [tokens], [tokens - 1], [rank]], dtype=np.int64)
        size = self.numbers * (bases**self.powers).prod(axis=0)
        return Tape(self.pattern.block, self.pattern.sign, size, self.pattern.marks)


def read_form(record: Callable[[int, int, int], Tape], asked: tuple[int, int, int], seen: Tape) -> Form | None:
    """Reads the powers off one recording by its prime factors; None where that does not give the tape that was ``seen``.

    A block's bytes are a product of the tensor's sizes, so a prime in them tells which size of the batch went in, and how often.

    Args:
        record: (rows, tokens, rank) → tape.
        asked: the shape of ``seen``. One row is a case of its own: reshaping copies less.
    """
    rows = 1 if asked[0] == 1 else MARKERS[0]
    tape = record(rows, *MARKERS[1:])
    if not tape.same_order(seen):
        return None
    numbers, powers = tape.size.copy(), []
    for prime in (rows, MARKERS[1], (MARKERS[1] - 1) // 2, MARKERS[2]):
        power = _power(numbers, prime)
        numbers //= prime**power
        powers.append(power)
    numbers //= 2 ** powers[2]
    form = Form(tape, numbers, np.stack(powers))
    return form if (form.at(*asked).size == seen.size).all() else None


def _power(numbers: np.ndarray, prime: int) -> np.ndarray:
    """How often a prime goes into each number; 0 for a prime of one."""
    power, left = np.zeros_like(numbers), numbers.copy()
    while prime > 1 and (divides := (left % prime == 0) & (left > 0)).any():
        power[divides] += 1
        left[divides] //= prime
    return power
