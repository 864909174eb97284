"""Puts the fast path into a trainer and takes it out again."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mac_lora_helpers.training import memory, processes
from mac_lora_helpers.training.batches import largest_pass
from mac_lora_helpers.training.fast.head import FrozenHead, tile, tile_bytes
from mac_lora_helpers.training.fast.known import Parts, Unknown, lowest_adapted, require_known, require_unwatched, take_apart
from mac_lora_helpers.training.fast.layer import Work, run_layer
from mac_lora_helpers.training.fast.plan import Kept, Plan, choose_plan, kept

IGNORED = -100
#: Above this share of rows with a label the last layer computes all of them: choosing would cost more than it saves.
NEARLY_ALL = 0.9
#: The number of chosen rows is rounded up: on MPS so that few distinct shapes occur and the allocator can reuse its buffers,
#: on the CPU because products of 511 rows took a tenth longer than those of 512.
GRANULE = {"mps": 64, "cpu": 16}
#: Share of the free memory to plan with.
SHARE = 0.9
#: Optimizer steps from which a race is repaid, and how much slower than the plain path the fast one may measure: timings wobble.
LONG, SLOWER = 100, 1.05
_NAME = "_fast_path"
_KNOWN_INPUTS = {"input_ids", "attention_mask", "use_cache", "return_dict"}


@dataclass(frozen=True)
class Choice:
    """Which path a training takes.

    Attributes:
        applied: whether it is the fast one.
        reason: why, or what spoke against it.
        plan: what is computed again; None if not applied.
        differences: relative differences to the plain path: ``loss`` and ``gradient``; empty if not compared.
        seconds: of a pass each way, ``plain`` and ``fast``; empty if not raced.
    """

    applied: bool
    reason: str
    plan: Plan | None = None
    differences: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def sealed(self) -> dict[str, Any]:
        """What the run keeps, so that a resumed training takes the same path."""
        return {"applied": self.applied, "reason": self.reason, "seconds": self.seconds}

    def told(self) -> dict[str, Any]:
        """For ``train_metrics.json``."""
        return {"on": self.applied, "reason": self.reason, "seconds": self.seconds, "recomputed": self.plan.kind if self.plan else None}


def take(trainer: Any, wanted: str, steps: int, kept: dict[str, Any] | None = None) -> Choice:
    """Chooses the path of a training, once: by the model, by the numbers, and by a race where the training is long.

    Args:
        wanted: ``fast_path``: auto, lean or off.
        steps: of the training.
        kept: the choice of an earlier part of the same training (``Choice.sealed``); it is taken again, unasked.
    """
    if wanted == "off" or (kept and not kept["applied"]):
        return Choice(False, kept["reason"] if kept else "fast_path=off", seconds=kept["seconds"] if kept else {})
    choice = make_fast(trainer, recompute="mlp" if wanted == "lean" else "auto", compare=kept is None)
    if kept and choice.applied:
        choice = replace(choice, reason=kept["reason"], seconds=kept["seconds"])
    elif choice.applied and steps >= LONG and wanted == "auto":
        choice = _raced(trainer, choice)
    if processes.any_of(not choice.applied):
        undo(trainer)
        choice = choice if not choice.applied else Choice(False, "another of the processes refused it")
    return choice


def _raced(trainer: Any, choice: Choice) -> Choice:
    from mac_lora_helpers.training.fast.check import race

    seconds = race(trainer, getattr(trainer.model.get_base_model(), _NAME))
    told = f"{choice.reason}; two passes each way: {seconds['fast']:.2g} s, the plain path {seconds['plain']:.2g} s"
    return Choice(seconds["fast"] < SLOWER * seconds["plain"], told, choice.plan, choice.differences, seconds)


def make_fast(trainer: Any, recompute: str = "auto", budget_bytes: int | None = None, compare: bool = True) -> Choice:
    """Lets a trainer's training steps take the fast path, if it knows the model and gets the plain path's numbers.

    Args:
        trainer: TRL's ``SFTTrainer`` with a PEFT LoRA model, before ``train``.
        recompute: auto: the least that fits when the trainer's gradient checkpointing is on, nothing when it is off.
            Or nothing, mlp, layers.
        budget_bytes: what the backward pass may keep; None: 90 % of what is free now, less what training still allocates.
        compare: try both paths on a short batch first and refuse on a difference.
    """
    undo(trainer)
    try:
        require_known(trainer)
    except Unknown as unknown:
        return Choice(False, str(unknown))
    except AttributeError as error:
        return Choice(False, f"the model is not built as expected: {error}")
    plan = _plan(trainer, recompute, budget_bytes)
    path = _FastPath(trainer.model.get_base_model(), plan)
    path.install()
    if not compare:
        return Choice(True, "known architecture; not compared with the plain path", plan)
    from mac_lora_helpers.training.fast.check import compare_paths

    differences, problem = compare_paths(trainer, path)
    if problem:
        path.remove()
        return Choice(False, problem, differences=differences)
    numbers = f"loss {differences['loss']:.0e}, gradient {differences['gradient']:.0e}"
    where = f"on a short batch on {trainer.args.device.type} (relative difference: {numbers})"
    return Choice(True, f"same numbers as the plain path {where}", plan, differences)


def undo(trainer: Any) -> None:
    """Takes the fast path out; the trainer's next steps are TRL's own."""
    model = trainer.model
    path = getattr(model.get_base_model() if hasattr(model, "get_base_model") else model, _NAME, None)
    if path is not None:
        path.remove()


def _plan(trainer: Any, recompute: str, budget: int | None) -> Plan:
    model, device = trainer.model, trainer.args.device.type
    config, itemsize = model.get_base_model().config, model.get_base_model().dtype.itemsize
    rows, length = largest_pass(trainer.passes.lengths, trainer.passes.rows, trainer.passes.budget)
    sizes = kept(config, rows, length, itemsize, model.active_peft_config, device)
    if recompute == "auto" and not trainer.args.gradient_checkpointing:
        recompute = "nothing"
    if recompute == "auto" and budget is None:
        budget = _budget(model, config, itemsize, device, rows * length, sizes)
    return choose_plan(sizes, budget, recompute)


def _budget(model: Any, config: Any, itemsize: int, device: str, tokens: int, sizes: Kept) -> int:
    """Free memory, less gradients and optimizer (12 bytes an adapter parameter), logits and one layer's backward pass."""
    adapter = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logits = tile_bytes(tokens, config.hidden_size, config.vocab_size, itemsize, tile(device))
    return int(memory.available(device) * SHARE) - 12 * adapter - logits - 2 * sizes.wide


class _FastPath:
    """Stands before the base model's ``forward`` and takes over a training step's call with labels."""

    def __init__(self, base: Any, plan: Plan) -> None:
        # steps: forward passes taken so far, for tests and benchmarks
        self.base, self.plan, self.plain = base, plan, base.forward
        self.enabled, self.steps = True, 0
        self.tile = tile(base.device.type, plan.kind)

    def install(self) -> None:
        path = self

        @functools.wraps(self.plain)
        def forward(_: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **inputs: Any) -> Any:
            if fused_lm_head and not args and path.takes(labels, inputs) and (parts := path.parts()):
                return path.step(parts, labels, inputs)
            if fused_lm_head:
                inputs["fused_lm_head"] = True
            if labels is not None:
                inputs["labels"] = labels
            return path.plain(*args, **inputs)

        self.base.forward = types.MethodType(forward, self.base)
        setattr(self.base, _NAME, self)

    def remove(self) -> None:
        self.base.forward = self.plain
        if hasattr(self.base, _NAME):
            delattr(self.base, _NAME)

    def takes(self, labels: Any, inputs: dict[str, Any]) -> bool:
        """A training step over token ids with at least one label; anything else is the plain path's."""
        if not (self.enabled and torch.is_grad_enabled() and self.base.training and labels is not None):
            return False
        given = {name for name, value in inputs.items() if value is not None}
        return given <= _KNOWN_INPUTS and bool((labels[:, 1:] != IGNORED).any())

    def parts(self) -> list[Parts] | None:
        """The decoder layers as they are now; None when one is not as the fast path knows it (the adapter is off, merged, watched, …)."""
        try:
            require_unwatched(self.base.model.layers)
            return [take_apart(layer) for layer in self.base.model.layers[: self.base.config.num_hidden_layers]]
        except Unknown:
            return None

    def step(self, parts: list[Parts], labels: torch.Tensor, inputs: dict[str, Any]) -> Any:
        """TRL's ``FusedCausalLMOutput`` for one batch; labels (rows, tokens)."""
        from trl.trainer.utils import FusedCausalLMOutput

        self.steps += 1
        follows, mask, chosen, targets = _positions(labels, GRANULE.get(labels.device.type, 1))
        rows = chosen if len(chosen) < NEARLY_ALL * labels.numel() else None
        inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs.get("attention_mask"), "use_cache": False}
        with self._layers(parts, rows):
            hidden = self.base.model(**inputs).last_hidden_state
        hidden = hidden.reshape(-1, hidden.shape[-1])
        hidden = hidden if rows is not None else hidden.index_select(0, chosen)
        scored = FrozenHead.apply(hidden, self.base.get_output_embeddings().weight, targets, self.tile)
        log_p, entropy, hit = (x.new_zeros(mask.shape).masked_scatter(mask, x[:follows]) for x in scored)
        return FusedCausalLMOutput(loss=-log_p.sum() / follows, log_probs=log_p, entropy=entropy, is_top1=hit, label_mask=mask)

    @contextlib.contextmanager
    def _layers(self, parts: list[Parts], rows: torch.Tensor | None) -> Iterator[None]:
        """The decoder layers run here for the time of a block; outside of it they are untouched."""
        layers = self.base.model.layers[: len(parts)]
        last, lowest = len(parts) - 1, lowest_adapted(parts)
        for index, layer in enumerate(layers):
            chosen = rows if index == last else None
            work = Work(parts[index], index <= lowest, chosen, self.plan.again(index - lowest), below=index < lowest)
            layer.forward = functools.partial(run_layer, layer, work)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def _positions(labels: torch.Tensor, granule: int) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where a label follows: how many, the mask (rows, tokens − 1), flat indices into rows × tokens, and the labels.

    The indices are padded with the first one to a multiple of ``granule``; what comes of the padding is cut off, so its
    gradient is zero.
    """
    mask = labels[:, 1:] != IGNORED
    chosen = torch.nn.functional.pad(mask, (0, 1)).reshape(-1).nonzero().squeeze(-1)
    targets = labels[:, 1:][mask]
    count, missing = len(chosen), -len(chosen) % granule
    if missing:
        chosen = torch.cat([chosen, chosen[:1].expand(missing)])
        targets = torch.cat([targets, targets[:1].expand(missing)])
    return count, mask, chosen, targets
