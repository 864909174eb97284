"""Does every exported artefact say what the trained adapter says? Checked in the engine that will run it.

The reference is base + adapter in transformers (float32, CPU). An engine answers greedily; the reference then looks at
the same tokens, position by position. So every token is compared, also behind a near tie.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, InputError, UserError
from mac_lora_helpers.export.adapter import trained_config
from mac_lora_helpers.export.engines import Engine
from mac_lora_helpers.export.engines_transformers import judge
from mac_lora_helpers.export.equivalence_artefacts import Candidate, candidates
from mac_lora_helpers.export.equivalence_compare import Comparison, compare
from mac_lora_helpers.export.equivalence_reference import Reference

UNTUNED = "adapter not applied: this is the untuned base"
LOADS_NOT = "does not load"
PROMPTS_DIFFER = "the engine makes other token ids of the same chat"
END_DIFFERS = "the engine does not stop where the adapter does"
UNEXPLAINED = "the answers differ, and no usual cause explains it"


@dataclass
class EquivalenceReport:
    """The result; ``export/equivalence.json``.

    Args:
        artefacts: one dictionary each, with ``name prompts prompt_ids_equal greedy_agreement passed`` and more;
            ``passed`` is None where no engine was there to ask.
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
        """A table for people, one row per artefact."""
        return [_row(item) for item in self.artefacts]

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
    report = EquivalenceReport(artefacts, control(reference), conditions)
    run.write_json("equivalence", report.to_dict())
    return report


def control(reference: Reference) -> dict[str, Any]:
    """The untuned base under the tightest and the loosest tolerance."""
    found = compare_base(reference, 0.0)
    return {
        "name": "untuned base",
        "prompts": found.prompts,
        "greedy_agreement": round(found.agreement, 4),
        "max_logprob_difference": round(found.difference, 6),
        "loss": _rounded(reference.base_loss),
        "adapter_loss": _rounded(reference.adapter_loss),
        "passed": found.within(0.0),
    }


def compare_base(reference: Reference, tolerance: float) -> Comparison:
    """The untuned base's answers against the reference."""
    rows = zip(reference.rows, reference.base_answers, strict=True)
    views = [reference.judge(ids, answer) for ids, answer in rows]
    return compare(reference.base_answers, views, reference.ends, tolerance)


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
        "causes": _faults(candidate),
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


def _faults(candidate: Candidate) -> list[str]:
    try:
        return candidate.faults()
    except InputError as error:
        return [error.what]


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
        entry["causes"] = [*entry["causes"], f"{LOADS_NOT}: {error.what}"]
        entry["passed"] = False
        return
    _conclude(candidate, reference, entry, comparison)


def _measure(candidate: Candidate, reference: Reference, engine: Engine, entry: dict[str, Any]) -> Comparison:
    found_ids = [list(engine.prompt_ids(prompt)) for prompt in reference.prompts]
    unequal = [index for index, (mine, ids) in enumerate(zip(found_ids, reference.rows, strict=True)) if mine != list(ids)]
    answers = engine.answers(reference.rows, reference.limit)
    with candidate.oracle() as oracle:
        model = reference.model if oracle is None else oracle
        pairs = list(zip(reference.rows, answers, strict=True))
        comparison = compare(
            answers, [judge(model, ids, item.tokens, reference.end_of(item)) for ids, item in pairs], reference.ends, candidate.tolerance
        )
    entry.update(
        engine=engine.engine,
        load_seconds=round(engine.load_seconds, 4),
        prompt_ids_equal=not unequal,
        prompts_unequal=unequal[:10],
        greedy_agreement=round(comparison.agreement, 4),
        max_logprob_difference=round(comparison.difference, 6),
        **comparison.listed(),
    )
    own = compare(answers, [reference.judge(ids, item) for ids, item in pairs], reference.ends, candidate.tolerance)
    loss = reference.loss(engine.score)
    cost = None if loss is None or reference.adapter_loss is None else round(loss - reference.adapter_loss, 5)
    entry.update(
        loss=_rounded(loss), adapter_loss=_rounded(reference.adapter_loss), loss_cost=cost, agreement_with_adapter=round(own.agreement, 4)
    )
    return comparison


def _conclude(candidate: Candidate, reference: Reference, entry: dict[str, Any], comparison: Comparison) -> None:
    """Passed, failed with its causes, or not checked because the untuned base would pass as well."""
    causes = entry["causes"]
    if not entry["prompt_ids_equal"] and not causes:
        causes.append(f"{PROMPTS_DIFFER}, first at prompt {entry['prompts_unequal'][0]}")
    if not comparison.within(candidate.tolerance) and not causes:
        causes.append(_behind(reference, candidate, comparison))
    entry["passed"] = not causes
    if entry["passed"] and candidate.kind != "adapter" and compare_base(reference, candidate.tolerance).within(candidate.tolerance):
        entry["passed"] = None
        entry["note"] = "the untuned base gives the same answers within the tolerance: this check cannot tell them apart"


def _behind(reference: Reference, candidate: Candidate, comparison: Comparison) -> str:
    if comparison.differences and all(item["kind"] == "end" for item in comparison.differences):
        return END_DIFFERS
    return f"{UNEXPLAINED} (log-probabilities differ by up to {comparison.difference:.3g}; {candidate.tolerance:g} is allowed)"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _row(item: dict[str, Any]) -> dict[str, str]:
    share, cost = item["greedy_agreement"], item.get("loss_cost")
    same = {True: "equal", False: "DIFFERENT", None: "–"}[item["prompt_ids_equal"]]
    return {
        "artefact": item["name"],
        "result": item["status"] if item["passed"] is not False else f"FAILED: {'; '.join(item['causes'])}",
        "prompt ids": same,
        "same greedy tokens": "–" if share is None else f"{share:.0%} of {item['prompts']}",
        "largest log-prob. difference": "–" if item.get("max_logprob_difference") is None else f"{item['max_logprob_difference']:.2g}",
        "allowed": f"{item['tolerance']:g}",
        "loss above the adapter's": "–" if cost is None else f"{cost:+.4f}",
        "size": f"{item['bytes'] / 1e6:.2f} MB",
        "loads in": "–" if item["load_seconds"] is None else f"{item['load_seconds']:.2f} s",
        "note": item["note"],
    }
