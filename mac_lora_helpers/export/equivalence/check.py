"""Does every exported artefact say what the trained adapter says? Checked in the engine that will run it.

The reference is base + adapter in transformers (float32, CPU). An engine answers greedily; the reference then looks at
the same tokens, position by position. So every token is compared, also behind a near tie.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from mac_lora_helpers.artifacts import RunDir, adapter_digest
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, InputError, UserError
from mac_lora_helpers.export.adapter import adapter_folder, trained_config
from mac_lora_helpers.export.equivalence.artefacts import TOLERANCES, Candidate, candidates
from mac_lora_helpers.export.equivalence.compare import Comparison
from mac_lora_helpers.export.equivalence.engines import Answer, Engine
from mac_lora_helpers.export.equivalence.reference import Reference
from mac_lora_helpers.files import portable

LOADS_NOT = "does not load"
UNREADABLE = "the files cannot be read"
PROMPTS_DIFFER = "the engine makes other token ids of the same chat"
END_DIFFERS = "the engine does not stop where the adapter does"
UNEXPLAINED = "the answers differ, and no usual cause explains it"


@dataclass
class EquivalenceReport:
    """The result; ``export/equivalence.json``.

    Args:
        artefacts: one dictionary each, with ``name prompts prompt_ids_equal greedy_agreement passed`` and more;
            ``passed`` is None where no engine was there to ask, or the engine does not support the family at all.
        control: the untuned base put to the same check: it must not pass. conditions: how it was measured.
    """

    artefacts: list[dict[str, Any]]
    control: dict[str, Any]
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """False if anything failed, None if anything was not checked, else True."""
        states = [item["passed"] for item in self.artefacts]
        return False if False in states else None if None in states or not states else True

    def to_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "artefacts": self.artefacts, "control": self.control, "conditions": self.conditions}

    def rows(self) -> list[dict[str, str]]:
        """A table for people: one row per artefact, and the untuned base, which must fail."""
        control = {**dict.fromkeys(_COLUMNS, "–"), "artefact": "untuned base (control)", "note": ""}
        control["result"] = "PASSED: this check shows nothing" if self.control["passed"] else "fails, as it must"
        control["same greedy tokens"] = f"{self.control['greedy_agreement']:.0%} of {self.control['prompts']}"
        control["largest log-prob. difference"] = f"{self.control['max_logprob_difference']:.2g}"
        return [*(_row(item) for item in self.artefacts), control]

    def require_passed(self) -> EquivalenceReport:
        """This report, if nothing failed.

        Raises:
            CheckFailed: names the artefacts and the causes.
        """
        failed = [item for item in self.artefacts if item["passed"] is False]
        if failed:
            lines = [f"{item['name']}: {'; '.join(item['causes'])}" for item in failed]
            places = ", ".join(item["path"] for item in failed)
            fix = "run the export again; if it stays, the cause named above is where to look"
            raise CheckFailed("the export does not say what the adapter says: " + " | ".join(lines), where=places, fix=fix)
        return self


def check_equivalence(run: RunDir, config: Config) -> EquivalenceReport:
    """Checks the adapter and everything in ``export/`` and writes ``export/equivalence.json``.

    Raises:
        MissingArtifact: no adapter, training config or test split. InputError: no prompt can be made of the test split.
    """
    start = time.perf_counter()
    reference = Reference(run, trained_config(run, config))
    artefacts = [check_one(candidate, reference) for candidate in candidates(reference)]
    conditions = {
        "reference": f"base + adapter, {reference.engine.engine}, float32, CPU",
        "prompts": len(reference.prompts),
        "prompts_from": "data/test.jsonl",
        "tokens_per_answer": reference.limit,
        "answers_scored": len(reference.scored()),
        "seconds": round(time.perf_counter() - start, 2),
    }
    conditions["adapter_digest"] = adapter_digest(adapter_folder(run, config))
    report = EquivalenceReport(artefacts, control(reference), conditions)
    run.write_json("equivalence", report.to_dict())
    return report


def control(reference: Reference) -> dict[str, Any]:
    """The untuned base put to the same check, no tolerance given."""
    found = reference.compare(reference.base_answers, 0.0)
    return {
        "name": "untuned base",
        "prompts": found.prompts,
        "greedy_agreement": round(found.agreement, 4),
        "max_logprob_difference": round(found.difference, 6),
        "loss": _rounded(reference.base_loss),
        "adapter_loss": _rounded(reference.adapter_loss),
        "passed": found.within(TOLERANCES["float32"]),
    }


def check_one(candidate: Candidate, reference: Reference) -> dict[str, Any]:
    """One artefact's entry in the report."""
    start = time.perf_counter()
    entry = {
        "name": candidate.name,
        "kind": candidate.kind,
        "path": candidate.place,
        "engine": None,
        "prompts": len(reference.prompts),
        "prompt_ids_equal": None,
        "greedy_agreement": None,
        "passed": None,
        "status": "not checked",
        "against": candidate.against,
        "tolerance": candidate.tolerance,
        "bytes": candidate.bytes,
        "load_seconds": None,
        "causes": _faults(candidate, reference),
        "note": candidate.missing,
    }
    if not candidate.missing:
        _ask(candidate, reference, entry)
    elif entry["causes"]:
        entry["passed"] = False
    if entry["passed"] is not None:
        entry["status"] = "passed" if entry["passed"] else "failed"
    entry["seconds"] = round(time.perf_counter() - start, 2)
    return entry


def _faults(candidate: Candidate, reference: Reference) -> list[str]:
    from safetensors import SafetensorError

    try:
        return candidate.faults()
    except InputError as error:
        return [error.what]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return [f"{UNREADABLE}: {_within_run(str(error) or type(error).__name__, reference)}"]


def _within_run(text: str, reference: Reference) -> str:
    """The first line of a message, with paths below the run directory."""
    return portable("".join(text.strip().splitlines()[:1]).replace(f"{reference.run.root}/", ""))


def _ask(candidate: Candidate, reference: Reference, entry: dict[str, Any]) -> None:
    """Runs the engine and fills the entry."""
    try:
        engine = candidate.open()
        try:
            comparison = _measure(candidate, reference, engine, entry)
        finally:
            if engine is not reference.engine:
                engine.close()
    except UserError as error:
        entry["note"] = _within_run(candidate.refused(error), reference)
        if not entry["note"]:
            entry["causes"] = [*entry["causes"], f"{LOADS_NOT}: {_within_run(error.what, reference)}"]
        entry["passed"] = False if entry["causes"] else None
        return
    _conclude(candidate, reference, entry, comparison)


def _measure(candidate: Candidate, reference: Reference, engine: Engine, entry: dict[str, Any]) -> Comparison:
    found_ids = [list(engine.prompt_ids(prompt)) for prompt in reference.prompts]
    unequal = [index for index, (mine, ids) in enumerate(zip(found_ids, reference.rows, strict=True)) if mine != list(ids)]
    answers = engine.answers(reference.rows, reference.limit, reference.answers)
    with candidate.oracle() as oracle:
        comparison = reference.compare(answers, candidate.tolerance, oracle, engine.own_ends)
    entry.update(
        engine=engine.engine,
        load_seconds=round(engine.load_seconds, 4),
        prompt_ids_equal=not unequal,
        prompts_unequal=unequal[:10],
        greedy_agreement=round(comparison.agreement, 4),
        max_logprob_difference=round(comparison.difference, 6),
        **comparison.listed(),
        **_quality(candidate, reference, engine, answers),
    )
    return comparison


def _quality(candidate: Candidate, reference: Reference, engine: Engine, answers: list[Answer]) -> dict[str, Any]:
    """What the artefact's rounding costs: loss on the held-out answers, and greedy agreement with the adapter."""
    loss = reference.loss(engine.score)
    cost = None if loss is None or reference.adapter_loss is None else round(loss - reference.adapter_loss, 5)
    own = reference.compare(answers, candidate.tolerance, own_ends=engine.own_ends)
    return {
        "loss": _rounded(loss),
        "adapter_loss": _rounded(reference.adapter_loss),
        "loss_cost": cost,
        "agreement_with_adapter": round(own.agreement, 4),
    }


def _conclude(candidate: Candidate, reference: Reference, entry: dict[str, Any], comparison: Comparison) -> None:
    """Passed, failed with its causes, or not checked because the untuned base would pass as well."""
    causes = entry["causes"]
    if not entry["prompt_ids_equal"] and not causes:
        causes.append(f"{PROMPTS_DIFFER}, first at prompt {entry['prompts_unequal'][0]}")
    if not comparison.within(candidate.tolerance) and not causes:
        causes.append(_behind(reference, candidate, comparison))
    entry["passed"] = not causes
    base = reference.compare(reference.base_answers, candidate.tolerance)
    if entry["passed"] and candidate.kind != "adapter" and base.within(candidate.tolerance):
        entry["passed"] = None
        entry["note"] = "the untuned base gives the same answers within the tolerance: this check cannot tell them apart"


def _behind(reference: Reference, candidate: Candidate, comparison: Comparison) -> str:
    if comparison.differences and all(item["kind"] == "end" for item in comparison.differences):
        return END_DIFFERS
    return f"{UNEXPLAINED} (log-probabilities differ by up to {comparison.difference:.3g}; {candidate.tolerance:g} is allowed)"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


_COLUMNS = (
    *("artefact", "result", "prompt ids", "same greedy tokens", "largest log-prob. difference", "allowed"),
    *("loss above the adapter's", "size", "loads in", "note"),
)


def _row(item: dict[str, Any]) -> dict[str, str]:
    share, cost, difference, load = (item.get(key) for key in ("greedy_agreement", "loss_cost", "max_logprob_difference", "load_seconds"))
    values = (
        item["name"],
        item["status"] if item["passed"] is not False else f"FAILED: {'; '.join(item['causes'])}",
        {True: "equal", False: "DIFFERENT", None: "–"}[item["prompt_ids_equal"]],
        "–" if share is None else f"{share:.0%} of {item['prompts']}",
        "–" if difference is None else f"{difference:.2g}",
        f"{item['tolerance']:g}",
        "–" if cost is None else f"{cost:+.4f}",
        f"{item['bytes'] / 1e6:.2f} MB",
        "–" if load is None else f"{load:.2f} s",
        item["note"],
    )
    return dict(zip(_COLUMNS, values, strict=True))
