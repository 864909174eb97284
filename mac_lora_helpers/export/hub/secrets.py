"""Looks for what must not be published: access tokens, keys, passwords, and the author's home directory.

A finding names the file, the line and the kind, never the secret. Weights are looked at where text can stand in
them (a safetensors header, the first megabytes of anything else); texts are read whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: How much of a binary file is read.
BINARY_HEAD = 4 * 2**20
_CHUNK, _OVERLAP = 16 * 2**20, 4096
_VALUE = rb"""["']?\s{0,3}[=:]\s{0,3}["']?(?=[A-Za-z0-9+/_.-]*\d)(?=[A-Za-z0-9+/_.-]*[A-Za-z])[A-Za-z0-9+][A-Za-z0-9+/_.-]{19,}"""
#: Kind → (what it begins with, the pattern from there, whether it must begin a word).
#: Token forms as their issuers document them; the last two are known by their context.
KINDS: dict[str, tuple[tuple[bytes, ...], bytes, bool]] = {
    "Hugging Face token": ((b"hf_", b"api_org_"), rb"(?:hf|api_org)_[A-Za-z0-9]{20,}", False),
    "GitHub token": ((b"gh", b"github_pat_"), rb"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,}", True),
    "OpenAI or Anthropic key": ((b"sk-",), rb"sk-(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{32,}", True),
    "AWS access key": ((b"AKIA", b"ASIA"), rb"A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])", True),
    "Google API key": ((b"AIza",), rb"AIza[A-Za-z0-9_-]{35}", True),
    "Slack token": ((b"xox",), rb"xox[abeoprs]-[A-Za-z0-9-]{16,}", True),
    "private key": ((b"-----BEGIN ",), rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----", False),
    "JSON web token": ((b"eyJ",), rb"eyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{15,}", True),
    "password in an address": ((b"://",), rb"://[^/\s:@\"'<>{}]{1,64}:[^/\s:@\"'<>{}]{6,}@[A-Za-z0-9]", False),
    "secret in an assignment": (
        (b"token", b"secret", b"password", b"passwd", b"api_key", b"apikey", b"access_key", b"accesskey"),
        rb"(?i)(?:token|secret|passw(?:or)?d|api_?key|access_?key)" + _VALUE,
        False,
    ),
}
_PATTERNS = {kind: re.compile(pattern) for kind, (_, pattern, _) in KINDS.items()}
_ANY_CASE = "secret in an assignment"
#: In JSON a line break is the letters \n, which belong to no word.
_IN_WORD = re.compile(rb"(?:(?<!\\)[A-Za-z0-9_]|[A-Za-mo-qsu-z0-9_])\Z")
_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)$", re.I)


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

    values = dict(os.environ if environment is None else environment)
    known = {f"the value of {name}": value for name, value in values.items() if _SECRET_NAME.search(name)}
    known["the Hub login of this machine"] = get_token() or ""
    return {kind: value.encode() for kind, value in known.items() if len(value) >= 12 and not value.startswith(("/", "~"))}


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
    """Kind and position of the first hit of every kind."""
    for kind, value in literal.items():
        if (position := text.find(value)) >= 0:
            yield kind, position
    lower = text.lower()
    for kind, (starts, _, whole_word) in KINDS.items():
        where = lower if kind == _ANY_CASE else text
        hits = [hit for start in starts if (hit := _first(text, where, start, _PATTERNS[kind], whole_word)) >= 0]
        if hits:
            yield kind, min(hits)


def _first(text: bytes, where: bytes, start: bytes, pattern: re.Pattern[bytes], whole_word: bool) -> int:
    """First position where ``pattern`` matches, or -1. Searching for a plain start is what makes large files quick."""
    position = where.find(start)
    while position >= 0:
        inside = whole_word and position and _IN_WORD.search(text[max(0, position - 2) : position])
        if not inside and pattern.match(text, position):
            return position
        position = where.find(start, position + 1)
    return -1


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
