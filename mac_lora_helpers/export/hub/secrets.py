"""Looks for what must not be published: the secrets of ``redaction``'s table, and the author's home directory.

A finding names the file, the line and the kind, never the secret. Weights are looked at where text can stand in
them (a safetensors header, the first megabytes of anything else); texts are read whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mac_lora_helpers.redaction import environment_secrets, scan

#: How much of a binary file is read.
BINARY_HEAD = 4 * 2**20
_CHUNK, _OVERLAP = 16 * 2**20, 4096


@dataclass(frozen=True)
class Finding:
    """Something that must not leave this machine.

    Attributes:
        path: relative to the folder that was scanned. line: 1-based; 0 in a binary file. kind: what it looks like.
    """

    path: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.path}{f', line {self.line}' if self.line else ''}: {self.kind}"


def known_secrets(environment: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """Secrets that this process knows by value: the Hub login and the environment's tokens, keys and passwords."""
    from huggingface_hub import get_token

    known = environment_secrets(environment)
    login = get_token() or ""
    known |= {"the Hub login of this machine": login} if len(login) >= 12 else {}
    return {kind: value.encode() for kind, value in known.items()}


def home_directory() -> dict[str, bytes]:
    """The home directory as something to look for in files that would be published."""
    home = os.path.expanduser("~").rstrip("/")
    return {"your home directory": home.encode()} if home.count("/") >= 2 else {}


def scan_files(paths: Iterable[Path], root: Path, literal: Mapping[str, bytes]) -> list[Finding]:
    """Findings in the given files, at most one per file and kind.

    Args:
        root: findings are named relative to it.
        literal: kind → exact bytes to look for, beside the known forms of secrets.
    """
    return [finding for path in paths for finding in scan_file(path, _name(path, root), literal)]


def scan_file(path: Path, name: str, literal: Mapping[str, bytes]) -> list[Finding]:
    """Findings in one file; a file that vanishes meanwhile has none."""
    found: dict[str, int] = {}
    try:
        for offset_lines, text, binary in _parts(path):
            for kind, position in scan_bytes(text, literal):
                line = 0 if binary else offset_lines + text.count(b"\n", 0, position) + 1
                found.setdefault(kind, line)
    except FileNotFoundError:
        return []
    return [Finding(name, line, kind) for kind, line in found.items()]


def scan_bytes(text: bytes, literal: Mapping[str, bytes]) -> Iterator[tuple[str, int]]:
    """Kind and position of what must not leave this machine."""
    for kind, value in literal.items():
        if (position := text.find(value)) >= 0:
            yield kind, position
    yield from ((kind, start) for kind, start, _ in scan(text))


def texts_of(folder: Path) -> Iterator[Path]:
    """Every file below a folder, hidden ones too; symbolic links are not followed."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(place) / name
            if path.is_file() and not path.is_symlink():
                yield path


def _parts(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Lines before the part, the part, and whether the file is binary; parts overlap so that no secret is cut."""
    with path.open("rb") as stream:
        head = stream.read(8192)
        if b"\0" in head:
            stream.seek(0)
            yield 0, stream.read(_binary_head(path, head)), True
            return
        text, lines = head + stream.read(_CHUNK), 0
        while text:
            yield lines, text, False
            more = stream.read(_CHUNK)
            if not more:
                return
            lines += text.count(b"\n", 0, len(text) - _OVERLAP)
            text = text[-_OVERLAP:] + more


def _binary_head(path: Path, head: bytes) -> int:
    """A safetensors file begins with its header's length in 8 bytes; the tensors after it are numbers."""
    if path.suffix == ".safetensors":
        return min(8 + int.from_bytes(head[:8], "little"), 100 * 2**20)
    return BINARY_HEAD


def _name(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.name
