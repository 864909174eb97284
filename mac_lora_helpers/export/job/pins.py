"""The job's dependencies, pinned as a PEP 723 header takes them: the versions that made the local run.

Those are the project's lock, unless something else is installed here; then that.
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

#: Python versions that the pins are made for; the job image has 3.12.
PYTHON = ">=3.11,<3.14"
#: What the notebooks 02 to 04 and the push need; the exports stay at home.
DIRECT = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "numpy", "huggingface-hub", "jinja2", "pyyaml"),
    *("pydantic", "psutil", "packaging", "papermill", "nbformat", "ipykernel", "ipywidgets", "matplotlib"),
)
LOCK = Path(__file__).parents[3] / "constraints.txt"


def header() -> str:
    """The script's PEP 723 block: Python, direct pins, and the rest of the lock as constraints for uv."""
    direct, rest = pins()
    lines = ["/// script", f'requires-python = "{PYTHON}"', "dependencies = [", *(f"  {json.dumps(line)}," for line in direct), "]"]
    lines += ["", "[tool.uv]", "constraint-dependencies = [", *(f"  {json.dumps(line)}," for line in rest), "]", "///"]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def pins(lock: Path = LOCK) -> tuple[list[str], list[str]]:
    """Requirement lines for ``dependencies`` and for ``[tool.uv] constraint-dependencies``.

    Without the lock (the package was installed without its repository) all of them are the installed versions.
    """
    here, lines = _installed(), _locked(lock) if lock.is_file() else {}
    other_torch = not _among(here.get("torch", ""), lines.get("torch", []))
    lines |= {name: [line] for name, line in here.items() if not _among(line, lines.get(name, []))}
    direct = [line for name in DIRECT for line in lines.get(name, [])]
    needed = _closure(DIRECT)
    # What is not installed here (CUDA's packages on a Mac, say) may still be needed there, if it is for the same torch.
    names = [name for name in sorted(lines) if name not in DIRECT and (name in needed or (name not in here and not other_torch))]
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


def _installed() -> dict[str, str]:
    found = {normalize(item.name): item.version for item in metadata.distributions() if item.name}
    return {name: f"{name}=={version.split('+')[0]}" for name, version in found.items()}


def _among(line: str, locked: list[str]) -> bool:
    """Whether a pin is one of the lock's lines for the package, whatever their markers and spelling."""
    return line.split("==")[-1] in {entry.split(";")[0].split("==")[-1].strip() for entry in locked}


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
