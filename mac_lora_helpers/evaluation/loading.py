"""One loaded model that answers as base or as tuned: the adapter switched off or on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mac_lora_helpers.adapter import Adapter
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, InputError
from mac_lora_helpers.evaluation.adapters import check_applied, check_fits
from mac_lora_helpers.files import portable
from mac_lora_helpers.model import load_base, stop_tokens, turn_end

_PROBE = "The capital of France is"


@dataclass
class Trained:
    """The base model with the adapter over it, and what was found out while loading.

    ``model``: peft.PeftModel in evaluation mode, adapter on. ``end_ids``: tokens that end an answer.
    ``logits_moved``: largest change of a logit that the adapter makes on a short text.
    ``findings``: what a person should know, in sentences.
    """

    model: Any
    tokenizer: Any
    device: str
    dtype: str
    config: Config
    adapter: Adapter
    end_ids: tuple[int, ...]
    logits_moved: float
    findings: list[str] = field(default_factory=list)

    @contextmanager
    def base(self) -> Iterator[Any]:
        """Inside, the model answers as the base does."""
        with self.model.disable_adapter():
            yield self.model

    @contextmanager
    def tuned(self) -> Iterator[Any]:
        """Inside, the adapter is on, as it is by default."""
        yield self.model

    def rows(self) -> list[tuple[str, Any]]:
        """(what, value) for a table."""
        settings = self.adapter.settings
        targets = settings.get("target_modules") or []
        return [
            ("base model", portable(self.config.model_id)),
            ("adapter", portable(self.adapter.name)),
            ("LoRA", f"r {settings.get('r')}, alpha {settings.get('lora_alpha')}"),
            ("adapted layers", targets if isinstance(targets, str) else ", ".join(sorted(targets))),
            ("matrices in place", f"{len(self.adapter.tensors)} of {len(self.adapter.tensors)}, equal to the file"),
            ("largest change of a logit", self.logits_moved),
            ("device", self.device),
            ("number format", self.dtype),
            ("an answer ends with", " or ".join(self.tokenizer.convert_ids_to_tokens(list(self.end_ids))) or "nothing: no end token"),
            *[("note", finding) for finding in self.findings],
        ]


def load(run: RunDir, config: Config) -> Trained:
    """Loads base model, tokenizer and adapter, and checks that the adapter is really in effect.

    The adapter is this run's own, or the one that ``adapter_dir`` names. Checked: its files are whole and
    finite, every tensor stands in the model as it stands in the file, switching it off gives the base
    model back, switching it on changes the logits (an adapter whose ``lora_B`` is zero is reported, not refused).

    Raises:
        MissingArtifact: no adapter yet. InputError: adapter damaged or made for another model; no such model.
        CheckFailed: the adapter was not applied as it stands, or is not the one that was trained on these data
            and on this base model.
    """
    from mac_lora_helpers import data, training

    adapter = Adapter.find(run, config)
    device, dtype = training.place(run, config)
    tokenizer = data.load_tokenizer(config)
    base = load_base(config, dtype.name, device.name).eval()
    base.config.use_cache = True
    check_fits(adapter, base, config.model_id)
    probe = _probe(base, tokenizer)
    model = _attach(adapter, base, device.name)
    moved = _check_switch(model, base, probe, adapter)
    end_ids = tuple(stop_tokens(config, tokenizer))
    base.generation_config = _generation_config(tokenizer, end_ids)
    trained = Trained(model, tokenizer, device.name, dtype.name, config, adapter, end_ids, moved)
    trained.findings += _findings(trained)
    return trained


def _attach(adapter: Adapter, base: Any, device: str) -> Any:
    import warnings

    from peft import PeftModel, get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # missing keys are checked below, and refused
        try:
            model = PeftModel.from_pretrained(base, str(adapter.folder), torch_device=device).eval()
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"PEFT cannot put the adapter {adapter.name} on this model: {reason}",
                where=adapter.name,
                fix="choose an adapter that was trained on this model",
            ) from error
    embeddings = any(key.endswith(("embed_tokens.weight", "lm_head.weight")) for key in adapter.tensors)
    check_applied(adapter, get_peft_model_state_dict(model, save_embedding_layers=embeddings))
    return model


def _probe(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """A short text's ids, and the base model's logits for it before any adapter is near."""
    import torch

    ids = tokenizer(_PROBE, return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
    with torch.inference_mode():
        return ids, model(input_ids=ids, use_cache=False).logits.float()


def _check_switch(model: Any, base: Any, probe: tuple[Any, Any], adapter: Adapter) -> float:
    """Largest logit change that the adapter makes; off, it must make none (trained biases would)."""
    import torch

    ids, before = probe
    with torch.inference_mode():
        on = model(input_ids=ids, use_cache=False).logits.float()
        with model.disable_adapter():
            off = model(input_ids=ids, use_cache=False).logits.float()
    if not torch.equal(off, before) and float((off - before).abs().max()) > 1e-4 * float(before.abs().max()):
        raise CheckFailed(
            f"switching the adapter {adapter.name} off does not give the base model back",
            where=f"{adapter.name}: bias={adapter.settings.get('bias')!r}, layer_replication={adapter.settings.get('layer_replication')!r}",
            fix="evaluate an adapter that was trained with bias='none' and without layer_replication",
        )
    if not bool(on.isfinite().all()):
        fix = "train again with a lower learning rate, or evaluate in float32"
        raise CheckFailed("with the adapter on, the model's logits are NaN or infinite", where=adapter.name, fix=fix)
    return float((on - off).abs().max())


def _generation_config(tokenizer: Any, end_ids: tuple[int, ...]) -> Any:
    """Plain generation: the model's end tokens and nothing else.

    transformers fills whatever a caller leaves out from the model's own generation_config, and Qwen2.5's brings a
    repetition penalty and a temperature: greedy would not be greedy.
    """
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_ids[0] if end_ids else 0
    return GenerationConfig(eos_token_id=list(end_ids) or None, pad_token_id=pad, do_sample=False, use_cache=True)


def _findings(trained: Trained) -> list[str]:
    adapter, config = trained.adapter, trained.config
    found = []
    if adapter.is_zero:
        found.append("The adapter changes nothing: every lora_B is zero, as before the first training step.")
    elif trained.logits_moved == 0:
        found.append("The adapter is in place, but its matrices are so small that no logit moved on a short text.")
    if adapter.base and adapter.base not in (config.model_id, config.model_path):
        found.append(f"The adapter says it was trained on {portable(adapter.base)}; it fits, but this is {portable(config.model_id)}.")
    end = turn_end(trained.tokenizer)
    if end is not None and end != trained.tokenizer.eos_token_id:
        token = trained.tokenizer.convert_ids_to_tokens(end)
        told = "other programs must be told to stop there."
        found.append(f"The chat template ends a turn with {token}, which is not the tokenizer's end token; {told}")
    return found
