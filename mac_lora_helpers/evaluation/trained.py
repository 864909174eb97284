"""One loaded model that answers as base or as tuned, after a look whether the adapter is really in effect.

PEFT loads an adapter whose tensors do not belong to the model without an error (huggingface/peft#2118): the layers that found
no tensor keep their initial values, which change nothing. So the tensors are compared, before and after, and so are the logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from mac_lora_helpers.adapter import WEIGHTS, Adapter
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, InputError
from mac_lora_helpers.model import load_base, settle_threads, stop_tokens, turn_end
from mac_lora_helpers.redaction import portable

Which = Literal["base", "tuned"]
_PREFIX = "base_model.model."
_PROBE = "The capital of France is"


@dataclass
class Trained:
    """The base model with the adapter over it.

    Attributes:
        model: ``peft.PeftModel`` in evaluation mode, adapter on.
        logits_moved: largest change of a logit that the adapter makes on a short text.
        findings: what a person should know, in sentences.
    """

    model: Any
    tokenizer: Any
    config: Config
    adapter: Adapter
    logits_moved: float
    findings: list[str]

    def voice(self, which: Which) -> contextlib.AbstractContextManager[Any]:
        """A context manager: inside, the model answers as base or as tuned."""
        return self.model.disable_adapter() if which == "base" else contextlib.nullcontext()

    @property
    def device(self) -> str:
        """Where the model lies: cpu, mps or cuda."""
        return self.model.device.type

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return self.model.generation_config.eos_token_id or []

    @property
    def context(self) -> int:
        """Tokens that the model can look at, prompt and answer together; 0 if it does not say."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 0)

    def rows(self) -> list[tuple[str, Any]]:
        """(what, value) for a table."""
        settings, count = self.adapter.settings, len(self.adapter.tensors)
        targets = settings.get("target_modules") or []
        return [
            ("base model", portable(self.config.model_id)),
            ("adapter", portable(self.adapter.name)),
            ("LoRA", f"r {settings.get('r')}, alpha {settings.get('lora_alpha')}"),
            ("adapted layers", targets if isinstance(targets, str) else ", ".join(sorted(targets))),
            ("matrices in place", f"{count} of {count}, equal to the file"),
            ("largest change of a logit", self.logits_moved),
            ("an answer ends with", " or ".join(self.tokenizer.convert_ids_to_tokens(self.end_ids)) or "nothing: no end token"),
            *[("note", finding) for finding in self.findings],
        ]


def prepare(base: Any, tokenizer: Any, config: Config) -> list[str]:
    """Plain generation: every end token that this model has, and nothing else. A tiny model gets one CPU thread.

    transformers fills whatever a caller leaves out from the model's own generation config, and Qwen2.5's brings a repetition
    penalty and a temperature: greedy would not be greedy.

    Returns:
        The end tokens.
    """
    from transformers import GenerationConfig

    ends = stop_tokens(config, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    base.generation_config = GenerationConfig(eos_token_id=ends or None, pad_token_id=pad, do_sample=False, use_cache=True)
    settle_threads(base.num_parameters(), base.device.type)
    return tokenizer.convert_ids_to_tokens(ends)


def check_fits(adapter: Adapter, base: Any) -> None:
    """Compares the adapter's tensors with the layers of the base model that they are meant for.

    Raises:
        InputError: a layer is not there, or has another shape.
    """
    modules = dict(base.named_modules())
    problems = [problem for key, shape in adapter.shapes.items() if (problem := _misfit(key, shape, modules))]
    if problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        made_for = portable(adapter.base or "an unnamed model")
        raise InputError(
            f"the adapter {adapter.name} does not fit this model: {problems[0]}{more}",
            where=f"{adapter.name}, which says it was made for {made_for}",
            fix=adapter.fix if adapter.own else "choose an adapter of this model, or set model_id to the model that it was trained on",
        )


def _misfit(key: str, shape: list[int], modules: dict[str, Any]) -> str:
    """Why a tensor cannot belong to the model, or an empty text."""
    path, found, rest = key.removeprefix(_PREFIX).partition(".lora_")
    if not found:
        return ""  # an embedding that was saved along; what PEFT makes of it is compared afterwards
    if path not in modules:
        return f"the model has no layer {path}"
    weight = getattr(modules[path], "weight", None)
    if weight is None or weight.ndim != 2:
        return ""
    gives, takes = weight.shape if type(modules[path]).__name__ != "Conv1D" else weight.shape[::-1]
    side, wanted, has = ("in", takes, shape[1]) if rest.startswith("A.") else ("out", gives, shape[0])
    return "" if has == wanted else f"{path} is {wanted} wide ({side}), the adapter's is {has}"


def check_applied(model: Any, tokenizer: Any, adapter: Adapter, config: Config, before: Any, off: Any, on: Any) -> Trained:
    """Whether the adapter is in effect: each tensor as in the file, the base back when it is off, other logits when it is on.

    Args:
        before, off, on: logits of one text: of the base model alone, and of both together with the adapter off and on.

    Raises:
        CheckFailed: it is not; an adapter that changes nothing (every ``lora_B`` zero) is a finding.
    """
    _check_tensors(model, adapter)
    where = f"{adapter.name}: bias={adapter.settings.get('bias')!r}, layer_replication={adapter.settings.get('layer_replication')!r}"
    if float((off - before).abs().max()) > 1e-4 * float(before.abs().max()):
        fix = "evaluate an adapter that was trained with bias='none' and without layer_replication"
        raise CheckFailed(f"switching the adapter {adapter.name} off does not give the base model back", where=where, fix=fix)
    if not bool(on.isfinite().all()):
        fix = "train again with a lower learning rate, or evaluate in float32"
        raise CheckFailed("with the adapter on, the model's logits are NaN or infinite", where=adapter.name, fix=fix)
    moved = float((on.float() - off.float()).abs().max())
    return Trained(model, tokenizer, config, adapter, moved, _findings(tokenizer, adapter, config, moved))


def _check_tensors(model: Any, adapter: Adapter) -> None:
    """Compares the tensors in the model with those in the file, name by name and value by value."""
    from peft import get_peft_model_state_dict

    tensors = adapter.tensors
    embeddings = any(key.endswith(("embed_tokens.weight", "lm_head.weight")) for key in tensors)
    loaded = get_peft_model_state_dict(model, save_embedding_layers=embeddings)
    problems = [
        *_counted(sorted(set(loaded) - set(tensors)), "layers of the model got no weights from the file"),
        *_counted(sorted(set(tensors) - set(loaded)), "tensors of the file have no place in the model"),
        *_counted(
            [key for key in tensors if key in loaded and not _same(tensors[key], loaded[key])],
            "tensors are not the same in the model as in the file",
        ),
    ]
    if problems:
        raise CheckFailed(
            f"the adapter {adapter.name} was not applied as it stands: {'; '.join(problems)}",
            where=f"{adapter.name}/{WEIGHTS}",
            fix=adapter.fix if adapter.own else "choose an adapter that was trained on this model with PEFT",
        )


def _counted(names: Iterable[str], what: str) -> list[str]:
    names = list(names)
    return [f"{len(names)} {what}, {names[0]} first"] if names else []


def _same(stored: Any, loaded: Any) -> bool:
    import torch

    return stored.shape == loaded.shape and torch.equal(stored.to(loaded.dtype), loaded.detach().to("cpu"))


def _findings(tokenizer: Any, adapter: Adapter, config: Config, moved: float) -> list[str]:
    found = []
    if adapter.is_zero:
        found.append("The adapter changes nothing: every lora_B is zero, as before the first training step.")
    elif moved == 0:
        found.append("The adapter is in place, but its matrices are so small that no logit moved on a short text.")
    if adapter.base and adapter.base not in (config.model_id, config.model_path):
        found.append(f"The adapter says it was trained on {portable(adapter.base)}; it fits, but this is {portable(config.model_id)}.")
    if adapter.own and RunDir(adapter.folder.parent).is_unfinished(3):
        found.append("A newer training in this run directory is not finished: this is the adapter of the one before.")
    end = turn_end(tokenizer)
    if end is not None and end != tokenizer.eos_token_id:
        token = tokenizer.convert_ids_to_tokens(end)
        told = "other programs must be told to stop there."
        found.append(f"The chat template ends a turn with {token}, which is not the tokenizer's end token; {told}")
    return found


def load(run: RunDir, config: Config) -> Trained:
    """What notebook 04's first cells do, for where there is no notebook."""
    import torch
    from peft import PeftModel

    from mac_lora_helpers import data, training

    adapter = Adapter.find(run, config)
    device, dtype = training.place(run, config)
    tokenizer = data.load_tokenizer(config)
    base = load_base(config, dtype.name, device.name).eval()
    prepare(base, tokenizer, config)
    check_fits(adapter, base)
    ids = tokenizer(_PROBE, return_tensors="pt").input_ids.to(device.name)
    with torch.no_grad():
        before = base(ids).logits
        model = PeftModel.from_pretrained(base, adapter.folder, torch_device=device.name)
        on = model(ids).logits
        with model.disable_adapter():
            off = model(ids).logits
    return check_applied(model, tokenizer, adapter, config, before, off, on)
