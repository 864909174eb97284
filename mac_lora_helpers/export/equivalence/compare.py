"""An engine's greedy answers against the reference, position by position."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from mac_lora_helpers.export.equivalence.engine_transformers import Verdict
from mac_lora_helpers.export.equivalence.engines import Answer

_LISTED = 20


@dataclass
class Comparison:
    """What was found.

    Args:
        prompts: number compared. equal: prompts whose tokens and end are all the reference's.
        difference: largest difference of a token's log-probability.
        early: answers that the engine ended at a token of its own choice, the reference's best one there.
        near_ties: differing tokens whose two candidates lie closer than the tolerance. differences: all others.
    """

    prompts: int = 0
    equal: int = 0
    difference: float = 0.0
    early: int = 0
    near_ties: list[dict[str, Any]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)

    @property
    def agreement(self) -> float:
        """Share of the prompts with the same greedy tokens."""
        return self.equal / self.prompts if self.prompts else 0.0

    def within(self, tolerance: float) -> bool:
        """Whether only near ties differ and every log-probability is within the tolerance."""
        return not self.differences and self.difference <= tolerance

    def listed(self) -> dict[str, Any]:
        """The differing tokens for the report, the first of each kind."""
        return {"ended_early": self.early, "near_ties": self.near_ties[:_LISTED], "differences": self.differences[:_LISTED]}


def compare(
    answers: Sequence[Answer], verdicts: Sequence[Verdict], ends: Sequence[int], tolerance: float, own_ends: Collection[int] = ()
) -> Comparison:
    """Compares answers with the reference's view of the same tokens.

    Args:
        ends: ids that end an answer. own_ends: ids at which the engine stops besides them.
        tolerance: in natural log-probability.
    """
    found = Comparison(prompts=len(answers))
    for number, (answer, verdict) in enumerate(zip(answers, verdicts, strict=True)):
        before = len(found.near_ties) + len(found.differences)
        if answer.end in own_ends and answer.end not in ends and verdict.best[len(answer.tokens)] == answer.end:
            found.early += 1
            _one(found, number, answer, verdict, {*ends, answer.end}, tolerance)
        else:
            _one(found, number, answer, verdict, set(ends), tolerance)
        found.equal += len(found.near_ties) + len(found.differences) == before
    return found


def _one(found: Comparison, number: int, answer: Answer, verdict: Verdict, ends: set[int], tolerance: float) -> None:
    tokens, logprobs = list(answer.tokens), list(answer.logprobs)
    if answer.end is not None:
        tokens.append(answer.end)
        logprobs.append(answer.end_logprob)
    for position, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        best, top, given = verdict.best[position], verdict.top[position], verdict.given[position]
        found.difference = max(found.difference, min(abs(logprob - given), 1e6))
        stops, should = answer.end is not None and position == len(tokens) - 1, best in ends
        if stops == should and (token == best or stops):
            continue
        kind = "token" if stops == should or token != best else "end"
        entry = {"prompt": number, "position": position, "kind": kind, "got": token, "reference": best, "gap": round(top - given, 6)}
        near = kind == "token" and top - given < tolerance
        (found.near_ties if near else found.differences).append(entry)
