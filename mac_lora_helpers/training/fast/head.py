"""The frozen output head and the log-probabilities of the labels, without ever holding a row's logits.

For one row h with label t: z = W h, log p = z_t − log Σ exp(z), and d(log p)/dh = W[t] − softmax(z) W. W is frozen and the
row's gradient depends on that row alone, so it is computed in the forward pass; the backward pass only multiplies it by
whatever gradient arrives. The vocabulary is multiplied twice a row. Computing the logits again in the backward pass, as TRL
does to save the same memory, makes it three times.

The vocabulary is gone through in parts, with the softmax computed online (Milakov & Gimelshein 2018): for the entries
seen so far the highest logit m, Σ e, Σ e·(z − m) and Σ e·W with e = exp(z − m), all multiplied by exp(m − m') when a part
brings a higher m'. So a part's logits are used while they are in the cache, and the memory does not depend on the
vocabulary. The label's own entry is left out of the sums: with s = Σ e over the others, the gradient is
(s · W[t] − Σ e·W) / (s + e_t), which is exact to rounding also where p is nearly 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function

#: Rows, and vocabulary entries, that are multiplied together. A CPU's cache holds that many logits and their exponentials;
#: other devices want wider products, and get narrower ones where the plan computes something again to save memory.
ROWS = 1024
CPU_COLUMNS, COLUMNS = 3072, {"nothing": 8192, "mlp": 4096, "layers": 2048}
#: Below any logit, and finite: a first part must not multiply 0 by infinity.
LOWEST = -1e30


def tile(device: str, again: str = "nothing") -> tuple[int, int]:
    """(rows, vocabulary entries) multiplied together on a type of device; ``again``: the plan's kind."""
    return ROWS, CPU_COLUMNS if device == "cpu" else COLUMNS[again]


def tile_bytes(tokens: int, width: int, vocabulary: int, itemsize: int, size: tuple[int, int]) -> int:
    """What ``FrozenHead`` allocates beside its result: logits and exponentials of a tile, and Σ e·W of its rows."""
    rows, columns = min(tokens, size[0]), min(vocabulary, size[1])
    narrow = itemsize if itemsize < 4 else 0  # logits in that dtype beside their float32 copy
    return rows * columns * (8 + narrow) + rows * width * (8 + 2 * narrow)


class FrozenHead(Function):
    """(hidden (N, width), weight (V, width), labels (N,)) → log-probability, entropy and top-1 hit of each row.

    log-probabilities and entropies (in nats) are float32. Only the log-probability has a gradient. A label that ties with
    another token for the highest logit counts as a hit. ``size``: rows and vocabulary entries multiplied together.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, size: tuple[int, int]
    ) -> tuple[torch.Tensor, ...]:
        gradient = torch.empty_like(hidden)
        stats = hidden.new_empty(3, len(hidden), dtype=torch.float32)
        buffers = _buffers(hidden, weight, size)
        for start in range(0, len(hidden), size[0]):
            part = slice(start, start + size[0])
            gradient[part] = _score(hidden[part], weight, labels[part], size[1], buffers, stats[:, part])
        ctx.save_for_backward(gradient)
        log_p, entropy, hit = stats[0], stats[1], stats[2] > 0
        ctx.mark_non_differentiable(entropy, hit)
        return log_p, entropy, hit

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.unsqueeze(-1).to(gradient.dtype), None, None, None


def _buffers(hidden: torch.Tensor, weight: torch.Tensor, size: tuple[int, int]) -> list[torch.Tensor]:
    """Flat memory for a part's logits, exponentials and, for a narrower dtype, the logits in float32."""
    numbers = min(len(hidden), size[0]) * min(len(weight), size[1])
    dtypes = [hidden.dtype, torch.float32, *([torch.float32] if hidden.dtype != torch.float32 else [])]
    return [hidden.new_empty(numbers, dtype=dtype) for dtype in dtypes]


@dataclass
class _Seen:
    """What is known of each row after a part of the vocabulary, float32, (1, rows); the sums leave the label out.

    Attributes:
        top: highest logit. label: the label's logit.
        total: Σ e. moment: Σ e·(z − top).
    """

    top: torch.Tensor
    label: torch.Tensor
    total: torch.Tensor
    moment: torch.Tensor

    def take(self, z: torch.Tensor, e: torch.Tensor, place: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        """Takes in logits z (entries, rows), which it overwrites; fills e, 0 at the label. Returns what earlier sums shrink by.

        ``place``: the label's row in z, (1, rows), where ``here`` says that it is in this part.
        """
        self.label = torch.where(here, z.gather(0, place), self.label)
        top = torch.maximum(self.top, z.amax(0, keepdim=True))
        torch.exp(z.sub_(top), out=e)
        e.scatter_(0, place, e.gather(0, place).masked_fill_(here, 0))
        drop = self.top - top
        shrink = drop.exp()
        self.moment = shrink * (self.moment + drop * self.total) + z.mul_(e).sum(0, keepdim=True)
        self.total = shrink * self.total + e.sum(0, keepdim=True)
        self.top = top
        return shrink

    def finish(self, stats: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fills log p, entropy and hit (3, rows). Returns Σ e without the label, and with it."""
        above = self.label - self.top
        own = above.exp()
        total = self.total + own
        log_total = total.log()
        stats[0] = (above - log_total)[0]
        stats[1] = (log_total - (self.moment + own * above) / total)[0]
        stats[2] = (above >= 0)[0]
        return self.total, total


def _score(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, columns: int, buffers: list[torch.Tensor], stats: torch.Tensor
) -> torch.Tensor:
    """Fills log p, entropy and hit (3, rows); returns d(log p)/d(hidden), (rows, width), in hidden's dtype.

    Logits stand as (vocabulary entries, rows): with a row of W in each row the products are the chip's fastest.
    """
    (rows, width), labels = hidden.shape, labels.unsqueeze(0)
    turned, mixed = hidden.t().contiguous(), hidden.new_zeros(width, rows, dtype=torch.float32)
    start_at = [hidden.new_full((1, rows), value, dtype=torch.float32) for value in (LOWEST, LOWEST, 0, 0)]
    seen = _Seen(*start_at)
    for start in range(0, len(weight), columns):
        part = weight[start : start + columns]
        logits, e, *copy = (buffer[: len(part) * rows].view(len(part), rows) for buffer in buffers)
        torch.mm(part, turned, out=logits)
        place = labels - start
        here = (place >= 0) & (place < len(part))
        shrink = seen.take(copy[0].copy_(logits) if copy else logits, e, place.clamp_(0, len(part) - 1), here)
        mixed.mul_(shrink)
        if copy:
            mixed.add_(part.t() @ logits.copy_(e))
        else:
            mixed.addmm_(part.t(), e)
    others, total = seen.finish(stats)
    gradient = weight.index_select(0, labels[0]).float().mul_(others.t()).sub_(mixed.t())
    return gradient.div_(total.t()).to(hidden.dtype)
