"""``python -m mac_lora_helpers.troubleshooting`` prints ``docs/troubleshooting.md``."""

from __future__ import annotations

import sys

from mac_lora_helpers.troubleshooting.table import Failure, failures, groups

_HEAD = """# Troubleshooting

<!-- Written by `make docs` from mac_lora_helpers/troubleshooting/failures.toml; change it there. -->

Known failures are recognised where they happen: the answer stands above the traceback in a notebook, and in front of the error on the
command line. This page is the same table. `mac-lora doctor` finds most causes before they bite.
"""


def page() -> str:
    """The page as Markdown."""
    sections = {group: "".join(_section(failure) for failure in failures() if failure.group == group) for group in groups()}
    return _HEAD + "".join(f"\n## {group}\n{text}" for group, text in sections.items())


def _section(failure: Failure) -> str:
    says = f"Message: {_quoted(failure.says)}\n\n" if failure.says else ""
    steps = "".join(f"{number}. {step}\n" for number, step in enumerate(failure.steps, 1))
    code = f"\n```python\n{failure.code}```\n" if failure.code else ""
    see = f"\nMore: [{failure.see}]({failure.see})\n" if failure.see else ""
    return f'\n<a id="{failure.key}"></a>\n### {failure.title}\n\n{says}{failure.cause}\n\n{steps}{code}{see}'


def _quoted(says: str) -> str:
    return " · ".join(f"``{part}``" if "`" in part else f"`{part}`" for part in says.split(" · "))


if __name__ == "__main__":
    sys.stdout.write(page())
