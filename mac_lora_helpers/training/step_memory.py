"""The memory of one training step for any model, recipe and shape; counted once per model, then by arithmetic.

What is asked first of a kind of step is recorded at its own shape (``dry_run``); a second shape has the form for every shape
read off one recording more (``tape``), which answers every further one without torch.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.training.dry_run import (
    Way,
    alike,
    attention_for,
    decoder_layers,
    meta_model,
    record,
    require_fast,
    shortened,
    with_adapters,
)

if TYPE_CHECKING:
    from mac_lora_helpers.training.tape import Form, Tape


@dataclass(frozen=True)
class StepMemory:
    """Bytes alive in a step beside weights, adapters, gradients, optimizer and the loss's own tensors.

    Attributes:
        kept: when the loss is computed: what the forward pass keeps for the backward pass.
        forward: the most before that.
        turned: when the loss's gradient is computed.
        backward: the most after that.
        widest: the largest single block.
    """

    kept: float
    forward: float
    turned: float
    backward: float
    widest: float

    def plus(self, other: StepMemory, times: float) -> StepMemory:
        """This and ``times`` the other, field by field; ``widest`` stays."""
        values = {item.name: getattr(self, item.name) + times * getattr(other, item.name) for item in fields(self)}
        return StepMemory(**{**values, "widest": self.widest})

    @classmethod
    def of(cls, tape: Tape) -> StepMemory:
        live, marks = tape.live, tape.marks
        before, after = live[: marks["loss"]], live[marks["backward"] :]
        widest = tape.size.max(initial=0)
        return cls(*map(float, (tape.alive_at("loss"), before.max(initial=0), tape.alive_at("backward"), after.max(initial=0), widest)))


class Model:
    """What is known of a model from its configuration, and what was counted of it so far.

    Attributes:
        layers: decoder layers.
        alike: whether they all have the same shapes.
        tied: whether the head is the embedding.
        vocabulary, width: of the output head.
        head_bias: whether the head has one.
    """

    def __init__(self, model_config: Any) -> None:
        import torch

        self.config = model_config
        self._base = meta_model(copy.deepcopy(model_config), torch.float32)
        text = model_config.get_text_config()
        self.layers, self.vocabulary, self.width = len(decoder_layers(self._base)), text.vocab_size, text.hidden_size
        self.parameters = sum(parameter.numel() for parameter in self._base.parameters())
        head, embedding = self._base.get_output_embeddings(), self._base.get_input_embeddings()
        self.tied = head is not None and head.weight is embedding.weight
        self.alike, self._kinds, self._built = alike(self._base), {}, {}

    def lora(self, config: Config) -> Any:
        """``peft.LoraConfig`` for these parameters.

        Raises:
            InputError: ``lora_targets`` names a module that the model does not have.
        """
        from mac_lora_helpers.training.recipe import lora_config

        return lora_config(config, self._base)

    def weight_bytes(self, dtype: str) -> int:
        """Of the frozen weights; tied ones count once."""
        return self.parameters * _torch_dtype(dtype).itemsize

    @functools.lru_cache(maxsize=64)  # noqa: B019 (a handful of models live as long as the process)
    def adapter_parameters(self, targets: frozenset[str], rank: int, layers: int) -> int:
        """rank × (inputs + outputs) for every adapted matrix; ``layers``: how many, from the top, 0 for all."""
        from mac_lora_helpers.training.targets import linear_modules

        inside = {id(module) for layer in decoder_layers(self._base)[-layers:] for module in layer.modules()} if layers else None
        total = 0
        for name, module in linear_modules(self._base).items():
            if any(name == target or name.endswith("." + target) for target in targets) and (inside is None or id(module) in inside):
                total += rank * sum(module.weight.shape)
        return total

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def why_not_fast(self, targets: frozenset[str], dtype: str) -> str:
        """What speaks against the fast path; empty if nothing does."""
        from mac_lora_helpers.training.fast.known import Unknown

        lora = self._plain_lora(targets, 8, 0.0)
        try:
            require_fast(with_adapters(self._short(2), lora, _torch_dtype(dtype)))
        except Unknown as unknown:
            return str(unknown)
        return ""

    def step(self, lora: Any, dtype: str, way: Way, rows: int, tokens: int, active: int) -> StepMemory:
        """One step's memory; ``active``: decoder layers that keep something."""
        asked = rows, tokens, lora.r
        key = (frozenset(lora.target_modules), bool(lora.lora_dropout), dtype, way)
        if self.alike and active >= 2:
            two, three = (self._counted((key, count), count, asked) for count in (2, 3))
            return two.plus(three.plus(two, -1), active - 2)
        return self._counted((key, active), active if self.alike else self.layers, asked)

    def count(self, lora: Any, dtype: str, way: Way, rows: int, lengths: Iterable[int]) -> Iterator[None]:
        """Counts one kind of step, a recording at a time; ``step`` is arithmetic for these lengths, after two of them for all."""
        key = frozenset(lora.target_modules), bool(lora.lora_dropout), dtype, way
        for tokens in lengths:
            for layers in (2, 3) if self.alike else (self.layers,):
                self._counted((key, layers), layers, (rows, tokens, lora.r))
                yield

    def _counted(self, key: Any, layers: int, asked: tuple[int, int, int]) -> StepMemory:
        kind = key, asked[0] == 1
        if kind not in self._kinds:
            self._kinds[kind] = _Kind(self._recorder(key[0], layers))
        return self._kinds[kind].at(asked)

    def _recorder(self, key: Any, layers: int) -> Callable[[int, int, int], Tape]:
        targets, dropout, dtype, way = key

        def tape(rows: int, tokens: int, rank: int) -> Tape:
            return record(self._adapted(targets, rank, dropout, dtype, layers, way), way, rows, tokens)

        return tape

    def _adapted(self, targets: frozenset[str], rank: int, dropout: bool, dtype: str, layers: int, way: Way) -> Any:
        """A short model with adapters; the last few are remembered, for other shapes and for ways that leave no trace in it."""
        checkpointed = way.path == "plain" and way.again == "layers"
        key = targets, rank, dropout, dtype, layers, way.device, checkpointed
        if key not in self._built:
            while len(self._built) >= 8:
                self._built.pop(next(iter(self._built)))
            lora = self._plain_lora(targets, rank, 0.05 if dropout else 0.0)
            self._built[key] = with_adapters(self._short(layers), lora, _torch_dtype(dtype), attention_for(way.device))
        return self._built[key]

    def _short(self, layers: int) -> Any:
        return shortened(self.config, layers) if self.alike else self.config

    def _plain_lora(self, targets: frozenset[str], rank: int, dropout: float) -> Any:
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        conv1d = any(isinstance(module, Conv1D) for module in self._base.modules())
        return LoraConfig(r=rank, lora_dropout=dropout, target_modules=sorted(targets), task_type="CAUSAL_LM", fan_in_fan_out=conv1d)


class _Kind:
    """One kind of step: the first shape is recorded, the second has the form read, which answers for every further one."""

    def __init__(self, record: Callable[[int, int, int], Tape]) -> None:
        self._record, self._answers = record, {}
        self._first: tuple[tuple[int, int, int], Tape] | None = None
        self._form: Form | None = None
        self._read = False

    def at(self, asked: tuple[int, int, int]) -> StepMemory:
        """The memory for (rows, tokens, rank)."""
        if asked not in self._answers:
            self._answers[asked] = StepMemory.of(self._tape(asked))
        return self._answers[asked]

    def _tape(self, asked: tuple[int, int, int]) -> Tape:
        from mac_lora_helpers.training.tape import read_form

        if self._first is None:
            self._first = asked, self._record(*asked)
            return self._first[1]
        if not self._read:
            self._form, self._read = read_form(self._record, *self._first), True
        return self._form.at(*asked) if self._form else self._record(*asked)


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


_models: dict[str, Model] = {}


def model_of(model_config: Any) -> Model:
    """The counted model of a configuration; the last few are remembered."""
    key = json.dumps(model_config.to_dict(), sort_keys=True, default=str)
    if key not in _models:
        while len(_models) >= 4:
            _models.pop(next(iter(_models)))
        _models[key] = Model(model_config)
    return _models[key]
