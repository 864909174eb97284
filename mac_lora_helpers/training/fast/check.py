"""Plain against fast on the device in use: the same numbers, and less time.

Tests cannot foresee every device and library version, so this asks the machine itself. For the numbers the batch is the
beginning of the trainer's first row, its first half without labels. A failure counts as a difference: the plain path is always there.
The adapter's B, zero at the start, is moved for the comparison (A would have no gradient otherwise) and put back;
dropout is off; the random state is untouched.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch

from mac_lora_helpers.training import processes
from mac_lora_helpers.training.batches import collate
from mac_lora_helpers.training.recipe import first_line

#: Tokens of the comparison's row, and of the race's rows at most.
TOKENS, RACE_TOKENS = 64, 256
#: Relative differences that are accepted, by the weights' dtype: of the loss, and of the gradient's vector.
ACCEPTED = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 1e-1)}


def compare_paths(trainer: Any, path: Any) -> tuple[dict[str, float], str]:
    """Relative differences of loss and gradient, and what is wrong with them (empty if nothing is)."""
    base, device = path.base, trainer.args.device
    ids = torch.tensor(trainer.train_dataset[0]["input_ids"][:TOKENS], device=device).unsqueeze(0)
    labels = ids.clone()
    labels[:, : ids.shape[1] // 2] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "use_cache": False}
    with _prepared(trainer.model):
        path.enabled = False
        plain = _loss_and_gradient(trainer.model, inputs)
        path.enabled, before = True, path.steps
        try:
            fast = _loss_and_gradient(trainer.model, inputs)
        except (RuntimeError, TypeError, AttributeError, KeyError, ValueError) as error:
            return {}, f"on {device.type} it fails: {type(error).__name__}: {first_line(error)}"
    if path.steps == before:
        return {}, "the trainer's model does not call it"
    differences = {
        "loss": abs(fast[0] - plain[0]) / max(abs(plain[0]), 1e-12),
        "gradient": float((fast[1] - plain[1]).norm() / plain[1].norm().clamp(min=1e-12)),
    }
    allowed = dict(zip(differences, ACCEPTED.get(base.dtype, (0.0, 0.0)), strict=True))
    wrong = [f"{name} differs by {value:.1e}" for name, value in differences.items() if not value <= allowed[name]]
    problem = f"on {device.type} its numbers are not the plain path's: {', '.join(wrong)} (relative)" if wrong else ""
    return differences, problem


def race(trainer: Any, path: Any) -> dict[str, float]:
    """Seconds of a pass forward and back, ``plain`` and ``fast``: the faster of two each, in turns, after one to warm up.

    The pass is the trainer's first, cut to ``RACE_TOKENS``; with several processes the times are summed.
    """
    ids = [trainer.train_dataset[index] for index in itertools.islice(trainer.order, trainer.args.per_device_train_batch_size)]
    batch = {name: tensor.to(trainer.args.device) for name, tensor in collate(ids, trainer.processing_class.pad_token_id).items()}
    inputs = {name: tensor[: trainer.passes.sizes[-1], :RACE_TOKENS].contiguous() for name, tensor in batch.items()}
    inputs["labels"][:, -1] = inputs["input_ids"][:, -1]  # at least one label, also where the cut took all
    seconds: dict[str, list[float]] = {"plain": [], "fast": []}
    with _prepared(trainer.model):
        for turn in range(3):
            for name in seconds:
                path.enabled = name == "fast"
                begin = time.perf_counter()
                _loss_and_gradient(trainer.model, {**inputs, "use_cache": False})
                seconds[name] += [time.perf_counter() - begin] if turn else []
    path.enabled = True
    return dict(zip(seconds, processes.total(torch.tensor([min(found) for found in seconds.values()])).tolist(), strict=True))


def _loss_and_gradient(model: Any, inputs: dict[str, Any]) -> tuple[float, torch.Tensor]:
    output = model(**inputs, fused_lm_head=True)
    loss = -output.log_probs.sum() / output.label_mask.sum()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    whole = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, trained, strict=True)]
    return loss.item(), torch.cat([gradient.detach().float().reshape(-1).cpu() for gradient in whole])


@contextlib.contextmanager
def _prepared(model: Any) -> Iterator[None]:
    """Training mode without dropout, and an adapter with a B; everything as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    b = {name: parameter for name, parameter in model.named_parameters() if ".lora_B." in name}
    kept = {name: parameter.detach().clone() for name, parameter in b.items()}
    generator = torch.Generator().manual_seed(0)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    try:
        for parameter in b.values():
            noise = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.data.add_(noise.to(parameter))
        yield
    finally:
        for name, parameter in b.items():
            parameter.data.copy_(kept[name])
        for module, mode in modes.items():
            module.training = mode
