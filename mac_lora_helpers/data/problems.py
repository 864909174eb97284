"""What can be wrong with a row, told by kind, place, field and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from mac_lora_helpers.errors import InputError
from mac_lora_helpers.files import portable

#: Problems of one kind that are kept in full; the others are only counted.
FIRST = 5

#: Kind → what to do. Kinds in NOTES are told but stop nothing.
FIXES: dict[str, str] = {
    # files
    "missing_file": "check the path; globs and comma separated lists are allowed",
    "is_directory": "name the files, for example folder/*.jsonl",
    "unreadable": "check the file's permissions",
    "empty_file": "export the data again; the file has no bytes",
    "unknown_format": "use .jsonl, .json, .csv, .tsv or .parquet, gzipped if you like",
    "damaged_gzip": "copy or compress the file again; the archive is cut or corrupt",
    "damaged_parquet": "write the Parquet file again; it is cut or corrupt",
    "damaged_csv": "quote fields that hold quotes or line breaks, and close every quote",
    "csv_columns": "give every row as many fields as the header has; quote fields that hold commas",
    "csv_header": "name every column once in the first line",
    "encoding": "save the file as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8",
    "bom_inside": "remove the byte order mark inside the file; it comes from joining files",
    "not_json": "write one JSON object a line; check quotes, commas and brackets",
    "nested_json": "save the list of rows alone: [ {...}, {...} ], or one object a line",
    "not_an_object": "make each row an object with fields; an array of rows belongs in a .json file",
    "huge_row": "split the row, or remove what does not belong in it; no model reads that much at once",
    "no_rows": "give at least two different rows",
    # rows
    "unknown_shape": "name the fields with messages_field or text_field, or set data_shape",
    "mixed_shapes": "keep rows of one shape in one run; convert or remove the others",
    "missing_field": "fill the field in, or remove the row",
    "not_a_list": "make it a list of messages, each with role and content",
    "empty_messages": "remove the row, or give it a question and an answer",
    "not_a_message": "make each message an object with role and content",
    "missing_role": "give the message a role: system, user, assistant or tool",
    "unknown_role": "use system, user, assistant or tool (from/value data: data_shape=conversations)",
    "missing_content": "give the message a content",
    "non_string_content": "make the content text; numbers and objects go in quotes",
    "empty_content": "write the missing text, or remove the row",
    "no_assistant": "add the answer; without an assistant turn there is nothing to train on",
    "assistant_first": "put the user's turn before the assistant's",
    "same_role_twice": "join the two turns into one, or put the missing turn between them",
    "system_not_first": "move the system turn to the front",
    "tool_without_call": "put the assistant's tool_calls before the tool's answer",
    "bad_tool_call": 'write tool calls as {"function": {"name": "...", "arguments": {...}}}',
    "bad_tools": "make tools a list of function schemas",
    "lone_surrogate": r"remove the half character (an escape like \ud83d without its second half)",
    "control_character": "remove the NUL character",
    "template_refuses": "change the rows as the template says, or use a model whose template allows them",
    "template_changes_history": "use a model whose chat template renders earlier turns as it rendered them before",
    # notes
    "bom": "nothing; the byte order mark at the start of the file was skipped",
    "crlf_in_text": r"replace \r\n by \n, or the model learns to write it",
    "content_parts": "nothing; lists of text parts were joined",
    "unanswered_turn": "nothing; turns after the last answer were left out",
    "empty_system": "nothing; empty system turns were left out",
    "ignored_fields": "nothing, unless one of them should be trained on",
    "duplicates": "nothing; copies stay in one split. Remove them if they should not count twice",
}
NOTES = frozenset({"empty_system", "bom", "crlf_in_text", "content_parts", "unanswered_turn", "ignored_fields", "duplicates"})


class Fault(NamedTuple):
    """A problem without its place: kind, field (empty: the whole row) and what is wrong."""

    kind: str
    field: str
    what: str


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one row or file; ``level`` is 'error' or 'note'."""

    kind: str
    where: str
    field: str
    what: str
    fix: str
    level: str = "error"

    def __str__(self) -> str:
        return f"{self.where}{' ' + self.field if self.field else ''}: {self.what}"


class Problems:
    """Collects problems: a count a kind, the first few of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kept: list[Problem] = []

    def add(self, fault: Fault, where: str) -> None:
        """Counts a problem, and keeps it if it is among the first of its kind."""
        self.counts[fault.kind] += 1
        if self.counts[fault.kind] <= FIRST:
            level = "note" if fault.kind in NOTES else "error"
            self.kept.append(Problem(fault.kind, portable(where), fault.field, fault.what, FIXES[fault.kind], level))

    @property
    def errors(self) -> dict[str, int]:
        """Count a kind, without the notes."""
        return {kind: count for kind, count in self.counts.items() if kind not in NOTES}


class DataError(InputError):
    """Rows or files that cannot be used; ``problems`` and ``counts`` hold the details."""

    problems: tuple[Problem, ...] = ()
    counts: dict[str, int] = {}  # noqa: RUF012 - replaced per instance

    @classmethod
    def of(cls, what: str, problems: Problems, more_fix: str = "") -> DataError:
        """The error for everything collected: ``what``, then the first places, then a fix a kind."""
        errors = [problem for problem in problems.kept if problem.level == "error"]
        counts = ", ".join(f"{kind} {count}" for kind, count in problems.errors.items())
        fixes = dict.fromkeys(f"{problem.kind}: {problem.fix}" for problem in errors)
        error = cls(
            f"{what} ({counts})" if counts else what,
            where="\n         ".join(f"{problem} [{problem.kind}]" for problem in errors[:12]),
            fix="\n         ".join([*fixes, *([more_fix] if more_fix else [])]),
        )
        error.problems, error.counts = tuple(errors), dict(problems.errors)
        return error


def file_error(kind: str, where: str, what: str, fix: str = "") -> DataError:
    """The error for one file- or source-level problem."""
    problems = Problems()
    problems.add(Fault(kind, "", what), where)
    error = DataError(what, where=portable(where), fix=fix or FIXES[kind])
    error.problems, error.counts = tuple(problems.kept), dict(problems.counts)
    return error


def brief(value: Any, limit: int = 60) -> str:
    """A value for a message: short, on one line, safe to print."""
    text = str(value) if isinstance(value, (str, Exception)) else repr(value)
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listed(names: Iterable[Any], limit: int = 8, width: int = 30) -> str:
    """Names joined by commas, at most ``limit`` of them."""
    names = [brief(name, width) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
