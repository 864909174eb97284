"""Whose folder is this? A run directory is known by a marker that the suite wrote; into anybody else's folder nothing is written."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from mac_lora_helpers import __version__
from mac_lora_helpers.errors import InputError, UserError
from mac_lora_helpers.files import REFUSALS, atomic_file, kind, read_json
from mac_lora_helpers.redaction import portable

MARKER = ".mac-lora.json"
_FIX = "name an empty or a new folder as out_dir"
#: What file managers and Jupyter leave in any folder, and what the first moment of a run may leave.
_NOBODYS = re.compile(r"\.DS_Store|\.localized|\._.*|Thumbs\.db|desktop\.ini|\.ipynb_checkpoints|\.(run|write)\.lock|\.\.?mac-lora\..*")
#: Files by which a run directory of an older version is known → their shape.
_OLDER = {
    "environment.json": {"packages": dict, "device": dict, "verdict": {"where": str}},
    "data/manifest.json": {"fingerprint": str, "tokens": {"total": int, "supervised": int}},
    "train_config.json": {"config": dict, "data_fingerprint": (str, None)},
}


def require_ours(root: Path) -> None:
    """Reads, and writes nothing: the folder is new, empty, or a run directory of this suite.

    Raises:
        InputError: it is none of these.
    """
    try:
        os.lstat(root)
    except FileNotFoundError:
        return _require_place(root)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise _unusable(root, REFUSALS.get(getattr(error, "errno", 0)) or str(error)) from None
    if kind(root) != "a folder":
        raise _unusable(root, f"{kind(root)} stands where a folder is needed")
    try:
        found = sorted(name for name in os.listdir(root) if not _NOBODYS.fullmatch(name))
    except OSError as error:
        raise _unusable(root, REFUSALS.get(error.errno or 0) or str(error)) from None
    place = os.path.realpath(root)
    if place in (os.path.realpath(os.path.expanduser("~")), os.path.abspath(os.sep)):
        raise InputError("your home folder is no run directory; nothing was written", where=portable(str(root)), fix=_FIX)
    if found and not is_marked(root) and ({".git", "pyproject.toml"} & set(found) or not _is_older(root)):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        what = f"the folder holds what this suite did not write: {', '.join(found[:3])}{more}; nothing was written"
        raise InputError(what, where=f"out_dir: {portable(str(root))}", fix=_FIX)


def _unusable(root: Path, reason: str) -> InputError:
    return InputError(f"the run directory cannot be made: {reason}", where=portable(str(root))[:200], fix="choose another out_dir")


def _require_place(root: Path) -> None:
    """The nearest folder that is there can take a new one."""
    parent = next(path for path in root.parents if os.path.lexists(path))
    if kind(parent) != "a folder":
        raise _unusable(root, f"{kind(parent)} stands where a folder is needed ({portable(str(parent))})")
    if os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise _unusable(root, REFUSALS[errno.EROFS])
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _unusable(root, REFUSALS[errno.EACCES])


def is_marked(root: Path) -> bool:
    """Whether the folder bears the suite's marker."""
    try:
        return bool(read_json(root / MARKER, {"made_by": str}))
    except UserError:
        return False


def _is_older(root: Path) -> bool:
    for name, shape in _OLDER.items():
        try:
            return bool(read_json(root / name, shape))
        except UserError:
            continue
    return False


def claim(root: Path) -> None:
    """Makes the folder if need be, and writes the marker into it.

    Raises:
        InputError: the folder is somebody else's. OSError: as the file system says.
    """
    require_ours(root)
    root.mkdir(parents=True, exist_ok=True)
    if not (root / MARKER).is_file():
        with atomic_file(root / MARKER) as temporary:
            temporary.write_text(json.dumps({"made_by": f"mac-lora-helpers {__version__}"}) + "\n", encoding="utf-8")


def refuse_links(root: Path, relative: str) -> None:
    """Neither the artefact nor a folder between it and the run directory is a link: nothing is written through one.

    Raises:
        InputError: one is; what it leads to is untouched.
    """
    path = root
    for part in Path(relative).parts:
        path = path / part
        if os.path.islink(path):
            what = f"{path.relative_to(root)} is a link, and nothing is written through one"
            raise InputError(what, where=portable(str(path)), fix="remove the link; the run directory itself may be one")


def refuse_inputs(root: Path, inputs: Iterable[tuple[str, str]], outputs: Iterable[str]) -> None:
    """No input lies where an output would.

    Args:
        inputs: (parameter, path) of what a run reads. outputs: paths below the run directory that a run writes.

    Raises:
        InputError: one does; nothing has been written.
    """
    base = Path(os.path.realpath(root))
    targets = [(output, chain) for output in outputs if len(chain := _chain(base / output)) and (base / output).exists()]
    for name, path in inputs:
        chain = _chain(Path(os.path.realpath(path)))
        for output, above in targets:
            if above[0] in chain or (chain and chain[0] in above and _chain(base)[0] in chain):
                raise InputError(
                    f"{name} names what this run would overwrite ({output}); nothing was written",
                    where=f"{name}: {portable(str(path))}",
                    fix="copy the input to a place outside the run directory, or use another out_dir",
                )


def _chain(path: Path) -> list[tuple[int, int]]:
    """Device and number of what is there, from the path up to the root: names may differ in case on a Mac and mean the same."""
    found = []
    for part in (path, *path.parents):
        try:
            about = part.stat()
        except OSError:
            continue
        found.append((about.st_dev, about.st_ino))
    return found
