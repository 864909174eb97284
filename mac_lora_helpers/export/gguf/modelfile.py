"""An Ollama Modelfile: every end token as a stop, and a Go template where the chat template is ChatML's.

Ollama finds other families' templates by itself, by the text inside the GGUF file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_TURN = "<|im_start|>{role}\n{content}<|im_end|>\n"
_GO = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"


def modelfile(tokenizer: Any, file_name: str, ends: Sequence[int]) -> str:
    """The Modelfile's text.

    Args:
        file_name: the GGUF file beside it. ends: ids that end an answer.
    """
    lines, system = [f"FROM ./{file_name}", ""], chatml_system(tokenizer)
    if system is None:
        lines += ["# No TEMPLATE: this chat template is not ChatML's; Ollama looks for one that it knows in the GGUF file.", ""]
    else:
        lines += [f'TEMPLATE """{_GO}"""', ""]
        if system:
            lines += [f'SYSTEM """{system}"""', ""]
    stops = [tokenizer.convert_ids_to_tokens(end) for end in ends]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops if stop]
    return "\n".join([*lines, "PARAMETER temperature 0", ""])


def chatml_system(tokenizer: Any) -> str | None:
    """The system text that a ChatML template puts in by itself (or ``""``); None where the template is another one.

    Decided by what the template renders, in several chats, not by its text.
    """
    chat = [_turn("user", "Is 2 < 3?"), _turn("assistant", "Yes."), _turn("user", "“Größe”?")]
    try:
        alone = _render(tokenizer, chat[:1])
        head, found, _ = alone.partition(_chatml(chat[:1]))
        default = head.removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n") if head else ""
        own = [_turn("system", "Be brief.\nAlways."), *chat]
        filled = [_turn("system", default), *chat] if default else chat
        same = _render(tokenizer, chat) == _chatml(filled) and _render(tokenizer, own) == _chatml(own)
    except Exception:  # a template may refuse any chat with an error of its own
        return None
    return default if found and same and '"""' not in default else None


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _chatml(chat: list[dict[str, str]]) -> str:
    return "".join(_TURN.format(**turn) for turn in chat) + "<|im_start|>assistant\n"


def _render(tokenizer: Any, chat: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
