"""Which models the fast path knows, and a decoder layer of theirs taken apart.

Known are the decoders of Llama, Mistral, Qwen2 and Qwen3 as transformers writes them: RMSNorm, rotary positions, SwiGLU,
no other place where a number could change. Whatever differs (another activation, a trained head, DoRA, quantized
weights, hooks, mixed precision) is found here and named; such a model keeps the plain path.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from mac_lora_helpers.training.fast.projections import Norm, Projection

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class Unknown(Exception):
    """The model or trainer is not one the fast path knows; the text says what is different."""


@dataclass(frozen=True)
class Parts:
    """A decoder layer taken apart: its norms and projections by name."""

    before_attention: Norm
    before_mlp: Norm
    query_key: tuple[Norm, Norm] | None
    projections: dict[str, Projection]

    @property
    def adapted(self) -> bool:
        """Whether any projection has an adapter."""
        return any(part.a is not None for part in self.projections.values())

    def some(self, *names: str) -> list[Projection]:
        """Projections by name."""
        return [self.projections[name] for name in names]


def require_known(trainer: Any) -> None:
    """Raises Unknown with the first difference found."""
    if not hasattr(trainer.model, "get_base_model"):
        raise Unknown("the model has no PEFT adapter")
    _require_trainer(trainer)
    require_known_model(trainer.model)


def require_known_model(model: Any) -> None:
    """Raises Unknown with the first difference found in a PEFT model; one without weights (device ``meta``) will do."""
    base = model.get_base_model()
    _require_family(base)
    _require_head(base)
    _require_trained(model, base)
    require_unwatched(base.model.layers)


def _require_trainer(trainer: Any) -> None:
    args, accelerator = trainer.args, trainer.accelerator
    forward = trainer.model.get_base_model().forward
    _refuse(
        (accelerator.mixed_precision != "no", f"mixed precision ({accelerator.mixed_precision}) is on; the weights' own dtype is wanted"),
        (accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"), "parameters are sharded"),
        (args.activation_offloading, "activation offloading is on"),
        (args.label_smoothing_factor or trainer.compute_loss_func, "label smoothing, or a loss function of one's own, needs all logits"),
        (args.torch_compile, "the model is compiled"),
        (not hasattr(trainer.train_dataset, "__len__"), "the training data are a stream, whose longest row is not known"),
        ("fused_lm_head" not in inspect.signature(forward, follow_wrapped=False).parameters, "this version of trl has another output head"),
    )


def _refuse(*found: tuple[Any, str]) -> None:
    """Raises Unknown with the first text whose condition holds."""
    for wrong, what in found:
        if wrong:
            raise Unknown(what)


def _require_family(base: Any) -> None:
    config = base.config
    _refuse((config.model_type not in FAMILIES, f"{config.model_type} is not one of {', '.join(FAMILIES)}"))
    home, layers = f"transformers.models.{config.model_type}.", base.model.layers
    _refuse(
        (any(not type(part).__module__.startswith(home) for part in (base, *layers)), "the model's code is not transformers' own"),
        (config._attn_implementation != "sdpa", f"attention is computed by {config._attn_implementation}, not sdpa"),
        (config.hidden_act not in ("silu", "swish"), f"its activation is {config.hidden_act}, not silu"),
        (base.model.rotary_emb.inv_freq.numel() * 2 != layers[0].self_attn.head_dim, "rotary positions turn only a part of each head"),
    )


def _require_head(base: Any) -> None:
    head, scales = base.get_output_embeddings(), ("final_logit_softcapping", "logit_scale", "logits_scaling")
    _refuse(
        (type(head) is not nn.Linear or head.bias is not None, "the output head is not a plain linear layer without bias"),
        (any(getattr(base.config, name, None) for name in scales), "its logits are scaled or capped"),
    )


def _require_trained(model: Any, base: Any) -> None:
    expected = {id(tensor) for layer in base.model.layers for part in take_apart(layer).projections.values() for tensor in part.adapter}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in expected:
            raise Unknown(f"{name} is trained, and it is no LoRA matrix of a decoder layer")


def lowest_adapted(parts: list[Parts]) -> int:
    """Index of the lowest layer with an adapter; below it nothing is trained and no gradient is needed."""
    return next((index for index, part in enumerate(parts) if part.adapted), 0)


def require_unwatched(layers: nn.Module) -> None:
    """Raises Unknown if a hook watches a module inside the decoder layers."""
    for name, module in layers.named_modules():
        if _hooked(module):
            raise Unknown(f"hooks watch {name}, which the fast path would not call")


def _hooked(module: nn.Module) -> bool:
    return any(len(hooks) for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks))


def take_apart(layer: Any) -> Parts:
    """The norms and projections of a decoder layer as they are now.

    Raises:
        Unknown: a projection is something else than a linear layer with at most one plain LoRA adapter.
    """
    attention, mlp = layer.self_attn, layer.mlp
    projections = {name: _projection(name, getattr(attention, name)) for name in ATTENTION}
    projections |= {name: _projection(name, getattr(mlp, name)) for name in MLP}
    query_key = (_norm(attention.q_norm), _norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
    return Parts(_norm(layer.input_layernorm), _norm(layer.post_attention_layernorm), query_key, projections)


def _norm(module: Any) -> Norm:
    if module.weight.requires_grad or not hasattr(module, "variance_epsilon"):
        raise Unknown(f"{type(module).__name__} is trained, or not the RMSNorm that the fast path computes")
    return Norm(module.weight, module.variance_epsilon)


def _projection(name: str, module: Any) -> Projection:
    from peft.tuners.lora import Linear as LoraLinear

    if type(module) is nn.Linear:
        return Projection(module.weight, module.bias)
    if type(module) is not LoraLinear or type(module.base_layer) is not nn.Linear:
        raise Unknown(f"{name} is a {type(module).__module__}.{type(module).__name__}")
    base, active = module.base_layer, module.active_adapters
    if module.disable_adapters or module.merged or len(active) != 1 or active[0] not in module.lora_A:
        raise Unknown(f"{name} has not exactly one active adapter")
    adapter = active[0]
    if adapter in module.lora_variant or module.lora_bias[adapter] or module.fan_in_fan_out:
        raise Unknown(f"{name} has a variant of LoRA (DoRA, a bias, …)")
    a, b, drop = module.lora_A[adapter].weight, module.lora_B[adapter].weight, module.lora_dropout[adapter]
    return Projection(base.weight, base.bias, a, b, float(module.scaling[adapter]), drop.p if _drops(name, drop) else 0.0)


def _drops(name: str, module: nn.Module) -> bool:
    if type(module) not in (nn.Dropout, nn.Identity):
        raise Unknown(f"{name} has another dropout ({type(module).__name__})")
    return isinstance(module, nn.Dropout) and module.training
