"""Will it fit, and how long will it take: one quick answer for a form, a notebook and ``mac-lora estimate``.

The first question about a model builds it without weights (seconds). A step of a kind not counted yet (another dtype, path, set
of targets) is counted when it is asked for; every later question of that kind, whatever length, batch or rank, is arithmetic.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.training import calibration, memory, step_time
from mac_lora_helpers.training.forecast import SHARE, MemoryForecast, predict_memory
from mac_lora_helpers.training.savings import Saving, savings, turn_down
from mac_lora_helpers.training.step_memory import model_of
from mac_lora_helpers.training.step_time import StepTime


@dataclass(frozen=True)
class Fit:
    """One recipe against one machine.

    Attributes:
        parts: predicted bytes by part; their sum is the peak.
        total_bytes: the predicted peak.
        expected_bytes: that, by what earlier runs on this machine really needed; the same without such runs.
        available_bytes: what a training may take here now.
        fits: whether what is expected stays within it.
        batch: rows and tokens of the largest batch.
        device, dtype: what it would run on and in.
        path: plain or fast. path_reason: why.
        gradient_checkpointing: on or off, as it would be; with ``auto`` in the config the choice of this fit.
        checkpointing_reason: why.
        step_seconds, total_seconds: predicted; None while nothing on this machine tells.
        time_source: what tells.
        steps: optimizer steps; None while the data are not known.
        savings: each setting that would take less memory, the largest saving first; empty when it fits.
        advice: the same in sentences, settings that fit together first.
        calibration: what earlier runs on this machine say, in words; empty without any.
        forecast: all of the prediction.
    """

    parts: dict[str, int]
    total_bytes: int
    expected_bytes: int
    available_bytes: int
    fits: bool
    batch: tuple[int, int]
    device: str
    dtype: str
    path: str
    path_reason: str
    gradient_checkpointing: bool
    checkpointing_reason: str = ""
    step_seconds: float | None = None
    total_seconds: float | None = None
    time_source: str = ""
    steps: int | None = None
    savings: list[Saving] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    calibration: str = ""
    forecast: MemoryForecast | None = None

    @property
    def text(self) -> str:
        """One line for people: "fits: 2.1 GB of 9.3 GB"."""
        verdict = "fits" if self.fits else "does not fit"
        return f"{verdict}: {memory.text(self.expected_bytes)} of {memory.text(self.available_bytes)}"


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
    model_config, available, device = machine(config, model_config, available, device)
    forecast = predict_memory(config, model_config, lengths, device, available)
    known = calibration.recall(device, config.dtype, forecast.path)
    expected = int(forecast.total_bytes * (known.memory or 1))
    fits = expected <= available
    taken = _time(config, model_config, forecast, device, known.speed)
    steps = steps_of(config, lengths)[0]
    found = [] if fits else savings(config, model_config, forecast, available, device, lengths)
    return Fit(
        parts=forecast.parts,
        total_bytes=forecast.total_bytes,
        expected_bytes=expected,
        available_bytes=available,
        fits=fits,
        batch=forecast.shape,
        device=device,
        dtype=config.dtype,
        path=forecast.path,
        path_reason=forecast.path_reason,
        gradient_checkpointing=forecast.gradient_checkpointing,
        checkpointing_reason=forecast.checkpointing_reason,
        step_seconds=taken.seconds if taken else None,
        total_seconds=taken.seconds * steps if taken and steps else None,
        time_source=taken.source if taken else "",
        steps=steps,
        savings=found,
        advice=[] if fits else [turn_down(config, model_config, forecast, available, device, lengths), *map(str, found)],
        calibration=known.text(),
        forecast=forecast,
    )


def machine(config: Config, model_config: Any, available: int | None, device: str | None) -> tuple[Any, int, str]:
    """The model's configuration, the bytes that it may take and the device, where they were not given."""
    device = device or _device(config.device)
    available = int(memory.available(device) * SHARE) if available is None else available
    if model_config is None:
        model_config = _model_config(config.model_path, config.trust_remote_code)
    return model_config, available, device


def steps_of(config: Config, lengths: Sequence[int] | None) -> tuple[int | None, str]:
    """Optimizer steps and what tells them; None while neither ``max_steps`` nor prepared data do."""
    if config.max_steps > 0:
        return config.max_steps, "max_steps"
    if lengths is None:
        return None, "unknown until 02_data_formatting.ipynb has run"
    batches = math.ceil(len(lengths) / config.per_device_train_batch_size)
    per_epoch = max(math.ceil(batches / config.gradient_accumulation_steps), 1)
    return math.ceil(config.num_train_epochs * per_epoch), f"{len(lengths)} rows, {config.num_train_epochs:g} epochs"


_probed: dict[tuple[str, str, str], float] = {}


def probe_here(config: Config, model_config: Any, forecast: MemoryForecast, device: str) -> StepTime | None:
    """Times a step by a probe on this device; ``fit`` knows the speed from then on."""
    model = model_of(model_config)
    found = step_time.probe(config, model, forecast, device)
    if found:
        rows, tokens = forecast.shape
        flops = step_time.work(config, model, forecast) * rows * tokens * config.gradient_accumulation_steps
        _probed[device, forecast.dtype, forecast.path] = flops / found.seconds
    return found


def _time(config: Config, model_config: Any, forecast: MemoryForecast, device: str, speed: float | None) -> StepTime | None:
    model = model_of(model_config)
    if speed:
        return step_time.by_speed(config, model, forecast, speed, "earlier runs on this machine")
    speed = _probed.get((device, forecast.dtype, forecast.path))
    return step_time.by_speed(config, model, forecast, speed, f"a probe of one layer and the head on {device}") if speed else None


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


def keep_measured(trainer: Any, config: Config, metrics: dict[str, Any]) -> None:
    """After a training: what it needed and how fast it was goes into this machine's calibration.

    Args:
        metrics: as ``finish`` writes them.
    """
    forecast, dtype = trainer.forecast, metrics["dtype"]
    model = model_of(trainer.model.get_base_model().config)
    flops = step_time.work(config, model, forecast) * metrics["tokens"]
    resumed = metrics["resumed_from_step"]
    calibration.keep(
        metrics["device"],
        dtype,
        forecast.path,
        metrics["predicted_memory_bytes"],
        metrics["peak_memory_bytes"],
        0 if resumed else flops,
        metrics["seconds"],
    )
