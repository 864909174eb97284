"""Who may import whom (CONTRIBUTING's map), and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mac_lora_helpers"
#: Beside `config` what `artifacts` is made of: names, whole files, whose folder, what is put in place, locks.
GROUND = {
    "errors",
    "config",
    "artifacts",
    "files",
    "compat",
    "redaction",
    "text",
    "language",
    "model",
    "adapter",
    "troubleshooting",
    "threads",
    "layout",
}
STAGES = ["environment", "data", "training", "evaluation", "export"]
ALLOWED = {
    "troubleshooting": set(),
    "redaction": set(),
    "text": set(),
    "errors": {"troubleshooting", "redaction", "text"},
    "config": {"artifacts", "ownership", "errors", "troubleshooting", "parameters", "drafts", "redaction", "smoke", "text", "threads"},
    "drafts": {"errors", "artifacts", "files", "redaction"},
    "parameters": {"smoke", "text"},
    "files": {"errors", "redaction", "text"},
    "layout": {"errors", "redaction"},
    "ownership": {"errors", "files", "redaction"},
    "placing": {"files", "layout", "ownership"},
    "locks": {"errors", "redaction"},
    "artifacts": {"errors", "files", "layout", "locks", "ownership", "placing", "redaction", "text"},
    "compat": {"errors"},
    "language": {"config", "errors"},
    "model": {"artifacts", "compat", "config", "errors", "language", "redaction"},
    "adapter": {"artifacts", "config", "errors", "redaction", "model"},
    "threads": set(),
    "smoke": {"compat", "errors"},
    "environment": GROUND | {"smoke"},
    "data": GROUND | {"smoke"},
    "training": GROUND | {"smoke", "environment", "data"},
    "evaluation": GROUND | {"smoke", "environment", "data", "training"},
    "export": GROUND | {"smoke", "environment", "data", "training", "evaluation"},
    "ui": GROUND | {"smoke", *STAGES},
    "suite": GROUND | {"smoke", "troubleshooting", "ui", *STAGES},
    "__main__": {"suite"},
    "__init__": set(),
}
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "matplotlib", "ipywidgets")


def rooms_imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        for name in names:
            parts = name.split(".")
            if parts[0] == "mac_lora_helpers":
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names} - {"__version__"}
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_follow_the_map(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert rooms_imported(file) - {room} <= ALLOWED[room]


@pytest.mark.parametrize("room", ["", ".config", ".artifacts", *(f".{stage}" for stage in STAGES), ".suite.cli"])
def test_importing_loads_nothing_heavy(room):
    code = f"import mac_lora_helpers{room}, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_is_cheap():
    """Under 0.2 s by the bar; counted here as modules, which no busy machine changes."""
    code = "import sys; before = set(sys.modules); import mac_lora_helpers; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5
