"""How the CPU's threads wait for each other: spinning or asleep. Chosen by the machine's load, before torch is imported.

torch shares a matrix product among threads, and between two products they wait. Spinning they are there at once, which is best on a
quiet machine; beside another busy program they take its cores and theirs from each other, and a step takes several times as long.
"""

from __future__ import annotations

import os
import sys

#: What a user may have set: OpenMP's own variable, and those of GNU's and LLVM's libraries.
OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
#: Keeps the choice and its reason for the processes that this one starts.
CHOSEN = "MAC_LORA_THREADS"
#: From this many busy cores on the machine counts as busy.
BUSY = 0.5


def settle() -> str:
    """Chooses how threads wait, once; a setting of the user's own wins. Call it before torch is imported.

    Returns:
        The choice and why, in one sentence.
    """
    if CHOSEN in os.environ:
        return os.environ[CHOSEN]
    if own := [f"{name}={os.environ[name]}" for name in OWN if name in os.environ]:
        return f"as you set it: {', '.join(own)}"
    if "torch" in sys.modules:
        return "left as it is: torch was imported before the choice could be made"
    return _choose(busy_cores(), os.cpu_count() or 1)


def _choose(busy: float, cores: int) -> str:
    seen = f"{busy:.1f} of {cores} cores busy with other work"
    if busy >= BUSY:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        reason = f"asleep ({seen}): spinning threads would take turns with it, and a step would take several times as long"
    else:
        reason = f"spinning ({seen}): the quickest way on a quiet machine"
    os.environ[CHOSEN] = reason
    return reason


def busy_cores() -> float:
    """How many cores other programs keep busy: the least of three short looks, so that a moment's work does not count."""
    try:
        import psutil

        return min(psutil.cpu_percent(0.1) for _ in range(3)) / 100 * (psutil.cpu_count() or 1)
    except Exception:  # without psutil, or where the system does not tell
        return 0.0
