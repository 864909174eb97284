"""The reference: base and adapter in transformers answer each prompt once, on the training's device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export.equivalence.prompts import Prompt, held_out, with_todays_date
from mac_lora_helpers.export.equivalence.scores import Comparison, Reply, compare, forward
from mac_lora_helpers.export.source import Source

#: Greedy tokens of an answer, at most.
LONGEST_ANSWER = 40
_CONTEXT, _BATCH, _FEW = 2048, 8, 4
#: Share of ``check_minutes`` that the reference may take.
_SHARE = 0.3


class Reference:
    """Everything that an artefact is held against. It needs the model only while it is made.

    Attributes:
        prompts: with the adapter's answers. of: how many prompts there could be.
        adapter: the adapter's replies without cache and padding. control: the untuned base's.
        seconds: what it took.
    """

    def __init__(self, model: Any, run: RunDir, source: Source) -> None:
        from mac_lora_helpers.environment import choose_device

        start = time.perf_counter()
        config, self.run, self.source = source.config, run, source
        self.device = choose_device(config).name
        model = model.requires_grad_(False).eval().to(self.device)
        self.vocabulary = model.get_output_embeddings().weight.shape[0]
        self.limit = min(config.max_new_tokens, LONGEST_ANSWER)
        context = min(_CONTEXT, getattr(model.config.get_text_config(), "max_position_embeddings", None) or _CONTEXT)
        found, self.of = held_out(run, source.tokenizer, context - self.limit - 1)
        self.context = context
        until = start + _SHARE * 60 * config.check_minutes
        self.prompts: list[Prompt] = []
        while found and (len(self.prompts) < _FEW or time.perf_counter() < until):
            batch, found = found[:_BATCH], found[_BATCH:]
            _answer(model, batch, self.limit, source.ends)
            self.prompts += [prompt for prompt in batch if prompt.answer]
        few = range(min(_FEW, len(self.prompts)))
        with_todays_date(source.tokenizer, self.prompts)
        self.adapter = [forward(model, self.prompts[number], number) for number in few]
        with model.disable_adapter():
            self.control = [forward(model, self.prompts[number], number) for number in few]
        model.to("cpu")
        self.seconds = time.perf_counter() - start
        if not self.prompts:
            raise CheckFailed("the adapter answers no held-out prompt", where="adapter", fix="see 04; train longer")

    def compare(self, replies: Sequence[Reply], against: Sequence[Reply] | None = None) -> Comparison:
        return compare(replies, self.prompts, against)

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) for a table."""
        control = self.compare(self.control)
        tokenizer, first = self.source.tokenizer, self.prompts[0]
        return [
            ("prompts", f"{len(self.prompts)} of {self.of} held-out ones, answered in {self.seconds:.0f} s on {self.device}"),
            ("tokens to compare", str(sum(len(prompt.answer) for prompt in self.prompts))),
            ("first answer", tokenizer.decode(first.answer, skip_special_tokens=True)[:120]),
            ("the untuned base on the same answers", f"off by {control.mean:.2g} on average (log-probability)"),
        ]


def _answer(model: Any, batch: list[Prompt], limit: int, ends: Sequence[int]) -> None:
    """Greedy answers to a few prompts at once, with the cache; log-probabilities come along."""
    import torch

    width = max(len(prompt.ids) for prompt in batch)
    ids = torch.tensor([[ends[0]] * (width - len(prompt.ids)) + prompt.ids for prompt in batch], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in batch], device=model.device)
    settings = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=limit, eos_token_id=list(ends), pad_token_id=ends[0],
            output_logits=True, return_dict_in_generate=True, use_cache=True, **settings,
        )  # fmt: skip
        logprobs = torch.stack([torch.log_softmax(step.float(), dim=-1).max(dim=-1).values for step in made.logits], dim=1)
    for prompt, tokens, values in zip(batch, made.sequences[:, width:].tolist(), logprobs.tolist(), strict=True):
        last = next((index for index, token in enumerate(tokens) if token in ends), len(tokens) - 1)
        prompt.answer, prompt.logprobs = tokens[: last + 1], values[: last + 1]
        prompt.closed = tokens[last] in ends
