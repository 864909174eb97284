"""The figures that cases compare: how they are read from a run directory, and whether one is within its band."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mac_lora_helpers.artifacts import ARTIFACTS

#: An artefact's name in figures → (path below the run directory, number of the notebook that makes it).
FILES: dict[str, tuple[str, int]] = {
    re.sub(r"\.jsonl?$", "", path).replace("/", "."): (path, number)
    for path, number in ARTIFACTS.values()
    if path.endswith((".json", ".jsonl")) and path != "run.json"
} | {"adapter.adapter_config": ("adapter/adapter_config.json", 3)}
_WITH_WIDTH = ("relative", "at_least", "at_most", "ratio", "same")
_KEY = re.compile(r"\.?([^.\[\]]+)|\[([^\]]+)\]")


class Band(BaseModel):
    """How far one figure may be from its baseline, and why so far; docs/regression.md explains the kinds.

    ``width``: a share of the baseline (relative, same), the figure's own unit (at_least, at_most) or a factor (ratio). ``floor``: smallest
    scale that a share is taken of. ``limit``: a bar that holds whatever the baseline says. ``of``: the figure that a ratio divides by.
    ``case``: the other case of the same run that ``same`` compares with and ``ratio`` divides by.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    metric: str
    kind: Literal["exact", "relative", "at_least", "at_most", "ratio", "same", "never"]
    width: float | None = Field(None, ge=0)
    floor: float = Field(0.0, ge=0)
    limit: float | None = None
    of: str | None = None
    case: str | None = None
    value: bool | str | float | None = None
    reason: str = Field(min_length=8)

    @model_validator(mode="after")
    def _whole(self) -> Band:
        if (self.kind in _WITH_WIDTH) != (self.width is not None):
            raise ValueError(f"{self.kind} {'needs a' if self.kind in _WITH_WIDTH else 'has no'} width")
        if (self.kind == "ratio") != (self.of is not None):
            raise ValueError("'of' (the figure to divide by) belongs to ratio, and to ratio alone")
        if (self.kind == "same" and self.case is None) or (self.case and self.kind not in ("same", "ratio")):
            raise ValueError("'case' belongs to same, which needs it, and to ratio")
        return self

    @property
    def has_baseline(self) -> bool:
        """Whether it compares with a figure in the repository; ``same`` and ``never`` do not."""
        return self.kind not in ("same", "never")


def made_by(name: str) -> int | None:
    """Number of the notebook whose artefact a figure is read from; 0: the run itself; None: no artefact has such a name."""
    if name.startswith("cost."):
        return 0
    return DERIVED[name][1] if name in DERIVED else FILES[_file_of(name)][1] if _file_of(name) else None


def place_of(name: str) -> str:
    """The artefact to look at, below the run directory."""
    return DERIVED[name][0] if name in DERIVED else FILES.get(_file_of(name), ("",))[0]


def read_figure(run: Path, name: str, cost: dict[str, float]) -> Any:
    """A figure's value; None where the run has no such file or no such key in it, a word where it is not finite.

    Args:
        name: an artefact's name and the keys in it: ``train_log[0].loss``; ``[…]`` picks from a list by number or by ``name``.
        cost: ``cpu_seconds`` and ``reference_seconds`` of the case.
    """
    try:
        if name.startswith("cost."):
            return cost.get(name.removeprefix("cost."))
        if name in DERIVED:
            return DERIVED[name][2](run)
        value = _load(run / place_of(name))
        for key, entry in _KEY.findall(name[len(_file_of(name)) :]):
            value = value[key] if key else _entry(value, entry)
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None


def _file_of(name: str) -> str:
    return max((key for key in FILES if re.match(re.escape(key) + r"[.\[]", name)), key=len, default="")


def _load(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else json.loads(text)


def _entry(value: Any, entry: str) -> Any:
    if re.fullmatch(r"-?\d+", entry):
        return value[int(entry)]
    rows = value["artefacts"] if isinstance(value, dict) else value
    return next((item for item in rows if item["name"] == entry), {"passed": None})


def _end_tokens(run: Path) -> int:
    """Distinct last trained tokens of the training rows: one, if every answer ends with the end token."""
    from datasets import Dataset

    last: Counter[int] = Counter()
    for row in Dataset.from_file(str(run / "data/tokens/train.arrow")):
        trained = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        last.update(trained[-1:])
    return len(last)


def _prompts(run: Path) -> str:
    """Digest of the questions that were asked."""
    rows = _load(run / "eval/samples.jsonl")
    return hashlib.sha256(json.dumps([row["prompt"] for row in rows], ensure_ascii=False).encode()).hexdigest()


def _seen(run: Path) -> int:
    """Evaluated rows that stand in the training split: question and answer together, as two rows may ask the same."""
    trained = {_pair(row) for row in _load(run / "data/train.jsonl")}
    return sum((row["prompt"].strip(), row["expected"].strip()) in trained for row in _load(run / "eval/samples.jsonl"))


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    if "messages" not in row:
        return row["text"].strip(), ""
    users = [message["content"] for message in row["messages"] if message["role"] == "user"]
    return users[-1].strip() if users else "", row["messages"][-1]["content"].strip()


def _gguf_template(run: Path) -> str | None:
    """Digest of the chat template in the GGUF files."""
    from gguf import GGUFReader

    readers = [GGUFReader(file) for file in sorted((run / "export/gguf").glob("*.gguf"))]
    models = [reader for reader in readers if reader.get_field("tokenizer.ggml.tokens")]  # an adapter's file has no tokenizer
    fields = [reader.get_field("tokenizer.chat_template") for reader in models]
    templates = {str(field.contents()) if field else "" for field in fields}
    return hashlib.sha256(json.dumps(sorted(templates)).encode()).hexdigest() if templates else None


#: Figures worked out from a file that is no JSON of figures: name → (that file, number of the notebook, how).
DERIVED = {
    "data.end_tokens": ("data/tokens/train.arrow", 2, _end_tokens),
    "eval.prompts": ("eval/samples.jsonl", 4, _prompts),
    "eval.seen": ("eval/samples.jsonl", 4, _seen),
    "export.gguf_template": ("export/gguf", 5, _gguf_template),
}


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def compare(band: Band, got: Any, baseline: Any) -> tuple[bool, str]:
    """Whether a figure is within its band, and the band in words.

    Args:
        got: the figure; None where the run has none. A ratio is divided already.
        baseline: its baseline; for ``same`` the other case's figure. None: there was no such figure either.
    """
    if band.kind == "never":
        return got != band.value or type(got) is not type(band.value), f"never {band.value!r}"
    if band.kind == "exact" or got is None or baseline is None:
        return got == baseline and isinstance(got, bool) == isinstance(baseline, bool), "equal" if baseline is not None else "none"
    if not (is_number(got) and is_number(baseline)):
        return False, "a finite number"
    width, limit = band.width or 0.0, band.limit
    if band.kind in ("relative", "same"):
        room = width * max(abs(baseline), band.floor)
        return baseline - room <= got <= baseline + room, f"{number(baseline - room)} … {number(baseline + room)}"
    if band.kind == "at_least":
        low = max(baseline - width, baseline - width if limit is None else limit)
        return got >= low, f"≥ {number(low)}"
    high = baseline * width if band.kind == "ratio" else min(baseline + width, baseline + width if limit is None else limit)
    return got <= high, f"≤ {number(high)}{f' × {band.of}' if band.of else ''}"


def number(value: Any) -> str:
    """A figure for people: six significant digits, long texts cut."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "–" if value is None else str(value)
    return text if len(text) <= 20 else f"{text[:8]}…{text[-6:]}"
