"""Who may write to a run directory now.

Two locks, both kept by the operating system, which lets go of them when their process ends, however it ends:

- ``.run.lock``: ``mac-lora run`` holds it from its first notebook to its last.
- ``.write.lock``: whoever is writing holds it, for one file or for a whole training with its saving.

A notebook opened by hand takes only the second, and only while it writes, so that two notebooks of one run can stand open
side by side. The kernels that ``mac-lora run`` starts know the mark in their parent's lock. Readers need no lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shlex
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mac_lora_helpers.errors import InputError, UserError
from mac_lora_helpers.redaction import portable

RUN, WRITE = ".run.lock", ".write.lock"
#: Environment name under which a run's mark reaches the kernels that it starts.
MARK = "MAC_LORA_RUN_LOCK"
#: Seconds to wait for another process that writes; most writes take less than one.
PATIENCE = 5.0
#: What a file system without locks answers.
_UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}
#: A lock is a plain file of ours: no link is followed, no pipe waited for.
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: (process, run directory) → how many blocks of this process are inside it.
_ours: dict[tuple[int, str], int] = {}
_guard = threading.RLock()


class RunDirBusy(UserError):
    """Another process writes to the run directory."""


@contextlib.contextmanager
def running(root: Path, doing: str) -> Iterator[None]:
    """``mac-lora run`` holds the run directory inside the block; processes that it starts may write.

    Raises:
        RunDirBusy: another run or a notebook works in it. InputError: the lock is a link.
    """
    mark, before = secrets.token_hex(8), os.environ.get(MARK)
    with _file_lock(root / RUN, doing, mark, patience=0.0):
        with _file_lock(root / WRITE, doing, "", patience=PATIENCE):
            pass  # a notebook that was writing has ended; from here on it finds the run's lock
        os.environ[MARK] = mark
        try:
            yield
        finally:
            os.environ.pop(MARK, None)
            if before is not None:
                os.environ[MARK] = before


@contextlib.contextmanager
def writing(root: Path, doing: str) -> Iterator[bool]:
    """This process alone writes to the run directory inside the block; blocks may be nested, and wait for a short while.

    Args:
        doing: a word for the others, such as ``training``.

    Yields:
        Whether this is the outermost block of the process that holds the lock.

    Raises:
        RunDirBusy: another process writes, or a run of the suite holds the folder. InputError: the lock is a link.
    """
    key = (os.getpid(), os.path.realpath(root))
    with contextlib.ExitStack() as stack:
        with _guard:
            outermost = not _ours.get(key) and not is_further_process()
            if outermost:
                stack.enter_context(_file_lock(root / WRITE, doing, "", PATIENCE))
                _refuse_beside_a_run(root)
            _ours[key] = _ours.get(key, 0) + 1
            stack.callback(_leave, key)
        yield outermost


def _leave(key: tuple[int, str]) -> None:
    _ours[key] -= 1


def is_further_process() -> bool:
    """Further processes of one distributed training write nothing of their own; the first holds the lock."""
    return os.environ.get("RANK", "0") not in ("", "0")


def is_running(root: Path) -> bool:
    """Whether a process holds the run directory as ``mac-lora run`` does."""
    try:
        handle = os.open(root / RUN, _OPEN)
    except OSError:
        return False
    try:
        return not _try_lock(handle)
    finally:
        os.close(handle)


def _refuse_beside_a_run(root: Path) -> None:
    """The run's lock is looked at after the own one is taken: of two that start at once, one sees the other."""
    if is_running(root):
        holder = read_record(root / RUN)
        if not holder.get("mark") or holder.get("mark") != os.environ.get(MARK):
            raise _busy(root, holder)


@contextlib.contextmanager
def _file_lock(path: Path, doing: str, mark: str, patience: float) -> Iterator[None]:
    handle = _acquire(path, patience)
    if handle is None:  # a file system without locks
        yield
        return
    try:
        _greet(path, handle, doing, mark)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, patience: float) -> int | None:
    """The locked file's handle; None where the file system knows no locks."""
    end = time.monotonic() + patience
    while True:
        handle = _open(path)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, handle)
            try:
                if not _try_lock(handle):
                    if time.monotonic() >= end:
                        raise _busy(path.parent, read_record(path))
                    time.sleep(0.05)
                elif _is_still(path, handle):
                    stack.pop_all()
                    return handle
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    return None
                raise


def _open(path: Path) -> int:
    """The lock's file; never through a link, and never somebody's other file."""
    try:
        handle = os.open(path, _OPEN | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise
        raise _no_lock(path) from None
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        os.close(handle)
        raise _no_lock(path)
    return handle


def _no_lock(path: Path) -> InputError:
    what = "a link" if path.is_symlink() else "not a file of this suite's"
    return InputError(f"the lock {path.name} is {what}; nothing was written", where=portable(str(path)), fix=f"remove {path.name}")


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path, handle: int) -> bool:
    """Whether the file is still the one in the folder: its last holder may have removed it meanwhile."""
    try:
        there, mine = path.lstat(), os.fstat(handle)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _greet(path: Path, handle: int, doing: str, mark: str) -> None:
    """Says so when a dead process left the file, and writes who holds it now."""
    left = read_record(path)
    if left:
        print(f"The lock of a process that has ended was taken over ({who(left)}).", file=sys.stderr if path.name == RUN else sys.stdout)
    os.ftruncate(handle, 0)
    # On a full disk a lock holds without the name; a run's kernels must be able to read its mark.
    with contextlib.nullcontext() if mark else contextlib.suppress(OSError):
        os.pwrite(handle, json.dumps(_record(doing, mark), ensure_ascii=False).encode("utf-8", "replace"), 0)


def _record(doing: str, mark: str) -> dict[str, Any]:
    command = " ".join(shlex.quote(part) for part in [Path(sys.argv[0]).name or "python", *sys.argv[1:]])
    record = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    return {**record, "doing": doing, "command": portable(command)[:300], "mark": mark}


def read_record(path: Path) -> dict[str, Any]:
    """Who wrote the lock file; empty if there is none or it cannot be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def who(record: dict[str, Any]) -> str:
    """The holder in words."""
    if not record:
        return "a process that did not leave its name"
    pid, host, doing, since, command = (record.get(key) for key in ("pid", "host", "doing", "since", "command"))
    return f"process {pid} on {host}, {doing} since {since}: {command}"


def _busy(root: Path, record: dict[str, Any]) -> RunDirBusy:
    return RunDirBusy(
        f"the run directory is in use by {who(record)}",
        where=portable(str(root)),
        fix="wait until it has ended or stop it (a notebook: shut its kernel down), or use another run directory (out_dir)",
    )
