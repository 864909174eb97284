"""One known failure: how it is recognised, why it happens, what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

PAGE = "docs/troubleshooting.md"


@dataclass(frozen=True)
class Sign:
    """What an error must look like; every part that is given must hold.

    Attributes:
        kinds: names of exception classes, separated by spaces; the error is one of them or derived from one.
        pattern: regular expression, searched in the error's text; upper and lower case are the same.
        inside: regular expression; the module whose line raised must match it.
    """

    kinds: str
    pattern: str = ""
    inside: str = ""

    def holds(self, kinds: set[str], text: str, module: str) -> bool:
        """Whether an error of these class names, with this text, raised in this module, carries the sign."""
        if not kinds & set(self.kinds.split()):
            return False
        if self.pattern and not re.search(self.pattern, text, re.IGNORECASE | re.DOTALL):
            return False
        return not self.inside or re.search(self.inside, module) is not None


@dataclass(frozen=True)
class Failure:
    """A line of the table.

    Attributes:
        key: its name, and its anchor on the page.
        group: heading that it stands under on the page.
        title: what happened, in a few words.
        says: the message that people search for, as it is worded today; empty for what shows no message.
        cause: why, in one or two sentences.
        steps: what to do, the best first.
        signs: any of them is enough; none: told on the page, never recognised.
        see: a page that says more.
        recorded: where the wording was read, for failures that cannot be raised on a CPU; empty: the tests raise the real one.
    """

    key: str
    group: str
    title: str
    says: str
    cause: str
    steps: tuple[str, ...]
    signs: tuple[Sign, ...] = ()
    see: str = ""
    recorded: str = ""

    @property
    def anchor(self) -> str:
        """Where the page tells it."""
        return f"{PAGE}#{self.key}"

    @property
    def advice(self) -> list[str]:
        """The steps as plain text: without the page's links."""
        return [re.sub(r"\[([^\]]+)\]\(#[^)]*\)", r"\1", step) for step in self.steps]

    def __str__(self) -> str:
        steps = "\n".join(f"  {'to do:' if i == 1 else '      '}  {i}. {step}" for i, step in enumerate(self.advice, 1))
        return f"Known failure: {self.title}\n  cause:  {self.cause}\n{steps}\n  more:   {self.anchor}"
