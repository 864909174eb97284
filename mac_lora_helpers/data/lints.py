"""What deserves a look before training, each with its fix. A lint stops nothing."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.data.masking import Row
from mac_lora_helpers.data.problems import LINTS, brief
from mac_lora_helpers.data.splitting import Splits
from mac_lora_helpers.data.store import Example
from mac_lora_helpers.data.template import ChatTemplate
from mac_lora_helpers.data.tokenizer import added_tokens, stop_ids

#: Marks of a chat that was rendered already, in the words of common templates.
_CHAT_MARKS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "[INST]", "<|user|>", "### Human:", "### Instruction:")


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
        self.stops = stop_ids(tokenizer, config)
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
            self.counts["rendered_chat"] += any(mark in texts[0] for mark in _CHAT_MARKS)
            return
        self.counts["trailing_space_in_prompt"] += any(m["content"][-1:].isspace() for m in messages if m["role"] == "user")
        self.counts["system_injected"] += bool(self.injected) and messages[0]["role"] not in ("system", "developer")

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
            ("date_in_template", template is not None and bool(template.date or "strftime_now(" in template.text)),
            ("argument_unused", template is not None and bool(template.unused)),
        ]

    def _lint(self, name: str, count: int) -> Lint:
        what, fix = LINTS[name]
        more = f": {brief(self.injected, 80)!r}" if name == "system_injected" else ""
        if self.template and name in ("date_in_template", "argument_unused"):
            more = f": {self.template.date or 'in a way of its own'}" if name[0] == "d" else f": {', '.join(self.template.unused)}"
        return Lint(name, count, what + more, fix)
