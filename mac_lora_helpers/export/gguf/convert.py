"""Runs one of llama.cpp's converters, in a process of its own, with two gaps closed.

    python -P -m mac_lora_helpers.export.gguf.convert LLAMA_CPP/convert_hf_to_gguf.py MODEL --outtype f16 --outfile FILE

The converter knows a tokenizer by a hash of what it does to one text, so it refuses every tokenizer that was trained
anew, though llama.cpp has its rules. And it writes one end token where a model names several.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
#: Regular expression that cuts text before a byte-level BPE → llama.cpp's name for it (``llama-vocab.cpp``).
PRE_TOKENIZERS = {
    rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}|{_TAIL}": "qwen2",
    rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}": "llama-bpe",
    rf"{_CONTRACTIONS}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen35",
    rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}


def pre_tokenizer(tokenizer: Any) -> str | None:
    """llama.cpp's name for what a tokenizer does before BPE, or None if it has none that is known here.

    Read off the loaded tokenizer: transformers may replace what stands in ``tokenizer.json``.
    """
    pre = json.loads(tokenizer.backend_tokenizer.to_str()).get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    kinds, last = [step.get("type") for step in steps], steps[-1]
    if kinds[-1] != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if last.get("use_regex", True):
        return {("ByteLevel",): "gpt-2", ("Digits", "ByteLevel"): "smollm"}.get(tuple(kinds))
    pattern = (steps[0].get("pattern") or {}).get("Regex")
    return PRE_TOKENIZERS.get(pattern) if kinds == ["Split", "ByteLevel"] and steps[0].get("behavior") == "Isolated" else None


def name_tokenizers(text_model: Any) -> None:
    """A tokenizer that the converter does not know by its hash is named by its rules."""
    by_hash = text_model.get_vocab_base_pre

    def named(self: Any, tokenizer: Any) -> str:
        try:
            return by_hash(self, tokenizer)
        except NotImplementedError:
            name = pre_tokenizer(tokenizer)
            if name is None:
                raise
            return name

    text_model.get_vocab_base_pre = named


def add_ends(special_vocab: Any, ends: list[int]) -> None:
    """The model's further end tokens go into the two keys that llama.cpp has for them beside ``eos``."""
    write = special_vocab.add_to_gguf

    def with_ends(self: Any, *arguments: Any, **options: Any) -> None:
        ids = self.special_token_ids
        for end in ends:
            free = next((key for key in ("eos", "eot", "eom") if key not in ids), None)
            if end not in ids.values() and free:
                self._set_special_token(free, end)
        write(self, *arguments, **options)

    special_vocab.add_to_gguf = with_ends


def end_tokens(folder: Path) -> list[int]:
    """Ids in a model folder's ``generation_config.json`` that end an answer."""
    path = folder / "generation_config.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    return found if isinstance(found, list) else [] if found is None else [found]


def main(script: Path, arguments: list[str]) -> None:
    """Runs the converter ``script`` as its own command line does."""
    sys.argv = [str(script), *arguments]
    sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
    try:
        from conversion.base import TextModel
        from gguf.vocab import SpecialVocab
    except ImportError:  # an older checkout keeps everything in one script; it runs as it is
        pass
    else:
        name_tokenizers(TextModel)
        folder = next((Path(argument) for argument in arguments if Path(argument, "config.json").is_file()), None)
        add_ends(SpecialVocab, end_tokens(folder) if folder else [])
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
