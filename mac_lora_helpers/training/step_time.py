"""How long a step takes: from a short probe, or from what earlier runs did here.

The probe trains one decoder layer of the true width and the true output head, random weights, and multiplies: seconds, and
no weights are loaded. Between models, time is carried over by work: floating-point operations of a step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.training.forecast import MemoryForecast

#: Tokens that the probe takes through the layer and through the head, at most; more go by proportion.
LAYER_TOKENS, HEAD_TOKENS = 512, 128
#: Measured passes; the fastest counts, whatever else the machine does.
PASSES = 2
#: Parameters of one layer and the head above which the probe would itself take too long or too much memory.
LARGEST = 3_000_000_000


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, and where the figure comes from."""

    seconds: float
    source: str


def work(config: Config, model: Any, forecast: MemoryForecast) -> float:
    """Floating-point operations of one row × token: two a weight in the forward pass, two in the backward pass (the
    weights are frozen: no gradient of their own), two more for what is computed again; attention's by its length.

    Args:
        model: ``step_memory.Model``.
        forecast: tells path, shape and checkpointing.
    """
    head = model.vocabulary * model.width
    embedded = head if model.tied else 2 * head
    layers = max(model.parameters - embedded, 0)
    again = 1 if (forecast.path == "plain" and forecast.gradient_checkpointing) or _plan_again(forecast) else 0
    active = (config.lora_layers or model.layers) / max(model.layers, 1)
    attention = 2 * model.layers * model.width * forecast.shape[1]
    per_pass = 2 * layers + attention
    return per_pass * (1 + active * (1 + again)) + 2 * head * (3 if forecast.path == "plain" else 2)


def _plan_again(forecast: MemoryForecast) -> bool:
    return forecast.plan is not None and forecast.plan.whole_layers


def probe(config: Config, model: Any, forecast: MemoryForecast, device: str) -> StepTime | None:
    """Times one layer and the head on this device; None for a model too large for that or one that cannot be cut short.

    Args:
        model: ``step_memory.Model``.
        forecast: tells path, shape, dtype and checkpointing.
    """
    if not model.alike or model.parameters / max(model.layers, 1) + model.vocabulary * model.width > LARGEST:
        return None
    import torch

    from mac_lora_helpers.training.dry_run import shortened, with_adapters
    from mac_lora_helpers.training.recipe import settle_threads

    settle_threads(model.parameters, device)
    rows, tokens = forecast.shape
    lora = model.lora(config.model_copy(update={"lora_layers": 0}))
    peft = with_adapters(shortened(model.config, 1), lora, getattr(torch, forecast.dtype), device=device)
    with contextlib.suppress(RuntimeError):
        layer = _layer_seconds(peft, forecast, min(rows * tokens, LAYER_TOKENS), device)
        head = _head_seconds(peft, forecast, min(rows * tokens, HEAD_TOKENS), device)
        active = config.lora_layers or model.layers
        passes = active + (model.layers - active) / 3
        seconds = rows * tokens * (passes * layer + head) * config.gradient_accumulation_steps
        return StepTime(seconds, f"a probe of one layer and the head on {device}")
    return None


def _layer_seconds(peft: Any, forecast: MemoryForecast, tokens: int, device: str) -> float:
    """Seconds a token of one decoder layer, forward and backward."""
    import torch

    from mac_lora_helpers.training import dry_run

    base = peft.get_base_model()
    ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    again = forecast.plan.kind if forecast.plan else "nothing"
    layers = dry_run.fast_layers(base, again) if forecast.path == "fast" else contextlib.nullcontext()
    if forecast.path == "plain":
        dry_run.checkpoint(base, forecast.gradient_checkpointing)

    def step() -> None:
        base.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state.sum().backward()

    with layers:
        return _fastest(step, device) / tokens


def _head_seconds(peft: Any, forecast: MemoryForecast, tokens: int, device: str) -> float:
    """Seconds a token of the loss, forward and backward."""
    import torch

    weight = peft.get_base_model().get_output_embeddings().weight
    hidden = torch.randn(tokens, weight.shape[1], device=device, dtype=weight.dtype, requires_grad=True)
    labels = torch.zeros(tokens, dtype=torch.long, device=device)
    if forecast.path == "fast":
        from mac_lora_helpers.training.fast.head import FrozenHead, tile

        return _fastest(lambda: FrozenHead.apply(hidden, weight, labels, tile(device))[0].sum().backward(), device) / tokens
    # TRL's head goes over the vocabulary three times, a plain cross entropy twice
    loss = lambda: torch.nn.functional.cross_entropy((hidden @ weight.t()).float(), labels).backward()  # noqa: E731
    return 1.5 * _fastest(loss, device) / tokens


def _fastest(step: Callable[[], None], device: str) -> float:
    step()
    found = []
    for _ in range(PASSES):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        found.append(time.perf_counter() - start)
    return min(found)


def _wait(device: str) -> None:
    import torch

    if device == "mps":
        torch.mps.synchronize()
    elif device == "cuda":
        torch.cuda.synchronize()


def by_speed(config: Config, model: Any, forecast: MemoryForecast, speed: float, source: str) -> StepTime:
    """The time of a step at so many floating-point operations a second."""
    rows, tokens = forecast.shape
    return StepTime(work(config, model, forecast) * rows * tokens * config.gradient_accumulation_steps / speed, source)
