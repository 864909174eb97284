"""``docs/troubleshooting.md``, written from the table."""

from __future__ import annotations

from mac_lora_helpers.troubleshooting.failure import Failure
from mac_lora_helpers.troubleshooting.recognise import FAILURES

_HEAD = """# Troubleshooting

<!-- Written by `make docs` from mac_lora_helpers/troubleshooting; change it there. -->

Known failures are recognised where they happen: the answer stands above the traceback in a notebook, and in front of the error on the
command line. This page is the same table. `mac-lora doctor` finds most causes before they bite.
"""
_GROUPS = (
    "Installing",
    "Device and number format",
    "Memory and disk",
    "Models and tokenizers",
    "Data",
    "Training",
    "After training",
    "The Hub",
    "Jupyter, papermill, the command line",
)
_LISTING = """
```python
from transformers import AutoModelForCausalLM

from mac_lora_helpers.smoke import MODEL_DIR  # or a Hub id

model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
print(sorted({name.split(".")[-1] for name, module in model.named_modules() if hasattr(module, "weight")}))
```
"""
#: Code that belongs to one failure.
_MORE = {"lora-targets": _LISTING}


def page() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for group in _GROUPS:
        failures = [failure for failure in FAILURES if failure.group == group]
        parts.append(f"\n## {group}\n")
        parts += [_section(failure) for failure in failures]
    return "".join(parts)


def _section(failure: Failure) -> str:
    says = f"Message: {_quoted(failure.says)}\n\n" if failure.says else ""
    steps = "".join(f"{number}. {step}\n" for number, step in enumerate(failure.steps, 1))
    see = f"\nMore: [{failure.see}]({failure.see})\n" if failure.see else ""
    return f'\n<a id="{failure.key}"></a>\n### {failure.title}\n\n{says}{failure.cause}\n\n{steps}{_MORE.get(failure.key, "")}{see}'


def _quoted(says: str) -> str:
    return " · ".join(f"``{part}``" if "`" in part else f"`{part}`" for part in says.split(" · "))
