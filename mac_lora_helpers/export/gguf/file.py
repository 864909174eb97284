"""Writes one GGUF model file, a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.export.gguf.model import Tensor, architecture, metadata
from mac_lora_helpers.export.gguf.tokenizer import Vocabulary
from mac_lora_helpers.export.gguf.types import OWN, tensor_type


@dataclass(frozen=True)
class GgufFile:
    """A file that was written.

    Args:
        name: file name. type: F16, Q8_0, …; ``LoRA`` for an adapter. bytes: its size.
        kept: tensors kept at F16 because their rows are no multiple of the type's block.
        note: something a person should know, or empty.
    """

    name: str
    type: str
    path: Path
    bytes: int
    kept: tuple[str, ...] = ()
    note: str = ""


def write_model_file(path: Path, file_type: str, config: Any, tensors: Iterable[Tensor], vocabulary: Vocabulary, name: str) -> list[str]:
    """Writes a model.

    Args:
        file_type: one of ``gguf_types.OWN``. config: the transformers config. name: for people.

    Returns:
        Names of the tensors that stayed at F16 because of their row length.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture(config))
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(OWN[file_type])
    writer.add_quantization_version(2)
    for key, value in metadata(config).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(key, value)
    add_vocabulary(writer, vocabulary)
    plan = [(tensor, tensor_type(file_type, tensor.name, tensor.shape)) for tensor in tensors]
    write_tensors(writer, plan)
    return [tensor.name for tensor, kind in plan if len(tensor.shape) > 1 and kind == "F16" != file_type]


def write_tensors(writer: Any, plan: list[tuple[Tensor, str]]) -> None:
    """Header, metadata, the table of tensors, then each tensor as it is converted; closes the file."""
    from gguf import GGMLQuantizationType

    for tensor, kind in plan:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), _bytes(tensor.shape, kind), GGMLQuantizationType[kind])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in plan:
            writer.write_tensor_data(convert(tensor.load(), kind))
    finally:
        writer.close()


def convert(values: np.ndarray, kind: str) -> np.ndarray:
    """Float32 values as the bytes (or floats) of a GGUF type."""
    from gguf import GGMLQuantizationType, quants

    values = np.ascontiguousarray(values, dtype=np.float32)
    return values if kind == "F32" else quants.quantize(values, GGMLQuantizationType[kind])


def _bytes(shape: tuple[int, ...], kind: str) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(np.prod(shape)) // block * size


def add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """The tokenizer's keys."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    for short, value in vocabulary.special.items():
        getattr(writer, f"add_{short}_token_id")(value)
    for short, value in vocabulary.add.items():
        {"bos": writer.add_add_bos_token, "eos": writer.add_add_eos_token, "space_prefix": writer.add_add_space_prefix}[short](value)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)
