"""Frozen linear layers with LoRA adapters, RMSNorm and rotary positions as autograd functions.

Shapes: N = rows × tokens of the batch, r = the adapter's rank. Everything is two-dimensional (N, width) and contiguous,
which is also what MPS handles without surprises. The frozen weights get no gradient, so none is computed for them.

Kept for the backward pass: the input of each function (which the residual stream holds anyway), one number a row for
RMSNorm, and r numbers a row for each adapter. The normalized input is computed again; that is one multiplication.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function


def product(x: torch.Tensor, weight: torch.Tensor, turned: bool = False) -> torch.Tensor:
    """x (N, in) times weight (in, columns).

    ``turned``: on the CPU the result is stored column by column, as weightᵀ xᵀ: at 512 rows and 4864 columns that took a tenth
    less time than as it stands (two cores), and what is computed from it number by number keeps that order.
    """
    return torch.mm(weight.t(), x.t()).t() if turned and x.device.type == "cpu" else torch.mm(x, weight)


@dataclass(frozen=True)
class Norm:
    """RMSNorm (Zhang & Sennrich 2019): y = w · x / sqrt(mean(x²) + eps), computed in float32 as transformers does."""

    weight: torch.Tensor
    eps: float

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """1 / sqrt(mean(x²) + eps) for each row, float32, shape (…, 1)."""
        return torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)

    def __call__(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The normalized rows, in x's dtype."""
        return self.weight * (x.float() * scale).to(x.dtype)

    def backward(self, grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """dx = scale · (g − x̂ · mean(g · x̂)) with x̂ = x · scale and g = grad · w; a new tensor."""
        unit, grad = x.float() * scale, (grad * self.weight).float()
        mean = (grad * unit).mean(-1, keepdim=True)
        return torch.addcmul(grad, unit, mean, value=-1).mul_(scale).to(x.dtype)


@dataclass(frozen=True)
class ChosenRows:
    """Rows that are computed: their indices, and how many there would be."""

    index: torch.Tensor
    of: int


Rows = ChosenRows | None


@dataclass(frozen=True)
class Projection:
    """A frozen layer x Wᵀ + bias, and beside it, if there is one, an adapter scale · drop(x) Aᵀ Bᵀ (Hu et al. 2021).

    Args:
        weight: (out, in). bias: (out,) or None.
        a, b: (r, in) and (out, r), trained, or None. They may be float32 beside a bfloat16 weight: the products then
            run in the weight's dtype, as under autocast, while A, B and their gradients stay float32.
        dropout: probability; 0 when not training.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    scale: float = 1.0
    dropout: float = 0.0

    @property
    def adapter(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """A and B, which autograd must see as arguments."""
        return self.a, self.b

    def draw(self, x: torch.Tensor, rows: Rows = None) -> torch.Tensor | None:
        """Which inputs of the adapter stay, as ``torch.nn.Dropout`` draws them on the CPU: same generator, same order.

        With ``rows`` it is drawn for every row and these are taken, so that the generator goes on as on the plain path.
        """
        if self.a is None or not self.dropout:
            return None
        count = len(x) if rows is None else rows.of
        stays = x.new_empty(count, x.shape[1]).bernoulli_(1 - self.dropout).bool()
        return stays if rows is None else stays.index_select(0, rows.index)

    def drop(self, x: torch.Tensor, stays: torch.Tensor | None) -> torch.Tensor:
        """Dropout's forward and, for a gradient, its backward pass."""
        return x if stays is None else (x * stays).mul_(1 / (1 - self.dropout))

    def forward(
        self, x: torch.Tensor, stays: torch.Tensor | None, onto: torch.Tensor | None = None, turned: bool = False
    ) -> tuple[torch.Tensor, Any]:
        """(N, in) → (N, out), added to ``onto`` if given; and the adapter's inner rows (N, r) or None."""
        out = product(x, self.weight.t(), turned) if onto is None else torch.addmm(onto, x, self.weight.t())
        if self.bias is not None:
            out += self.bias
        if self.a is None:
            return out, None
        inner = self.drop(x, stays) @ self.a.t().to(x.dtype)
        return out.addmm_(inner, self.b.t().to(x.dtype), alpha=self.scale), inner

    def backward_input(self, grad: torch.Tensor, onto: torch.Tensor | None = None, turned: bool = False) -> torch.Tensor:
        """The frozen layer's gradient to its input, added in place to ``onto`` if given."""
        return product(grad, self.weight, turned) if onto is None else onto.addmm_(grad, self.weight)

    def backward_adapter(
        self, grad: torch.Tensor, x: torch.Tensor | None, inner: Any, stays: Any, into: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Gradients to A and B; the adapter's gradient to the input is added in place to ``into`` if given."""
        if self.a is None:
            return None, None
        grad_inner = (grad @ self.b.to(grad.dtype)).mul_(self.scale)
        grad_a = (grad_inner.t() @ self.drop(x, stays)).to(self.a.dtype)
        grad_b = (grad.t() @ inner).to(self.b.dtype).mul_(self.scale)
        if into is not None and stays is None:
            into.addmm_(grad_inner, self.a.to(grad.dtype))
        elif into is not None:
            into.add_(self.drop(grad_inner @ self.a.to(grad.dtype), stays))
        return grad_a, grad_b


class NormedProjections(Function):
    """RMSNorm, then several projections of the same rows: query, key and value."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, norm: Norm, projections: list[Projection], *adapters: Any) -> tuple[torch.Tensor, ...]:
        scale = norm.scale(x)
        y = norm(x, scale)
        outs, inners, masks = [], [], []
        for projection in projections:
            masks.append(projection.draw(y))
            out, inner = projection.forward(y, masks[-1])
            outs.append(out)
            inners.append(inner)
        ctx.norm, ctx.projections = norm, projections
        ctx.save_for_backward(x, scale, *inners, *masks)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        x, scale, *kept = ctx.saved_tensors
        inners, masks = kept[: len(grads)], kept[len(grads) :]
        y, total, adapters = ctx.norm(x, scale), None, []
        for projection, grad, inner, stays in zip(ctx.projections, grads, inners, masks, strict=True):
            grad = grad.contiguous()
            if ctx.needs_input_grad[0]:
                total = projection.backward_input(grad, total)
            adapters += projection.backward_adapter(grad, y, inner, stays, total)
        grad_x = ctx.norm.backward(total, x, scale) if total is not None else None
        return grad_x, None, None, *adapters


class ProjectionOntoResidual(Function):
    """residual + projection(x): the attention's output."""

    @staticmethod
    def forward(ctx: Any, residual: torch.Tensor, x: torch.Tensor, projection: Projection, rows: Rows, *adapter: Any) -> torch.Tensor:
        stays = projection.draw(x, rows)
        out, inner = projection.forward(x, stays, onto=residual)
        ctx.projection = projection
        ctx.save_for_backward(x if projection.a is not None else None, inner, stays)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, inner, stays = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = ctx.projection.backward_input(grad) if ctx.needs_input_grad[1] else None
        return grad, grad_x, None, None, *ctx.projection.backward_adapter(grad, x, inner, stays, grad_x)


class Normed(Function):
    """RMSNorm alone, over the last dimension: Qwen3's query and key norms."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        ctx.norm, scale = norm, norm.scale(x)
        ctx.save_for_backward(x, scale)
        return norm(x, scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.norm.backward(grad, *ctx.saved_tensors), None


class Rotary(Function):
    """Rotary positions (Su et al. 2021) in transformers' half-and-half order.

    x: (rows, tokens, heads, width); cos, sin: (rows or 1, tokens, 1, width). A rotation's gradient is the rotation
    back, so nothing of x is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        (x1, x2), (c1, c2), (s1, s2) = x.chunk(2, -1), cos.chunk(2, -1), sin.chunk(2, -1)
        return torch.cat([x1 * c1 - x2 * s1, x2 * c2 + x1 * s2], dim=-1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (c1, c2), (s1, s2) = (tensor.chunk(2, -1) for tensor in ctx.saved_tensors)
        g1, g2 = grad.chunk(2, -1)
        return torch.cat([g1 * c1 + g2 * s2, g2 * c2 - g1 * s1], dim=-1), None, None
