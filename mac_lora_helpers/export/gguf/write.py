"""``export/gguf``: the merged model in the types asked for, the adapter as a LoRA GGUF, and a Modelfile."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, InputError
from mac_lora_helpers.export.adapter import adapter_folder, read_adapter, trained_config
from mac_lora_helpers.export.gguf.adapter import write_adapter_file
from mac_lora_helpers.export.gguf.file import GgufFile, write_model_file
from mac_lora_helpers.export.gguf.model import StoredWeights, architecture, tensors
from mac_lora_helpers.export.gguf.modelfile import modelfile
from mac_lora_helpers.export.gguf.tokenizer import Vocabulary, read_vocabulary
from mac_lora_helpers.export.gguf.types import OWN, parse_types

_BEST_FIRST = ("Q8_0", "a K-quant", "F16", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "BF16", "F32")


def write_gguf(run: RunDir, config: Config) -> list[GgufFile]:
    """Writes the files that ``gguf_types`` asks for out of ``export/merged``.

    Returns:
        One entry a file: the models in the order asked for, then the adapter; where that cannot be written, the first
        entry's note says why.

    Raises:
        MissingArtifact: no merged model. InputError: a family, a tokenizer or a type that is not written here.
    """
    types, config = parse_types(config.gguf_types), trained_config(run, config)
    if not types:
        return []
    merged = run.need("merged")
    settings, tokenizer = load_settings(merged), load_merged_tokenizer(merged)
    architecture(settings)
    vocabulary = read_vocabulary(tokenizer, settings.vocab_size)
    stem = file_stem(config)
    with run.folder("gguf") as folder:
        files = _models(folder, stem, types, settings, StoredWeights(merged), vocabulary)
        adapter, left_out = _adapter(folder, stem, adapter_folder(run, config), settings, _shares_head(config))
        files = [replace(files[0], note=_notes(files[0].note, left_out)), *files[1:], *adapter]
        (folder / "Modelfile").write_text(modelfile(tokenizer, _best(files).name, vocabulary.add["bos"]), encoding="utf-8")
    return [GgufFile(file.name, file.type, run.path("gguf") / file.name, file.bytes, file.kept, file.note) for file in files]


def file_stem(config: Config) -> str:
    """The model's name as a part of file names."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(config.model_id).name).strip("-.") or "model"


def load_settings(folder: Path) -> Any:
    """The transformers config of a folder."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def load_merged_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def quantize_tool() -> str | None:
    """Path of an installed ``llama-quantize``."""
    return shutil.which("llama-quantize")


def _models(folder: Path, stem: str, types: list[str], settings: Any, weights: StoredWeights, vocabulary: Vocabulary) -> list[GgufFile]:
    tool = quantize_tool()
    foreign = [name for name in types if name not in OWN]
    if foreign and tool is None:
        fix = f"brew install llama.cpp (it brings the tool), or choose among {', '.join(OWN)}"
        raise InputError(f"{', '.join(foreign)} need llama-quantize, which is not installed", where="parameter gguf_types", fix=fix)
    files = []
    for kind in types:
        path = folder / f"{stem}-tuned-{kind}.gguf"
        if kind in OWN:
            kept = write_model_file(path, kind, settings, tensors(weights, settings), vocabulary, f"{stem} tuned")
        else:
            kept = []
            _quantize(tool, path, kind, settings, weights, vocabulary, f"{stem} tuned")
        rows = f"{len(kept)} tensors stayed at F16: their rows are no multiple of the block" if kept else ""
        files.append(GgufFile(path.name, kind, path, path.stat().st_size, tuple(kept), _notes(rows, _window(settings))))
    return files


def _quantize(tool: str, path: Path, kind: str, settings: Any, weights: StoredWeights, vocabulary: Vocabulary, name: str) -> None:
    """Runs ``llama-quantize`` on a float32 file that is thrown away afterwards."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".f32-") as temporary:
        source = Path(temporary) / "model-F32.gguf"
        write_model_file(source, "F32", settings, tensors(weights, settings), vocabulary, name)
        done = subprocess.run([tool, str(source), str(path), kind], capture_output=True, text=True, check=False)
    if done.returncode or not path.is_file():
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise CheckFailed(f"llama-quantize failed on {kind}: {last[0]}", where="parameter gguf_types", fix="choose another type")


def _window(settings: Any) -> str:
    """What to know about a window that llama.cpp does not apply (Qwen2 has one only with ``use_sliding_window``), or empty."""
    window = getattr(settings, "sliding_window", None)
    if not window or window >= settings.max_position_embeddings:
        return ""
    return f"llama.cpp's {architecture(settings)} architecture has no sliding window: beyond {window} tokens of context the answers differ"


def _notes(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _shares_head(config: Config) -> bool:
    return bool(load_settings(Path(config.model_path)).get_text_config().tie_word_embeddings)


def _adapter(folder: Path, stem: str, source: Path, settings: Any, shared_head: bool) -> tuple[list[GgufFile], str]:
    """The LoRA GGUF; or none, and why (the merged files hold everything that was trained)."""
    path, adapter = folder / f"{stem}-adapter-F32.gguf", read_adapter(source)
    if shared_head and "lm_head" in adapter.updates:
        return [], "no LoRA GGUF beside it: the adapter changes the output head, which the base shares with its embedding"
    try:
        write_adapter_file(path, adapter, settings, f"{stem} adapter")
    except InputError as error:
        path.unlink(missing_ok=True)
        return [], f"no LoRA GGUF beside it: {error.what}"
    return [GgufFile(path.name, "LoRA", path, path.stat().st_size)], ""


def best_first(kind: str) -> int:
    """Rank of a type for everyday use: eight bits, then K-quants, floats, four bits."""
    return _BEST_FIRST.index(kind) if kind in _BEST_FIRST else 1


def _best(files: list[GgufFile]) -> GgufFile:
    """The file that the Modelfile names."""
    return min((file for file in files if file.type != "LoRA"), key=lambda file: best_first(file.type))
