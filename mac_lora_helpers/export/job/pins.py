"""The job's dependencies: pins from the project's lock, as a PEP 723 header takes them."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

#: What training, evaluation and the push need; notebooks, figures and the other exports stay at home.
DIRECT = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "numpy",
    "huggingface-hub",
    "jinja2",
    "pyyaml",
    "pydantic",
    "psutil",
    "packaging",
)
LOCK = Path(__file__).parents[3] / "constraints.txt"


def pins(lock: Path = LOCK) -> tuple[list[str], list[str]]:
    """Requirement lines for ``dependencies`` and for ``[tool.uv] constraint-dependencies``.

    Without the lock (the package was installed without its repository) the installed versions stand in for it.
    """
    lines = _locked(lock) if lock.is_file() else _installed()
    direct = [line for name in DIRECT for line in lines.get(name, [])]
    needed, here = _closure(DIRECT), _installed()
    # What is not installed here (CUDA's packages on a Mac, say) may still be needed there.
    names = [name for name in sorted(lines) if name not in DIRECT and (name in needed or name not in here)]
    return direct, [line for name in names for line in lines[name]]


def normalize(name: str) -> str:
    """A distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _locked(lock: Path) -> dict[str, list[str]]:
    """Name → its lines; a package may have one line per marker."""
    found: dict[str, list[str]] = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        text = line.split("#", 1)[0].strip()
        if match := re.match(r"([A-Za-z0-9._-]+)==", text):
            found.setdefault(normalize(match[1]), []).append(" ".join(text.split()))
    return found


def _installed() -> dict[str, list[str]]:
    found = {normalize(item.name): item.version for item in metadata.distributions() if item.name}
    return {name: [f"{name}=={version.split('+')[0]}"] for name, version in found.items()}


def _closure(roots: tuple[str, ...]) -> set[str]:
    """The roots and everything they require here, extras aside."""
    seen: set[str] = set()
    queue = list(roots)
    while queue:
        name = normalize(queue.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        queue += [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in required if "extra ==" not in line]
    return seen
