"""Counts the kinds of steps around a form's recipe before they are asked for, so that the form answers each change at once."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import UserError
from mac_lora_helpers.training import fit as fitting
from mac_lora_helpers.training.dry_run import Way
from mac_lora_helpers.training.forecast import MemoryForecast, predict_memory
from mac_lora_helpers.training.step_memory import Model, model_of

#: Of each kind, so that its form is read: see ``step_memory``.
_LENGTHS = (64, 72)
_PLAIN = (("plain", "nothing"), ("plain", "layers"))
_FAST = (("fast", "nothing"), ("fast", "mlp"), ("fast", "layers"))


def count_ahead(
    config: Config,
    model_config: Any = None,
    available: int | None = None,
    lengths: Sequence[int] | None = None,
    device: str | None = None,
) -> Iterator[None]:
    """Counts what ``fit`` would have to count after a change, one recording (about a tenth of a second) at a time.

    What one change would ask for comes first, at the shape in the form. Then every shape of it; and where that does not fit,
    what would is asked for as well: two changes and more, on the path that is taken.

    Args:
        config, model_config, available, lengths, device: as for ``fit``.
    """
    model_config, available, device = fitting.machine(config, model_config, available, device)
    model, tight = model_of(model_config), set()
    with contextlib.suppress(UserError):
        yield from _first(model, config, predict_memory(config, model_config, lengths, device, available), device)
    for changes in _around(config):
        near = config.model_copy(update=changes)
        if len(changes) > 1 and not tight & {"", *changes}:
            continue
        try:
            for way in _ways(model, near, every=len(changes) < 2):
                yield from model.count(model.lora(near), near.dtype, Way(device, *way), _rows(near), _LENGTHS)
            if len(changes) < 2 and not predict_memory(near, model_config, lengths, device, available).fits(available):
                tight.add("".join(changes))
        except UserError:
            continue  # said when it is asked for


def _first(model: Model, config: Config, forecast: MemoryForecast, device: str) -> Iterator[None]:
    """The steps that the next change would ask for, at the shape in the form."""
    again = forecast.plan.kind if forecast.plan else "layers" if forecast.gradient_checkpointing else "nothing"
    rows, tokens = forecast.shape
    yield from model.count(model.lora(config), config.dtype, Way(device, forecast.path, again), rows, [tokens, tokens + 8])
    singles = [changes for changes in _around(config) if len(changes) == 1]
    for changes in [*singles, {}]:
        near = config.model_copy(update=changes)
        there = changes.get("per_device_train_batch_size", rows)
        with contextlib.suppress(UserError):
            for way in ((forecast.path, again),) if changes else _ways(model, near, every=True):
                yield from model.count(model.lora(near), near.dtype, Way(device, *way), there, [tokens])


def _rows(config: Config) -> int:
    """One row is a case of its own; two stand for all others."""
    return min(config.per_device_train_batch_size, 2)


def _around(config: Config) -> Iterator[dict[str, Any]]:
    """Changes that make a step of another kind, in every combination that a question or its advice may need; the fewest first."""
    flips = {
        "per_device_train_batch_size": 1 if config.per_device_train_batch_size > 1 else 2,
        "dtype": "bfloat16" if config.dtype == "float32" else "float32",
        "lora_targets": "auto" if config.lora_targets == "all-linear" else "all-linear",
        "lora_dropout": 0.0 if config.lora_dropout else 0.05,
    }
    for count in range(4):
        for names in itertools.combinations(flips, count):
            if not {"lora_targets", "lora_dropout"} <= set(names):  # no advice turns these
                yield {name: flips[name] for name in names}


def _ways(model: Model, config: Config, every: bool) -> tuple[tuple[str, str], ...]:
    """(path, what is computed again) that a step may take; ``every``: on both paths."""
    slow = bool(model.why_not_fast(frozenset(model.lora(config).target_modules), config.dtype))
    taken = _PLAIN if slow or config.fast_path == "off" else _FAST
    other = () if slow else _FAST if taken is _PLAIN else _PLAIN
    return taken + (other if every else ())
