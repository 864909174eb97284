"""What deserves a look before training, each with its fix. A lint stops nothing."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.data.masking import Row
from mac_lora_helpers.data.problems import brief
from mac_lora_helpers.data.splitting import Splits
from mac_lora_helpers.data.store import Example
from mac_lora_helpers.data.template import ChatTemplate
from mac_lora_helpers.data.tokenizer import added_tokens, stop_ids

#: Name → (what it means, what to do).
LINTS: dict[str, tuple[str, str]] = {
    "no_eos_trained": (
        "rows whose answers do not end with a token that stops generation: the model would never stop",
        "set the tokenizer's eos_token (or generation_config.json's eos_token_id) to the token that ends a turn",
    ),
    "eos_doubled": ("rows with the end token twice in a row", "remove the end token from the data; the template writes it"),
    "bos_doubled": ("rows that start with two BOS tokens", "remove the BOS from the data; the tokenizer or template writes it"),
    "pad_is_eos": (
        "the pad token is the EOS token; other collators would leave the EOS out of the loss",
        "nothing here, labels are masked by position; elsewhere set a pad token of its own",
    ),
    "eos_appended": (
        "rows whose template ends no turn; the EOS was added after the last answer so that the model learns to stop",
        "nothing, or use a template that writes an end token after every answer",
    ),
    "template_missing": ("the tokenizer has no chat template", "nothing for plain text; chatting later needs a template"),
    "template_unused": (
        "the model answers through its chat template, but plain text rows do not use it",
        "use messages instead of text to train how the model chats",
    ),
    "system_injected": ("rows without a system turn, for which the template writes its own", "nothing, or write a system turn"),
    "thinking_lost": ("answers whose <think> part the template drops", "put it into reasoning_content, or remove it"),
    "thinking_added": ("rows whose template writes text of its own before the answer; it is trained", "nothing; inference writes it too"),
    "unknown_tokens": ("rows with characters that the tokenizer does not know", "remove them, or use a byte-level tokenizer"),
    "trailing_space_in_prompt": ("rows with white space at the end of a user turn", "strip the prompts, and strip them at inference too"),
    "special_token_in_text": (
        "rows with a special token written out in a turn's text; it becomes the real token",
        "remove it from the text unless it is meant",
    ),
    "turn_by_turn": (
        "rows whose history renders or merges differently once it is history; each answer became a row of its own, after its exact prompt",
        "nothing; fewer rows come of conversations with one answer, or answers without white space around them",
    ),
    "date_in_template": ("the template writes today's date into every prompt", "mind that later prompts differ in it"),
    "prompt_in_train_and_test": (
        "test rows whose prompt also stands in train, with another answer",
        "look whether the test measures memory; remove one of the two",
    ),
}


@dataclass(frozen=True)
class Lint:
    """A lint: its name, how many rows (0: the whole set), what it means, what to do."""

    name: str
    count: int
    what: str
    fix: str


class LintCounter:
    """Looks at each row as it is encoded."""

    def __init__(self, tokenizer: Any, config: Config, splits: Splits, template: ChatTemplate | None) -> None:
        self.tokenizer, self.template, self.splits = tokenizer, template, splits
        self.stops = stop_ids(tokenizer, config.model_path)
        self.bos, self.unknown = tokenizer.bos_token_id, tokenizer.unk_token_id
        self.injected = template.injected_system() if template else ""
        tokens = sorted(added_tokens(tokenizer).values(), key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, tokens)) or "(?!)")
        self.counts: Counter[str] = Counter()

    def row(self, example: Example, rows: list[Row]) -> None:
        """Counts what one example shows."""
        counts = self.counts
        counts["turn_by_turn"] += len(rows) > 1
        for row in rows:
            ids, end = row.ids, row.spans[-1][1]
            counts["no_eos_trained"] += ids[end - 1] not in self.stops
            twice = ids[end - 1] in self.stops and (
                ids[end - 2 : end - 1] == ids[end - 1 : end] or ids[end : end + 1] == ids[end - 1 : end]
            )
            counts["eos_doubled"] += twice
            counts["bos_doubled"] += self.bos is not None and ids[:2] == [self.bos, self.bos]
            counts["unknown_tokens"] += self.unknown is not None and self.unknown in ids
        self._texts(example, rows)

    def _texts(self, example: Example, rows: list[Row]) -> None:
        messages = example.messages or []
        texts = [message["content"] for message in messages] if messages else [example.text or ""]
        self.counts["special_token_in_text"] += any(self.special.search(text) for text in texts)
        if not messages:
            return
        self.counts["trailing_space_in_prompt"] += any(m["content"][-1:].isspace() for m in messages if m["role"] == "user")
        self.counts["system_injected"] += bool(self.injected) and messages[0]["role"] not in ("system", "developer")
        if any("</think>" in m["content"] for m in messages if m["role"] == "assistant"):
            kept = " ".join(self.tokenizer.decode(row.ids[start:end]) for row in rows for start, end in row.spans)
            wanted = sum(m["content"].count("</think>") for m in messages if m["role"] == "assistant")
            self.counts["thinking_lost"] += kept.count("</think>") < wanted

    def finish(self) -> list[Lint]:
        """All lints that apply, those about single rows first."""
        counts, template, total = dict(self.counts), self.template, sum(map(len, self.splits.values()))
        counts["prompt_in_train_and_test"] = self.splits.shared_prompts
        if template:
            counts["eos_appended"] = 0 if template.end else total
            counts["thinking_added"] = total if template.lead.strip() else 0
        found = [self._lint(name, count) for name, count in counts.items() if count]
        return found + [self._lint(name, 0) for name, applies in self._whole_set() if applies]

    def _whole_set(self) -> list[tuple[str, bool]]:
        template, has = self.template, bool(self.tokenizer.chat_template)
        return [
            ("pad_is_eos", self.tokenizer.pad_token_id == self.tokenizer.eos_token_id),
            ("template_missing", template is None and not has),
            ("template_unused", template is None and has),
            ("date_in_template", template is not None and "strftime_now" in template.text),
        ]

    def _lint(self, name: str, count: int) -> Lint:
        what, fix = LINTS[name]
        more = f": {brief(self.injected, 80)!r}" if name == "system_injected" else ""
        return Lint(name, count, what + more, fix)
