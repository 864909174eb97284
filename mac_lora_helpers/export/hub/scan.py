"""Looks for what must not be published: the secrets of ``redaction``'s table, and the author's home directory.

A finding names the file, the line and the kind, never the secret. Texts are read whole; weights where text can stand in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mac_lora_helpers.redaction import environment_secrets, scan

#: How much of a binary file is read; of a text at a time.
BINARY_HEAD, CHUNK = 4 * 2**20, 16 * 2**20


def known_secrets(environment: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """Secrets that this process knows by value: the Hub login and the environment's tokens, keys and passwords."""
    from huggingface_hub import get_token

    login = get_token() or ""
    known = {**environment_secrets(environment), **({"the Hub login of this machine": login} if len(login) >= 12 else {})}
    return {kind: value.encode() for kind, value in known.items()}


def home_directory() -> dict[str, bytes]:
    """The home directory as something to look for in files that would be published."""
    home = os.path.expanduser("~").rstrip("/")
    return {"your home directory": home.encode()} if home.count("/") >= 2 else {}


def scan_files(paths: Iterable[Path], root: Path, literal: Mapping[str, bytes]) -> list[str]:
    """``place: kind`` for what is found in the files, at most once a file and kind; rows of JSON Lines are called rows.

    Args:
        root: files are named relative to it. literal: kind → exact bytes to look for, beside the known forms of secrets.
    """
    found: dict[tuple[Path, str], int] = {}
    for path in paths:
        for before, text, binary in _parts(path):
            for kind, position in scan_bytes(text, literal):
                found.setdefault((path, kind), 0 if binary else before + text.count(b"\n", 0, position) + 1)
    return [f"{_place(path, root)}{_line(path, line)}: {kind}" for (path, kind), line in found.items()]


def scan_bytes(text: bytes, literal: Mapping[str, bytes]) -> Iterator[tuple[str, int]]:
    """Kind and position of what must not leave this machine."""
    yield from ((kind, position) for kind, value in literal.items() if (position := text.find(value)) >= 0)
    yield from ((kind, start) for kind, start, _ in scan(text))


def texts_of(folder: Path) -> list[Path]:
    """Every file below a folder, hidden ones too; symbolic links are not followed."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _parts(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Lines before the part, the part (whole lines), and whether the file is binary; a file that vanishes meanwhile has none."""
    try:
        with path.open("rb") as stream:
            head, lines = stream.read(8192), 0
            stream.seek(0)
            if b"\0" in head:
                yield 0, stream.read(_text_in(path, head)), True
                return
            while part := stream.readlines(CHUNK):
                yield lines, b"".join(part), False
                lines += len(part)
    except FileNotFoundError:
        return


def _text_in(path: Path, head: bytes) -> int:
    """A safetensors file begins with its header's length in 8 bytes; the tensors after it are numbers."""
    return min(8 + int.from_bytes(head[:8], "little"), 100 * 2**20) if path.suffix == ".safetensors" else BINARY_HEAD


def _place(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _line(path: Path, line: int) -> str:
    return f", {'row' if path.suffix == '.jsonl' else 'line'} {line}" if line else ""
