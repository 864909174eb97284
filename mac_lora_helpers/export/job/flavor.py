"""Which HF Jobs hardware: by the model's size, after the rules of thumb of Hugging Face's own training guide.

Memory, speed and prices of a flavor change and are not written down here: ``hf jobs hardware`` lists them.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

from mac_lora_helpers.config import EMBEDDED, Config
from mac_lora_helpers.errors import InputError

#: (parameters below, flavor).
RULES = ((1e9, "t4-small"), (3e9, "a10g-small"), (7e9, "a10g-large"), (float("inf"), "a100-large"))
_SIZE = re.compile(r"(?<![\d.A-Za-z])(\d+(?:\.\d+)?)([bm])(?![A-Za-z])", re.I)


def choose_flavor(config: Config) -> tuple[str, str]:
    """The flavor and the reason for it.

    Raises:
        InputError: ``job_flavor`` names none.
    """
    if config.job_flavor != "auto":
        return _given(config.job_flavor), "chosen by job_flavor"
    size, source = parameters_of(config)
    if size is None:
        return "a10g-small", f"{source}; this flavor suits models up to about 3 billion parameters"
    flavor = next(flavor for limit, flavor in RULES if size < limit)
    return flavor, f"{size / 1e9:.3g} billion parameters ({source})"


def processes_of(flavor: str, config: Config) -> int:
    """One process for each GPU of the flavor; they share the recipe's batch, so that the run stays the same run.

    Raises:
        InputError: the batch cannot be shared among them evenly.
    """
    match = re.search(r"x(\d+)$", flavor)
    count = int(match[1]) if match else 1
    if config.gradient_accumulation_steps % count:
        raise InputError(
            f"{flavor} has {count} GPUs, and {config.gradient_accumulation_steps} gradient accumulation steps cannot be shared among them",
            where="parameter job_flavor",
            fix=f"choose a flavor with one GPU, or a recipe whose gradient_accumulation_steps is a multiple of {count}",
        )
    return count


def parameters_of(config: Config) -> tuple[float | None, str]:
    """How many parameters the base has, and how that is known: counted in its files, or read from its name."""
    files = sorted(Path(config.model_path).glob("*.safetensors")) if Path(config.model_path).is_dir() else []
    if files:
        return float(sum(map(_count, files))), "counted in its files"
    match = _SIZE.search(config.model_id.split("/")[-1])
    if match and config.model_id != EMBEDDED:
        return float(match[1]) * {"b": 1e9, "m": 1e6}[match[2].lower()], "by its name"
    return None, "the model's size is not known from its name"


def _count(file: Path) -> int:
    """Elements of all tensors, from a safetensors header (8 bytes of length, then JSON)."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            elements = 1
            for size in tensor["shape"]:
                elements *= size
            total += elements
    return total


def _given(flavor: str) -> str:
    from huggingface_hub import JobHardware

    known = [str(item.value) for item in JobHardware]
    if flavor not in known:
        near = difflib.get_close_matches(flavor, known, n=3, cutoff=0.3)
        fix = f"for example {', '.join(near or known[:3])}; `hf jobs hardware` lists all of them with their prices"
        raise InputError(f"there is no flavor {flavor!r}", where="parameter job_flavor", fix=fix)
    return flavor
