"""The card's tables: rows of text from the run's JSON artefacts, which may be incomplete.

``found`` maps an artefact's name to its content, ``saved`` is the config that data and training saved.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mac_lora_helpers.config import EMBEDDED

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


def data_rows(found: Mapping[str, Any], saved: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Source, counts and fingerprint; empty without a manifest."""
    manifest = found.get("manifest", {})
    if not manifest:
        return []
    rows = {
        "source": _source(manifest, saved),
        "format": _code(manifest.get("format")),
        "rows": _pairs(manifest.get("rows")),
        "splits": _pairs(manifest.get("splits")),
        "tokens": _pairs(manifest.get("tokens")),
        "cut or dropped": _pairs(manifest.get("truncation")),
        "chat template": _pairs(manifest.get("template")),
        "fingerprint of the tokens and labels": _code(manifest.get("fingerprint")),
    }
    return [(name, value) for name, value in rows.items() if value]


def _source(manifest: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """The source without the author's folders."""
    if saved.get("data_files"):
        names = [Path(part.strip()).name for part in str(saved["data_files"]).split(",")]
        return "local files: " + ", ".join(_code(name) for name in names)
    if saved.get("dataset_id") == EMBEDDED:
        return "the data that ship with `mac-lora-helpers`"
    if saved.get("dataset_id"):
        return f"[{saved['dataset_id']}](https://huggingface.co/datasets/{saved['dataset_id']}), split {_code(saved.get('dataset_split'))}"
    return _code(Path(str(manifest.get("source", "?"))).name)


def recipe_rows(found: Mapping[str, Any], saved: Mapping[str, Any]) -> list[tuple[str, str]]:
    """LoRA, optimizer and losses; the adapter's own configuration counts before the saved parameters."""
    adapter, metrics = found["adapter_config"], found.get("train_metrics", {})
    if "train_config" not in found and not metrics:
        return []
    targets = adapter.get("target_modules")
    values = {
        **saved,
        "target_modules": ", ".join(sorted(targets)) if isinstance(targets, list) else targets,
        "lora_layers": saved.get("lora_layers") or None,
        **{
            f"lora_{key}": adapter[name]
            for key, name in (("r", "r"), ("alpha", "lora_alpha"), ("dropout", "lora_dropout"))
            if name in adapter
        },
    }
    rows = [(text, _code(values[name])) for name, text in _RECIPE.items() if values.get(name) not in (None, "")]
    if saved.get("trust_remote_code"):
        rows.append(("remote code", "`trust_remote_code` was on: Python code that comes with the base model was allowed to run"))
    if metrics:
        loss = f"{_number(metrics.get('first_loss'))} → {_number(metrics.get('last_loss'))}"
        where = f"{metrics.get('device', '?')}, {metrics.get('dtype', '?')}"
        took = f"{_number(metrics.get('steps'))} in {_number(metrics.get('seconds'))} s on {where}"
        rows += [("optimizer steps", took), ("training loss, first → last", loss)]
    return rows


def scores(metrics: Mapping[str, Any]) -> tuple[list[dict[str, str]], bool]:
    """Rows of the base-against-tuned table, and whether intervals were recorded; a measure that does not apply is left out."""
    base, tuned = metrics.get("base", {}), metrics.get("tuned", {})
    names = [
        name for name in base if name != "tokens" and isinstance(base[name], (int, float)) and isinstance(tuned.get(name), (int, float))
    ]
    known = {name: _difference(metrics, name) for name in names}
    rows = [
        {
            "name": name.replace("_", " "),
            "base": _show(name)(base[name]),
            "tuned": _show(name)(tuned[name]),
            "difference": _signed(_show(name), known[name]["value"]) + known[name]["interval"],
            "verdict": known[name]["verdict"],
        }
        for name in sorted(names, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    ]
    return rows, any(item["interval"] for item in known.values())


def _difference(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Tuned minus base, the recorded 95 % interval as text and the verdict in words, the last two empty where none was recorded."""
    recorded = metrics.get("difference")
    record = recorded.get(name) if isinstance(recorded, Mapping) else None
    value = {"value": metrics["tuned"][name] - metrics["base"][name], "interval": "", "verdict": ""}
    if not isinstance(record, Mapping) or record.get("low") is None or record.get("high") is None:
        return value
    low, high = (_signed(_show(name), record[end]) for end in ("low", "high"))
    return {"value": record.get("value", value["value"]), "interval": f" ({low} to {high})", "verdict": record.get("verdict", "")}


def _show(name: str) -> Callable[[Any], str]:
    """Losses are numbers, everything else is a share."""
    return _number if name in _FIRST[:2] else _percent


def _signed(show: Callable[[Any], str], value: Any) -> str:
    text = show(value)
    return f"+{text}" if isinstance(value, (int, float)) and value > 0 else text


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
        packages = found.get(name, {}).get(key)
        if not isinstance(packages, dict):
            continue
        known = {pack: value.get("version") if isinstance(value, dict) else value for pack, value in packages.items()}
        text = ", ".join(f"{pack} {known[pack]}" for pack in _PACKAGES if known.get(pack))
        python = found.get("environment", {}).get("python")
        return ", ".join(part for part in (f"Python {python}" if python else "", text) if part)
    return ""


def _code(value: Any) -> str:
    """A value as inline code that cannot break out of a table cell."""
    if value is None:
        return ""
    text = re.sub(r"[`|\r\n]+", " ", str(value)).strip()
    return f"`{text}`" if text else ""


def _pairs(values: Any) -> str:
    if not isinstance(values, Mapping):
        return ""
    shown = {
        name.replace("_", " "): _number(value)
        for name, value in values.items()
        if value is not None and not isinstance(value, (dict, list))
    }
    return ", ".join(f"{value} {name}" if value[:1].isdigit() else f"{name} {_code(value)}" for name, value in shown.items())


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
