"""Several processes that train together (``accelerate launch``): who is the first one, and what they must agree on.

With one process every function is a no-op. The launcher tells a process its place in ``RANK``, ``LOCAL_RANK`` and
``WORLD_SIZE``; transformers joins the processes when ``SFTConfig`` is made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from mac_lora_helpers.errors import CheckFailed


def count() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return index() == 0


def choose_gpu(device: str) -> None:
    """On CUDA each process of a machine takes a GPU of its own; without this all of them would load onto the first."""
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        import torch

        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def total(values: Any) -> Any:
    """The sum of a tensor over the processes."""
    if not _joined():
        return values
    import torch
    from accelerate import PartialState

    there = values.detach().clone().to(PartialState().device)
    torch.distributed.all_reduce(there)
    return there.to(values.device)


def any_of(flag: bool) -> bool:
    """Whether any process says yes; all get the same answer, so that they go on or stop together."""
    if not _joined():
        return flag
    import torch

    return bool(total(torch.tensor(float(flag))) > 0)


def most(number: int) -> int:
    """The largest of the processes' numbers."""
    if not _joined():
        return number
    import torch
    from accelerate import PartialState

    there = torch.tensor(number, device=PartialState().device)
    torch.distributed.all_reduce(there, torch.distributed.ReduceOp.MAX)
    return int(there)


def wait() -> None:
    """Returns when every process is here."""
    if _joined():
        import torch

        torch.distributed.barrier()


def raise_together(problem: Exception | None, where: str) -> None:
    """Raises ``problem``; where only another process has one, says so, instead of waiting for it forever."""
    other = any_of(problem is not None)
    if problem is not None:
        raise problem
    if other:
        raise CheckFailed("another of the processes that train together failed", where=where, fix="its own message says why")


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Inside, only the first process prints; every one says its line itself when it fails."""
    if is_main():
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def leave() -> None:
    """Ends the processes' connection, when all are done."""
    if _joined():
        from accelerate import PartialState

        PartialState().destroy_process_group()


def _joined() -> bool:
    if count() == 1:
        return False
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()
