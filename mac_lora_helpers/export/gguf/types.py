"""GGUF types: which are written here, which need ``llama-quantize``, and what a file of a type holds per tensor."""

from __future__ import annotations

import difflib

from mac_lora_helpers.errors import InputError

#: Types that the ``gguf`` package quantizes itself → ``general.file_type`` of llama.cpp.
OWN = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9}
#: Types that an installed ``llama-quantize`` makes out of the F16 file.
WITH_TOOL = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_M"),
)
FLOATS = ("F32", "F16", "BF16")


def parse_types(text: str) -> list[str]:
    """``gguf_types`` as a list, in order and without repeats.

    Raises:
        InputError: an unknown type, with the nearest known one.
    """
    found = list(dict.fromkeys(part.strip().upper() for part in text.split(",") if part.strip()))
    for name in found:
        if name not in OWN and name not in WITH_TOOL:
            near = difflib.get_close_matches(name, [*OWN, *WITH_TOOL], n=1, cutoff=0.3)
            hint = f"did you mean {near[0]}? " if near else ""
            fix = f"{hint}written here: {', '.join(OWN)}; with llama-quantize: {', '.join(WITH_TOOL)}"
            raise InputError(f"no such GGUF type: {name}", where="parameter gguf_types", fix=fix)
    return found


def tensor_type(file_type: str, name: str, shape: tuple[int, ...]) -> str:
    """The type of one tensor in a file of ``file_type``.

    Vectors stay F32. In a file of four or five bits the embedding and the head get Q8_0: they cost most when
    rounded. A row that is no multiple of the type's block stays F16.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) < 2:
        return "F32"
    wanted = "Q8_0" if file_type not in (*FLOATS, "Q8_0") and name in ("token_embd.weight", "output.weight") else file_type
    block = GGML_QUANT_SIZES[GGMLQuantizationType[wanted]][0]
    return wanted if shape[-1] % block == 0 else "F16"
