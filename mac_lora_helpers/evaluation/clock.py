"""Work in rounds: its cost is said once the first round is done, and when its time is over, what is there counts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from mac_lora_helpers.text import duration

#: Rounds are this many batches, the first is one; seconds between two words about it.
ROUND, EVERY = 4, 15.0


def in_time(items: Sequence[Any], batch: int, minutes: float, what: str) -> Iterator[list[Any]]:
    """The items in rounds, until all were given or the time is over; work of a few seconds is not talked about.

    Args:
        items: in an order of which every beginning is a fair choice. what: words for the items, such as ``rows scored``.
    """
    begin, limit, said, done, take = time.monotonic(), 60 * minutes, 0.0, 0, batch
    while part := list(items[done : done + take]):
        yield part
        done, spent = done + len(part), time.monotonic() - begin
        each, left = spent / done, len(items) - done
        room = max(0, int((limit - spent) / max(each, 1e-9)))
        take = min(ROUND * batch, room)
        if left and not room:
            print(f"{done} of {len(items)} {what}; eval_minutes are over, so these count.", flush=True)
        elif each * left > EVERY / 5 and spent - said > (EVERY if said else 0):
            said = spent
            enough = "" if room >= left else f": time for about {done + room} of them"
            print(f"{done} of {len(items)} {what}, about {duration(each * min(room, left))} left{enough}", flush=True)
