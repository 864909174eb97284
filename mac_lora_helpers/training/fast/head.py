"""The frozen output head and the log-probabilities of the labels, without keeping any logits.

For one row h with label t: z = W h, log p = z_t − logsumexp(z), and d(log p)/dh = W[t] − softmax(z) W. W is frozen and
the row's gradient depends on that row alone, so it is computed right after the logits, while they are there; the backward
pass only multiplies it by whatever gradient arrives. The vocabulary is multiplied twice a row. Computing the logits again in
the backward pass, as TRL does to save the same memory, makes it three times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

from mac_lora_helpers.training.fast.projections import wide_product

#: Bytes of logits alive at once, and bounds of the rows in a chunk. Fewer rows reread the head's weights more often:
#: 512 rows of a vocabulary of 150,000 took a tenth less time a row than 128 (two-core CPU).
LOGIT_BYTES = {"nothing": 320 * 2**20, "mlp": 160 * 2**20, "layers": 80 * 2**20}
CHUNK_ROWS = (32, 4096)
#: Bytes of logits whose softmax is computed together on the CPU: they stay in its cache, and the allocator hands the same
#: block out again (at twice the size a two-core machine took up to three times as long for page faults).
CPU_BYTES = 5 * 2**19


def chunk_rows(vocabulary: int, itemsize: int = 4, again: str = "nothing") -> int:
    """Rows of logits computed at once; fewer when the plan saves memory (``again``: its kind)."""
    return max(CHUNK_ROWS[0], min(CHUNK_ROWS[1], LOGIT_BYTES[again] // (vocabulary * itemsize) // 8 * 8))


class FrozenHead(Function):
    """(hidden (N, width), weight (V, width), labels (N,)) → log-probability, entropy and top-1 hit of each row.

    log-probabilities and entropies (in nats) are float32. Only the log-probability has a gradient. A label that ties with
    another token for the highest logit counts as a hit.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: int) -> tuple[torch.Tensor, ...]:
        count = hidden.shape[0]
        logits = hidden.new_empty(min(rows, count), weight.shape[0])
        gradient = torch.empty_like(hidden)
        stats = hidden.new_empty(count, 3, dtype=torch.float32)
        for start in range(0, count, rows):
            part = slice(start, min(start + rows, count))
            chunk = logits[: part.stop - start]
            wide_product(hidden[part], weight.t(), out=chunk)
            total = _weigh(chunk, labels[part], stats[part])
            gradient[part] = (chunk @ weight).float().div_(total)
        ctx.save_for_backward(gradient)
        log_p, entropy, hit = stats[:, 0].contiguous(), stats[:, 1].contiguous(), stats[:, 2] > 0
        ctx.mark_non_differentiable(entropy, hit)
        return log_p, entropy, hit

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.unsqueeze(-1).to(gradient.dtype), None, None, None


def _weigh(logits: torch.Tensor, labels: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    """Replaces logits z by e − s · onehot(label), with e = exp(z − max) and s = Σ e; fills log p, entropy and hit.

    Returns:
        −s for each row, (rows, 1), float32: the replaced logits times W, divided by it, are the gradient.
    """
    totals = stats.new_empty(len(logits), 1)
    step = max(CPU_BYTES // (4 * logits.shape[1]), 1) if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), step):
        part = slice(start, start + step)
        totals[part] = _weigh_rows(logits[part], labels[part].unsqueeze(-1), stats[part])
    return totals


def _weigh_rows(logits: torch.Tensor, labels: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    z = logits.float()
    label_z, top = z.gather(-1, labels), z.amax(-1, keepdim=True)
    z = z.sub_(top)
    e = torch.exp(z)
    total = e.sum(-1, keepdim=True)
    log_total = total.log()
    stats[:, 0:1] = label_z - top - log_total
    stats[:, 1:2] = log_total - (e * z).sum(-1, keepdim=True) / total
    stats[:, 2:3] = label_z >= top
    e.scatter_add_(-1, labels, -total)
    logits.copy_(e)
    return -total
