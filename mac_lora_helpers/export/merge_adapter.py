"""The adapter merged into its base: computed in float32, cast as stated, read back and compared."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export.adapter import adapter_folder, read_adapter, trained_config
from mac_lora_helpers.export.adapter_model import load_adapted, load_plain, quiet
from mac_lora_helpers.export.mlx.config import mlx_keys

#: Largest logit difference allowed, as a share of the largest logit: float32 leaves only the order of
#: summation; a cast adds its own rounding (float16 has 11 bits of mantissa, bfloat16 has 8).
SHARE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}
_PROBE_ROWS, _PROBE_LENGTH = 8, 64


@dataclass(frozen=True)
class MergeReport:
    """What the merge did.

    Args:
        max_logit_difference: merged folder, read back, against base + adapter; over a few held-out prompts.
        tolerance: the largest difference that passes; same unit (logits).
        effect: largest logit difference between base + adapter and the base alone.
        cast: the cast of the stored weights, in words. dtype: their type.
        head: what was done about a tied output head, in words.
        modules: adapted modules merged. bytes: size of the folder.
    """

    max_logit_difference: float
    tolerance: float
    passed: bool
    effect: float
    cast: str
    dtype: str
    head: str
    modules: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, value, meaning) for a table."""
        return [
            (
                "largest logit difference",
                f"{self.max_logit_difference:.2g}",
                f"merged against base + adapter; up to {self.tolerance:.2g} passes",
            ),
            ("what the adapter changes", f"{self.effect:.2g}", "largest logit difference between base + adapter and base"),
            ("modules merged", str(self.modules), "linear layers that carry an update"),
            ("weights", self.cast, "computed in float32 on the CPU, then cast"),
            ("output head", self.head, "a head that shares the embedding's weights must not change with it"),
            ("size", f"{self.bytes / 1e6:.1f} MB", "export/merged"),
        ]


def merge(run: RunDir, config: Config) -> MergeReport:
    """Merges the adapter into the base and writes ``export/merged``, checked by its logits.

    With ``merged_dtype=auto`` the weights get the base's own type, unless that rounding would undo more than a tenth
    of what the adapter changes: then they stay float32.

    Returns:
        The report. The folder takes its place only if the check passed.

    Raises:
        MissingArtifact: no adapter. InputError: the adapter does not belong to the base.
        CheckFailed: a merged weight is not finite, or the logits differ by more than the tolerance.
    """
    from mac_lora_helpers.data import load_tokenizer

    config = trained_config(run, config)
    tokenizer, source = load_tokenizer(config), adapter_folder(run, config)
    model, head = load_adapted(config, source)
    probe = probe_rows(run, tokenizer)
    wanted = logits(model, probe)
    with model.disable_adapter():
        effect = largest_difference(wanted, logits(model, probe))
    merged = _merge_in_float32(model)
    largest = max(1.0, *(float(row.abs().max()) for row in wanted))
    with run.folder("merged") as folder:
        dtype, difference, cast = _write_checked(merged, tokenizer, folder, config, probe, wanted, effect, largest)
        tolerance = SHARE[dtype] * largest
        size = sum(file.stat().st_size for file in folder.iterdir())
        modules = len(read_adapter(source).updates)
        report = MergeReport(difference, tolerance, difference <= tolerance, effect, cast, dtype, head, modules, size)
        _require(report)
    return report


def _write_checked(
    merged: Any, tokenizer: Any, folder: Path, config: Config, probe: list[list[int]], wanted: list[Any], effect: float, largest: float
) -> tuple[str, float, str]:
    """Writes the model in the type asked for; (type, largest logit difference when read back, the cast in words)."""
    stored, rejected = stored_dtype(config), ""
    for dtype in _types(config.merged_dtype, stored):
        for file in folder.iterdir():
            file.unlink()
        write_model(merged, tokenizer, folder, dtype)
        difference = largest_difference(wanted, logits(load_plain(folder), probe))
        if dtype == "float32" or config.merged_dtype != "auto" or difference <= min(SHARE[dtype] * largest, effect / 10):
            break
        rejected = f"; {dtype} would move the logits by {difference:.2g}"
    cast = "float32, no cast" if dtype == "float32" else f"float32 → {dtype}"
    return dtype, difference, f"{cast} (the base is stored as {stored}{rejected})"


def _types(wanted: str, stored: str) -> list[str]:
    """Types to try, in order."""
    return list(dict.fromkeys([stored, "float32"])) if wanted == "auto" else [wanted]


def probe_rows(run: RunDir, tokenizer: Any) -> list[list[int]]:
    """Token ids of the first held-out rows, cut to a probe's length."""
    ids = [_row_ids(row, tokenizer)[:_PROBE_LENGTH] for row in run.read_lines("test")[:_PROBE_ROWS]]
    return [row for row in ids if row] or [list(range(min(_PROBE_LENGTH, len(tokenizer))))]


def _row_ids(row: dict[str, Any], tokenizer: Any) -> list[int]:
    """A row as it is trained on; empty if the template refuses it."""
    from jinja2.exceptions import TemplateError

    if "messages" not in row:
        return list(tokenizer(row["text"]).input_ids)
    try:
        return list(tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=True, return_dict=True)["input_ids"])
    except TemplateError:
        return []


def logits(model: Any, rows: list[list[int]]) -> list[Any]:
    """Float32 logits ``(length, vocabulary)`` of each row, one row at a time (no padding involved)."""
    import torch

    with torch.inference_mode():
        return [model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float() for row in rows]


def largest_difference(left: list[Any], right: list[Any]) -> float:
    """Largest absolute difference between two lists of logits; infinite where one is not finite."""
    value = max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))
    return value if value == value else float("inf")


def write_model(model: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """Weights, config (also in the form mlx-lm reads), generation settings, tokenizer, chat template.

    Args:
        model: in float32; it stays so.
    """
    with quiet():
        model.save_pretrained(folder, state_dict=_cast(model, dtype))
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.update(mlx_keys(settings), dtype=dtype)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _cast(model: Any, dtype: str) -> dict[str, Any]:
    """The weights in another type; those that share memory still do."""
    import torch

    done: dict[int, Any] = {}
    return {name: done.setdefault(tensor.data_ptr(), tensor.to(getattr(torch, dtype))) for name, tensor in model.state_dict().items()}


def _merge_in_float32(model: Any) -> Any:
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise CheckFailed(
            f"the merge gave weights that are not finite: {error}", where="adapter", fix="train again; see 03's audit"
        ) from error


def stored_dtype(config: Config) -> str:
    """The type that the base's own files have; float32 when they do not say."""
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(config.model_path, trust_remote_code=config.trust_remote_code).dtype
    name = str(stored).removeprefix("torch.")
    return name if name in SHARE else "float32"


def _require(report: MergeReport) -> None:
    if not report.passed:
        raise CheckFailed(
            f"merged and adapter differ by {report.max_logit_difference:.3g} in their logits; {report.tolerance:.3g} is allowed",
            where="export/merged (not written)",
            fix="set merged_dtype=float32; if it still differs, the adapter was trained on another base",
        )
