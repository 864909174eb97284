"""The artefacts that a run's export holds: how each is opened, what it is held against, how closely."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mac_lora_helpers.errors import CheckFailed, UserError
from mac_lora_helpers.export.adapter_model import load_plain
from mac_lora_helpers.export.equivalence import engine_llama_cpp, engine_mlx
from mac_lora_helpers.export.equivalence.engine_mlx import Mlx
from mac_lora_helpers.export.equivalence.engine_transformers import Transformers
from mac_lora_helpers.export.equivalence.engines import Engine
from mac_lora_helpers.export.equivalence.folders import adapter_faults, merged_faults, mlx_adapter_faults, mlx_faults, stored_cast
from mac_lora_helpers.export.equivalence.gguf_weights import GgufContent, lora_updates
from mac_lora_helpers.export.equivalence.prompts import render
from mac_lora_helpers.export.equivalence.reference import Reference, dequantized, saved_shapes
from mac_lora_helpers.export.equivalence.weights import Expected, update_faults
from mac_lora_helpers.export.gguf.file import write_model_file
from mac_lora_helpers.export.gguf.model import tensors
from mac_lora_helpers.export.gguf.tokenizer import Vocabulary
from mac_lora_helpers.export.gguf.types import FLOATS
from mac_lora_helpers.export.gguf.write import load_merged_tokenizer
from mac_lora_helpers.export.mlx.config import mlx_keys
from mac_lora_helpers.export.mlx.support import refusal
from mac_lora_helpers.export.mlx.write import local_folder

#: Largest difference of a token's log-probability that passes (natural logarithm), by where rounding happens.
#: float32 engines differ by the order of summation; F16 files round weights and activations to 11 bits; a cast to
#: bfloat16 keeps 8; quantized files round activations to 8 bits a block, and are held against their own weights.
TOLERANCES = {"float32": 2e-3, "F32": 2e-3, "float16": 0.1, "F16": 0.1, "bfloat16": 0.3, "BF16": 0.3, "quantized": 0.3}
#: Families that mlx-lm computes a little differently from transformers whatever the weights' type: the other form of
#: GELU (Gemma, GPT-NeoX), an embedding scale rounded to bfloat16 (Gemma 3). The weights are compared exactly besides.
_COARSE_IN_MLX = ("gemma", "gemma3_text", "gpt_neox")
#: A float32 base of more bytes than this is written as F16 for the LoRA GGUF's check.
_LARGE_BASE = 4_000_000_000


@dataclass
class Candidate:
    """One artefact to check.

    Args:
        name: for people. kind: adapter, merged, gguf, lora-gguf, mlx. place: path below the run directory.
        tolerance: see ``TOLERANCES``. bytes: size. open: loads it. faults: what its content shows.
        oracle: gives the model that it is held against, or None for base + adapter.
        missing: why the engine is not there, or empty.
        refused: given the engine's error, why it cannot take any model of this family; empty if it can: the file is at fault.
    """

    name: str
    kind: str
    place: str
    tolerance: float
    bytes: int
    open: Callable[[], Engine]
    faults: Callable[[], list[str]]
    oracle: Callable[[], AbstractContextManager[Any]] = field(default=lambda: nullcontext(None))
    against: str = "base + adapter"
    missing: str = ""
    refused: Callable[[UserError], str] = lambda error: ""


def candidates(reference: Reference) -> Iterator[Candidate]:
    """Every artefact that is there, in the order of the export."""
    run, expected, vocabulary = reference.run, reference.expected(), reference.vocabulary()
    yield _adapter(reference)
    cast = "float32"
    if run.has("merged"):
        folder = run.path("merged")
        cast = stored_cast(folder)
        yield _merged(reference, folder, cast, vocabulary, expected)
    if run.has("gguf") and vocabulary:
        yield from _ggufs(reference, run.path("gguf"), cast, vocabulary, expected)
    if run.has("mlx"):
        yield _mlx_adapter(reference, run.path("mlx"), expected)
    if run.has("merged"):
        yield _mlx_merged(reference, run.path("merged"), cast)


def size_of(path: Path) -> int:
    """Bytes of a file or of a folder's files."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _adapter(reference: Reference) -> Candidate:
    own = not reference.config.adapter_dir
    return Candidate(
        name="adapter (PEFT)",
        kind="adapter",
        place="adapter" if own else reference.config.adapter_dir,
        tolerance=TOLERANCES["float32"],
        bytes=size_of(reference.folder),
        open=lambda: reference.engine,
        faults=lambda: adapter_faults(reference.folder, reference.config),
        against="base + adapter, without cache and padding",
    )


def _merged(reference: Reference, folder: Path, cast: str, vocabulary: Vocabulary | None, expected: Expected) -> Candidate:
    def load() -> tuple[Any, Any]:
        return load_plain(folder), load_merged_tokenizer(folder)

    return Candidate(
        name="merged",
        kind="merged",
        place="export/merged",
        tolerance=TOLERANCES[cast],
        bytes=size_of(folder),
        open=lambda: Transformers(load, render, reference.ends),
        faults=lambda: merged_faults(folder, reference.settings, reference.tokenizer, vocabulary, expected),
    )


def _ggufs(reference: Reference, folder: Path, cast: str, vocabulary: Vocabulary, expected: Expected) -> Iterator[Candidate]:
    missing = engine_llama_cpp.missing()
    for path in sorted(folder.glob("*.gguf"), key=lambda path: -path.stat().st_size):
        try:
            content = GgufContent(path, reference.settings)
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            yield _unreadable(path, error)
            continue
        if content.field("general.type") == "adapter":
            yield _lora_gguf(reference, path, expected, vocabulary, missing)
        else:
            yield _gguf(reference, path, content, cast, vocabulary, expected, missing)


def _unreadable(path: Path, error: Exception) -> Candidate:
    """A file that even the reader gives up on; its engine is not asked."""
    what = f"the file is damaged and cannot be read: {error}"
    name, place = f"GGUF {path.stem.rpartition('-')[2]}", f"export/gguf/{path.name}"
    return Candidate(name, "gguf", place, 0.0, path.stat().st_size, lambda: None, lambda: [what], missing="not asked: the file is damaged")


def _gguf(
    reference: Reference, path: Path, content: GgufContent, cast: str, vocabulary: Vocabulary, expected: Expected, missing: str
) -> Candidate:
    kind = path.stem.rpartition("-")[2]
    floats = kind in FLOATS
    merged = reference.run.path("merged")
    return Candidate(
        name=f"GGUF {kind}",
        kind="gguf",
        place=f"export/gguf/{path.name}",
        tolerance=max(TOLERANCES[kind], TOLERANCES[cast]) if floats else TOLERANCES["quantized"],
        bytes=path.stat().st_size,
        open=lambda: engine_llama_cpp.LlamaCpp(path, context=reference.context),
        faults=lambda: content.faults(vocabulary, expected, cast),
        oracle=(lambda: nullcontext(None)) if floats else (lambda: dequantized(merged, content.state_dict(expected))),
        against="base + adapter" if floats else "transformers on the file's dequantized weights",
        missing=missing,
    )


def _lora_gguf(reference: Reference, path: Path, expected: Expected, vocabulary: Vocabulary, missing: str) -> Candidate:
    def faults() -> list[str]:
        return update_faults(lora_updates(path, reference.settings, expected.tensors), expected)

    def load() -> Engine:
        with base_file(reference, expected, vocabulary) as base:
            return engine_llama_cpp.LlamaCpp(base, path, reference.context)

    return Candidate(
        name="LoRA GGUF",
        kind="lora-gguf",
        place=f"export/gguf/{path.name}",
        tolerance=TOLERANCES["F32" if _base_type(expected) == "F32" else "F16"],
        bytes=path.stat().st_size,
        open=load,
        faults=faults,
        missing=missing,
    )


@contextmanager
def base_file(reference: Reference, expected: Expected, vocabulary: Vocabulary) -> Iterator[Path]:
    """The untuned base as a GGUF file, removed afterwards (a loaded file stays mapped)."""
    with tempfile.TemporaryDirectory(dir=reference.run.path("export"), prefix=".base-") as folder:
        kind = _base_type(expected)
        path = Path(folder) / f"base-{kind}.gguf"
        write_model_file(path, kind, reference.settings, tensors(expected.tensors, reference.settings), vocabulary, "base")
        yield path


def _base_type(expected: Expected) -> str:
    return "F32" if sum(tensor.numel() for tensor in expected.tensors.values()) * 4 <= _LARGE_BASE else "F16"


def _mlx_adapter(reference: Reference, folder: Path, expected: Expected) -> Candidate:
    return Candidate(
        name="MLX adapter",
        kind="mlx",
        place="export/mlx",
        tolerance=_mlx_tolerance(reference, "float32"),
        bytes=size_of(folder),
        open=lambda: _mlx(reference, local_folder(reference.config.model_path), folder),
        faults=lambda: mlx_adapter_faults(folder, expected),
        missing=_no_mlx(),
        refused=lambda error: _base_refused(reference),
    )


def _mlx_merged(reference: Reference, folder: Path, cast: str) -> Candidate:
    def refused(error: UserError) -> str:
        settings = reference.settings.to_dict()
        why = refusal({**settings, **mlx_keys(settings)}, saved_shapes(reference.model))
        return why or (_base_refused(reference) if isinstance(error, engine_mlx.Stopped) else "")

    return Candidate(
        name="merged in mlx-lm",
        kind="mlx",
        place="export/merged",
        tolerance=_mlx_tolerance(reference, cast),
        bytes=size_of(folder),
        open=lambda: _mlx(reference, folder, None),
        faults=lambda: mlx_faults(folder),
        missing=_no_mlx(),
        refused=refused,
    )


def _base_refused(reference: Reference) -> str:
    """Why mlx-lm does not run the untouched base either, or empty."""
    try:
        engine = _mlx(reference, local_folder(reference.config.model_path), None, is_base=True)
        engine.answers(reference.rows[:1], 1)
    except CheckFailed as error:
        return f"mlx-lm does not run the untouched base either: {error.what}"
    return ""


def _mlx(reference: Reference, folder: Path, adapter: Path | None, is_base: bool = False) -> Engine:
    """A base that only transformers 5 wrote lacks mlx-lm's keys; the merged folder must have them itself."""
    overrides = mlx_keys(reference.settings.to_dict()) if is_base or adapter is not None else {}
    return Mlx(folder, adapter, overrides, render, reference.ends)


def _mlx_tolerance(reference: Reference, cast: str) -> float:
    coarse = TOLERANCES["float16"] if reference.settings.model_type in _COARSE_IN_MLX else 0.0
    return max(TOLERANCES[cast], coarse)


def _no_mlx() -> str:
    return "" if engine_mlx.available() else "mlx-lm is not installed (pip install mlx-lm)"
