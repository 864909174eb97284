"""The card's tables: rows of text from the run's JSON artefacts, which may be incomplete.

``found`` maps an artefact's name to its content, ``saved`` is the config that data and training saved.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mac_lora_helpers.config import EMBEDDED

Rows = list[tuple[str, str]]
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "mac-lora-helpers")
_FIRST = ("loss", "perplexity", "exact_match")
_RECIPE = {
    "lora_r": "LoRA rank r",
    "lora_alpha": "LoRA alpha",
    "lora_dropout": "LoRA dropout",
    "target_modules": "LoRA target modules",
    "lora_layers": "adapted layers, from the top",
    "learning_rate": "learning rate",
    "per_device_train_batch_size": "batch size per device",
    "gradient_accumulation_steps": "gradient accumulation steps",
    "max_seq_length": "longest sequence, tokens",
    "loss_on": "loss on",
    "seed": "seed",
}


def data_rows(found: Mapping[str, Any], saved: Mapping[str, Any]) -> Rows:
    """Source, counts and fingerprint; empty without a manifest."""
    manifest = found.get("manifest", {})
    rows = {
        "source": _source(manifest, saved),
        "format": _code(manifest.get("format")),
        **{name: _pairs(manifest.get(name)) for name in ("rows", "splits", "tokens")},
        "cut or dropped": _pairs(manifest.get("truncation")),
        "chat template": _pairs(manifest.get("template")),
        "fingerprint of the tokens and labels": _code(manifest.get("fingerprint")),
    }
    return [(name, value) for name, value in rows.items() if value] if manifest else []


def _source(manifest: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """The source without the author's folders."""
    if saved.get("data_files"):
        return "local files: " + ", ".join(_code(Path(part.strip()).name) for part in str(saved["data_files"]).split(","))
    if saved.get("dataset_id") == EMBEDDED:
        return "the data that ship with `mac-lora-helpers`"
    if saved.get("dataset_id"):
        return f"[{saved['dataset_id']}](https://huggingface.co/datasets/{saved['dataset_id']}), split {_code(saved.get('dataset_split'))}"
    return _code(Path(str(manifest.get("source", "?"))).name)


def recipe_rows(found: Mapping[str, Any], saved: Mapping[str, Any], adapter: Mapping[str, Any]) -> Rows:
    """LoRA, optimizer and losses; the adapter's own settings count before the saved parameters."""
    metrics = found.get("train_metrics", {})
    if "train_config" not in found and not metrics:
        return []
    targets = adapter.get("target_modules")
    own = {"lora_r": adapter.get("r"), **{name: adapter.get(name) for name in ("lora_alpha", "lora_dropout")}}
    values = {
        **saved,
        **{name: value for name, value in own.items() if value is not None},
        "target_modules": ", ".join(sorted(targets)) if isinstance(targets, list) else targets,
        "lora_layers": saved.get("lora_layers") or None,
    }
    rows = [(text, _code(values[name])) for name, text in _RECIPE.items() if values.get(name) not in (None, "")]
    if saved.get("trust_remote_code"):
        rows.append(("remote code", "`trust_remote_code` was on: Python code that comes with the base model was allowed to run"))
    if metrics:
        where = f"{metrics.get('device', '?')}, {metrics.get('dtype', '?')}"
        loss = f"{_number(metrics.get('first_loss'))} → {_number(metrics.get('last_loss'))}"
        rows.append(("optimizer steps", f"{_number(metrics.get('steps'))} in {_number(metrics.get('seconds'))} s on {where}"))
        rows.append(("training loss, first → last", loss))
        if metrics.get("best_eval_loss") is not None:
            saved = f"{_number(metrics['best_eval_loss'])} at step {metrics.get('best_step')}; saved is step {metrics.get('saved_step')}"
            rows.append(("validation loss, lowest", saved))
    return rows


def score_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of the base-against-tuned table; a measure that does not apply is left out."""
    base, tuned, recorded = (metrics.get(name, {}) for name in ("base", "tuned", "difference"))
    names = [name for name in base if name != "tokens" and _is_number(base[name]) and _is_number(tuned.get(name))]
    rows = []
    for name in sorted(names, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)):
        show = _number if name in _FIRST[:2] else _percent  # losses are numbers, everything else is a share
        known = recorded.get(name) or {}
        low, high = known.get("low"), known.get("high")
        interval = f" ({_signed(show, low)} to {_signed(show, high)})" if None not in (low, high) else ""
        rows.append(
            {
                "name": name.replace("_", " "),
                "base": show(base[name]),
                "tuned": show(tuned[name]),
                "difference": _signed(show, tuned[name] - base[name]) + interval,
                "verdict": known.get("verdict", ""),
            }
        )
    return rows


def equivalence_row(item: Mapping[str, Any]) -> dict[str, str]:
    """One exported file; ``passed`` null means that no engine was there to check it."""
    words = {True: "yes", False: "**no**", None: "not checked"}
    return {
        "name": _code(item.get("name")),
        "prompts": str(item.get("prompts", "?")),
        "ids": words.get(item.get("prompt_ids_equal"), str(item.get("prompt_ids_equal"))),
        "agreement": _percent(item.get("greedy_agreement")),
        "passed": words.get(item.get("passed"), "?"),
    }


def versions(found: Mapping[str, Any]) -> str:
    """The versions that trained it; the environment check's where training kept none."""
    for name, key in (("train_config", "versions"), ("train_metrics", "versions"), ("environment", "packages")):
        if packages := found.get(name, {}).get(key):
            known = {pack: value.get("version") if isinstance(value, dict) else value for pack, value in packages.items()}
            python = found.get("environment", {}).get("python")
            return ", ".join([f"Python {python}"] * bool(python) + [f"{pack} {known[pack]}" for pack in _PACKAGES if known.get(pack)])
    return ""


def _code(value: Any) -> str:
    """A value as inline code that cannot break out of a table cell."""
    text = re.sub(r"[`|\r\n]+", " ", str(value)).strip() if value is not None else ""
    return f"`{text}`" if text else ""


def _pairs(values: Any) -> str:
    plain = {name: value for name, value in (values or {}).items() if value is not None and not isinstance(value, (dict, list))}
    shown = [(name.replace("_", " "), value) for name, value in plain.items()]
    return ", ".join(f"{_number(value)} {name}" if _is_number(value) else f"{name} {_code(value)}" for name, value in shown)


def _signed(show: Any, value: Any) -> str:
    return f"+{show(value)}" if _is_number(value) and value > 0 else show(value)


def _number(value: Any) -> str:
    if not _is_number(value):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return "not finite"
    whole = isinstance(value, int) or (abs(value) >= 1000 and value == int(value))
    return f"{int(value):,}" if whole else f"{value:.4g}"


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if _is_number(value) else "–"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
