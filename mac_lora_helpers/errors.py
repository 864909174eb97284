"""Errors a user can act on: what went wrong, where, and what to do.

Everything foreseeable raises a :class:`UserError`. In a notebook it shows as three readable lines
instead of a traceback; on the command line it goes to stderr and decides the exit code.
"""

from __future__ import annotations

from mac_lora_helpers.redaction import portable
from mac_lora_helpers.text import visible


class UserError(Exception):
    """A foreseeable failure, told in the user's terms; as text it holds no secret, no home directory and no control character.

    Args:
        what: what went wrong, one sentence.
        where: file, row, field, notebook or parameter; empty if there is no such place.
        fix: what to do next.
    """

    #: Exit code on the command line: 1 = ran and found a failure.
    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  to do: {self.fix}")
        return visible(portable("\n".join(lines)))

    def __reduce__(self):
        return (_rebuild, (type(self), self.what, self.where, self.fix))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback; the page that says more, and the original error in one line."""
        from mac_lora_helpers.troubleshooting import explain

        lines, known, cause = [f"{type(self).__name__}: {self}"], explain(self), self.__cause__
        if known is not None:
            lines.append(f"  more:  {known.anchor}")
        if cause is not None:
            lines.append(f"  cause: {type(cause).__name__}: {first_line(cause)}")
        return lines


def _rebuild(kind: type[UserError], what: str, where: str, fix: str) -> UserError:
    return kind(what, where=where, fix=fix)


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text; its kind where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class InputError(UserError):
    """Bad input or usage: a parameter, a file, a row. Nothing has been written."""

    exit_code = 2


class MissingArtifact(UserError):
    """An earlier notebook has not made what this one reads."""


class CheckFailed(UserError):
    """A check of the suite's own found that something is not as it must be."""
