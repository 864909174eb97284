"""The check of everything that was exported, one artefact after the other, within ``check_minutes``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mac_lora_helpers.errors import CheckFailed, UserError
from mac_lora_helpers.export.equivalence import engine_llama_cpp, tensors
from mac_lora_helpers.export.equivalence.engines import EngineFailed, score
from mac_lora_helpers.export.equivalence.prompts import render
from mac_lora_helpers.export.equivalence.reference import Reference
from mac_lora_helpers.export.equivalence.scores import LIMITS, Comparison, Reply, forward, limits_of
from mac_lora_helpers.export.equivalence.tensors import Projections
from mac_lora_helpers.export.gguf.write import FLOATS, Gguf, GgufFile, ToolFailed, converter, run_tool
from mac_lora_helpers.export.merged import older_keys
from mac_lora_helpers.export.mlx import Mlx, available, mlx_name

#: Prompts that an engine answers whatever it takes; later artefacts of the same engine.
LEAST, LEAST_AGAIN = 4, 2


@dataclass
class Artefact:
    """One artefact to check.

    Args:
        name, kind, path: for people; ``kind``: adapter, merged, gguf, lora-gguf, mlx.
        limits: see ``LIMITS``. answers: gives the engine's replies, given the least number of prompts and the seconds.
        tensors: gives the projections, or None. faults: gives what its metadata shows.
        made_of: name of the artefact that it only rounds, and is held against.
        missing: why the engine is not there, or empty. refused: why the engine takes no model of this family, given that it failed.
    """

    name: str
    kind: str
    path: Path
    limits: str
    answers: Callable[[int, float, dict[str, Any]], Iterator[Reply]]
    tensors: Callable[[], Projections | None] = lambda: None
    faults: Callable[[], list[str]] = list
    made_of: str = ""
    missing: str = ""
    engine: str = "transformers"
    refused: Callable[[], str] = lambda: ""


class Check:
    """Asks every artefact what it says, and writes ``export/equivalence.json`` after each.

    Args:
        gguf, mlx: what was written for those engines.
    """

    def __init__(self, reference: Reference, gguf: Gguf, mlx: Mlx) -> None:
        self.reference, self.run, self.source = reference, reference.run, reference.source
        self.gguf, self.mlx = gguf, mlx
        self.replies: dict[str, list[Reply]] = {}
        self.seconds = reference.seconds
        self.artefacts = [*self._folders(), *self._ggufs(), *self._mlx()]
        self.entries = [self._blank(artefact) for artefact in self.artefacts]
        self._stack = ExitStack()
        self._base: Path | None = None

    @property
    def plan(self) -> str:
        """What will be asked, in a sentence."""
        known, most = len(self.reference.prompts), 60 * self.source.config.check_minutes
        return (
            f"{len(self.artefacts)} artefacts, up to {known} of {self.reference.of} held-out prompts each; "
            f"{max(0.0, most - self.seconds):.0f} s are left of check_minutes, and every engine answers at least {min(LEAST, known)}"
        )

    def lines(self) -> Iterator[str]:
        """Checks one artefact after the other; a line for each as it is done. What was done before an interruption is kept."""
        asked: set[str] = set()
        with self._stack:
            for number, artefact in enumerate(self.artefacts):
                start = time.perf_counter()
                left = max(0.0, 60 * self.source.config.check_minutes - self.seconds)
                least = LEAST_AGAIN if artefact.engine in asked else LEAST
                self.entries[number] = entry = self._one(artefact, least, left / (len(self.artefacts) - number))
                asked.add(artefact.engine)
                entry["seconds"] = round(time.perf_counter() - start, 2)
                self.seconds += entry["seconds"]
                self.run.write_json("equivalence", self.to_dict())
                asked_of = f"{entry['prompts']} prompts in {entry['seconds']:.0f} s"
                yield f"{artefact.name:18} {entry['status']:12} {asked_of:20} {_why(entry)}".rstrip()

    # What there is

    def _folders(self) -> Iterator[Artefact]:
        reference, folder = self.reference, self.run.path("merged")
        yield Artefact("adapter (PEFT)", "adapter", self.source.folder, "exact", lambda *_: iter(reference.adapter))
        dtype = _dtype(folder)
        yield Artefact(
            "merged", "merged", folder, "exact" if dtype == "float32" else dtype, self._merged,
            tensors=lambda: tensors.in_merged(folder, self.source.base, self.source.updates),
        )  # fmt: skip

    def _ggufs(self) -> Iterator[Artefact]:
        missing = engine_llama_cpp.missing()
        for file in sorted(self.gguf.files, key=lambda file: file.kind not in (*FLOATS, "LoRA")):
            shared = {"path": file.path, "missing": missing, "engine": "llama_cpp"}
            if file.kind == "LoRA":
                yield Artefact(
                    "LoRA GGUF", "lora-gguf", limits="float16", answers=self._llama_cpp(None, file.path),
                    tensors=lambda file=file: tensors.in_lora(file.path, self.source.updates), refused=self._no_base_file, **shared,
                )  # fmt: skip
            else:
                yield Artefact(
                    f"GGUF {file.kind}", "gguf", limits=limits_of(file.kind), answers=self._llama_cpp(file.path, None),
                    tensors=lambda file=file: self._gguf_tensors(file), faults=lambda file=file: self._gguf_faults(file),
                    made_of="merged" if file.kind in FLOATS else "GGUF F16", **shared,
                )  # fmt: skip

    def _mlx(self) -> Iterator[Artefact]:
        shared = {"missing": "" if available() else "mlx-lm is not installed (pip install mlx-lm)", "engine": "mlx_lm"}
        base, merged = self.source.base, self.run.path("merged")
        if self.mlx.adapter:
            kind = _settings(base).get("model_type", "")
            yield Artefact(
                "MLX adapter", "mlx", self.mlx.adapter, "exact", self._mlx_lm(base, self.mlx.adapter), refused=self._mlx_refuses,
                tensors=lambda: tensors.in_mlx(self.mlx.adapter, self.source.updates, lambda module: mlx_name(module, kind)), **shared,
            )  # fmt: skip
        yield Artefact(
            "merged in mlx-lm", "mlx", merged, "exact", self._mlx_lm(merged), made_of="merged", refused=self._mlx_refuses, **shared
        )
        if self.mlx.model:
            bits = f"{self.mlx.model.name.removeprefix('model-').removesuffix('bit')} bits"
            answers = self._mlx_lm(self.mlx.model)
            yield Artefact(f"MLX, {bits}", "mlx", self.mlx.model, bits, answers, made_of="merged in mlx-lm", **shared)

    # How each is asked

    def _merged(self, least: int, seconds: float, about: dict[str, Any]) -> Iterator[Reply]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, start = self.run.path("merged"), time.perf_counter()
        with self.source.loading():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(self.reference.device)
        about.update(engine="transformers", load_seconds=round(time.perf_counter() - start, 3))
        start = time.perf_counter()
        for number, prompt in enumerate(self.reference.prompts):
            if number >= least and time.perf_counter() - start > seconds:
                return
            yield forward(model, prompt, number, render(tokenizer, prompt))

    def _llama_cpp(self, path: Path | None, lora: Path | None) -> Callable[..., Iterator[Reply]]:
        prompts = self.reference.prompts
        context = 64 * (max(len(prompt.ids) + len(prompt.answer) for prompt in prompts) // 64 + 2)

        def answers(least: int, seconds: float, about: dict[str, Any]) -> Iterator[Reply]:
            model = path or self._base_file()
            job = {"path": str(model), "lora": str(lora) if lora else None, "context": context, "least": least, "seconds": seconds}
            told = getattr(self.source.tokenizer, "chat_template_arguments", {})
            return score("llama_cpp", {**job, "template": told}, prompts, about)

        return answers

    def _mlx_lm(self, folder: Path, adapter: Path | None = None) -> Callable[..., Iterator[Reply]]:
        """A base that only transformers 5 wrote lacks mlx-lm's keys; the merged folder must have them itself."""
        overrides = older_keys(_settings(folder)) if folder == self.source.base else {}

        def answers(least: int, seconds: float, about: dict[str, Any]) -> Iterator[Reply]:
            lora = str(adapter) if adapter else None
            job = {"path": str(folder), "lora": lora, "overrides": overrides, "least": least, "seconds": seconds}
            return score("mlx_lm", job, self.reference.prompts, about)

        return answers

    def _mlx_refuses(self) -> str:
        """Why mlx-lm does not run the untouched base either, or empty."""
        try:
            next(self._mlx_lm(self.source.base)(1, 0.0, {}))
        except EngineFailed as error:
            return f"mlx-lm does not run the untouched base either: {error.what}"
        return ""

    def _base_file(self) -> Path:
        """The untuned base as F16, removed when the check is over: the LoRA GGUF lies on it, and every tensor is held against it."""
        if self._base is None:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=self.run.path("export"), prefix=".base-")))
            arguments = [str(self.source.base), "--outtype", "f16", "--outfile", str(folder / "base-F16.gguf")]
            run_tool(converter("convert_hf_to_gguf.py", *arguments), folder)
            self._base = folder / "base-F16.gguf"
        return self._base

    def _no_base_file(self) -> str:
        """Why the base has no GGUF that the adapter's could lie on, or empty."""
        try:
            self._base_file()
        except ToolFailed as error:
            return f"llama.cpp's converter does not take the untouched base: {error.what}"
        return ""

    def _gguf_faults(self, file: GgufFile) -> list[str]:
        template = self.source.tokenizer.chat_template
        f16 = next((other.path for other in self.gguf.files if other.kind == "F16"), None)
        try:
            return tensors.metadata_faults(file.path, template, None if file.kind in FLOATS else f16)
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            return [f"the file is damaged and cannot be read: {error}"]

    def _gguf_tensors(self, file: GgufFile) -> Projections | None:
        lora = next((other.path for other in self.gguf.files if other.kind == "LoRA"), None)
        if lora is None or file.kind in ("F32", "BF16"):
            return None
        return tensors.in_gguf(file.path, self._base_file(), lora, quantized=file.kind != "F16")

    # What is made of it

    def _blank(self, artefact: Artefact) -> dict[str, Any]:
        limits, path = LIMITS[artefact.limits], artefact.path
        size = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return {
            "name": artefact.name, "kind": artefact.kind, "path": self._shown(path), "engine": None, "prompts": 0,
            "prompt_ids_equal": None, "greedy_agreement": None, "mean_logprob_difference": None, "max_logprob_difference": None,
            "limits": {"mean": limits.mean, "largest": limits.largest}, "against": artefact.made_of or "base + adapter",
            "tensors": None, "loss_cost": None, "bytes": size, "load_seconds": None, "causes": [], "note": artefact.missing,
            "passed": None, "status": "not checked",
        }  # fmt: skip

    def _one(self, artefact: Artefact, least: int, seconds: float) -> dict[str, Any]:
        from safetensors import SafetensorError

        entry = self._blank(artefact)
        try:
            projections = artefact.tensors()
        except (ToolFailed, SafetensorError, OSError, ValueError, TypeError, KeyError, IndexError) as error:
            projections, entry["note"] = None, f"tensors were not compared: {getattr(error, 'what', None) or error}"[:200]
        if projections:
            entry["tensors"], entry["causes"] = projections.to_dict(), projections.faults
        entry["causes"] += artefact.faults()
        if not artefact.missing:
            self._ask(artefact, entry, least, seconds)
        elif entry["causes"]:
            entry["passed"] = False
        entry["status"] = {True: "passed", False: "failed", None: "not checked"}[entry["passed"]]
        return entry

    def _ask(self, artefact: Artefact, entry: dict[str, Any], least: int, seconds: float) -> None:
        about: dict[str, Any] = {"engine": "transformers"}
        try:
            found = self.replies[artefact.name] = list(artefact.answers(least, seconds, about))
        except UserError as error:
            why = artefact.refused()
            entry["note"] = why or entry["note"]
            entry["causes"] += [] if why else [f"{artefact.engine}: {error.what}"]
            entry["passed"] = False if entry["causes"] else None
            return
        entry.update(about)
        own = self.reference.compare(found)
        held = self.reference.compare(found, self.replies.get(artefact.made_of)) if artefact.limits in _STRICT else own
        entry.update(
            prompts=own.prompts,
            prompt_ids_equal=not own.unequal,
            greedy_agreement=round(own.agreement, 4),
            mean_logprob_difference=round(held.mean, 6),
            max_logprob_difference=round(held.largest, 6),
            loss_cost=round(own.cost, 5),
        )
        if own.asked:
            entry["note"] = f"ask it with chat_template_kwargs {own.asked}"
        self._conclude(artefact, entry, held)

    def _conclude(self, artefact: Artefact, entry: dict[str, Any], held: Comparison) -> None:
        """Passed, failed with its causes, or not checked because the untuned base would pass as well."""
        limits, causes = LIMITS[artefact.limits], entry["causes"]
        if held.unequal:
            causes.append(f"other token ids of the same chat (chat template or tokenizer), first at prompt {held.unequal[0]}")
        if held.unended:
            causes.append(f"does not stop where the adapter does, first at prompt {held.unended[0]}")
        if not held.within(limits):
            off = f"{held.mean:.2g} on average, {held.largest:.2g} at most"
            causes.append(f"log-probabilities are off by {off}; {limits.mean:g} and {limits.largest:g} are allowed")
        source = next((item for item in self.entries if item["name"] == artefact.made_of), None)
        if source and source["passed"] is False:
            causes.append(f"made of {source['name']}, which failed")
        entry["passed"] = not causes
        told = artefact.kind == "adapter" or (entry["tensors"] or {}).get("judged")
        if entry["passed"] and not told and self.reference.compare(self.reference.control).within(limits):
            entry["passed"] = None
            entry["note"] = "the untuned base would pass as well: this check cannot tell them apart"

    @property
    def passed(self) -> bool | None:
        """False if anything failed, None if anything was not checked, else True."""
        states = [item["passed"] for item in self.entries]
        return False if False in states else None if None in states or not states else True

    def to_dict(self) -> dict[str, Any]:
        """The content of ``export/equivalence.json``."""
        found = self.reference.compare(self.reference.control)
        control = {
            "name": "untuned base", "prompts": found.prompts, "greedy_agreement": round(found.agreement, 4),
            "mean_logprob_difference": round(found.mean, 6), "max_logprob_difference": round(found.largest, 6),
            "loss_cost": round(found.cost, 5), "passed": found.within(LIMITS["exact"]),
        }  # fmt: skip
        conditions = {
            "reference": f"base + adapter, transformers, float32, {self.reference.device}",
            "prompts_from": "data/test.jsonl",
            "tokens_per_answer": self.reference.limit,
            "adapter_digest": self.source.adapter.digest,
        }
        coverage = {"prompts": len(self.reference.prompts), "of": self.reference.of, "seconds": round(self.seconds, 1)}
        return {"passed": self.passed, "artefacts": self.entries, "control": control, "coverage": coverage, "conditions": conditions}

    def rows(self) -> list[dict[str, str]]:
        """A table for people: one row per artefact, and the untuned base, which must fail."""
        control = self.to_dict()["control"]
        last = {**dict.fromkeys(_COLUMNS, "–"), "artefact": "untuned base (control)"}
        last["result"] = "PASSED: this check shows nothing" if control["passed"] else "fails, as it must"
        last["off by, on average"] = f"{control['mean_logprob_difference']:.2g}"
        last["same first choice"] = f"{control['greedy_agreement']:.1%}"
        return [*(_row(item) for item in self.entries), last]

    def require_passed(self) -> None:
        """Nothing failed.

        Raises:
            CheckFailed: names the artefacts and the causes.
        """
        failed = [item for item in self.entries if item["passed"] is False]
        if failed:
            told = " | ".join(f"{item['name']}: {'; '.join(item['causes'])}" for item in failed)
            where, fix = (
                ", ".join(item["path"] for item in failed),
                "do not use them; export again, or go on without them (gguf_types names what is written)",
            )
            raise CheckFailed(f"the export does not say what the adapter says: {told}", where=where, fix=fix)

    def _shown(self, path: Path) -> str:
        for root in (self.run.path("export").parent, self.run.root):
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.name


#: What is held against the artefact that it was made of, and not against the adapter itself.
_STRICT = ("exact", "float16", "bfloat16")
_COLUMNS = (
    *("artefact", "result", "prompts", "prompt ids", "tensors", "off by, on average", "at most", "allowed"),
    *("same first choice", "loss above the adapter's", "note"),
)


def _row(item: dict[str, Any]) -> dict[str, str]:
    share, cost, mean, most, found = (
        item[key] for key in ("greedy_agreement", "loss_cost", "mean_logprob_difference", "max_logprob_difference", "tensors")
    )
    values = (
        item["name"],
        item["status"] if item["passed"] is not False else f"FAILED: {'; '.join(item['causes'])}",
        str(item["prompts"]),
        {True: "equal", False: "DIFFERENT", None: "–"}[item["prompt_ids_equal"]],
        "–" if not found or found["least"] is None else f"{found['least']:.3f} to {found['most']:.3f} in {found['judged']}",
        "–" if mean is None else f"{mean:.2g}",
        "–" if most is None else f"{most:.2g}",
        f"{item['limits']['mean']:g}, {item['limits']['largest']:g}",
        "–" if share is None else f"{share:.1%}",
        "–" if cost is None else f"{cost:+.4f}",
        item["note"],
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _why(entry: dict[str, Any]) -> str:
    return "; ".join(entry["causes"]) or entry["note"]


def _settings(folder: Path) -> dict[str, Any]:
    import json

    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _dtype(folder: Path) -> str:
    return str(_settings(folder).get("dtype") or "float32")
