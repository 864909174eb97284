"""Counts the kinds of steps around a form's recipe before they are asked for, so that the form answers each change at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import UserError
from mac_lora_helpers.training import fit as fitting
from mac_lora_helpers.training.dry_run import Way
from mac_lora_helpers.training.forecast import predict_memory
from mac_lora_helpers.training.step_memory import Model, model_of

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

    What is one change away comes first, in every way of computing a step. Where that does not fit, what would is asked for as
    well: two changes and more, on the path that is taken.

    Args:
        config, model_config, available, lengths, device: as for ``fit``.
    """
    model_config, available, device = fitting.machine(config, model_config, available, device)
    tight: set[str] = set()
    for changes in _around(config):
        near = config.model_copy(update=changes)
        if len(changes) > 1 and not tight & {"", *changes}:
            continue
        try:
            yield from _count(model_of(model_config), near, device, both=len(changes) < 2)
            if len(changes) < 2 and not predict_memory(near, model_config, lengths, device, available).fits(available):
                tight.add("".join(changes))
        except UserError:
            continue  # said when it is asked for


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


def _count(model: Model, config: Config, device: str, both: bool) -> Iterator[None]:
    lora = model.lora(config)
    slow = bool(model.why_not_fast(frozenset(lora.target_modules), config.dtype))
    taken = _PLAIN if slow or config.fast_path == "off" else _FAST
    other = () if slow else _FAST if taken is _PLAIN else _PLAIN
    for path, again in taken + (other if both else ()):
        yield from model.count(lora, config.dtype, Way(device, path, again), min(config.per_device_train_batch_size, 2))
