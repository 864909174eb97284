"""The planted regressions: what is broken, in which module, and which figure must turn red.

Each is a mistake that this project or one of the libraries could make. ``patches``: module → function that breaks it.
``case``: the first case that it strikes. ``red``: figures that must be red. ``stops``: words of the product's own check, where
that check stops the notebook before the regression run looks at a figure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Plant:
    what: str
    case: str
    red: tuple[str, ...]
    patches: dict[str, Callable[[Any], None]]
    stops: str = ""


def _changed_result(name: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Replaces ``module.name`` by one whose result goes through ``change``."""

    def patch(module: Any) -> None:
        original = getattr(module, name)
        setattr(module, name, lambda *given, **named: change(original(*given, **named)))

    return patch


def _spans(change: Callable[[list[int], int, int], tuple[int, int]]) -> Callable[[Any], None]:
    """Changes every answer's token span."""

    def patch(module: Any) -> None:
        original = module.Masker.trace

        def trace(self: Any, plan: Any, encoding: Any) -> Any:
            row = original(self, plan, encoding)
            return row and row._replace(spans=[change(row.ids, *span) for span in row.spans])

        module.Masker.trace = trace

    return patch


def _set(name: str, value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def change(thing: Any) -> Any:
        setattr(thing, name, value(getattr(thing, name)))
        return thing

    return change


def _one_layer_fewer(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "layers_to_transform": [1, 2, 3], "layers_pattern": "layers"}


def _half_alpha(module: Any) -> None:
    original = module.LoraTrainer.__init__

    def __init__(self: Any, *, peft_config: Any, **others: Any) -> None:
        peft_config.lora_alpha //= 2
        original(self, peft_config=peft_config, **others)

    module.LoraTrainer.__init__ = __init__


def _drawn() -> int:
    import secrets

    return secrets.randbelow(2**31)


def _other_order(module: Any) -> None:
    module.Order.set_epoch = lambda self, epoch: setattr(self, "epoch", _drawn())


def _test_is_train(module: Any) -> None:
    original = module.RunDir.read_lines
    module.RunDir.read_lines = lambda self, name: original(self, "train" if name == "test" else name)


def _tokens_of_train(module: Any) -> None:
    original = module.load_tokens

    def load_tokens(run: Any) -> Any:
        manifest, tokens = original(run)
        return manifest, {**tokens, "test": tokens["train"]}

    module.load_tokens = load_tokens


def _never_on(module: Any) -> None:
    module.Trained.voice = lambda self, which: self.model.disable_adapter()


def _fresh_adapter(module: Any) -> None:
    """As when the names in the file fit nothing in the model: PEFT warns and leaves the new matrices."""

    import json

    import peft

    def fresh(base: Any, folder: Any, **named: Any) -> Any:
        settings = json.loads((folder / "adapter_config.json").read_text())
        kept = {name: settings[name] for name in ("r", "lora_alpha", "target_modules")}
        return peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **kept)).eval()

    peft.PeftModel.from_pretrained = fresh


def _no_template_in_file(module: Any) -> None:
    original = module.run_tool

    def run_tool(command: list[str], folder: Any) -> None:
        original(command, folder)
        for path in folder.glob(".*.gguf"):
            path.write_bytes(path.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX"))

    module.run_tool = run_tool


def _half_scale(module: Any) -> None:
    original = module.write_merged

    def write_merged(model: Any, run: Any, source: Any, head: str = "") -> Any:
        import torch

        for name, update in source.updates.modules.items():
            model.get_submodule(name).weight.data -= torch.from_numpy(update.delta()) / 2
        return original(model, run, source, head)

    module.write_merged = write_merged


_MASKING, _RECIPE = "mac_lora_helpers.data.masking", "mac_lora_helpers.training.recipe"
_TRAINER = "mac_lora_helpers.training.sft"
_LOADING = "mac_lora_helpers.evaluation.trained"

PLANTS: dict[str, Plant] = {
    "learning_rate_x10": Plant(
        "The learning rate is ten times what was asked for",
        "train",
        ("train_log[0].learning_rate",),
        {_TRAINER: _changed_result("_whole_steps", _set("learning_rate", lambda rate: 10 * rate))},
    ),
    "mask_dropped": Plant(
        "Prompts are trained too",
        "data",
        ("data.manifest.tokens.supervised",),
        {_MASKING: _spans(lambda ids, start, end: (0, len(ids)))},
    ),
    "eos_lost": Plant(
        "The end token is no longer trained",
        "data",
        ("data.end_tokens", "data.manifest.tokens.supervised"),
        {_MASKING: _spans(lambda ids, start, end: (start, end - 1))},
    ),
    "template_changed": Plant(
        "The chat template writes a blank line that it did not write before",
        "data",
        ("data.manifest.fingerprint_parts.template.False", "data.manifest.tokens.total"),
        {
            "mac_lora_helpers.data.tokenizer": _changed_result(
                "load_tokenizer", _set("chat_template", lambda t: t.replace(r"\n'", r"\n\n'"))
            )
        },
    ),
    "one_layer_fewer": Plant(
        "LoRA leaves out the lowest layer",
        "train",
        ("train_metrics.trainable_parameters",),
        {_RECIPE: _changed_result("layers", _one_layer_fewer)},
    ),
    "seed_ignored": Plant(
        "LoRA's initial matrices do not come from the seed",
        "train",
        ("train_log[0].grad_norm",),
        {_TRAINER: _changed_result("_whole_steps", _set("seed", lambda _: _drawn()))},
    ),
    "order_seed_ignored": Plant(
        "The order of the rows does not come from the seed",
        "train",
        ("train_log[0].loss",),
        {"mac_lora_helpers.training.batches": _other_order},
    ),
    "evaluated_on_train": Plant(
        "The evaluation asks rows of the training split",
        "answers",
        ("eval.seen", "eval.prompts", "eval.metrics.base.loss"),
        {"mac_lora_helpers.artifacts": _test_is_train, "mac_lora_helpers.data.manifest": _tokens_of_train},
    ),
    "adapter_off": Plant(
        "The evaluation answers without the adapter",
        "answers",
        ("eval.metrics.tuned.loss", "eval.metrics.tuned.exact_match"),
        {_LOADING: _never_on},
    ),
    "adapter_not_applied": Plant(
        "The adapter's names fit nothing, so untrained matrices stand in the model",
        "answers",
        (),
        {_LOADING: _fresh_adapter},
        stops="adapter",
    ),
    "gguf_template_dropped": Plant(
        "The GGUF files are written without the chat template",
        "export",
        ("export.gguf_template", "export.equivalence[GGUF F16].passed"),
        {"mac_lora_helpers.export.gguf.write": _no_template_in_file},
        stops="does not say what the adapter says",
    ),
    "gguf_template_not_read": Plant(
        "The chat template is lost on the way into the GGUF files, and the check does not look",
        "export",
        ("export.gguf_template",),
        {
            "mac_lora_helpers.export.gguf.write": _no_template_in_file,
            "mac_lora_helpers.export.equivalence.tensors": _changed_result("metadata_faults", lambda faults: []),
        },
    ),
    "labels_shifted": Plant(
        "Labels stand one token too early",
        "data",
        ("data.end_tokens",),
        {_MASKING: _spans(lambda ids, start, end: (start - 1, end - 1))},
    ),
    "wrong_alpha": Plant(
        "The adapter is scaled by half",
        "train",
        ("adapter.adapter_config.lora_alpha", "train_log[1].loss"),
        {_TRAINER: _half_alpha},
    ),
    "merged_at_half_scale": Plant(
        "The merge forgets half of the scale",
        "export",
        (),
        {"mac_lora_helpers.export.merged": _half_scale},
        stops="merged",
    ),
}
