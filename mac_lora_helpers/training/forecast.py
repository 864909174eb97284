"""The memory forecast: what a training would take at its peak, part by part, from the model's configuration alone.

- weights: parameters × bytes of their dtype; tied weights once.
- adapter, gradients, optimizer: 4, 4 and 8 bytes per adapter parameter (PEFT keeps adapters in float32; AdamW has two
  moments, Loshchilov & Hutter 2019).
- activations: what the forward pass keeps, see ``counting``; with checkpointing each decoder layer's input (Chen et al. 2016).
- logits: the loss's own tensors.
- layer: one layer's backward pass, where it takes more than the loss; with checkpointing that layer's activations too.
- allocator: freed blocks that the allocator keeps (an allowance; on MPS not measured).
- runtime: kernels' scratch and code. Measured on Linux; an assumption elsewhere.

A forecast is advice: it never raises. Where a model cannot be counted it says why, and checkpointing is on to be safe.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError, UserError, first_line
from mac_lora_helpers.model import find_base, readable, require_base
from mac_lora_helpers.text import size
from mac_lora_helpers.training import batches, memory
from mac_lora_helpers.training.counting import KEPT_BELOW, Counted, count, plain_head
from mac_lora_helpers.training.fast.plan import Plan, choose_plan, kept

RUNTIME_BYTES = {"cpu": 60_000_000, "mps": 300_000_000, "cuda": 100_000_000}
#: Share of the free memory that a training may plan for; the rest is for the system and what else runs.
SHARE = 0.9
#: Tensors of the widest kind that a layer's backward pass has at once: the gradients of an MLP's gate, up and product.
TURNING = 3
#: Room between small blocks that the heap cannot use, as a share of what is kept (an allowance; measured on Linux: SmolLM2-135M).
GAPS = 0.1

MEANINGS = {
    "weights": "the frozen base model",
    "adapter": "the LoRA matrices, float32",
    "gradients": "of the LoRA matrices, float32",
    "optimizer": "AdamW's two moments, float32",
    "activations": "kept from the forward pass for the backward pass",
    "logits": "the loss's tiles over the vocabulary",
    "layer": "one layer's backward pass",
    "allocator": "freed blocks that the allocator keeps (an allowance)",
    "runtime": "kernels' scratch (an allowance)",
}


@dataclass(frozen=True)
class Forecast:
    """Predicted peak memory of a training, above what the process used before the model was loaded.

    Attributes:
        parts: bytes by part, in the order of ``MEANINGS``; their sum is the peak. Empty where nothing could be counted.
        reason: why nothing could be counted.
        available_bytes: what the whole training may take.
        shape: rows and tokens of the largest batch.
        parameters: of the base and of the adapter, and the number of decoder layers.
        device, dtype: what it would run on and in.
        gradient_checkpointing: on or off; with ``auto`` in the config what was chosen. checkpointing_reason: why.
        path: plain or fast. path_reason: why. plan: what the fast path computes again.
        advice: where it does not fit, settings that do, in a sentence.
    """

    parts: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    available_bytes: int | None = None
    shape: tuple[int, int] = (0, 0)
    parameters: dict[str, int] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    gradient_checkpointing: bool = False
    checkpointing_reason: str = "as asked"
    path: str = "plain"
    path_reason: str = ""
    plan: Plan | None = None
    advice: str = ""

    @property
    def total_bytes(self) -> int | None:
        """Predicted peak in bytes; None where nothing could be counted."""
        return sum(self.parts.values()) if self.parts else None

    @property
    def fits(self) -> bool | None:
        """Whether the peak stays within ``available_bytes``; None where one of them is not known."""
        return self.total_bytes <= self.available_bytes if self.parts and self.available_bytes is not None else None

    @property
    def verdict(self) -> str:
        """fits, does not fit, or not counted."""
        return {True: "fits", False: "does not fit", None: "not counted"}[self.fits]

    def rows(self) -> list[tuple[str, str, str]]:
        """(part, size, meaning) for a table, the sum last."""
        if not self.parts:
            return [("together", "not counted", self.reason)]
        table = [(name, size(count), MEANINGS[name]) for name, count in self.parts.items()]
        return [*table, ("together", size(self.total_bytes), f"peak for a batch of {self.shape[0]} × {self.shape[1]} tokens")]


def forecast(
    config: Config,
    model_config: Any = None,
    lengths: Sequence[int] | None = None,
    device: str | None = None,
    available: int | None = None,
) -> Forecast:
    """Predicts the peak of a training with these parameters; loads no weights and never raises.

    Args:
        config: the resolved parameters. With ``gradient_checkpointing`` auto it is off when all fits into ``available``.
        model_config: a transformers configuration; None: read from ``config.model_id``'s folder, or the Hub's cache.
        lengths: the rows' lengths in tokens, if known: the longest bounds the batch, and so does the number of rows.
        device: cpu, mps or cuda; None: as ``config.device`` chooses.
        available: bytes that the whole training may take; None: nine tenths of what is free now.
    """
    known = Forecast(shape=batch_shape(config, lengths), device=device or "cpu", dtype=config.dtype, available_bytes=available)
    try:
        device = device or _device(config.device)
        available = int(memory.available(device) * SHARE) if available is None else available
        known = replace(known, device=device, available_bytes=available)
        text = (model_config or read_model_config(config)).get_text_config()
        ask = functools.partial(_settled, model_config=text, known=known, lengths=lengths)
        found = ask(config)
        return replace(found, advice=_advice(config, found, ask)) if found.fits is False else found
    except Exception as error:  # advice must not stop work, whatever a model's code does with shapes
        reason = f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, UserError):
            reason = f"{error.what}; to do: {error.fix}" if error.fix else error.what
        auto = config.gradient_checkpointing == "auto"
        why = "the memory could not be counted, and with it less is needed" if auto else "as asked"
        on = auto or bool(config.gradient_checkpointing)
        return replace(known, reason=reason, gradient_checkpointing=on, checkpointing_reason=why)


def forecast_for(config: Config, model: Any, lengths: Sequence[int], device: str) -> Forecast:
    """The same for a model that is loaded: its weights are no longer among what is free."""
    loaded = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    config = config.model_copy(update={"dtype": str(model.dtype).removeprefix("torch.")})
    return forecast(config, model.config, lengths, device, int(memory.available(device) * SHARE) + loaded)


def turn_down(config: Config, trainer: Any) -> str:
    """What to turn down, for a trainer that ran out of memory."""
    known, lengths = trainer.forecast, batches.lengths_of(trainer.tokens["train"])
    settled = config.model_copy(update={"gradient_checkpointing": known.gradient_checkpointing, "dtype": known.dtype})
    # what was free was not enough, whatever the forecast says
    free = min(memory.available(known.device), int(SHARE * (known.total_bytes or 0)))
    found = forecast(settled, trainer.model.config, lengths, known.device, free)
    return found.advice or "shorten max_seq_length, set per_device_train_batch_size=1 or gradient_checkpointing=true"


def batch_shape(config: Config, lengths: Sequence[int] | None) -> tuple[int, int]:
    """Rows and tokens of the largest pass through the model: short rows go through together (``batches``)."""
    if lengths is None or not len(lengths):
        return config.per_device_train_batch_size, max(2, config.max_seq_length)
    cut = np.minimum(np.asarray(lengths), config.max_seq_length)
    return batches.largest_pass(cut, config.effective_batch_size, config.max_seq_length * config.per_device_train_batch_size)


def _settled(config: Config, model_config: Any, known: Forecast, lengths: Sequence[int] | None) -> Forecast:
    """Checkpointing as asked; with auto it is on if the training would not fit otherwise."""
    known = replace(known, shape=batch_shape(config, lengths), dtype=config.dtype)
    found = count(config, model_config, *known.shape, known.device)
    ask = functools.partial(_forecast, config, model_config, found)
    if config.gradient_checkpointing != "auto":
        return ask(known, bool(config.gradient_checkpointing))
    off = ask(replace(known, checkpointing_reason="all of it fits"), False)
    if off.fits is not False:
        return off
    why = f"without it {size(off.total_bytes)} of {size(known.available_bytes)}"
    return ask(replace(known, checkpointing_reason=why), True)


def _forecast(config: Config, model_config: Any, found: Counted, known: Forecast, checkpointing: bool) -> Forecast:
    (rows, tokens), device = known.shape, known.device
    fixed = {"weights": found.base * found.itemsize, "adapter": 4 * found.adapter, "gradients": 4 * found.adapter}
    fixed["optimizer"] = 8 * found.adapter
    reason = "switched off" if config.fast_path == "off" else found.why_not_fast
    plan, again = None, max(found.layers) if checkpointing else 0
    if reason:
        forward, backward, holes = plain_head(rows * (tokens - 1), found, device)
        # with checkpointing every layer's input is kept, adapted or not
        activations = found.outside + (found.boundary * len(found.layers) if checkpointing else sum(found.layers))
        layer = again + TURNING * found.widest
    else:
        plan, activations, layer, forward, backward = _fast(config, model_config, found, known, checkpointing, sum(fixed.values()))
        holes = again = 0
    blocks = TURNING * found.widest + again + GAPS * activations if device != "cuda" and found.widest < KEPT_BELOW else 0
    own = {"activations": activations, "logits": max(forward, backward), "layer": max(layer - backward, 0)}
    own |= {"allocator": holes + blocks, "runtime": RUNTIME_BYTES[device]}
    return replace(
        known,
        parts={name: round(count) for name, count in {**fixed, **own}.items()},
        parameters={"base": found.base, "adapter": found.adapter, "layers": len(found.layers)},
        gradient_checkpointing=checkpointing,
        path="fast" if plan else "plain",
        path_reason=reason or "known architecture",
        plan=plan,
    )


def _fast(config: Config, model_config: Any, found: Counted, known: Forecast, checkpointing: bool, fixed: int) -> tuple[Any, ...]:
    """(plan, activations, one layer's backward pass, the loss's forward and backward pass) by the fast path's own count."""
    from mac_lora_helpers.training.fast.head import tile, tile_bytes

    rows, tokens = known.shape
    head = functools.partial(tile_bytes, width=found.width, vocabulary=found.vocabulary, itemsize=found.itemsize)
    sizes = kept(model_config, rows, tokens, found.itemsize, found.lora, known.device)
    wanted = "mlp" if config.fast_path == "lean" else "auto" if checkpointing else "nothing"
    taken = fixed + head(rows * tokens, size=tile(known.device)) + 2 * sizes.wide
    plan = choose_plan(sizes, known.available_bytes - taken if wanted == "auto" and known.available_bytes is not None else None, wanted)
    gradient, again = rows * (tokens - 1) * found.width * found.itemsize, sizes.layer if plan.whole_layers else 0
    logits = head(rows * (tokens - 1), size=tile(known.device, plan.kind)) + gradient
    return plan, plan.kept_bytes - again, again + 2 * sizes.wide, logits, gradient


def _advice(config: Config, found: Forecast, ask: Callable[[Config], Forecast]) -> str:
    """First what changes no result, then shorter rows, each on top of those before."""
    rows, tokens = found.shape
    need = f"a batch of {rows} × {tokens} tokens needs about {size(found.total_bytes)}, {size(found.available_bytes)} are free"
    steps: dict[str, str] = {}
    for setting, changes in _turns(config, found):
        config = config.model_copy(update=changes)
        steps[setting.split("=")[0]] = setting
        smaller = ask(config)
        if smaller.fits:
            return f"{need}; {', '.join(steps.values())} would need about {size(smaller.total_bytes)}, which fits"
    return f"{need}, and no shorter length fits; take a smaller model, or train in the cloud"


def _turns(config: Config, found: Forecast) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings to turn down, one after the other."""
    if config.per_device_train_batch_size > 1:
        rows = config.effective_batch_size
        changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows}
        yield f"per_device_train_batch_size=1 with gradient_accumulation_steps={rows}", changes
    if not found.gradient_checkpointing:
        yield "gradient_checkpointing=true", {"gradient_checkpointing": True}
    if found.path == "plain" and config.fast_path == "off":
        yield "fast_path=auto", {"fast_path": "auto"}
    for share in (0.75, 0.5, 0.375, 0.25, 0.125):
        shorter = max(8, int(found.shape[1] * share) // 8 * 8)
        yield f"max_seq_length={shorter}", {"max_seq_length": shorter}


def estimate(config: Config) -> dict[str, Any]:
    """``mac-lora estimate``: the forecast for this machine as a dict, with the optimizer steps.

    Returns:
        ``model_id device dtype batch{rows,tokens} parameters{base,adapter,layers} path{name,reason} checkpointing{on,reason}
        memory{parts,total_bytes,reason} available_bytes fits verdict advice steps step_source table``. ``total_bytes`` and
        ``fits`` are None where the model cannot be counted (``reason`` says why), ``steps`` when neither ``max_steps`` nor
        prepared data tell it.

    Raises:
        InputError: no such model, device or dtype.
    """
    from mac_lora_helpers import environment

    if not find_base(config).settings:
        require_base(config)  # asks the Hub for its config.json
    device = environment.choose_device(config)
    config = config.model_copy(update={"dtype": environment.choose_dtype(config, device).name})
    lengths = _known_lengths(config)
    found = forecast(config, read_model_config(config), lengths, device.name)
    steps, source = _steps(config, lengths)
    on = found.gradient_checkpointing
    table = [("available", size(found.available_bytes), f"nine tenths of what is free now on {device.name}")]
    table += [("steps", str(steps or "unknown"), source), ("path", found.path, found.path_reason)]
    return {
        "model_id": config.model_id,
        "device": found.device,
        "dtype": found.dtype,
        "batch": dict(zip(("rows", "tokens"), found.shape, strict=True)),
        "parameters": found.parameters,
        "path": {"name": found.path, "reason": found.path_reason},
        "checkpointing": {"on": on, "reason": found.checkpointing_reason},
        "memory": {"parts": found.parts, "total_bytes": found.total_bytes, "reason": found.reason},
        "available_bytes": found.available_bytes,
        "fits": found.fits,
        "verdict": found.verdict,
        "advice": found.advice,
        "steps": steps,
        "step_source": source,
        "table": [*found.rows(), *table, ("checkpointing", "on" if on else "off", found.checkpointing_reason)],
    }


def _steps(config: Config, lengths: Sequence[int] | None) -> tuple[int | None, str]:
    """Optimizer steps and what tells them; None while neither ``max_steps`` nor prepared data do."""
    if config.max_steps > 0:
        return config.max_steps, "max_steps"
    if lengths is None:
        return None, "unknown until 02_data_formatting.ipynb has run"
    per_epoch = math.ceil(len(lengths) / config.effective_batch_size)
    return math.ceil(config.num_train_epochs * per_epoch), f"{len(lengths)} rows, {config.num_train_epochs:g} epochs"


def _known_lengths(config: Config) -> Sequence[int] | None:
    """The rows' lengths when notebook 02 has run in this run directory."""
    from mac_lora_helpers import data

    if not Path(config.out_dir).expanduser().is_dir() or not RunDir(config.out_dir).has("tokens"):
        return None
    return batches.lengths_of(data.load_tokens(RunDir(config.out_dir))[1]["train"])


def read_model_config(config: Config) -> Any:
    """The model's transformers configuration, from its folder or the Hub's cache; no network.

    Raises:
        InputError: it is not here, or cannot be read.
    """
    base = find_base(config)
    if not base.settings:  # weights may be missing: shapes are enough
        fix = base.fix or f"hf download {config.model_id} config.json"
        raise InputError(base.problem or f"the config.json of {config.model_id} is not on this machine yet", where="model_id", fix=fix)
    with readable(config):
        return _read(str(base.folder), config.trust_remote_code)


@functools.lru_cache(maxsize=8)
def _read(path: str, remote: bool) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, trust_remote_code=remote)


@functools.cache
def _device(wanted: str) -> str:
    from mac_lora_helpers import environment
    from mac_lora_helpers.config import resolve

    return environment.choose_device(resolve({"device": wanted}, env={})).name
