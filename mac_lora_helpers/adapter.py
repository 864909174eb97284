"""The LoRA adapter on disk: one meaning of ``adapter_dir`` everywhere, found sound before anything uses it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir, adapter_digest
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact, UserError, first_line
from mac_lora_helpers.model import check_base, tensor_shapes
from mac_lora_helpers.redaction import portable

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TRAIN = "run 03_lora_training.ipynb again"
_NAME = "name a PEFT folder, a run directory with an adapter, or a Hub id such as user/name in adapter_dir"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in PEFT's format whose two files can be read whole.

    Attributes:
        name: as the user called it. folder: where its files lie. own: made by this run.
    """

    name: str
    folder: Path
    own: bool = False

    @classmethod
    def find(cls, run: RunDir, config: Config) -> Adapter:
        """The adapter that ``config.adapter_dir`` names (a PEFT folder, a run directory or a Hub id), else the run's own.

        The run's own must be the one that training wrote, on these data and this base model.

        Raises:
            MissingArtifact: this run has none yet. InputError: no adapter, damaged, a pickle, or not LoRA.
            CheckFailed: the run's own does not belong to the run.
        """
        asked = config.adapter_dir.strip()
        if asked:
            return cls.read(_named_folder(asked), asked)
        if not run.has("adapter") and run.is_unfinished(3):
            what = "the training in this run directory is not finished, so there is no adapter yet"
            raise MissingArtifact(what, where=portable(str(run.root)), fix=f"{_TRAIN}: it goes on from its last checkpoint")
        found = cls.read(run.need("adapter"), "adapter", own=True)
        run.check_trained()
        check_base(run, config)
        return found

    @classmethod
    def read(cls, folder: Path | str, name: str = "", own: bool = False) -> Adapter:
        """A folder with ``adapter_config.json`` and ``adapter_model.safetensors``; only headers are read.

        Raises:
            MissingArtifact: a file of this run's own adapter is missing. InputError: a file is missing or damaged, or not LoRA.
        """
        found = cls(name or portable(str(folder)), Path(folder), own)
        kind = found.settings["peft_type"]
        if kind != "LORA":
            raise found._wrong(f"{found.name} is a {kind} adapter; only LoRA adapters can be used here")
        if not any(".lora_" in key for key in found.shapes):
            raise found._wrong(f"{found.name}/{WEIGHTS} holds no LoRA weights")
        return found

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """``adapter_config.json``."""
        path = self.folder / SETTINGS
        if not path.is_file():
            raise self._wrong(f"{self.name}/{SETTINGS} is missing: this is no PEFT adapter", missing=True)
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            return {**settings, "peft_type": str(settings["peft_type"])}
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            what = f"{SETTINGS} cannot be read: {type(error).__name__}: {first_line(error)}"
            raise self._wrong(f"{self.name}/{what}") from None

    @functools.cached_property
    def shapes(self) -> dict[str, list[int]]:
        """Name → shape of every tensor, from the file's header."""
        if not (self.folder / WEIGHTS).is_file():
            pickled = (self.folder / "adapter_model.bin").exists()
            hint = " (adapter_model.bin is there, but a pickle can run code and is not opened)" if pickled else ""
            raise self._wrong(f"{self.name}/{WEIGHTS} is missing{hint}", missing=True)
        try:
            return tensor_shapes(self.folder / WEIGHTS)
        except InputError as error:
            raise self._wrong(f"{self.name}/{error.what}") from None

    @functools.cached_property
    def tensors(self) -> dict[str, Any]:
        """Name → ``torch.Tensor`` as it stands in the file.

        Raises:
            CheckFailed: it holds NaN or infinity.
        """
        from safetensors.torch import load_file

        tensors = load_file(self.folder / WEIGHTS)
        broken = [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        if broken:
            what = f"{len(broken)} of {len(tensors)} tensors of {self.name} hold NaN or infinity, {broken[0]} first"
            raise CheckFailed(what, where=f"{self.name}/{WEIGHTS}", fix=f"{self.fix} with a lower learning rate or in float32")
        return tensors

    @property
    def is_zero(self) -> bool:
        """Whether every ``lora_B`` is zero: such an adapter changes nothing."""
        return not any(tensor.any() for name, tensor in self.tensors.items() if ".lora_B" in name or "lora_embedding_B" in name)

    @property
    def digest(self) -> str | None:
        """What tells this adapter from another: its settings (without the base's place), weights and tokenizer."""
        return adapter_digest(self.folder)

    @property
    def base(self) -> str:
        """The base model that it says it was made for; empty if it does not say."""
        return str(self.settings.get("base_model_name_or_path") or "")

    @property
    def fix(self) -> str:
        """What to do when this adapter cannot be used."""
        return _TRAIN if self.own else _NAME

    def _wrong(self, what: str, missing: bool = False) -> UserError:
        kind = MissingArtifact if missing and self.own else InputError
        return kind(what, where=portable(str(self.folder)), fix=self.fix)


def _named_folder(asked: str) -> Path:
    """The folder behind ``adapter_dir``; what is on the Hub is fetched, its two files alone."""
    folder = Path(asked).expanduser()
    if folder.is_dir():
        inside = folder / "adapter"
        return inside if not (folder / SETTINGS).exists() and inside.is_dir() else folder
    if folder.exists() or folder.is_absolute() or asked.startswith((".", "~")) or asked.count("/") > 1:
        raise InputError(f"there is no folder {portable(asked)}", where="parameter adapter_dir", fix=_NAME)
    return _download(asked)


def _download(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        return Path(snapshot_download(repo_id, allow_patterns=[SETTINGS, WEIGHTS]))
    except HFValidationError:
        what = f"{repo_id!r} is neither a folder nor a Hub id"
    except RepositoryNotFoundError:
        what = f"{repo_id!r} is no folder here and no repository on the Hub (a private one needs: hf auth login)"
    except LocalEntryNotFoundError:
        what = f"{repo_id!r} is no folder here, and the Hub cannot be reached to look for it there"
    except Exception as error:
        what = f"{repo_id!r} cannot be fetched from the Hub: {first_line(error)}"
    raise InputError(what, where="parameter adapter_dir", fix=_NAME)
