"""What to turn down when a training does not fit: each setting with what it would save, the most helpful first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.training import memory
from mac_lora_helpers.training.forecast import MemoryForecast, predict_memory


@dataclass(frozen=True)
class Saving:
    """One setting to turn down.

    Attributes:
        setting: as a person would write it, ``max_seq_length=256``.
        changes: the parameters.
        saves: bytes less at the peak.
        total_bytes: the peak then.
        fits: whether that is enough by itself.
    """

    setting: str
    changes: dict[str, Any]
    saves: int
    total_bytes: int
    fits: bool

    def __str__(self) -> str:
        rest = f", which fits (about {memory.text(self.total_bytes)})" if self.fits else ""
        return f"{self.setting} saves {memory.text(self.saves)}{rest}"


def savings(config: Config, model_config: Any, forecast: MemoryForecast, available: int, device: str, lengths: Any = None) -> list[Saving]:
    """Each single setting that would help, the largest saving first; what changes no result goes before what does.

    Args:
        forecast: of ``config`` as it stands.
        available: bytes that the training may take.
    """
    found = []
    for setting, changes in _settings(config, forecast):
        total = predict_memory(config.model_copy(update=changes), model_config, lengths, device, available).total_bytes
        if total < forecast.total_bytes:
            found.append(Saving(setting, changes, forecast.total_bytes - total, total, total <= available))
    return sorted(found, key=lambda saving: -saving.saves)


def _settings(config: Config, forecast: MemoryForecast) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from _harmless(config, forecast)
    length = min(config.max_seq_length, forecast.shape[1])
    half = max(8, length // 2 // 8 * 8)
    if half < length:
        yield f"max_seq_length={half}", {"max_seq_length": half}
    if config.dtype == "float32":
        yield "dtype=bfloat16", {"dtype": "bfloat16"}
    if config.lora_r > 8:
        yield "lora_r=8", {"lora_r": 8}
    layers = forecast.parameters["layers"] // 2
    if not config.lora_layers and layers >= 2:
        yield f"lora_layers={layers}", {"lora_layers": layers}


def _harmless(config: Config, forecast: MemoryForecast) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings that change the memory and not the result."""
    if config.per_device_train_batch_size > 1:
        rows = config.effective_batch_size
        changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows}
        yield f"per_device_train_batch_size=1 with gradient_accumulation_steps={rows}", changes
    if not forecast.gradient_checkpointing:
        yield "gradient_checkpointing=true", {"gradient_checkpointing": True}
    if forecast.path == "plain" and config.fast_path == "off":
        yield "fast_path=auto", {"fast_path": "auto"}


def turn_down(config: Config, model_config: Any, forecast: MemoryForecast, available: int, device: str, lengths: Any = None) -> str:
    """Settings that fit together, with numbers: first what changes no result, then shorter sequences."""
    rows, tokens = forecast.shape
    need = f"a batch of {rows} × {tokens} tokens needs about {memory.text(forecast.total_bytes)}, {memory.text(available)} are free"
    steps: list[str] = []
    for step, changes in _turns(config, forecast):
        config = config.model_copy(update=changes)
        steps = [*(item for item in steps if not item.startswith(step.split("=")[0])), step]
        smaller = predict_memory(config, model_config, lengths, device, available)
        if smaller.fits(available):
            return f"{need}; {', '.join(steps)} fits (about {memory.text(smaller.total_bytes)})"
    return f"{need}, and no shorter length fits; take a smaller model, or train in the cloud"


def _turns(config: Config, forecast: MemoryForecast) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings to turn down, one after the other, each on top of those before it."""
    yield from _harmless(config, forecast)
    length = min(config.max_seq_length, forecast.shape[1])
    for share in (0.75, 0.5, 0.375, 0.25, 0.125):
        shorter = max(8, int(length * share) // 8 * 8)
        yield f"max_seq_length={shorter}", {"max_seq_length": shorter}
