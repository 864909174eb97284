"""From losses and answers to numbers with intervals, and from those to words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.evaluation.intervals import (
    BETTER,
    CONFIDENCE,
    LOSS_MARGIN,
    NO_DIFFERENCE,
    WORSE,
    Difference,
    compare,
    interval_text,
    words,
)
from mac_lora_helpers.evaluation.losses import Losses
from mac_lora_helpers.evaluation.metrics import BUILT_IN

Rows = Sequence[Mapping[str, Any]]
_WHO = ("base", "tuned")
_SETTINGS = ("model_id", "metric", "eval_examples", "eval_batch_size", "max_new_tokens", "do_sample", "temperature", "top_p", "seed")


class MetricRow(NamedTuple):
    """One line of the table: base against tuned in one measure. ``interval`` and ``verdict`` are in words."""

    name: str
    base: float
    tuned: float
    difference: float
    interval: str
    verdict: str

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any], difference: Mapping[str, Any]) -> MetricRow:
        """A row from the two values and the recorded difference."""
        interval = interval_text(difference["low"], difference["high"])
        return cls(name, values["base"], values["tuned"], difference["value"], interval, difference["verdict"])


def score(losses: Losses, answers: Rows, general: Losses | None = None) -> dict[str, Any]:
    """Everything that ``eval/metrics.json`` holds.

    Args:
        losses: of ``compare_losses``. answers: of ``compare_answers``. general: of ``compare_general``, if it was asked.

    Returns:
        ``base`` and ``tuned`` (loss, perplexity, tokens, each metric's mean, stop_rate), ``difference`` (per measure: value,
        95 % interval, p, examples, outcome, verdict), ``outcome`` and ``verdict`` over loss and the chosen metric, ``coverage``,
        ``general``, ``findings``, ``settings``. A measure that does not apply is null and has its reason in ``not_applicable``.
    """
    trained, config = losses.trained, losses.trained.config
    columns, reasons = _columns(answers), _reasons(answers, config.metric)
    metrics: dict[str, Any] = {name: {**losses[name], **_means(columns, reasons, name)} for name in _WHO}
    differences = _differences(losses, columns, reasons, config.seed)
    outcome, verdict = _overall(metrics, differences, config.metric)
    coverage = getattr(answers, "coverage", {"examples": len(answers), "of": len(answers), "seconds": None})
    return {
        **metrics,
        "examples": len(answers),
        "coverage": dict(coverage),
        "loss_examples": len(losses.rows.tokens),
        "test_rows": losses.available,
        "metric": config.metric,
        "difference": {name: difference.to_dict() for name, difference in differences.items()},
        "not_applicable": reasons,
        "outcome": outcome,
        "verdict": verdict,
        "general": _general(general),
        "findings": [*trained.findings, *_stop_findings(answers, config.max_new_tokens), *_coverage_findings(losses, coverage)],
        "confidence": CONFIDENCE,
        "settings": {
            **{name: getattr(config, name) for name in _SETTINGS},
            "adapter": trained.adapter.name,
            "device": trained.device,
            "dtype": str(trained.model.dtype).removeprefix("torch."),
            "largest_logit_change": trained.logits_moved,
        },
    }


def _columns(answers: Rows) -> dict[str, dict[str, list[float]]]:
    """Per measure: the values of base and of tuned, an answer a value."""
    names = list(answers[0]["scores"]["tuned"]) if answers else []
    columns = {name: {who: [answer["scores"][who][name] for answer in answers] for who in _WHO} for name in names}
    columns["stop_rate"] = {who: [float(answer[f"{who}_stopped"]) for answer in answers] for who in _WHO}
    return columns


def _reasons(answers: Rows, metric: str) -> dict[str, str]:
    """Measures that say nothing here, and why."""
    if not answers:
        return dict.fromkeys([*BUILT_IN, metric, "stop_rate"], "no example was answered")
    if answers[0]["kind"] == "text":
        return dict.fromkeys(BUILT_IN, "plain text has no question and no expected answer")
    if metric != "valid_json" and not any(BUILT_IN["valid_json"](answer["expected"], "") for answer in answers):
        return {"valid_json": "no expected answer is JSON"}
    return {}


def _means(columns: dict[str, dict[str, list[float]]], reasons: dict[str, str], who: str) -> dict[str, float | None]:
    means = {name: sum(values[who]) / len(values[who]) for name, values in columns.items() if name not in reasons}
    return {**means, **dict.fromkeys(reasons)}


def _differences(losses: Losses, columns: dict[str, Any], reasons: dict[str, str], seed: int) -> dict[str, Difference]:
    found = {"loss": loss_difference(losses, seed)}
    for name, values in columns.items():
        if name not in reasons:
            shares = all(0 <= value <= 1 for value in (*values["base"], *values["tuned"]))
            found[name] = compare(values["base"], values["tuned"], higher_is_better=True, shares=shares, seed=seed)
    return found


def loss_difference(losses: Losses, seed: int) -> Difference:
    """Tuned minus base in nats per token, resampled over rows; less than one per cent of the base's loss counts as nothing."""
    rows = losses.rows
    margin = max(LOSS_MARGIN, LOSS_MARGIN * float(losses["base"]["loss"]))
    return compare(rows.base, rows.tuned, rows.tokens, higher_is_better=False, margin=margin, seed=seed)


def _overall(metrics: dict[str, Any], differences: dict[str, Difference], metric: str) -> tuple[str, str]:
    """Loss and the chosen metric decide, nothing else: each is wrongly called better in at most 2.5 % of no-effect runs."""
    deciding = [name for name in (metric, "loss") if name in differences]
    said = {differences[name].outcome for name in deciding} - {NO_DIFFERENCE}
    outcome = "mixed" if len(said) == 2 else said.pop() if said else NO_DIFFERENCE
    parts = "; ".join(_phrase(name, metrics, differences[name]) for name in deciding)
    identical = all(differences[name].identical for name in deciding)
    return outcome, f"{words(outcome, differences[deciding[0]].examples, identical)}: {parts}"


def _phrase(name: str, metrics: dict[str, Any], difference: Difference) -> str:
    values = f"{name.replace('_', ' ')} {metrics['base'][name]:.3g} → {metrics['tuned'][name]:.3g}"
    if difference.identical:
        return f"{values} ({difference.verdict})"
    caveat = ""
    if difference.outcome == NO_DIFFERENCE and not difference.low <= 0 <= difference.high:
        caveat = f"; below {difference.margin:.2g} it does not count" if difference.margin else "; too few of them differ"
    interval = interval_text(difference.low, difference.high)
    return f"{values} ({difference.value:+.3g}, 95 % interval {interval}: {difference.verdict}{caveat})"


def _general(general: Losses | None) -> dict[str, Any] | None:
    """Whether old behaviour is kept: base, tuned, the difference and a sentence."""
    if general is None:
        return None
    difference = loss_difference(general, general.trained.config.seed)
    sentences = {
        WORSE: "The adapter changed how the model answers what it was not trained on.",
        BETTER: "The adapter also lowered the loss on what it was not trained on.",
        NO_DIFFERENCE: "What the model did before is kept, as far as this shows.",
    }
    change = f"loss {general['base']['loss']:.3g} → {general['tuned']['loss']:.3g} on {difference.examples} {general.source}"
    span = f"difference {difference.value:+.3g}, 95 % interval {interval_text(difference.low, difference.high)}"
    return {
        "base": dict(general["base"]),
        "tuned": dict(general["tuned"]),
        "examples": difference.examples,
        "source": general.source,
        "difference": difference.to_dict(),
        "verdict": f"{difference.verdict}: {change} ({span}). {sentences[difference.outcome]}",
    }


def _stop_findings(answers: Rows, max_new_tokens: int) -> list[str]:
    """A model that does not end its answers, told apart from answers that had too little room."""
    chats = [answer for answer in answers if answer["kind"] == "chat"]
    short = [answer for answer in chats if answer["expected_tokens"] <= max_new_tokens]
    found = []
    if cut := len(chats) - len(short):
        found.append(f"{cut} of {len(answers)} expected answers are longer than max_new_tokens={max_new_tokens}: they cannot be matched.")
    for who in _WHO:
        stopped = sum(answer[f"{who}_stopped"] for answer in short)
        if short and stopped < len(short) / 2:
            never = "never ends its answers" if stopped == 0 else "mostly does not end its answers"
            advice = " Look in notebook 02 whether the end token is trained, or train longer." if who == "tuned" else ""
            count = f"{stopped} of {len(short)} stopped by themselves within {max_new_tokens} tokens"
            found.append(f"The {who} model {never}: {count}.{advice}")
    return found


def _coverage_findings(losses: Losses, coverage: Mapping[str, Any]) -> list[str]:
    config, found = losses.trained.config, []
    wanted = min(losses.available, config.eval_examples)
    if coverage["examples"] < coverage["of"]:
        what = f"Asked {coverage['examples']} of {coverage['of']} held-out examples, then eval_minutes={config.eval_minutes:g} were over"
        found.append(f"{what}: the intervals are wider than they could be.")
    if (counted := len(losses.rows.tokens)) < losses.of:
        found.append(
            f"The loss was counted on {counted} of {losses.of} rows, then its third of eval_minutes={config.eval_minutes:g} was over."
        )
    if coverage["of"] < wanted:
        missing = wanted - coverage["of"]
        found.append(f"{missing} of {wanted} held-out rows were not asked: no answer in them, or a prompt above max_seq_length.")
    return found


def metric_rows(metrics: Mapping[str, Any]) -> list[MetricRow]:
    """The table of base against tuned: (name, base, tuned, difference, interval, verdict), the loss first, old behaviour last."""
    values = {name: {who: metrics[who][name] for who in _WHO} for name in metrics["difference"]}
    rows = [MetricRow.of(name.replace("_", " "), values[name], difference) for name, difference in metrics["difference"].items()]
    if general := metrics.get("general"):
        losses = {who: general[who]["loss"] for who in _WHO}
        rows.append(MetricRow.of("loss on general conversations", losses, general["difference"]))
    return rows


def save(stage: RunDir, metrics: Mapping[str, Any], answers: Rows, trained: Any) -> None:
    """Writes ``eval/metrics.json`` and ``eval/samples.jsonl``, with the fingerprints of the adapter and of the data.

    Args:
        stage: of ``run.begin(4)``, so that figures, answers and chart come into place together.

    Raises:
        InputError: there are no answers.
    """
    if not answers:
        raise InputError("there are no answers to save", where="eval/samples.jsonl", fix="run compare_answers first")
    stage.write_lines("eval_samples", answers)
    stage.write_json("eval_metrics", {**metrics, **stage.made_from(trained.adapter.folder)})
