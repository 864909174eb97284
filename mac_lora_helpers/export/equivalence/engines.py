"""What the equivalence check asks of an engine, and greedy answers in a form that compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Prompt:
    """One prompt of the check.

    Args:
        ids: token ids that the trained model saw or would see; the reference.
        messages: the chat, or None for plain text. text: the plain text, or empty.
        tools: tool definitions of the chat, if any.
        expected: token ids of the held-out answer, end token included; empty if there is none.
    """

    ids: tuple[int, ...]
    messages: list[dict[str, Any]] | None = None
    text: str = ""
    tools: list[Any] | None = None
    expected: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A greedy continuation.

    Args:
        tokens: ids without the end token. logprobs: natural log-probability of each token.
        end: id of the token at which the engine stopped by itself, or None. end_logprob: its log-probability.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    end: int | None = None
    end_logprob: float | None = None


class Engine(Protocol):
    """A loaded artefact."""

    #: Program that runs it, with its version.
    engine: str
    #: Seconds from the file to a model that answers.
    load_seconds: float
    #: Ids at which this engine stops though the model's settings do not name them.
    own_ends: frozenset[int]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids that the engine itself makes of the chat or text."""

    def answers(self, rows: Sequence[Sequence[int]], limit: int, drafts: Sequence[Answer] = ()) -> list[Answer]:
        """Greedy continuations, one per row of ids, of at most ``limit`` tokens.

        Args:
            drafts: answers that are likely right; an engine may verify them in one pass instead of generating.
        """

    def score(self, ids: Sequence[int], expected: Sequence[int]) -> list[float]:
        """Log-probability of each expected token after the ids and the ones before it."""

    def close(self) -> None:
        """Frees the model."""
