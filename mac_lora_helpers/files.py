"""Files that are there whole or not at all, what lies at a path, a disk's refusals in the user's terms, JSON with its shape checked.

Writes go to a temporary name beside the target and are renamed into place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mac_lora_helpers.errors import CheckFailed, InputError, UserError
from mac_lora_helpers.redaction import portable
from mac_lora_helpers.text import size

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
    errno.ENXIO: "a socket stands where a file is needed",
    errno.EIO: "the disk reports an error",
}


#: What ``os.stat`` calls it → what people call it.
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
#: How JSON calls a value's type.
_JSON = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}
#: Scratch folders begin with this; a lock says that their process lives.
SCRATCH = "maclora-"


def kind(path: str | os.PathLike[str]) -> str:
    """What lies at a path: ``a file``, ``a folder``, ``a pipe``, ``a link that leads nowhere``, ``nothing``, …"""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "something that is no file")
    except OSError as error:
        if os.path.islink(path):
            return REFUSALS[errno.ELOOP] if error.errno == errno.ELOOP else "a link that leads nowhere"
        return "something that this user may not see" if error.errno == errno.EACCES else "nothing"


def mismatch(value: Any, shape: Any, place: str = "") -> str:
    """Where a JSON value is not of its declared shape; empty if it is.

    Args:
        shape: a type; a tuple of types; ``[shape]`` for a list; a dict of names and shapes, where ``name?`` may be missing.
        place: the field's name so far.
    """
    if isinstance(shape, list):
        items = value if isinstance(value, list) else []
        found = "" if isinstance(value, list) else _not_a(value, (list,), place)
        return found or next((told for i, item in enumerate(items) if (told := mismatch(item, shape[0], f"{place}[{i}]"))), "")
    if not isinstance(shape, dict):
        return _not_a(value, shape if isinstance(shape, tuple) else (shape,), place)
    if not isinstance(value, dict):
        return _not_a(value, (dict,), place)
    for name, inner in shape.items():
        key, field = name.removesuffix("?"), f"{place}.{name.removesuffix('?')}".lstrip(".")
        if key not in value and name == key:
            return f"{field} is missing"
        if key in value and (told := mismatch(value[key], inner, field)):
            return told
    return ""


def _not_a(value: Any, types: tuple[Any, ...], place: str) -> str:
    types = tuple(type(None) if item is None else item for item in types)
    if isinstance(value, types) and not (isinstance(value, bool) and bool not in types):
        return ""
    if isinstance(value, int) and not isinstance(value, bool) and float in types:
        return ""
    return f"{place or 'the whole'} is {_JSON.get(type(value), 'something else')}, not {' or '.join(_JSON[item] for item in types)}"


def read_json(path: Path, shape: Any = dict, fix: str = "") -> Any:
    """A JSON file whose shape is checked.

    Args:
        shape: as in :func:`mismatch`. fix: which step makes the file again.

    Raises:
        InputError: it cannot be read, is no JSON, or not of this shape; the message names file and field.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        wrong = mismatch(value, shape)
    except (ValueError, OSError, RecursionError) as error:
        wrong = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if wrong:
        raise InputError(f"{path.name} cannot be read: {wrong}", where=portable(str(path)), fix=fix) from None
    return value


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full; PyTorch, safetensors and Arrow wrap the system's error in their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    told = str(error).lower()
    system = ("no space left", "disk quota", "os error 28")
    # torch.save says no more than that a write failed, in four ways; NumPy gives two numbers
    torch = ("file write failed", "failed writing file", "iostream error", "unexpected pos")
    return any(word in told for word in (*system, *torch)) or bool(re.search(r"\d+ requested and \d+ written", told))


def refusal(error: OSError, path: Path, verb: str = "written", needs: int | None = None, had: int | None = None) -> UserError:
    """What the system's refusal means, in the user's terms.

    Args:
        needs: bytes that the whole would take, where that is known. had: bytes for which there was room.
    """
    where = portable(str(path))
    if is_disk_full(error):
        room = f"; there was room for {size(_free(path.parent) if had is None else had)}"
        wanted = f", and {size(needs)} are needed" if needs else ""
        what = f"{path.name} cannot be {verb}: the disk is full{room}{wanted}"
        return CheckFailed(what, where=where, fix="make room and run again; what was finished before is kept")
    reason = REFUSALS.get(error.errno or 0) or error.strerror or type(error).__name__
    return InputError(f"{path.name} cannot be {verb}: {reason}", where=where, fix="mend that, or choose another out_dir")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """The file system's refusals as readable errors."""
    try:
        yield
    except OSError as error:
        raise refusal(error, path) from None


def need_room(path: Path, needs: int | None) -> None:
    """Refuses before the first byte what cannot fit.

    Raises:
        CheckFailed: fewer bytes are free beside ``path`` than it needs.
    """
    if needs and _free(path.parent) < needs:
        raise refusal(OSError(errno.ENOSPC, ""), path, needs=needs)


def _free(folder: Path) -> int:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


@contextlib.contextmanager
def _filling(path: Path, temporary: Path, needs: int | None) -> Iterator[None]:
    """A full disk while an artefact is filled, whoever writes; other errors of the block are its own."""
    need_room(path, needs)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise refusal(OSError(errno.ENOSPC, ""), path, needs=needs, had=_bytes_of(temporary) + _free(path.parent)) from None


@contextlib.contextmanager
def atomic_file(path: Path, needs: int | None = None) -> Iterator[Path]:
    """Yields a temporary path in the same folder; renames it to ``path`` if the block succeeds.

    Args:
        needs: bytes that the file will take, where that is known: without them nothing is begun.

    Raises:
        InputError: the folder cannot be written. CheckFailed: the disk is full.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with _filling(path, temporary, needs):
            yield temporary
        umask = os.umask(0)
        os.umask(umask)
        with disk_errors(path):
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, needs: int | None = None) -> Iterator[Path]:
    """Yields an empty temporary folder; puts it in the place of ``path`` if the block succeeds. Otherwise as :func:`atomic_file`."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = temporary.with_name(temporary.name + ".old")
    try:
        with _filling(path, temporary, needs):
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


class Scratch:
    """A temporary folder that goes with its owner, at the latest with its process; what a killed one left, the next one sweeps.

    Args:
        purpose: a word in its name. place: where; by default the system's folder for such things.
        owner: the object that it goes with; by default this one.
    """

    def __init__(self, purpose: str, place: str | None = None, owner: object | None = None) -> None:
        where = Path(place or tempfile.gettempdir())
        sweep_scratch(where)
        with disk_errors(where / SCRATCH):
            self.path = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{purpose}-", dir=where))
        handle = os.open(self.path, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.close = weakref.finalize(self if owner is None else owner, _forget, self.path, handle)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def _forget(folder: Path, handle: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(handle)


def sweep_scratch(place: Path) -> None:
    """Removes scratch folders of this user's whose process has ended."""
    for folder in place.glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or time.time() - about.st_mtime < 5:
                continue  # another's, or so new that its lock may not be there yet
            handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


#: The files that are the adapter: the first two always, the tokenizer's where training laid them beside.
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def adapter_digest(folder: Path, as_written: bool = False) -> str | None:
    """SHA-256 over an adapter's settings, weights and tokenizer; None where settings or weights cannot be read.

    Where the base lay is left out of the settings: a push, and a job's result that comes home, write another place. Lists such
    as ``target_modules`` count as sets: PEFT writes them in any order.

    Args:
        as_written: the lists' order counts, as in what older versions recorded.
    """
    digest = hashlib.sha256()
    for name in (*_ADAPTER, *_TOKENIZER):
        try:
            content = _settings(folder / name, as_written) if name == _ADAPTER[0] else file_digest(folder / name)
        except (OSError, InputError):
            if name in _ADAPTER:
                return None
            continue
        digest.update(f"{name}:{content}\n".encode())
    return digest.hexdigest()


def _settings(path: Path, as_written: bool) -> str:
    settings = {name: value for name, value in read_json(path).items() if name != "base_model_name_or_path"}
    if not as_written:
        settings = {name: sorted(value, key=str) if isinstance(value, list) else value for name, value in settings.items()}
    return json.dumps(settings, sort_keys=True)
