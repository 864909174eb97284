"""The reference of the equivalence check: base and adapter in transformers, float32, on the CPU."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export.adapter import Adapter, adapter_folder, read_adapter
from mac_lora_helpers.export.adapter_model import load_adapted
from mac_lora_helpers.export.equivalence.compare import Comparison, compare
from mac_lora_helpers.export.equivalence.engine_transformers import Transformers, Verdict, judge
from mac_lora_helpers.export.equivalence.engines import Answer
from mac_lora_helpers.export.equivalence.prompts import prompts, render
from mac_lora_helpers.export.equivalence.weights import Expected
from mac_lora_helpers.export.gguf.model import StoredWeights
from mac_lora_helpers.export.gguf.tokenizer import Vocabulary, read_vocabulary

#: Greedy tokens compared per prompt, at most.
LONGEST_ANSWER = 40
#: Answers whose loss is measured in every engine; a token is a step there.
SCORED = 16
_CONTEXT = 2048


class Reference:
    """Everything that an artefact is held against.

    Attributes:
        prompts: see ``prompts``. limit: tokens per answer. ends: ids that end an answer.
        answers: the adapter's own greedy answers. base_answers: the untuned base's. Both losses likewise.
    """

    def __init__(self, run: RunDir, config: Config) -> None:
        from mac_lora_helpers.data import load_tokenizer

        self.run, self.config = run, config
        self.folder = adapter_folder(run, config)
        self.tokenizer = load_tokenizer(config)
        self.engine = Transformers(self._load, render, ())
        self.settings = self.model.config
        self.limit = min(config.max_new_tokens, LONGEST_ANSWER)
        self.context = min(_CONTEXT, _positions(self.settings))
        self.prompts = prompts(run, self.tokenizer, self.context - self.limit - 1)
        self.rows = [prompt.ids for prompt in self.prompts]
        self.ends = self.engine.ends = _ends(self.model, self.tokenizer)
        self._verdicts: dict[tuple, Verdict] = {}
        self.answers = self.engine.answers(self.rows, self.limit)
        self.adapter_loss = self.loss(self.engine.score)
        with self.model.disable_adapter():
            self.base_answers = self.engine.answers(self.rows, self.limit)
            self.base_loss = self.loss(self.engine.score)

    def _load(self) -> tuple[Any, Any]:
        self.model, _ = load_adapted(self.config, self.folder)
        return self.model, self.tokenizer

    def judge(self, ids: Sequence[int], answer: Answer) -> Verdict:
        """The adapter's view of an answer; kept, as most engines give the same one."""
        key = (tuple(ids), answer.tokens, answer.end)
        if key not in self._verdicts:
            self._verdicts[key] = judge(self.model, ids, answer.tokens, self.end_of(answer))
        return self._verdicts[key]

    def compare(self, answers: Sequence[Answer], tolerance: float, model: Any = None, own_ends: Collection[int] = ()) -> Comparison:
        """Answers to the prompts against the adapter, or against another model; ``own_ends``: see ``compare``."""
        pairs = zip(self.rows, answers, strict=True)
        if model is None:
            views = [self.judge(ids, answer) for ids, answer in pairs]
        else:
            views = [judge(model, ids, answer.tokens, self.end_of(answer)) for ids, answer in pairs]
        return compare(answers, views, self.ends, tolerance, own_ends)

    def end_of(self, answer: Answer) -> int:
        return answer.end if answer.end is not None and answer.end < self.settings.vocab_size else self.ends[0]

    def scored(self) -> list[tuple[Sequence[int], Sequence[int]]]:
        """(prompt, expected answer) pairs whose loss is measured."""
        fits = [prompt for prompt in self.prompts if prompt.expected and len(prompt.ids) + len(prompt.expected) < self.context]
        return [(prompt.ids, prompt.expected) for prompt in fits[:SCORED]]

    def loss(self, score: Any) -> float | None:
        """Mean negative log-probability per expected token, natural logarithm; None without expected answers."""
        values = [value for ids, expected in self.scored() for value in score(ids, expected)]
        return -sum(values) / len(values) if values else None

    def adapter(self) -> Adapter:
        return read_adapter(self.folder)

    def expected(self) -> Expected:
        """What every merged weight must be."""
        adapter = self.adapter()
        try:
            adapter.require_plain("this check")
        except InputError:
            return Expected(StoredWeights(self.run.need("merged")), adapter, plain=False)
        return Expected(base_weights(self.model), adapter, True, transposed_weights(self.model), saved_names(self.model))

    def vocabulary(self) -> Vocabulary | None:
        """The tokenizer in GGUF's terms; None for a kind that has no counterpart there."""
        try:
            return read_vocabulary(self.tokenizer, self.settings.vocab_size)
        except InputError:
            return None


def base_weights(model: Any) -> dict[str, Any]:
    """The base's weights under their own names, out of a PEFT model."""
    found = {}
    for name, tensor in model.get_base_model().state_dict().items():
        if ".lora_" not in name and ".modules_to_save." not in name:
            found[_own_name(name)] = tensor
    return found


def transposed_weights(model: Any) -> set[str]:
    """Names of the base's weights that are stored as ``(in, out)``; asked of the layers, as a square weight does not show it."""
    from transformers.pytorch_utils import Conv1D

    modules = model.get_base_model().named_modules()
    return {_own_name(f"{name}.weight") for name, module in modules if isinstance(module, Conv1D)}


def saved_names(model: Any) -> dict[str, str]:
    """Weight name → its name in the files that transformers saves; weights that share memory are saved once.

    transformers renames on loading and back on saving (GPT-NeoX: ``embed_out`` is its ``lm_head``). Weights that it
    splits or joins besides have no entry.
    """
    from transformers.core_model_loading import revert_weight_conversion

    kept: dict[int, tuple[str, Any]] = {}
    for name, tensor in base_weights(model).items():
        kept.setdefault(tensor.data_ptr(), (name, tensor))
    saved = revert_weight_conversion(model.get_base_model(), dict(kept.values()))
    return {kept[tensor.data_ptr()][0]: name for name, tensor in saved.items() if tensor.data_ptr() in kept}


def saved_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that a merge of this model saves."""
    weights = base_weights(model)
    return {saved: tuple(weights[name].shape) for name, saved in saved_names(model).items()}


def _own_name(name: str) -> str:
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _positions(settings: Any) -> int:
    """Longest context; ``_CONTEXT`` where the settings name none (BLOOM's positions have no limit)."""
    return getattr(settings, "max_position_embeddings", None) or _CONTEXT


@contextmanager
def dequantized(merged: Path, weights: dict[str, Any]) -> Iterator[Any]:
    """The merged model with a GGUF file's dequantized weights in the place of its own."""
    from mac_lora_helpers.export.adapter_model import load_plain

    model = load_plain(merged)
    missing = model.load_state_dict(weights, strict=False)
    if missing.unexpected_keys:
        raise InputError(
            f"the file holds weights that the model has not: {missing.unexpected_keys[:3]}", where="GGUF", fix="write it again"
        )
    yield model


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the tokenizer's, and those of the generation settings."""
    settings = getattr(model, "generation_config", None)
    extra = getattr(settings, "eos_token_id", None) if settings else None
    listed = [] if extra is None else extra if isinstance(extra, list) else [extra]
    found = [value for value in dict.fromkeys([tokenizer.eos_token_id, *listed]) if value is not None]
    if not found:
        raise InputError(
            "neither the tokenizer nor the model names an end token", where="tokenizer", fix="use a tokenizer with an eos token"
        )
    return found
