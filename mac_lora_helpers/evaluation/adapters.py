"""Is the adapter in effect? Its tensors compared with the base model's layers, and again once PEFT has loaded it.

PEFT loads an adapter whose tensors do not belong to the model without an error: the layers that found
no tensor keep their initial values, which change nothing. So nothing is taken on trust here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mac_lora_helpers.adapter import WEIGHTS, Adapter
from mac_lora_helpers.errors import CheckFailed, InputError
from mac_lora_helpers.redaction import portable

_PREFIX = "base_model.model."


def check_fits(adapter: Adapter, model: Any, model_id: str) -> None:
    """Compares the adapter's tensors with the layers of the base model that they are meant for.

    Raises:
        InputError: a layer is not there, or has another shape.
    """
    modules = dict(model.named_modules())
    problems = [problem for key, tensor in adapter.tensors.items() if (problem := _misfit(key, tuple(tensor.shape), modules))]
    if not problems:
        return
    raise InputError(
        f"the adapter {adapter.name} does not fit {model_id}: {problems[0]}" + (f" (and {len(problems) - 1} more)" if problems[1:] else ""),
        where=f"{adapter.name}, which says it was made for {portable(adapter.base or 'an unnamed model')}",
        fix=adapter.fix if adapter.own else "choose an adapter that was trained on this model, or set model_id to its base",
    )


def _misfit(key: str, shape: tuple[int, ...], modules: dict[str, Any]) -> str:
    """Why a tensor cannot belong to the model, or an empty text."""
    path, found, rest = key.removeprefix(_PREFIX).partition(".lora_")
    if not found or len(shape) != 2 or not rest.startswith(("A.", "B.")):
        return ""
    if path not in modules:
        return f"there is no layer {path}"
    weight = getattr(modules[path], "weight", None)
    if weight is None or weight.ndim != 2:
        return ""
    takes, gives = _in_and_out(modules[path], weight)
    side, wanted, has = ("in", takes, shape[1]) if rest.startswith("A.") else ("out", gives, shape[0])
    return "" if has == wanted else f"{path} is {wanted} wide ({side}), the adapter's is {has}"


def _in_and_out(module: Any, weight: Any) -> tuple[int, int]:
    """Input and output width; transformers' Conv1D (GPT-2) keeps its weight the other way round."""
    rows, columns = weight.shape
    return (rows, columns) if type(module).__name__ == "Conv1D" else (columns, rows)


def check_applied(adapter: Adapter, loaded: dict[str, Any]) -> None:
    """Compares the tensors in the model with those in the file, name by name and value by value.

    Args:
        loaded: PEFT's state of the model, with the names that it would save.

    Raises:
        CheckFailed: some are missing on one side, or differ.
    """
    missing, left_over = sorted(set(loaded) - set(adapter.tensors)), sorted(set(adapter.tensors) - set(loaded))
    changed = [key for key in adapter.tensors if key in loaded and not _same(adapter.tensors[key], loaded[key])]
    problems = [
        *_counted(missing, "layers of the model got no weights from the file"),
        *_counted(left_over, "tensors of the file have no place in the model"),
        *_counted(changed, "tensors are not the same in the model as in the file"),
    ]
    if problems:
        raise CheckFailed(
            f"the adapter {adapter.name} was not applied as it stands: {'; '.join(problems)}",
            where=f"{adapter.name}/{WEIGHTS}",
            fix=adapter.fix if adapter.own else "choose an adapter that was trained on this model with PEFT",
        )


def _counted(names: Iterable[str], what: str) -> list[str]:
    names = list(names)
    return [f"{len(names)} {what}, {names[0]} first"] if names else []


def _same(stored: Any, loaded: Any) -> bool:
    import torch

    if stored.shape != loaded.shape:
        return False
    return torch.equal(stored.to(loaded.dtype), loaded.detach().to("cpu"))
