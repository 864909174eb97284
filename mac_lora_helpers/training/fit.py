"""Will it fit, and how long will it take: one quick answer for a form, a notebook and ``mac-lora estimate``.

The first question about a model builds it without weights (seconds); every later one, whatever parameter changed, is
answered from what was counted then.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.training import memory
from mac_lora_helpers.training.forecast import MemoryForecast, predict_memory

#: Share of the free memory that a training may plan for; the rest is for the system and what else runs.
SHARE = 0.9


@dataclass(frozen=True)
class Fit:
    """One recipe against one machine.

    Attributes:
        parts: predicted bytes by part; their sum is the peak.
        total_bytes: the predicted peak.
        available_bytes: what a training may take here now.
        fits: whether the peak stays within it.
        batch: rows and tokens of the largest batch.
        device, dtype: what it would run on and in.
        gradient_checkpointing: on or off, as it would be; with ``auto`` in the config the choice of this fit.
        checkpointing_reason: why.
        step_seconds, total_seconds: predicted; None while nothing on this machine tells.
        steps: optimizer steps; None while the data are not known.
        advice: what to turn down, the most helpful first, one sentence each; empty when it fits.
    """

    parts: dict[str, int]
    total_bytes: int
    available_bytes: int
    fits: bool
    batch: tuple[int, int]
    device: str
    dtype: str
    gradient_checkpointing: bool
    checkpointing_reason: str = ""
    step_seconds: float | None = None
    total_seconds: float | None = None
    steps: int | None = None
    advice: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """One line for people: "fits: 2.1 GB of 9.3 GB"."""
        verdict = "fits" if self.fits else "does not fit"
        return f"{verdict}: {memory.text(self.total_bytes)} of {memory.text(self.available_bytes)}"


def fit(
    config: Config,
    model_config: Any = None,
    available: int | None = None,
    lengths: Sequence[int] | None = None,
    device: str | None = None,
) -> Fit:
    """Predicted memory and time of a training with these parameters, against this machine.

    Args:
        config: the resolved parameters, as they stand in the form.
        model_config: a transformers configuration; None: read from ``config.model_id``'s folder, or the Hub's cache.
        available: bytes that it may take; None: nine tenths of what is free now.
        lengths: the rows' lengths in tokens, if known.
        device: cpu, mps or cuda; None: as ``config.device`` chooses.

    Raises:
        InputError: no such model configuration, or a LoRA target that it does not have.
    """
    model_config = model_config if model_config is not None else _model_config(config.model_path, config.trust_remote_code)
    device = device or _device(config.device)
    available = int(memory.available(device) * SHARE) if available is None else available
    forecast = predict_memory(config, model_config, lengths, device)
    return Fit(
        parts=forecast.parts,
        total_bytes=forecast.total_bytes,
        available_bytes=available,
        fits=forecast.fits(available),
        batch=forecast.shape,
        device=device,
        dtype=config.dtype,
        gradient_checkpointing=bool(config.gradient_checkpointing),
        steps=config.max_steps if config.max_steps > 0 else None,
        advice=[] if forecast.fits(available) else _advice(config, model_config, forecast, available, device),
    )


def _advice(config: Config, model_config: Any, forecast: MemoryForecast, available: int, device: str) -> list[str]:
    from mac_lora_helpers.training.savings import turn_down

    return [turn_down(config, model_config, forecast, available, device)]


@functools.lru_cache(maxsize=4)
def _model_config(path: str, remote: bool) -> Any:
    from mac_lora_helpers.config import resolve
    from mac_lora_helpers.training.estimate import read_model_config

    return read_model_config(resolve({"model_id": path, "trust_remote_code": remote}, env={}))


@functools.cache
def _device(wanted: str) -> str:
    from mac_lora_helpers import environment
    from mac_lora_helpers.config import resolve

    return environment.choose_device(resolve({"device": wanted}, env={})).name
