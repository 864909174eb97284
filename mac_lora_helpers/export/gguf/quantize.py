"""Quantizes a GGUF file with llama.cpp's own code (the ``cyllama`` wheel), in a process of its own.

python -P -m mac_lora_helpers.export.gguf.quantize model-F16.gguf model-Q4_K_M.gguf Q4_K_M
"""

from __future__ import annotations

import os
import sys

#: Type → llama.cpp's number for a file of it (``llama_ftype``).
FILE_TYPES = {
    **{"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13},
    **{"Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30},
}


def main(source: str, target: str, kind: str) -> None:
    """Writes ``target`` of the given type out of ``source``."""
    from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize

    parameters = LlamaModelQuantizeParams()
    parameters.ftype, parameters.nthread = FILE_TYPES[kind], os.cpu_count() or 1
    model_quantize(source, target, parameters)


if __name__ == "__main__":
    main(*sys.argv[1:])
