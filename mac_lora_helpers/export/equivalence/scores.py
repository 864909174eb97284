"""What an engine says of the reference's answers, token by token, and how far that is from what the reference says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mac_lora_helpers.export.equivalence.prompts import Prompt


@dataclass(frozen=True)
class Limits:
    """What passes: mean and largest difference of a token's log-probability (natural logarithm)."""

    mean: float
    largest: float


#: By what an artefact's numbers are rounded to; see docs/export.md for what was measured. Strict where an artefact only
#: rounds what it was made of; a quantized file is held loosely, because right ones differ more than some wrong ones.
LIMITS = {
    "exact": Limits(0.001, 0.03),
    "float16": Limits(0.004, 0.06),
    "bfloat16": Limits(0.02, 0.6),
    "8 bits": Limits(0.15, 3.0),
    "5 bits": Limits(0.6, 8.0),
    "4 bits": Limits(1.2, 12.0),
    "3 bits": Limits(2.0, 15.0),
}


def limits_of(kind: str) -> str:
    """Which of the limits holds for a GGUF type."""
    if kind in ("F32", "F16", "BF16"):
        return "bfloat16" if kind == "BF16" else "float16"
    bits = int(next(letter for letter in kind if letter.isdigit()))
    return "8 bits" if bits == 8 else "5 bits" if bits in (5, 6) else "4 bits" if bits == 4 else "3 bits"


@dataclass
class Reply:
    """An engine's view of one prompt.

    Args:
        number: of the prompt. ids: the engine's own ids of the chat, or None if it was not asked.
        logprobs: what it gives the reference's tokens; None where it does not tell.
        first: whether each is the engine's own first choice. ended: whether it stops where the answer ends.
        asked: what the engine's chat template must be told to make these ids, or empty.
    """

    number: int
    ids: list[int] | None
    logprobs: list[float | None]
    first: list[bool]
    ended: bool = True
    asked: str = ""


@dataclass
class Comparison:
    """Replies against the reference.

    Args:
        prompts: answered. unequal: numbers of prompts that became other ids. unended: of answers that it would go on with.
        positions: tokens compared.
        mean, largest: difference of their log-probabilities. cost: by how much they are less likely, on average.
        asked: see ``Reply``. agreement: share of them that are the engine's first choice.
    """

    prompts: int = 0
    unequal: list[int] = field(default_factory=list)
    unended: list[int] = field(default_factory=list)
    positions: int = 0
    mean: float = 0.0
    largest: float = 0.0
    cost: float = 0.0
    agreement: float = 0.0
    asked: str = ""

    def within(self, limits: Limits) -> bool:
        return bool(self.positions) and self.mean <= limits.mean and self.largest <= limits.largest


def compare(replies: Sequence[Reply], prompts: Sequence[Prompt], against: Sequence[Reply] | None = None) -> Comparison:
    """Replies held against the reference's own numbers, or against another artefact's.

    Args:
        against: replies of the artefact that this one was made of; prompts that it did not answer are left out.
    """
    wanted = {reply.number: reply.logprobs for reply in against} if against is not None else None
    found = Comparison()
    gaps: list[float] = []
    first: list[bool] = []
    for reply in replies:
        theirs = prompts[reply.number].logprobs if wanted is None else wanted.get(reply.number)
        if theirs is None:
            continue
        found.prompts += 1
        prompt = prompts[reply.number]
        if reply.ids is not None and reply.ids not in (prompt.ids, prompt.today):
            found.unequal.append(reply.number)
        found.asked = found.asked or reply.asked
        if not reply.ended:
            found.unended.append(reply.number)
        pairs = [(mine, its) for mine, its in zip(reply.logprobs, theirs, strict=True) if mine is not None and its is not None]
        gaps += [_gap(mine, its) for mine, its in pairs]
        first += reply.first
    found.positions = len(gaps)
    if gaps:
        found.mean, found.largest = sum(map(abs, gaps)) / len(gaps), max(map(abs, gaps))
        found.cost, found.agreement = sum(gaps) / len(gaps), sum(first) / len(first)
    return found


def _gap(mine: float, its: float) -> float:
    """By how much a token is less likely here; what is no number counts as far away (JSON has no infinity)."""
    return its - mine if abs(its - mine) < 1e6 else 1e6


def forward(model: Any, prompt: Prompt, number: int, ids: list[int] | None = None) -> Reply:
    """A PyTorch model's view of a prompt with its answer, in one pass, without cache and padding."""
    import torch

    row = torch.tensor([[*prompt.ids, *prompt.answer[:-1]]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=row, use_cache=False, logits_to_keep=len(prompt.answer)).logits[0].float()
        logprobs = torch.log_softmax(logits, dim=-1)
    wanted = torch.tensor(prompt.answer, device=logprobs.device)
    given = logprobs.gather(1, wanted.unsqueeze(1)).squeeze(1)
    return Reply(number, ids, given.tolist(), (logprobs.argmax(-1) == wanted).tolist())
