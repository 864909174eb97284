"""How fast this chip multiplies float32 matrices when nothing else is done: what a training step's speed is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

#: Seconds that each product is repeated for. A step takes seconds too, and no chip holds the rate of a single lucky product.
SUSTAINED = 0.5

Clock = Callable[[], list[float]]


def gemm_rates(shape: dict[str, int], length: int, device: str, clock: Clock) -> list[list[float]]:
    """[peak, own] in FLOP/s, each for every clock that ``clock`` reads (wall clock, CPU time).

    ``peak`` is the fastest product, a large square among them. ``own`` is what a fast step's frozen products reach, each
    alone, weighted as the step has them: the rate of a step that did nothing else.
    """
    import torch

    square = torch.randn(1536, 1536, device=device)
    peak = product_rate(square, square, clock)
    work, spent = 0.0, [0.0] * len(peak)
    for left, right, count in step_products(shape, length, device):
        rate = product_rate(left, right, clock)
        peak = [max(pair) for pair in zip(peak, rate, strict=True)]
        flops = 2 * left.shape[0] * left.shape[1] * right.shape[1] * count
        work, spent = work + flops, [total + flops / one for total, one in zip(spent, rate, strict=True)]
    return [peak, [work / total for total in spent]]


def product_rate(left: Any, right: Any, clock: Clock) -> list[float]:
    """FLOP/s of one product, sustained."""
    import torch

    out = torch.mm(left, right)
    start, products = clock(), 0
    while (taken := [end - begin for end, begin in zip(clock(), start, strict=True)])[0] < SUSTAINED:
        torch.mm(left, right, out=out)
        products += 1
    return [2 * left.shape[0] * left.shape[1] * right.shape[1] * products / seconds for seconds in taken]


def step_products(shape: dict[str, int], length: int, device: str) -> Iterator[tuple[Any, Any, int]]:
    """(left, right, how often a step has it) of each frozen product, forward and for the gradient to its input."""
    import torch

    width, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    key = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    outputs = [(width, width, 2 * layers), (width, key, 2 * layers), (width, inner, 2 * layers), (inner, width, layers)]
    for columns, rows, count in [*outputs, (width, shape["vocab_size"], 1)]:
        weight = torch.randn(rows, columns, device=device)
        yield torch.randn(length, columns, device=device), weight.t(), count
        yield torch.randn(length, rows, device=device), weight, count
