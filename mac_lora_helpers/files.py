"""Files that are there whole or not at all, a disk's refusals in the user's terms, and text without what is private.

Writes go to a temporary name beside the target and are renamed into place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mac_lora_helpers.errors import CheckFailed, InputError, UserError
from mac_lora_helpers.redaction import portable, portable_tree

__all__ = ["REFUSALS", "atomic_file", "atomic_folder", "disk_errors", "is_disk_full", "portable", "portable_tree", "refusal"]

#: What the system says when a folder cannot be used → in the user's terms.
REFUSALS = {
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "this user may not use it",
    errno.EPERM: "this user may not use it",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.ENOTEMPTY: "a folder stands where a file is needed",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "a link that leads back to itself",
    errno.EIO: "the disk reports an error",
}


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full; PyTorch, safetensors and Arrow wrap the system's error in their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    told = str(error).lower()
    system = ("no space left", "disk quota", "os error 28")
    # torch.save says no more than that a write failed, in four ways
    torch = ("file write failed", "failed writing file", "iostream error", "unexpected pos")
    return any(word in told for word in (*system, *torch))


def refusal(error: OSError, path: Path, verb: str = "written") -> UserError:
    """What the system's refusal means, in the user's terms."""
    where = portable(str(path))
    if is_disk_full(error):
        return CheckFailed(
            f"{path.name} cannot be {verb}: the disk is full", where=where, fix="make room and run again; what was finished before is kept"
        )
    reason = REFUSALS.get(error.errno or 0) or error.strerror or type(error).__name__
    return InputError(f"{path.name} cannot be {verb}: {reason}", where=where, fix="mend that, or choose another out_dir")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """The file system's refusals as readable errors."""
    try:
        yield
    except OSError as error:
        raise refusal(error, path) from None


@contextlib.contextmanager
def _filling(path: Path) -> Iterator[None]:
    """A full disk while an artefact is filled, whoever writes; other errors of the block are its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise refusal(OSError(errno.ENOSPC, ""), path) from None
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; renames it to ``path`` if the block succeeds.

    Raises:
        InputError: the folder cannot be written. CheckFailed: the disk is full.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with _filling(path):
            yield temporary
        umask = os.umask(0)
        os.umask(umask)
        with disk_errors(path):
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder; puts it in the place of ``path`` if the block succeeds.

    Raises:
        InputError: the folder cannot be written. CheckFailed: the disk is full.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = temporary.with_name(temporary.name + ".old")
    try:
        with _filling(path):
            yield temporary
        with disk_errors(path):
            temporary.chmod(0o755)
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
    finally:
        if old.exists() and not path.exists():  # the second rename failed: the old one goes back
            os.replace(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
