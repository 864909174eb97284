"""An Ollama Modelfile whose Go template says what the tokenizer's chat template says.

The fixed text is read off the chat template's output: a chat of marker words is rendered and cut at the markers. The
pieces are then held against the chat template on other chats. Where they differ (a date, merged turns), no template is
written and Ollama looks for one in the GGUF file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

_MARKS = ("MARKER-ZERO", "MARKER-ONE", "MARKER-TWO", "MARKER-THREE", "MARKER-FOUR")


@dataclass(frozen=True)
class Pieces:
    """The fixed text of a chat template.

    Args:
        start: in front of everything. system, user, assistant: text before and after a turn of that role;
            ``system`` is None where the template knows none.
        generation: what opens the answer. default_system: the system text put in when the chat has none.
    """

    start: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str
    default_system: str = ""

    def render(self, messages: list[dict[str, str]]) -> str:
        """The chat as the Go template renders it (Ollama puts SYSTEM in front when the chat has no system turn)."""
        if self.default_system and messages[0]["role"] != "system":
            messages = [_turn("system", self.default_system), *messages]
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        return (
            self.start + "".join(around[turn["role"]][0] + turn["content"] + around[turn["role"]][1] for turn in messages) + self.generation
        )


def modelfile(tokenizer: Any, file_name: str, add_bos: bool) -> str:
    """The Modelfile's text.

    Args:
        file_name: the GGUF file beside it. add_bos: whether llama.cpp puts the bos token in front by itself.
    """
    lines, pieces = [f"FROM ./{file_name}", ""], read_pieces(tokenizer)
    if pieces is None:
        lines += ["# The chat template was not carried over exactly; Ollama looks for a template in the GGUF file.", ""]
    else:
        if pieces.system is None:
            lines += ["# The chat template knows no system turn.", ""]
        lines += [f'TEMPLATE """{go_template(pieces, tokenizer.bos_token if add_bos else None)}"""', ""]
        if pieces.default_system:
            lines += [f'SYSTEM """{pieces.default_system}"""', ""]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in _stops(tokenizer, pieces)]
    return "\n".join([*lines, "PARAMETER temperature 0", ""])


def go_template(pieces: Pieces, bos: str | None) -> str:
    """The Go template. Text outside the braces is taken as it stands, line ends included.

    Args:
        bos: token that llama.cpp puts in front by itself and that is left out here, or None.
    """
    start = pieces.start.removeprefix(bos) if bos else pieces.start
    branches = ""
    for role in ("system", "user", "assistant"):
        around = getattr(pieces, role)
        if around is not None:
            branches += f'{{{{ {"else " if branches else ""}if eq .Role "{role}" }}}}{around[0]}{{{{ .Content }}}}{around[1]}'
    return f"{start}{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{pieces.generation}"


def read_pieces(tokenizer: Any) -> Pieces | None:
    """The fixed text of the chat template; None if fixed text does not reproduce it."""
    if not tokenizer.chat_template:
        return None
    try:
        pieces = _turns(tokenizer)
    except Exception:  # a template may raise anything on a chat that it does not like
        return None
    for candidate in (_with_system(tokenizer, pieces), pieces):
        if candidate and _reproduces(tokenizer, candidate):
            return candidate
    return None


def _turns(tokenizer: Any) -> Pieces | None:
    """Pieces of a chat without a system turn: head USER m1 ASSISTANT m2 USER m3 … tail."""
    roles = ("user", "assistant", "user", "assistant", "user")
    head, to_answer, to_user, _, _, tail = _cut(tokenizer, [_turn(role, mark) for role, mark in zip(roles, _MARKS, strict=True)])
    single = [_turn("user", _MARKS[0])]
    plain, prompted = _render(tokenizer, single, generation=False), _render(tokenizer, single)
    if not to_answer.startswith(tail) or not prompted.startswith(plain):
        return None
    bos = tokenizer.bos_token or ""
    shared = _shared_end(to_user, head.removeprefix(bos))
    after_answer = tail if tail and to_user.startswith(tail) else to_user[: len(to_user) - len(shared)]
    before_user = to_user.removeprefix(after_answer)
    if not head.endswith(before_user):
        return None
    answer = (to_answer.removeprefix(tail), after_answer)
    return Pieces(head.removesuffix(before_user), None, (before_user, tail), answer, prompted.removeprefix(plain))


def _with_system(tokenizer: Any, pieces: Pieces | None) -> Pieces | None:
    """The same with a system turn, and the text that stands there when the chat has none."""
    if pieces is None:
        return None
    try:
        head, between, _ = _cut(tokenizer, [_turn("system", _MARKS[0]), _turn("user", _MARKS[1])])
    except Exception:  # as above: no system turn then
        return None
    after = between.removesuffix(pieces.user[0])
    if head.startswith(pieces.start) and len(head) > len(pieces.start):
        return replace(pieces, system=(head.removeprefix(pieces.start), after))
    bos = tokenizer.bos_token or ""
    start = bos if bos and head.startswith(bos) else ""
    default = pieces.start.removeprefix(head).removesuffix(after)
    return replace(pieces, start=start, system=(head.removeprefix(start), after), default_system=default)


def _reproduces(tokenizer: Any, pieces: Pieces) -> bool:
    """Whether the pieces give the template's text on chats of one and several turns, and hold no Go or quote marks."""
    if '"""' in go_template(pieces, None) + pieces.default_system or "{{" in repr(pieces):
        return False
    turns = [
        _turn("user", "Is 2 < 3?"),
        _turn("assistant", "Yes: 2 < 3."),
        _turn("user", "And “Größe”?"),
        _turn("assistant", "No"),
        _turn("user", "Ok"),
    ]
    system = [] if pieces.system is None else [_turn("system", "Be brief.\nAlways.")]
    try:
        return all(
            pieces.render(chat) == _render(tokenizer, chat)
            for chat in (turns[:1], turns[:3], turns, [*system, *turns[:1]], [*system, *turns])
        )
    except Exception:  # as above
        return False


def _cut(tokenizer: Any, chat: list[dict[str, str]]) -> list[str]:
    """The text around the turns' contents, one piece more than turns."""
    text, pieces = _render(tokenizer, chat, generation=False), []
    for turn in chat:
        before, found, text = text.partition(turn["content"])
        if not found:
            raise ValueError("the template leaves a turn out")
        pieces.append(before)
    return [*pieces, text]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _render(tokenizer: Any, messages: list[dict[str, str]], generation: bool = True) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)


def _shared_end(left: str, right: str) -> str:
    length = 0
    while length < min(len(left), len(right)) and left[-1 - length] == right[-1 - length]:
        length += 1
    return left[len(left) - length :]


def _stops(tokenizer: Any, pieces: Pieces | None) -> list[str]:
    """Texts at which Ollama stops: the end token, and a special token that opens a turn."""
    specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    opening = [token for token in specials if pieces and token != tokenizer.bos_token and pieces.user[0].startswith(token)]
    return [token for token in dict.fromkeys([tokenizer.eos_token, *opening]) if token]
