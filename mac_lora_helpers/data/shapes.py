"""Shapes of rows: how the fields of a row become messages or text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.data.conversation import Message, check_order, from_json, read_messages, read_tools
from mac_lora_helpers.data.problems import DataError, Fault, Faults, brief, file_error, listed, stops
from mac_lora_helpers.data.store import Example

Row = Mapping[str, Any]
#: Names of the fields that people use, in any case, the most telling first.
_LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
_QUESTIONS = ("prompt", "instruction", "question", "query", "user", "human", "problem", "input", "inputs", "source")
_ANSWERS = ("completion", "output", "response", "answer", "assistant", "gpt", "bot", "reply", "solution", "target", "targets")
_EXTRA = ("input", "context")
_SYSTEM = ("system", "system_prompt", "system_message")
_TOOLS = ("tools", "functions")
_HH = re.compile(r"\n\n(Human|Assistant): ?")
#: Shapes that are read alike.
_FAMILY = {"conversations": "messages", "alpaca": "pair", "prompt_completion": "pair"}
_KNOWN = "messages, conversations, prompt + completion, instruction + output, question + answer, text"


class Reader:
    """Reads rows of one source, each by its own fields; keeps what was recognized and what was not used.

    Attributes:
        name: the shape of most of the first rows. reason: why.
        recognized: how rows were read → how many. ignored: field → rows in which it was not used.

    Raises:
        DataError: no known shape in the first rows, or a column that is mapped and is not there.
    """

    def __init__(self, rows: list[Row], config: Config, where: str) -> None:
        self.config, self.columns = config, column_map(config)
        self.recognized: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        if missing := [name for name in self.columns.values() if not any(name in row for row in rows)]:
            fields = listed(dict.fromkeys(key for row in rows for key in row))
            raise file_error("unknown_column", where, f"no column {listed(missing)}; the columns are {fields}")
        votes = Counter(shape for row in rows if (shape := self.shape_of(self._renamed(row))[0]))
        if config.data_shape != "auto":
            self.name, self.reason = config.data_shape, f"{config.data_shape}, as the parameter data_shape says"
            return
        if not votes:
            raise _unknown(where, rows)
        self.name, count = votes.most_common(1)[0]
        if self.name == "preference" and config.use_answer != "chosen":
            raise file_error(
                "preference", where, "preference data: a chosen and a rejected answer in each row, and one of them can be trained"
            )
        self.reason = f"{self.name}: {count} of the first {len(rows)} rows"

    def _renamed(self, row: Row) -> Row:
        if not self.columns:
            return row
        taken = set(self.columns.values())
        return {**{key: value for key, value in row.items() if key not in taken}, **{to: row.get(key) for to, key in self.columns.items()}}

    def shape_of(self, row: Row) -> tuple[str, tuple[str, ...]]:
        """(the row's shape by its fields, those fields), or the one that ``data_shape`` asks for; ("", ()) if it has none."""
        asked = _FAMILY.get(self.config.data_shape, self.config.data_shape)
        return next((found for found in self._shapes(row) if asked in ("auto", _FAMILY.get(found[0], found[0]))), ("", ()))

    def _shapes(self, row: Row) -> Iterator[tuple[str, tuple[str, ...]]]:
        """All shapes that the row's fields allow, the most telling first; a field that the caller named comes before others."""
        config, lower = self.config, {key.lower().strip(): key for key in row if isinstance(key, str) and row[key] is not None}
        if config.text_field and isinstance(row.get(config.text_field), str):
            yield "text", (config.text_field,)
        if "chosen" in lower and "rejected" in lower:
            question = next((lower[name] for name in (*_QUESTIONS, *_LISTS) if name in lower), "")
            yield "preference", (*filter(None, [question]), lower["chosen"])
        lists = [config.messages_field, *_LISTS] if config.messages_field else ["conversations"]
        for key in dict.fromkeys(name if row.get(name) is not None else lower.get(name, "") for name in lists):
            if key and (key in (config.messages_field, "messages", "conversations") or isinstance(from_json(row[key]), list)):
                first = row[key][0] if isinstance(row[key], list) and row[key] else None
                yield ("conversations" if isinstance(first, dict) and "from" in first else "messages"), (key,)
        question, answer = (next((lower[name] for name in names if name in lower), "") for names in (_QUESTIONS, _ANSWERS))
        if question and answer:
            extra = next((lower[name] for name in _EXTRA if name in lower and lower[name] != question), "")
            fields = (question, answer, *([extra] if extra and question.lower() in ("instruction", "question") else []))
            yield ("alpaca" if question.lower() == "instruction" else "prompt_completion"), fields
        if not config.text_field and isinstance(row.get("text"), str):
            yield "text", ("text",)

    def parse(self, row: Row, faults: Faults) -> Example | None:
        """The row in its final form; None after adding what is wrong with it."""
        row = self._renamed(row)
        shape, fields = self.shape_of(row)
        if not shape or (shape == "text") != (self.name == "text"):
            self._misfit(row, faults)
            return None
        used, unused, before = set(fields), set(), len(faults)
        if shape == "text":
            text = _string(row[fields[0]], fields[0], faults)
            example = Example(text=text)
        else:
            system, tools = _beside(row, _SYSTEM), _beside(row, _TOOLS)
            used |= {system, tools} - {""}
            messages = self._messages(row, shape, fields, faults, unused, used)
            if stops(faults[before:]):
                return None
            if system and isinstance(row[system], str) and row[system].strip():
                if messages[0]["role"] in ("system", "developer"):
                    unused |= {system} if row[system].strip() != str(messages[0]["content"]).strip() else set()
                else:
                    messages.insert(0, {"role": "system", "content": row[system]})
            check_order(messages, fields[0], faults)
            example = Example(messages, tools=read_tools(row[tools], faults) if tools else None)
        if stops(faults[before:]):
            return None
        self._count(row, shape, fields, used, unused)
        return example

    def _messages(self, row: Row, shape: str, fields: tuple[str, ...], faults: Faults, unused: set[str], used: set[str]) -> list[Message]:
        if shape in ("messages", "conversations"):
            return read_messages(row[fields[0]], fields[0], faults, unused)
        if shape == "preference":
            used.add("rejected")
            if self.config.use_answer != "chosen":
                faults.append(Fault("preference", "chosen", "a chosen and a rejected answer"))
                return []
            return _preference(row, fields, faults, unused)
        question, answer = from_json_list(row[fields[0]]), from_json_list(row[fields[1]])
        if isinstance(row.get("label"), bool):
            used.add("label")
            if not row["label"]:
                faults.append(Fault("marked_bad", "label", "the answer is marked as bad (label: false)"))
        if isinstance(question, list) or (isinstance(answer, list) and answer and isinstance(answer[0], dict)):
            turns = (question if isinstance(question, list) else _turn("user", question)) + (
                answer if isinstance(answer, list) else _turn("assistant", answer)
            )
            return read_messages(turns, f"{fields[0]}+{fields[1]}", faults, unused)
        if shape == "alpaca" or "history" in row:
            used.add("history")
        extra = row[fields[2]] if len(fields) > 2 else ""
        messages = _history(row.get("history"), faults) + _turn("user", _string(question, fields[0], faults, numbers=True))
        messages += _turn("assistant", _string(answer, fields[1], faults, numbers=True))
        if isinstance(extra, str) and extra.strip():
            messages[-2]["content"] += f"\n\n{extra}"
        elif not isinstance(extra, str):
            faults.append(Fault("non_string_content", fields[2], f"not text: {brief(extra)}"))
        return messages

    def _misfit(self, row: Row, faults: Faults) -> None:
        """Why a row is not of a known shape, or not of the kind that most rows are."""
        wanted = {
            "text": (self.config.text_field or "text",),
            "prompt_completion": ("prompt", "completion"),
            "alpaca": ("instruction", "output"),
        }
        names = wanted.get(self.name, (self.config.messages_field or "messages",))
        here = [name for name in (*names, *_LISTS, *_QUESTIONS, *_ANSWERS) if name in row]
        if empty := [name for name in here if row[name] is None]:
            faults.append(Fault("missing_field", empty[0], f"the field {empty[0]} is empty"))
        elif self.name == "text" and here and here[0] == names[0]:
            faults.append(Fault("non_string_content", here[0], f"not text: {brief(row[here[0]])}"))
        else:
            what = f"the row has no {' and no '.join(name for name in names if name not in row) or 'such shape'}"
            faults.append(Fault("mixed_shapes", "", f"{what}; its fields are {listed(row) or 'none'}"))

    def _count(self, row: Row, shape: str, fields: tuple[str, ...], used: set[str], unused: set[str]) -> None:
        if shape in ("prompt_completion", "alpaca"):
            how = f"{' + '.join((fields[0], *fields[2:]))} → {fields[1]}"
        else:
            how = f"{fields[-1]} (from, value)" if shape == "conversations" else fields[0] if shape != "preference" else "the chosen answer"
        back = self.columns
        self.recognized[" ".join(f"{word} ({back[word]})" if word in back else word for word in how.split(" "))] += 1
        unused |= {key for key in row if key not in used and row[key] not in (None, "", [], {})}
        if unused and len(self.ignored) < 200:
            self.ignored.update(unused)


def column_map(config: Config) -> dict[str, str]:
    """``columns`` as {the suite's name: the file's column}.

    Raises:
        DataError: it is not written as names with values.
    """
    pairs = [part.replace(":", "=", "=" not in part).partition("=") for part in config.columns.split(",") if part.strip()]
    if bad := [key for key, sign, value in pairs if not sign or not key.strip() or not value.strip()]:
        raise file_error("unknown_column", f"parameter columns={config.columns}", f"not a pair of names: {listed(bad)}")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _unknown(where: str, rows: list[Row]) -> DataError:
    fields = Counter(key for row in rows for key in row)
    tree = {"parent_id", "message_id"} <= set(fields)
    more = "; the rows are single messages of a tree, not conversations" if tree else ""
    return file_error("unknown_shape", where, f"no known shape: the fields are {listed(fields) or 'none'}{more}; known are {_KNOWN}")


def _beside(row: Row, names: tuple[str, ...]) -> str:
    return next((name for name in names if row.get(name)), "")


def _turn(role: str, content: Any) -> list[Message]:
    return [{"role": role, "content": content}]


def _string(value: Any, field: str, faults: Faults, numbers: bool = False) -> str:
    if numbers and isinstance(value, (int, float)) and not isinstance(value, bool):
        faults.append(Fault("numbers_as_text", field, f"the number {value} was written as text"))
        return str(value)
    if not isinstance(value, str):
        faults.append(Fault("non_string_content", field, f"not text: {brief(value)}"))
        return ""
    if not value.strip():
        faults.append(Fault("empty_content", field, "the text is empty"))
    return value


def from_json_list(value: Any) -> Any:
    """A list of messages that stands in a text field, parsed; a text that merely looks like JSON stays a text."""
    found = from_json(value)
    return found if isinstance(found, list) and found and isinstance(found[0], dict) and {"role", "from"} & set(found[0]) else value


def _history(raw: Any, faults: Faults) -> list[Message]:
    """Earlier pairs of question and answer."""
    pairs = from_json(raw) or []
    if not isinstance(pairs, list):
        faults.append(Fault("bad_history", "history", f"not a list of questions with answers: {brief(raw)}"))
        return []
    messages: list[Message] = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            faults.append(Fault("bad_history", f"history[{index}]", f"not a question and its answer: {brief(pair)}"))
            continue
        for part, role in enumerate(("user", "assistant")):
            messages += _turn(role, _string(pair[part], f"history[{index}][{part}]", faults))
    return messages


def _preference(row: Row, fields: tuple[str, ...], faults: Faults, unused: set[str]) -> list[Message]:
    """Prompt and chosen answer; ``chosen`` may hold the whole conversation, as messages or as marked text."""
    chosen = from_json_list(row[fields[-1]])
    chosen = [chosen] if isinstance(chosen, dict) else chosen
    prompt = from_json_list(row[fields[0]]) if len(fields) > 1 else None
    if isinstance(chosen, str) and prompt is None:
        pieces = _HH.split(chosen)
        roles = {"Human": "user", "Assistant": "assistant"}
        chosen = [{"role": roles[who], "content": text.strip()} for who, text in zip(pieces[1::2], pieces[2::2], strict=True)] or chosen
    if isinstance(chosen, list):
        whole = any(isinstance(item, dict) and item.get("role", item.get("from")) in ("user", "human") for item in chosen)
        before = [] if whole or prompt is None else prompt if isinstance(prompt, list) else _turn("user", prompt)
        return read_messages(before + chosen, "prompt+chosen", faults, unused)
    before = prompt if isinstance(prompt, list) else _turn("user", prompt)
    return read_messages(before + _turn("assistant", chosen), "prompt+chosen", faults, unused)
