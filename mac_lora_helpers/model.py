"""The base model on disk: where it lies, what it is, whether it can be trained from, and which weights they were.

Only small files and headers are read to find that out: ``config.json``, an index, the first bytes of the weights. Weights in a
pickle can run code when they are opened, so they are never opened; what an index names decides, not what lies beside it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mac_lora_helpers import language
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.compat import quiet
from mac_lora_helpers.config import EMBEDDED, Config
from mac_lora_helpers.errors import CheckFailed, InputError, UserError, first_line
from mac_lora_helpers.redaction import portable

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

_VISION_NAME = re.compile(
    r"(?i)(?:^|[-_/.\d])(vlm?\d*|vision|llava|pixtral|paligemma|smolvlm\d*|idefics\d*|internvl\d*|moondream\d*|fuyu|florence|molmo|omni|"
    r"multimodal|minicpm-?[vo])(?=[-_.\d]|$)"
)
_QUANTIZED_NAME = re.compile(r"(?i)(?:^|[-_.])(bnb-4bit|4bit|8bit|int4|int8|gptq|awq|gguf|mxfp4|nf4|fp8)(?=[-_.]|$)")
_SIZE_NAME = re.compile(r"(?<![A-Za-z\d.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bBmM])(?![A-Za-z\d])")
_VISION_KEYS = ("vision_config", "visual", "vision_tower", "mm_vision_tower", "image_token_id")
_ORIGINAL = "name the original model instead, with its weights in *.safetensors"


@dataclass(frozen=True)
class Base:
    """What is known about the base model without loading it.

    Attributes:
        name: as the user gave it.
        folder: where it lies on this machine; ``None`` for a Hub model of which nothing is here.
        settings: its ``config.json``; empty if it is not here.
        parameters: their number; ``None`` if unknown. source: how the number was found.
        kind: ``text``, ``vision`` (takes images too) or ``unknown``.
        local: its weights are on this machine.
        quantized: the kind of quantization, empty if none is known.
        problem: why it cannot be trained from; empty if nothing speaks against it. fix: what to do then.
    """

    name: str
    folder: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    parameters: int | None = None
    source: str = "unknown"
    kind: str = "unknown"
    local: bool = False
    quantized: str = ""
    problem: str = ""
    fix: str = ""

    @property
    def size(self) -> str:
        """The number of parameters as people say it: ``494 M``, ``1.54 B``."""
        if self.parameters is None:
            return "size unknown"
        scale, letter = next(((s, x) for s, x in ((1e9, "B"), (1e6, "M")) if self.parameters >= s), (1e3, "k"))
        return f"{self.parameters / scale:.3g} {letter}"


# Where it lies, and what it is


def find_base(config: Config, cached: Callable[[str], str | None] | None = None) -> Base:
    """The base model that ``config.model_id`` names, from its folder, the Hub cache or its name. No network; raises nothing.

    Args:
        cached: answers where a Hub model lies in the cache; the cache of this machine unless given.
    """
    name = config.model_id
    try:
        path = Path(config.model_path)
    except UserError as error:  # the real model's wheel is missing, or there is no room for it
        return Base(name, problem=error.what, fix=error.fix)
    if path.is_dir():
        try:
            return _recognize(name, path, None)
        except (OSError, ImportError) as error:
            return Base(name, problem=f"the folder cannot be read: {first_line(error)}", fix="check its permissions")
    if path.is_file():
        what = "a GGUF file, which is made to run a model, not to train it" if path.suffix == ".gguf" else "a file, not a model folder"
        return Base(name, problem=f"it is {what}", fix=_ORIGINAL)
    if name == EMBEDDED:
        fix = "python -m pip install --force-reinstall --no-deps ."
        return Base(name, problem="the embedded model is missing from this installation", fix=fix)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return Base(name, problem="there is no such folder, and it is no Hub id (user/name)", fix="check the path, or name a Hub id")
    folder = (cached or cached_folder)(name)
    return _recognize(name, Path(folder), []) if folder else base_from_name(name)


def require_base(config: Config) -> str:
    """What ``from_pretrained`` takes for this base: a folder or a Hub id, after a look at its small files.

    A Hub model that is not here yet is looked at on the Hub first (its list of files, its config, its index), so that a
    wrong one is refused before gigabytes are fetched.

    Raises:
        InputError: it cannot be trained from; the message says what it is and what to take instead.
    """
    base = find_base(config)
    if not base.local and not base.problem:
        base = _peek(config.model_id) or base
    if base.problem:
        where = f"model_id: {portable(config.model_id)}"
        raise InputError(f"the model cannot be used: {base.problem}", where=where, fix=base.fix or "set model_id to another model")
    return config.model_path


def cached_folder(model_id: str) -> str | None:
    """The folder of a Hub model's files in the local cache; no network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model_id, CONFIG)
    except HFValidationError:
        return None
    return str(Path(found).parent) if isinstance(found, str) else None


def local_folder(config: Config) -> Path | None:
    """The base's folder on this machine: a model folder, or its place in the Hub cache; no network."""
    path = Path(config.model_path)
    found = path if path.is_dir() else cached_folder(config.model_id)
    return Path(found) if found else None


def _peek(model_id: str) -> Base | None:
    """A Hub model judged by its list of files and its config; None where the Hub cannot be asked."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        names = HfApi().list_repo_files(model_id)
        files = [hf_hub_download(model_id, name) for name in (CONFIG, INDEX) if name in names]
    except GatedRepoError:
        fix = f"accept them on https://huggingface.co/{model_id}, then: hf auth login"
        return Base(model_id, problem="it is gated: its terms must be accepted once", fix=fix)
    except RepositoryNotFoundError:
        return Base(model_id, problem="there is no such folder here and no such model on the Hub", fix="check the spelling; hf auth login")
    except Exception:  # no network, a Hub that does not answer: from_pretrained will say so
        return None
    return _recognize(model_id, Path(files[0]).parent if files else None, names)


def _recognize(name: str, folder: Path | None, listed: list[str] | None) -> Base:
    """Judges a folder.

    Args:
        listed: names of the files on the Hub; empty: a cache, in which files may be missing; None: the folder is all there is.
    """
    names = {file.name for file in folder.iterdir()} if folder else set()
    names |= set(listed or [])
    settings = _read_json(folder / CONFIG) if folder else None
    base = Base(name, folder, settings or {})
    if what := _no_model(folder, names, settings):
        return replace(base, problem=what[0], fix=what[1])
    kind = "vision" if any(key in settings for key in _VISION_KEYS) else "text"
    base = replace(base, kind=kind, quantized=_quantization(settings))
    if base.quantized:
        what = f"its weights are quantized ({base.quantized})"
        return replace(_counted(base), problem=f"{what}: LoRA here trains on full weights", fix=_ORIGINAL)
    try:
        files = weight_files(folder, names if listed else None)
    except InputError as error:
        not_here_yet = listed == [] and error.what == "there are no *.safetensors weights"
        return base_from_name(name, base) if not_here_yet else replace(base, problem=error.what, fix=error.fix)
    return _counted(base) if all(file.is_file() for file in files) else base_from_name(name, base)


def _no_model(folder: Path | None, names: set[str], settings: dict[str, Any] | None) -> tuple[str, str] | None:
    """What a folder without a causal language model's config is, and what to do; None if it has one."""
    if "adapter_config.json" in names:  # transformers would load the base that it names, and the adapter over it
        made_for = (_read_json(folder / "adapter_config.json") or {}).get("base_model_name_or_path") if folder else None
        fix = "name it in adapter_dir, and its base in model_id" + (f" ({portable(str(made_for))})" if made_for else "")
        return "it is a LoRA adapter, not a model", fix
    if settings is None and any(name.endswith(".gguf") for name in names):
        return "it holds GGUF files, which are made to run a model, not to train it", _ORIGINAL
    if settings is None:
        return f"it has no readable {CONFIG}", "name a folder written by save_pretrained(), or a Hub id"
    architectures = " ".join(settings.get("architectures") or [])
    causal = not architectures or re.search(r"CausalLM|LMHead|ForConditionalGeneration", architectures)
    if settings.get("is_encoder_decoder") or not causal:
        return "its architecture is no causal language model", "name a chat model"
    what = language.problem(settings)
    return (what, language.FIX) if what else None


def _quantization(settings: dict[str, Any]) -> str:
    """The method that a config names; empty for full weights. mxfp4 is left to transformers, which unpacks it."""
    places = [settings, settings.get("text_config") or {}]
    found = next((p[key] for p in places if isinstance(p, dict) for key in ("quantization", "quantization_config") if p.get(key)), None)
    if found is None:
        return ""
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method is None or any("quantization" in place for place in places):
        bits = found.get("bits") if isinstance(found, dict) else None
        return f"MLX, {bits} bits" if bits else "MLX"
    return "" if method == "mxfp4" else str(method)


def weight_files(folder: Path, names: set[str] | None = None) -> list[Path]:
    """The safetensors files that transformers will load from a folder; what an index names decides.

    Args:
        names: names that count as there; what lies in the folder unless given.

    Raises:
        InputError: there are none, an index names a pickle or a file outside, or a file is missing.
    """
    names = {file.name for file in folder.iterdir()} if names is None else names
    named = (_read_json(folder / CONFIG) or {}).get("transformers_weights")
    index = named if str(named).endswith(".index.json") else None if named or SINGLE in names else INDEX
    mapped = (_read_json(folder / index) or {}).get("weight_map") if index else None
    wanted = sorted(set(map(str, mapped.values()))) if isinstance(mapped, dict) else [str(named)] if named else [SINGLE]

    def refused(what: str, fix: str = _ORIGINAL) -> InputError:
        return InputError(what, where=portable(str(folder)), fix=fix)

    unopened = "a pickle, which can run code when it is opened; it was not opened"
    if pickles := [name for name in wanted if not name.endswith(".safetensors")]:
        raise refused(f"its weights are named as {pickles[0]}, {unopened}")
    if outside := [name for name in wanted if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise refused(f"its index names a file outside the folder: {outside[0]}")
    if not any(name in names for name in wanted):
        if pickles := sorted(filter(_is_pickle, names)):
            raise refused(f"there are no *.safetensors weights, but {pickles[0]}: {unopened}")
        raise refused("there are no *.safetensors weights", "copy them there, or save them with model.save_pretrained(folder)")
    if lost := [name for name in wanted if name not in names and not (folder / name).is_file()]:
        raise refused(f"{lost[0]} is missing, which its index names", "copy all files there again")
    return [folder / name for name in wanted]


def _is_pickle(name: str) -> bool:
    return name.endswith((".bin", ".pt", ".pth", ".ckpt")) and name != "training_args.bin"


def _counted(base: Base) -> Base:
    """The number of parameters from the headers of the weights; from the name where they cannot be read."""
    try:
        headers = [tensor_shapes(path) for path in weight_files(base.folder)]
    except InputError as error:
        return base if base.quantized else replace(base, problem=error.what, fix=error.fix)
    count = sum(math.prod(shape) for shapes in headers for shape in shapes.values())
    if base.quantized:  # packed numbers are not parameters
        return replace(base_from_name(base.name, base), local=True)
    return replace(base, parameters=count, source="counted in its weights", local=True)


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Name → shape of every tensor in a safetensors file: its header's length in eight bytes, the header in JSON, then the data.

    Raises:
        InputError: the file is damaged or cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length < size else {}
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        whole = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        shapes = {name: tensor["shape"] for name, tensor in tensors.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        size, whole = path.stat().st_size if path.is_file() else 0, -1
    if size != whole:
        what = f"{path.name} is damaged or cut short ({size:,} bytes)"
        raise InputError(what, where=portable(str(path)), fix="copy or download the file again")
    return shapes


def base_from_name(model_id: str, base: Base | None = None) -> Base:
    """Size, vision and quantization read off a Hub id such as ``Qwen/Qwen2.5-0.5B-Instruct``."""
    name, base = model_id.rsplit("/", 1)[-1], base or Base(model_id)
    found = _SIZE_NAME.findall(name)
    # "Qwen2.5-7B-Instruct-1M": the M is a context length when there is a B as well.
    found = [item for item in found if item[2] in "bB"] or found
    quantized = _QUANTIZED_NAME.search(name)
    kind = base.kind if base.kind != "unknown" else "vision" if _VISION_NAME.search(name) else "unknown"
    base = replace(base, kind=kind, quantized=base.quantized or (quantized[1] if quantized and not base.settings else ""))
    if not found:
        return base
    experts, number, unit = found[0]
    count = round(float(number) * (1e9 if unit in "bB" else 1e6) * int(experts or 1))
    return replace(base, parameters=count, source="read off its name")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


# What ends an answer


def stop_tokens(config: Config, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the tokenizer's EOS, those of ``generation_config.json`` and what the chat template writes there."""
    eos = (small_file(config, "generation_config.json") or {}).get("eos_token_id")
    ids = [tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos]), turn_end(tokenizer)]
    return list(dict.fromkeys(token for token in ids if isinstance(token, int)))


def turn_end(tokenizer: Any) -> int | None:
    """The special token that the chat template puts after an assistant's answer, if it does."""
    if not tokenizer.chat_template:
        return None
    mark = "zqanswerqz"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
    after = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(mark)[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.all_special_ids + list(tokenizer.added_tokens_decoder) else None


def small_file(config: Config, name: str) -> dict[str, Any] | None:
    """A JSON file of the base: from its folder, the Hub cache or the Hub."""
    folder = local_folder(config)
    if folder and ((folder / name).is_file() or Path(config.model_path).is_dir()):
        return _read_json(folder / name)
    from huggingface_hub import hf_hub_download

    try:
        return _read_json(Path(hf_hub_download(config.model_id, name)))
    except Exception:  # the model has no such file, or the Hub cannot be asked
        return None


# Which weights


#: Up to this size every byte counts (``sha256``). Above it the digest is ``sampled``: each file's size, its header (names, shapes
#: and places of all tensors) and blocks spread evenly over its tensors. Training again changes numbers everywhere, so it is found.
WHOLE, BLOCKS, BLOCK_BYTES = 200_000_000, 256, 4096


def base_weights(config: Config) -> dict[str, Any] | None:
    """The base's weights as ``{"digest", "method" (sha256 or sampled), "bytes", "files"}``; None where they are not here."""
    folder = local_folder(config)
    try:
        files = weight_files(folder) if folder else []
        known = [file.stat() for file in files]
    except (InputError, OSError):
        return None
    if not files:
        return None
    size = sum(state.st_size for state in known)
    stamps = tuple((str(file), state.st_size, state.st_mtime_ns) for file, state in zip(files, known, strict=True))
    method = "sha256" if size <= WHOLE else "sampled"
    return {"digest": _digest(stamps, method), "method": method, "bytes": size, "files": len(files)}


def check_base(run: RunDir, config: Config) -> None:
    """The base model is the one that the run's adapter was trained on; what an older version did not record is not judged.

    Raises:
        CheckFailed: its weights are others, though its name is the same.
    """
    trained = run.read_json("train_config").get("base") if run.has("train_config") else None
    now = base_weights(config) if trained else None
    if now and now != trained:
        raise CheckFailed(
            f"the base model {portable(config.model_id)} is not the one that the adapter was trained on: its weights changed since",
            where=f"{portable(config.model_id)}, *.safetensors; train_config.json, base",
            fix="put the old weights back, or run 03_lora_training.ipynb again on the new ones",
        )


@functools.lru_cache(maxsize=8)
def _digest(stamps: tuple[tuple[str, int, int], ...], method: str) -> str:
    """Over the files' names and contents; kept as long as sizes and times stay."""
    digest = hashlib.sha256()
    for path, size, _ in stamps:
        with open(path, "rb") as stream:
            digest.update(f"{Path(path).name}:{size}:".encode())
            digest.update(hashlib.file_digest(stream, "sha256").digest() if method == "sha256" else _sample(stream, size))
    return digest.hexdigest()


def _sample(stream: Any, size: int) -> bytes:
    digest = hashlib.sha256()
    length = min(int.from_bytes(stream.read(8), "little"), size - 8)
    digest.update(stream.read(length))
    start = 8 + length
    for block in range(BLOCKS):
        stream.seek(start + (size - start) * block // BLOCKS)
        digest.update(stream.read(BLOCK_BYTES))
    return digest.digest()


# Loading


def load_base(config: Config, dtype: str = "float32", device: str = "cpu") -> Any:
    """The base model in ``dtype`` on ``device``.

    Raises:
        InputError: it is not here and cannot be had, is damaged, or needs code of its own.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options = {"dtype": getattr(torch, dtype), "trust_remote_code": config.trust_remote_code, "use_safetensors": True}
    with readable(config), quiet():
        model = AutoModelForCausalLM.from_pretrained(require_base(config), **options, **language.language_part(config)).to(device)
    settle_threads(model.num_parameters(), device)
    return model


def settle_threads(parameters: int, device: str) -> None:
    """One CPU thread for a tiny model, whose products are too small to share. OMP_NUM_THREADS decides where it is set."""
    import torch

    if device == "cpu" and parameters < 20_000_000 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@contextlib.contextmanager
def readable(config: Config) -> Iterator[None]:
    """What ``from_pretrained`` raises inside, in the user's terms."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"the model {portable(config.model_id)!r} cannot be loaded: {portable(first_line(error))}",
            where="parameter model_id",
            fix="a folder with config.json and *.safetensors weights, or a Hub id within reach (`hf auth login` for a gated one)",
        ) from error
