"""RMSNorm, SwiGLU and the residual around them in one autograd function.

out = x + down(silu(gate(y)) · up(y)) with y = RMSNorm(x) (Shazeer 2020). gate(y) and up(y) are by far the widest
tensors of a decoder layer (71 % of what this path keeps at the Qwen2.5-0.5B shape). They are kept, or computed again in
the backward pass: two of a layer's matrix products more, for that share of the memory. On the CPU they and their gradients
are stored column by column (``projections.product``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional as F

from mac_lora_helpers.training.fast.projections import Norm, Projection, Rows


class NormedSwiGLU(Function):
    """x (N, width) → x + MLP(RMSNorm(x)).

    Args:
        parts: gate, up and down projections.
        rows: which rows x holds of all, for dropout's generator; None: all.
        recompute: compute gate(y) and up(y) again in the backward pass instead of keeping them.
        adapters: A and B of gate, up and down (None without an adapter), for autograd.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, norm: Norm, parts: tuple[Projection, ...], rows: Rows, recompute: bool, *adapters: Any
    ) -> torch.Tensor:
        gate, up, down = parts
        scale = norm.scale(x)
        y = norm(x, scale)
        gate_stays = gate.draw(y, rows)
        g, gate_inner = gate.forward(y, gate_stays, turned=True)
        up_stays = up.draw(y, rows)
        u, up_inner = up.forward(y, up_stays, turned=True)
        product = F.silu(g).mul_(u)
        down_stays = down.draw(product, rows)
        out, down_inner = down.forward(product, down_stays, onto=x)
        ctx.norm, ctx.parts = norm, parts
        wide = (None, None) if recompute else (g, u)
        ctx.save_for_backward(x, scale, *wide, gate_inner, up_inner, down_inner, gate_stays, up_stays, down_stays)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, scale, g, u, gate_inner, up_inner, down_inner, gate_stays, up_stays, down_stays = ctx.saved_tensors
        gate, up, down = ctx.parts
        grad, y = grad.contiguous(), None
        if g is None or gate.a is not None or up.a is not None:
            y = ctx.norm(x, scale)
        if g is None:
            g, u = gate.forward(y, gate_stays, turned=True)[0], up.forward(y, up_stays, turned=True)[0]
        grad_product = down.backward_input(grad, turned=True)
        product = F.silu(g).mul_(u) if down.a is not None else None
        of_down = down.backward_adapter(grad, product, down_inner, down_stays, grad_product)
        grad_g, grad_u = _backward_gates(grad_product, g, u)
        total = up.backward_input(grad_u)
        of_up = up.backward_adapter(grad_u, y, up_inner, up_stays, total)
        total = gate.backward_input(grad_g, total)
        of_gate = gate.backward_adapter(grad_g, y, gate_inner, gate_stays, total)
        grad_x = ctx.norm.backward(total, x, scale).add_(grad)
        return grad_x, None, None, None, None, *of_gate, *of_up, *of_down


def _backward_gates(grad: torch.Tensor, g: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of silu(g) · u to g and u. Overwrites ``grad``, which nobody else holds, with the first."""
    grad_u = F.silu(g).mul_(grad)
    return torch.ops.aten.silu_backward.grad_input(grad.mul_(u), g, grad_input=grad), grad_u
