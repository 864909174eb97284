"""Whether mlx-lm can hold a model at all: asked of mlx-lm itself, by names and shapes; no weight is read.

It tells a family that mlx-lm does not support from a damaged file of one that it does.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[int, ...]]


def refusal(settings: dict[str, Any], shapes: Shapes) -> str:
    """Why mlx-lm does not take a model of this architecture, or empty.

    Args:
        settings: ``config.json`` with ``mlx_keys``. shapes: weight name → shape, as the files hold them; empty: not looked at.
    """
    from mlx_lm.utils import _get_classes

    kind, engine = settings.get("model_type"), f"mlx-lm {importlib.metadata.version('mlx-lm')}"
    try:
        model_class, args_class = _get_classes(dict(settings))
    except ValueError:
        return f"{engine} does not know {kind} models"
    try:
        model = model_class(args_class.from_dict(settings))
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        names = re.findall(r"'(\w+)'", str(error)) if "missing" in str(error) else []
        why = f"wants {', '.join(names)} in config.json" if names else f"cannot be built from this config: {_line(error)}"
        return f"{engine}: its {kind} {why}"
    return _layout(model, shapes, f"{engine}: its {kind}") if shapes else ""


def _layout(model: Any, shapes: Shapes, subject: str) -> str:
    """The first weight that one of the two has and the other has not."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    weights = {name: mx.broadcast_to(mx.zeros(()), shape) for name, shape in shapes.items()}
    try:
        given = model.sanitize(weights) if hasattr(model, "sanitize") else weights
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        return f"{subject} does not recognize these weights: {_line(error)}"
    mine = {name: tuple(value.shape) for name, value in given.items()}
    theirs = {name: tuple(value.shape) for name, value in tree_flatten(model.parameters())}
    missing, extra = sorted(theirs.keys() - mine.keys()), sorted(mine.keys() - theirs.keys())
    told = [f"has no place for {extra[0]}"] if extra else []
    told += [f"wants {missing[0]}, which the model does not have"] if missing else []
    if told:
        return f"{subject} is laid out differently: it {' and '.join(told)}"
    other = next((name for name in mine if mine[name] != theirs[name]), None)
    return f"{subject} is laid out differently: {other} is {theirs[other]}, here {mine[other]}" if other else ""


def stored_shapes(folder: Path) -> Shapes:
    """Names and shapes out of the headers of the files that mlx-lm would read; empty if there are none."""
    from safetensors import safe_open

    found: Shapes = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "np") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    return found


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
