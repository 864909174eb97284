"""Conversations longer than ``max_seq_length``: cut, split or dropped, and the ledger of what that costs."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mac_lora_helpers.config import Config
from mac_lora_helpers.data.conversation import Message
from mac_lora_helpers.data.masking import Row
from mac_lora_helpers.errors import InputError


@dataclass
class Ledger:
    """What the length limit did, in rows and answers.

    Attributes:
        rows: rows before the limit. rows_cut: rows that lost their end.
        answers_cut: answers of which only the beginning is left. answers_lost: answers left out whole.
        eos_lost: answers without their end token. dropped: rows left out because no answer fits.
        rows_split: rows that became several. longest: tokens of the longest row, before the limit.
        longest_first: tokens up to the end of the first answer, at most.
        whole, needed: tokens of each row before the limit, and up to the end of its first answer; answers: of each answer.
    """

    rows: int = 0
    rows_cut: int = 0
    answers_cut: int = 0
    answers_lost: int = 0
    eos_lost: int = 0
    dropped: int = 0
    rows_split: int = 0
    longest: int = 0
    longest_first: int = 0
    damaged: int = 0
    whole: array = field(default_factory=lambda: array("L"))
    needed: array = field(default_factory=lambda: array("L"))
    answers: array = field(default_factory=lambda: array("L"))

    def to_dict(self) -> dict[str, int]:
        """The manifest's ``truncation``."""
        names = ("rows", "rows_cut", "answers_cut", "answers_lost", "eos_lost", "dropped", "rows_split", "longest", "longest_first")
        return {name: getattr(self, name) for name in names}

    def check(self, config: Config) -> None:
        """Refuses when too large a share of the rows lost part of an answer.

        Raises:
            InputError: names the ``max_seq_length`` that would do.
        """
        if self.damaged <= config.max_damaged_share * self.rows:
            return
        needed = np.sort(np.array(self.needed))
        enough = int(needed[max(0, math.ceil(len(needed) * (1 - config.max_damaged_share)) - 1)])
        raise InputError(
            f"{self.damaged:,} of {self.rows:,} rows would lose part of an answer at max_seq_length={config.max_seq_length}"
            f" ({self.damaged / self.rows:.0%}, the limit is {config.max_damaged_share:.0%})",
            where="parameter max_seq_length",
            fix=f"max_seq_length={enough} would do, {int(needed[-1])} would leave every first answer whole;"
            " or on_long=drop, or a larger max_damaged_share",
        )


class Fitter:
    """Makes rows fit the limit and keeps the ledger.

    Args:
        encode: messages, tools → rows; used to split a conversation into shorter ones.
    """

    def __init__(self, config: Config, encode: Callable[[list[Message], Any], list[Row]]) -> None:
        self.limit, self.how, self.encode = config.max_seq_length, config.on_long, encode
        self.ledger = Ledger()

    def fit(self, rows: list[Row], messages: list[Message] | None = None, tools: Any = None) -> list[Row]:
        """One example's rows, or what is left of them."""
        self.ledger.rows += len(rows)
        needed = [row.spans[0][1] for row in rows]
        self.ledger.needed.extend(needed)
        self.ledger.whole.extend(len(row.ids) for row in rows)
        self.ledger.answers.extend(end - start for row in rows for start, end in row.spans if messages)
        self.ledger.longest = max(self.ledger.longest, *(len(row.ids) for row in rows))
        self.ledger.longest_first = max(self.ledger.longest_first, *needed)
        if all(len(row.ids) <= self.limit for row in rows):
            return rows
        if self.how == "split" or (messages is None and self.how == "cut"):  # plain text loses nothing: windows over the whole of it
            return self._split(rows, messages, tools)
        return [part for row in rows for part in ([row] if len(row.ids) <= self.limit else self._shorten(row))]

    def _shorten(self, row: Row) -> list[Row]:
        if self.how == "drop":
            self.ledger.dropped += 1
            return []
        return self._cut(row)

    def _cut(self, row: Row) -> list[Row]:
        """Ends the row after the last answer that fits whole; if not even the first does, inside it."""
        ledger, limit = self.ledger, self.limit
        ledger.rows_cut += 1
        whole = [span for span in row.spans if span[1] <= limit]
        if whole:
            ledger.answers_lost += len(row.spans) - len(whole)
            return [row._replace(ids=row.ids[: whole[-1][1]], spans=whole)]
        ledger.damaged += 1
        start, end = row.spans[0]
        ledger.answers_lost += len(row.spans) - 1
        if start >= limit:
            ledger.answers_lost += 1
            ledger.dropped += 1
            return []
        ledger.eos_lost += 1
        ledger.answers_cut += limit < end - 1
        return [row._replace(ids=row.ids[:limit], spans=[(start, limit)])]

    def _split(self, rows: list[Row], messages: list[Message] | None, tools: Any) -> list[Row]:
        self.ledger.rows_split += 1
        if messages is None:  # plain text: windows, one after the other
            ids = rows[0].ids
            return [_window(ids[start : start + self.limit]) for start in range(0, len(ids), self.limit)]
        parts = [part for chunk in self._chunks(messages, tools) for part in chunk]
        return [left for part in parts for left in ([part] if len(part.ids) <= self.limit else self._cut(part))]

    def _chunks(self, messages: list[Message], tools: Any) -> list[list[Row]]:
        """Rows of conversations made of as many whole exchanges as fit, each with the system turn."""
        system = [message for message in messages[:1] if message["role"] in ("system", "developer")]
        chunks: list[list[Row]] = []
        current: list[Message] = []
        for exchange in exchanges(messages[len(system) :]):
            longer = self.encode(system + current + exchange, tools)
            if current and any(len(row.ids) > self.limit for row in longer):
                current = []
                longer = self.encode(system + exchange, tools)
            if current:
                chunks[-1] = longer
            else:
                chunks.append(longer)
            current = current + exchange
        return chunks


def proposals(ledger: Ledger, config: Config, train_rows: int) -> list[str]:
    """What the rows, before anything is cut, say about the length limit, the length of answers, and the epochs."""
    found = []
    limit, whole = config.max_seq_length, np.sort(np.array(ledger.whole))
    over = int((whole > limit).sum())
    if over and ledger.answers:
        most = int(whole[math.ceil(0.99 * len(whole)) - 1])
        told = f"max_seq_length={ledger.longest} would cut none" + (f", {most} one in a hundred" if most < ledger.longest else "")
        found.append(f"{over:,} of {len(whole):,} rows are longer than max_seq_length={limit}: {told}")
    long = int((np.array(ledger.answers) > config.max_new_tokens).sum())
    if long:
        enough = -(-max(ledger.answers) // 8) * 8
        found.append(
            f"{long:,} of {len(ledger.answers):,} answers are longer than max_new_tokens={config.max_new_tokens} tokens: {enough} would do"
        )
    steps = max(1, train_rows // config.effective_batch_size)
    if config.max_steps <= 0 and (all_steps := round(steps * config.num_train_epochs)) < 50:
        epochs = min(10, math.ceil(100 / steps))
        if epochs > config.num_train_epochs:
            found.append(
                f"{train_rows:,} rows make {all_steps} optimizer steps, which is few: num_train_epochs={epochs} would make {epochs * steps}"
            )
    return found


def _window(ids: list[int]) -> Row:
    return Row(ids, [(0, len(ids))])


def exchanges(messages: list[Message]) -> list[list[Message]]:
    """The conversation in pieces that each start with a user turn and hold its answer."""
    pieces: list[list[Message]] = []
    for message in messages:
        if message["role"] == "user" or not pieces:
            pieces.append([])
        pieces[-1].append(message)
    return [piece for piece in pieces if any(message["role"] == "assistant" for message in piece)]
