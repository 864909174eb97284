"""The fast path: the numbers of TRL's plain recipe, with less work and fewer copies.

``take(trainer, wanted, steps, kept)`` is the one call: it knows the model or not, compares its numbers with the plain path's,
races it, and changes one thing: while the trainer computes a training loss, the decoder layers and the output head run as
written here. Evaluation, generation, saving, merging and switching the adapter off stay PEFT's and transformers' own.

- ``head``: the loss only at positions that have a label, a part of the vocabulary at a time, with the gradient taken in the
  forward pass: the head is frozen, so the vocabulary is multiplied twice a token instead of three times.
- ``projections``, ``mlp``: RMSNorm, frozen linear layers with adapters, and SwiGLU as autograd functions that keep only
  what the backward pass needs.
- ``layer``: a decoder layer made of these; the last one computes its MLP only where a label follows.
- ``plan``: recomputes nothing while memory allows, else the MLPs of some layers, else whole layers.
- ``known``: which models it knows; every other one keeps the plain path, and the choice says why.
- ``check``: plain against fast on the trainer's own rows and on the device in use: first the numbers, then the time.

Importing this package loads no torch.
"""

import importlib
from typing import Any

__all__ = ["Choice", "Plan", "choose_plan", "make_fast", "take", "undo"]

_WHERE = dict.fromkeys(("Choice", "make_fast", "take", "undo"), "install") | dict.fromkeys(("Plan", "choose_plan"), "plan")


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
