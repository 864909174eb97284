"""Which files a push would send: from inside the run directory only, no pickles, no hidden files, each with its digest."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mac_lora_helpers.adapter import Adapter
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import EMBEDDED
from mac_lora_helpers.export.card.write import Base
from mac_lora_helpers.export.hub import scan

CARD = "README.md"
#: Records of a run that the kind ``run`` sends: path in the repository → artefact.
RECORDS = {
    "run/train_config.json": "train_config",
    "run/train_metrics.json": "train_metrics",
    "run/train_log.jsonl": "train_log",
    "run/manifest.json": "manifest",
    "run/eval_metrics.json": "eval_metrics",
    "run/job.json": "job_result",
}
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".mar", ".npy", ".npz")


@dataclass(frozen=True)
class Upload:
    """One file of a push.

    Attributes:
        path: in the repository. file: on this disk. content: what is sent where it is not the file's own bytes.
        bytes, sha256: of what is sent.
    """

    path: str
    file: Path
    bytes: int
    sha256: str
    content: bytes | None = None

    @classmethod
    def of(cls, path: str, file: Path, content: bytes | None = None) -> Upload:
        """With the size and digest of what is there now."""
        return cls(path, file, *digest_of(file if content is None else content), content)

    def unchanged(self) -> bool:
        """Whether the file still holds the bytes that were planned."""
        return self.content is not None or (self.file.is_file() and digest_of(self.file) == (self.bytes, self.sha256))

    def git_digest(self) -> str:
        """What the Hub calls a file that is not in LFS."""
        from huggingface_hub.utils.sha import git_hash

        return git_hash(self.content if self.content is not None else self.file.read_bytes())


@dataclass
class Listing:
    """What was collected: the uploads, files left out with the reason, and what forbids the push."""

    uploads: list[Upload] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def collect(run: RunDir, adapter: Adapter, kinds: list[str]) -> Listing:
    """The card and the files of every kind; the first kind lies at the repository's root, the others in their folders.

    Raises:
        MissingArtifact: a kind was not made yet.
    """
    listing = Listing([Upload.of(CARD, run.need("card"))])
    for kind in kinds:
        if kind == "run":
            run.need("train_config")
            listing.uploads += [Upload.of(path, run.need(name)) for path, name in RECORDS.items() if run.has(name)]
        else:
            folder = adapter.folder if kind == "adapter" else run.need(kind)
            _collect_folder(listing, run, folder, kind, "" if kind == kinds[0] else f"{kind}/")
    _scan(listing, run)
    return listing


def _collect_folder(listing: Listing, run: RunDir, folder: Path, kind: str, prefix: str) -> None:
    root = run.root.resolve()
    if not folder.resolve().is_relative_to(root):
        listing.problems.append(f"{folder.name}: lies outside the run directory; copy the adapter into it")
        return
    for file in sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()):
        name = file.relative_to(folder).as_posix()
        if not file.resolve().is_relative_to(root):
            listing.problems.append(f"{_shown(file, run)}: a link to something outside the run directory")
        elif not (os.access(file, os.R_OK) and file.exists()):
            listing.problems.append(f"{_shown(file, run)}: cannot be read")
        elif reason := _left_out(file, name):
            listing.left_out.append((_shown(file, run), reason))
        else:
            listing.uploads.append(Upload.of(prefix + name, file, _rewritten(file)))
    sent = {upload.path for upload in listing.uploads} - {CARD}
    if not any(path.startswith(prefix) for path in sent):
        listing.problems.append(f"{_shown(folder, run)}: nothing in it can be sent")


def _left_out(file: Path, name: str) -> str:
    """Why a file is not sent; empty if it is."""
    if any(part.startswith(".") for part in name.split("/")):
        return "hidden"
    if file.is_symlink() and file.is_dir():
        return "a linked folder"
    if file.suffix.lower() in _PICKLES or is_pickle(file):
        return "may be a pickle, which runs code when it is loaded"
    return "the run's own card takes its place" if name == CARD else ""


def is_pickle(file: Path) -> bool:
    """Whether a file is a pickle by its bytes, or a zip archive as torch writes one around a pickle."""
    with file.open("rb") as stream:
        head = stream.read(4)
    return (len(head) > 1 and head[0] == 0x80 and head[1] in range(2, 6)) or head == b"PK\x03\x04"


def _rewritten(file: Path) -> bytes | None:
    """PEFT's record of the base without the author's folders, where the base is a folder on this disk."""
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.name == "adapter_config.json" else {}
    except ValueError:
        return None
    recorded = str(settings.get("base_model_name_or_path") or EMBEDDED)
    base = Base.of(recorded)
    if base.kind != "folder" or recorded == base.name:
        return None
    return json.dumps({**settings, "base_model_name_or_path": base.name}, indent=2).encode()


def _scan(listing: Listing, run: RunDir) -> None:
    """Secrets anywhere in the run directory, and the home directory in what would be sent, stop the push."""
    known, home = scan.known_secrets(), scan.home_directory()
    sent = {upload.file.resolve() for upload in listing.uploads}
    for upload in listing.uploads:
        if upload.content is not None:
            hits = scan.scan_bytes(upload.content, {**known, **home})
            listing.problems += [f"{_shown(upload.file, run)}: {kind}" for kind, _ in hits]
    plain = [upload.file for upload in listing.uploads if upload.content is None]
    rest = [file for file in scan.texts_of(run.root) if file.resolve() not in sent]
    listing.problems += [*scan.scan_files(plain, run.root, {**known, **home}), *scan.scan_files(rest, run.root, known)]


def digest_of(source: Path | bytes) -> tuple[int, str]:
    """Size in bytes and sha256 of a file or of bytes."""
    if isinstance(source, bytes):
        return len(source), hashlib.sha256(source).hexdigest()
    with source.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return stream.tell(), digest


def _shown(path: Path, run: RunDir) -> str:
    """A path relative to the run directory; of what lies elsewhere, the name alone."""
    return path.relative_to(run.root).as_posix() if path.is_relative_to(run.root) else path.name
