"""Errors a user can act on: what went wrong, where, and what to do.

Everything foreseeable raises a :class:`UserError`. In a notebook it shows as three readable lines
instead of a traceback; on the command line it goes to stderr and decides the exit code.
"""

from __future__ import annotations


class UserError(Exception):
    """A foreseeable failure, told in the user's terms.

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
        return "\n".join(lines)

    def __reduce__(self):
        return (_rebuild, (type(self), self.what, self.where, self.fix))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback; the cause, if any, is named in one line."""
        lines = [f"{type(self).__name__}: {self}"]
        if self.__cause__ is not None:
            lines.append(f"  cause: {type(self.__cause__).__name__}: {str(self.__cause__).strip().splitlines()[:1]}")
        return lines


def _rebuild(kind: type[UserError], what: str, where: str, fix: str) -> UserError:
    return kind(what, where=where, fix=fix)


class InputError(UserError):
    """Bad input or usage: a parameter, a file, a row. Nothing has been written."""

    exit_code = 2


class MissingArtifact(UserError):
    """An earlier notebook has not made what this one reads."""


class CheckFailed(UserError):
    """A check of the suite's own found that something is not as it must be."""
