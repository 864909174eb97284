"""The adapter on disk: found, read, checked against the base model, and checked again once it is loaded.

PEFT loads an adapter whose tensors do not belong to the model without an error: the layers that found
no tensor keep their initial values, which change nothing. So nothing is taken on trust here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.files import portable

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_RETRAIN = "run 03_lora_training.ipynb again"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in PEFT's format, read and found sound.

    ``name``: how the user called it. ``own``: made by this run. ``settings``: adapter_config.json.
    ``tensors``: names and values as they stand in the file.
    """

    name: str
    folder: Path
    own: bool
    settings: dict[str, Any]
    tensors: dict[str, Any] = field(repr=False)

    @property
    def is_zero(self) -> bool:
        """Whether every ``lora_B`` is zero: such an adapter changes nothing."""
        return not any(tensor.any() for name, tensor in self.tensors.items() if ".lora_B" in name or "lora_embedding_B" in name)


def read_adapter(run: RunDir, config: Config) -> Adapter:
    """This run's adapter, or the one that ``adapter_dir`` names: a folder, a run directory or a Hub id.

    Raises:
        MissingArtifact: this run has none yet. InputError: not an adapter, damaged, or not LoRA.
        CheckFailed: it holds values that are not finite.
    """
    asked = config.adapter_dir.strip()
    folder = _named_folder(asked) if asked else run.need("adapter")
    name = asked or "adapter"
    fix = "name a folder with a PEFT adapter in adapter_dir" if asked else _RETRAIN
    settings = _read_settings(folder, name, fix, own=not asked)
    tensors = _read_tensors(folder, name, fix, own=not asked)
    _refuse_not_finite(tensors, name, fix)
    return Adapter(name, folder, not asked, settings, tensors)


def _named_folder(asked: str) -> Path:
    folder = Path(asked).expanduser()
    if folder.is_dir():
        inside = folder / "adapter"
        return inside if not (folder / CONFIG_FILE).exists() and (inside / CONFIG_FILE).exists() else folder
    if folder.is_absolute() or asked.startswith((".", "~")) or asked.count("/") > 1:
        raise InputError(f"there is no folder {asked}", where="parameter adapter_dir", fix="name a folder with an adapter, or a Hub id")
    return _download(asked)


def _download(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    where, local = "parameter adapter_dir", "name a folder with an adapter, or a Hub id such as user/name"
    disable_progress_bars()
    try:
        return Path(snapshot_download(repo_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except HFValidationError:
        raise InputError(f"{repo_id!r} is neither a folder nor a Hub id", where=where, fix=local) from None
    except RepositoryNotFoundError:
        fix = f"{local}; for a private repository log in first: hf auth login"
        raise InputError(f"{repo_id!r} is no folder here and no repository on the Hub", where=where, fix=fix) from None
    except LocalEntryNotFoundError as error:
        what = f"{repo_id!r} is no folder here, and the Hub cannot be reached to look for it there"
        raise InputError(what, where=where, fix="check the network, or name a folder") from error
    except Exception as error:
        raise InputError(f"{repo_id!r} cannot be fetched from the Hub: {error}", where=where, fix=local) from error


def _read_settings(folder: Path, name: str, fix: str, own: bool) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        _missing(f"{name}/{CONFIG_FILE} is missing: this is no PEFT adapter", folder, fix, own)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        kind = settings["peft_type"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{name}/{CONFIG_FILE} cannot be read: {error!r}", where=portable(str(path)), fix=fix) from None
    if kind != "LORA":
        raise InputError(f"{name} is a {kind} adapter", where=portable(str(path)), fix="only LoRA adapters can be evaluated here")
    return settings


def _read_tensors(folder: Path, name: str, fix: str, own: bool) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = " (adapter_model.bin is there, but pickled weights can run code and are not opened)"
        hint = pickled if (folder / "adapter_model.bin").exists() else ""
        _missing(f"{name}/{WEIGHTS_FILE} is missing{hint}", folder, fix, own)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        what = f"{name}/{WEIGHTS_FILE} is damaged or cut short ({path.stat().st_size:,} bytes): {error}"
        raise InputError(what, where=portable(str(path)), fix=fix) from None
    if not any(".lora_" in key for key in tensors):
        raise InputError(f"{name}/{WEIGHTS_FILE} holds no LoRA weights", where=portable(str(path)), fix=fix)
    return tensors


def _missing(what: str, folder: Path, fix: str, own: bool) -> None:
    kind = MissingArtifact if own else InputError
    raise kind(what, where=portable(str(folder)), fix=fix)


def _refuse_not_finite(tensors: dict[str, Any], name: str, fix: str) -> None:
    broken = [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        what = f"{len(broken)} of {len(tensors)} tensors of {name} hold NaN or infinity, {broken[0]} first"
        raise CheckFailed(what, where=f"{name}/{WEIGHTS_FILE}", fix=f"{fix} with a lower learning rate or in float32")


def check_fits(adapter: Adapter, model: Any, model_id: str) -> None:
    """Compares the adapter's tensors with the layers of the base model that they are meant for.

    Raises:
        InputError: a layer is not there, or has another shape.
    """
    modules = dict(model.named_modules())
    problems = [problem for key, tensor in adapter.tensors.items() if (problem := _misfit(key, tuple(tensor.shape), modules))]
    if not problems:
        return
    made_for = adapter.settings.get("base_model_name_or_path") or "an unnamed model"
    raise InputError(
        f"the adapter {adapter.name} does not fit {model_id}: {problems[0]}" + (f" (and {len(problems) - 1} more)" if problems[1:] else ""),
        where=f"{adapter.name}, which says it was made for {portable(str(made_for))}",
        fix=_RETRAIN
        if adapter.own
        else "choose an adapter that was trained on this model, or set model_id to the model that it was trained on",
    )


def _misfit(key: str, shape: tuple[int, ...], modules: dict[str, Any]) -> str:
    """Why a tensor cannot belong to the model, or an empty text."""
    path, found, rest = key.removeprefix(_PREFIX).partition(".lora_")
    if not found or len(shape) != 2 or not rest.startswith(("A.", "B.")):
        return ""
    if path not in modules:
        return f"there is no layer {path}"
    weight = getattr(modules[path], "weight", None)
    if weight is None or weight.ndim != 2:
        return ""
    takes, gives = _in_and_out(modules[path], weight)
    side, wanted, has = ("in", takes, shape[1]) if rest.startswith("A.") else ("out", gives, shape[0])
    return "" if has == wanted else f"{path} is {wanted} wide ({side}), the adapter's is {has}"


def _in_and_out(module: Any, weight: Any) -> tuple[int, int]:
    """Input and output width; transformers' Conv1D (GPT-2) keeps its weight the other way round."""
    rows, columns = weight.shape
    return (rows, columns) if type(module).__name__ == "Conv1D" else (columns, rows)


def check_applied(adapter: Adapter, loaded: dict[str, Any]) -> None:
    """Compares the tensors in the model with those in the file, name by name and value by value.

    Args:
        loaded: PEFT's state of the model, with the names that it would save.

    Raises:
        CheckFailed: some are missing on one side, or differ.
    """
    missing, left_over = sorted(set(loaded) - set(adapter.tensors)), sorted(set(adapter.tensors) - set(loaded))
    changed = [key for key in adapter.tensors if key in loaded and not _same(adapter.tensors[key], loaded[key])]
    problems = [
        *_counted(missing, "layers of the model got no weights from the file"),
        *_counted(left_over, "tensors of the file have no place in the model"),
        *_counted(changed, "tensors are not the same in the model as in the file"),
    ]
    if problems:
        raise CheckFailed(
            f"the adapter {adapter.name} was not applied as it stands: {'; '.join(problems)}",
            where=f"{adapter.name}/{WEIGHTS_FILE}",
            fix=_RETRAIN if adapter.own else "choose an adapter that was trained on this model with PEFT",
        )


def _counted(names: Iterable[str], what: str) -> list[str]:
    names = list(names)
    return [f"{len(names)} {what}, {names[0]} first"] if names else []


def _same(stored: Any, loaded: Any) -> bool:
    import torch

    if stored.shape != loaded.shape:
        return False
    return torch.equal(stored.to(loaded.dtype), loaded.detach().to("cpu"))
