"""Splits → token ids and labels, made once, in batches, with the tokenizer working beside the rendering."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers import language
from mac_lora_helpers.config import Config
from mac_lora_helpers.data.lengths import Fitter, Ledger, proposals
from mac_lora_helpers.data.lints import Lint, LintCounter
from mac_lora_helpers.data.lost import Lost
from mac_lora_helpers.data.masking import Masker, Plan, Row, RowFault, answer_turns, is_trained
from mac_lora_helpers.data.problems import DataError, Fault, Problems
from mac_lora_helpers.data.splitting import Splits
from mac_lora_helpers.data.store import BATCH, Example, scratch_folder
from mac_lora_helpers.data.template import ChatTemplate, TemplateRefuses
from mac_lora_helpers.data.tokenizer import backend, positions, tokenizer_digest
from mac_lora_helpers.data.tokens import TokenWriter, fingerprint, open_tokens
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.model import small_file

_AHEAD = 2
Progress = Callable[[str, int], None]


@dataclass
class Encoded:
    """Tokens and labels of every split.

    Attributes:
        splits: name → ``datasets.Dataset`` with the columns input_ids and labels (-100: not trained).
        lengths: name → tokens of each row. truncation: what the length limit did (see ``Ledger``).
        lints: what deserves a look, each with its fix. tokens: total and supervised.
        template_name, masking: how the answers were found. fingerprint, parts: what it is made of.
        rejected: rows the template refused, under on_bad_rows=skip. lost: what templates left out → in how many rows.
        proposals: what the rows, before anything was cut, say about lengths and epochs. date: what the template writes, pinned.
    """

    max_seq_length: int
    template_name: str
    masking: str
    loss_on: str
    shape: str
    splits: dict[str, Any] = field(default_factory=dict)
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    truncation: dict[str, int] = field(default_factory=dict)
    lints: list[Lint] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    proposals: list[str] = field(default_factory=list)
    date: str = ""
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Changes with the rows, the template, the tokenizer, the length limit and the masking."""
        return fingerprint(self.parts)


def encode(splits: Splits, tokenizer: Any, config: Config, progress: Progress | None = None) -> Encoded:
    """Makes tokens and labels of every split.

    Args:
        progress: called after each batch with ("rows encoded", how many so far).

    Raises:
        InputError: no chat template, one that no mask is right for, or too many answers damaged.
        DataError: rows that the template refuses, under ``on_bad_rows=stop``.
    """
    run = _Encoder(splits, tokenizer, config)
    for name, rows in splits.items():
        run.split(name, rows, progress)
    return run.finish()


class _Encoder:
    """One call of ``encode``."""

    def __init__(self, splits: Splits, tokenizer: Any, config: Config) -> None:
        self.tokenizer, self.config, self.rust = tokenizer, config, backend(tokenizer)
        self.loss_on, note = _loss_on(splits.shape, config)
        self.maskers: dict[bool, Masker] = {}
        first = None if splits.shape == "text" else self.masker(False).template
        masking = "all tokens" if self.loss_on == "all" else "prefix rendering"
        self.result = Encoded(config.max_seq_length, first.name if first else "none", masking, self.loss_on, splits.shape)
        self.result.date = first.date if first else ""
        self.lost = Lost()
        self.result.notes += [note] * bool(note) + splits.notes + language.notes(small_file(config, "config.json") or {})
        self.fitter = Fitter(config, self._encode_one)
        self.lints = LintCounter(tokenizer, config, splits, first)
        self.problems = Problems()
        self.folder = scratch_folder(self.result)
        self.done, self.content = 0, {}

    def masker(self, tools: bool) -> Masker:
        """The masker for rows with or without tools; their templates may differ."""
        if tools not in self.maskers:
            self.maskers[tools] = Masker(self.tokenizer, ChatTemplate(self.tokenizer, tools))
        return self.maskers[tools]

    def split(self, name: str, rows: Any, progress: Progress | None) -> None:
        """Encodes one split into its file."""
        path = self.folder / f"{name}.arrow"
        writer = TokenWriter(path, self.loss_on)
        digest = hashlib.sha256()
        with ThreadPoolExecutor(1) as pool:
            for batch, plans, waiting in self._ahead(rows, pool, digest):
                writer.add([part for made in self._rows(batch, plans, waiting.result()) for part in made])
                self.done += len(batch)
                if progress:
                    progress("rows encoded", self.done)
        writer.close()
        self.content[name] = digest.hexdigest()
        result = self.result
        result.files[name], result.splits[name], result.lengths[name] = path, open_tokens(path), writer.all_lengths()
        result.parts.setdefault("tokens", {})[name] = writer.digest()
        total = result.tokens.setdefault("total", 0), result.tokens.setdefault("supervised", 0)
        result.tokens = {"total": total[0] + int(writer.all_lengths().sum()), "supervised": total[1] + writer.supervised}

    def _ahead(self, rows: Any, pool: ThreadPoolExecutor, digest: Any) -> Iterator[tuple[list[Example], list[Plan | None], Future]]:
        """Batches whose tokens are being made while the next ones are rendered."""
        queue: deque[tuple[list[Example], list[Plan | None], Future]] = deque()
        stream = rows.with_lines()
        while pairs := list(islice(stream, BATCH)):
            for line, _ in pairs:
                digest.update(line)
            batch = [example for _, example in pairs]
            plans = self._plans(batch)
            queue.append((batch, plans, pool.submit(self._tokens, [plan.text for plan in plans if plan])))
            if len(queue) > _AHEAD:
                yield queue.popleft()
        yield from queue

    def _tokens(self, texts: list[str]) -> list[Any]:
        return self.rust.encode_batch(texts, add_special_tokens=self.result.shape == "text")

    def _plans(self, batch: list[Example]) -> list[Plan | None]:
        if self.result.shape == "text":
            return [Plan(text_once(example.text or "", self.tokenizer), []) for example in batch]
        if not any(example.tools for example in batch):
            try:
                return self.masker(False).plans([example.messages for example in batch])
            except TemplateRefuses:
                pass  # one row of the batch; find it
        return [self._one_plan(example) for example in batch]

    def _one_plan(self, example: Example) -> Plan | None:
        try:
            return self.masker(bool(example.tools)).plans([example.messages], example.tools)[0]
        except TemplateRefuses:
            return None

    def _rows(self, batch: list[Example], plans: list[Plan | None], encodings: list[Any]) -> Iterator[list[Row]]:
        """The final rows of each example."""
        ready = iter(encodings)
        for example, plan in zip(batch, plans, strict=True):
            encoding = next(ready) if plan else None
            try:
                made = self._text_row(encoding) if example.text is not None else self._chat_rows(example, plan, encoding)
                if example.messages and (fault := self.lost.check(example, made, self.masker(bool(example.tools)).template)):
                    raise RowFault(fault)
                made = [row for row in map(partial(self._marked, example), made) if row.spans]
                fitted = self.fitter.fit(made, example.messages, example.tools)
            except RowFault as error:
                self._refuse(error.fault, example)
                continue
            self.lints.row(example, made)
            yield fitted

    def _text_row(self, encoding: Any) -> list[Row]:
        ids = with_one_eos(encoding.ids, self.tokenizer)
        return [Row(ids, [(0, len(ids))])]

    def _chat_rows(self, example: Example, plan: Plan | None, encoding: Any) -> list[Row]:
        masker = self.masker(bool(example.tools))
        row = masker.trace(plan, encoding) if plan else None
        return [row] if row is not None else self._exact(masker, example.messages or [], example.tools)

    def _marked(self, example: Example, row: Row) -> Row:
        """The row without the spans of answers that are marked as not trained."""
        messages = example.messages or []
        if all(map(is_trained, messages)) or len(row.spans) != len(turns := answer_turns(messages)):
            return row
        pairs = list(zip(row.spans, (is_trained(messages[turn]) for turn in turns), strict=True))
        skipped = tuple(span for span, trained in pairs if not trained)
        return row._replace(spans=[span for span, trained in pairs if trained], skipped=skipped)

    def _exact(self, masker: Masker, messages: Any, tools: Any) -> list[Row]:
        """The exact way; where only the last answer or everything is trained, one row is enough."""
        try:
            if self.loss_on == "assistant":
                return masker.exact(messages, tools)
            if self.loss_on == "all" and not all(map(is_trained, messages)):
                what = "with loss_on=all an answer cannot be left out where the template rewrites earlier turns"
                raise RowFault(Fault("nothing_trained", "messages", what))
            return [masker.exact_turn(messages, tools)]
        except TemplateRefuses as error:
            raise RowFault(Fault("template_refuses", "messages", f"the chat template refuses it: {error}")) from None

    def _encode_one(self, messages: Any, tools: Any) -> list[Row]:
        example = Example(messages, tools=tools)
        plan = self._one_plan(example)
        made = self._chat_rows(example, plan, self._tokens([plan.text])[0] if plan else None)
        return [row for row in map(partial(self._marked, example), made) if row.spans]

    def _refuse(self, fault: Fault, example: Example) -> None:
        self.problems.add(fault, example.where)
        told = {"kind": fault.kind, "field": fault.field, "what": fault.what}
        self.result.rejected.append({"where": example.where, "problems": [told], "row": example.to_dict()})

    def finish(self) -> Encoded:
        """Checks of the whole, and the fingerprint."""
        result, config, ledger = self.result, self.config, self.fitter.ledger
        if self.problems.errors and config.on_bad_rows == "stop":
            raise DataError.of(f"{len(result.rejected):,} rows do not go through the chat template", self.problems, "or on_bad_rows=skip")
        room = positions(config)
        if room and config.max_seq_length > room and ledger.longest > room:
            raise InputError(
                f"rows have up to {ledger.longest:,} tokens, and the model has positions for {room:,}: behind them it reads nonsense",
                where="parameter max_seq_length",
                fix=f"max_seq_length={room}; on_long says what happens to longer rows",
            )
        ledger.check(config)
        _refuse_empty(result, ledger, config)
        result.truncation, result.lost = ledger.to_dict(), dict(self.lost.counts.most_common())
        result.proposals = proposals(ledger, config, len(result.lengths["train"]))
        result.lints = self.lints.finish()
        result.parts |= {
            "content": self.content,
            "template": {str(tools): masker.template.digest for tools, masker in self.maskers.items()},
            "tokenizer": tokenizer_digest(self.tokenizer),
            "max_seq_length": config.max_seq_length,
            "masking": [result.masking, self.loss_on, config.on_long],
        }
        return result


def _loss_on(shape: str, config: Config) -> tuple[str, str]:
    """What is trained, and what to say about it; plain text has no answers to pick out."""
    if shape != "text" or config.loss_on == "all":
        return config.loss_on, ""
    if config.asked("loss_on"):
        raise InputError(
            f"loss_on={config.loss_on} needs conversations, but the rows are plain text without turns",
            where="parameter loss_on",
            fix="loss_on=all, or data with messages",
        )
    return "all", "the rows are plain text without turns, so every token is trained, the EOS at the end included"


def _refuse_empty(result: Encoded, ledger: Ledger, config: Config) -> None:
    for name in ("train", "test"):
        if len(result.lengths.get(name, ())) == 0:
            raise InputError(
                f"no {name} row is left: {ledger.dropped} were dropped because no answer fits into max_seq_length={config.max_seq_length}",
                where="parameter max_seq_length",
                fix=f"max_seq_length={max(ledger.needed, default=config.max_seq_length)} would keep every row's first answer",
            )


def text_once(text: str, tokenizer: Any) -> str:
    """The text without an EOS of its own at the end, nor white space behind one, nor a BOS that comes again."""
    eos, bos = tokenizer.eos_token, tokenizer.bos_token
    while eos and text.rstrip().endswith(eos):
        text = text.rstrip().removesuffix(eos)
    if bos and text.startswith(bos) and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(bos)
    return text


def with_one_eos(ids: list[int], tokenizer: Any) -> list[int]:
    """The ids with the EOS at the end exactly once."""
    eos = tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
