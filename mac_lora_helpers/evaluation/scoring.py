"""From losses and answers to numbers with intervals, and from those to words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mac_lora_helpers import origin
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
    perplexity_interval,
    words,
)
from mac_lora_helpers.evaluation.losses import Losses
from mac_lora_helpers.evaluation.metrics import BUILT_IN

Answers = Sequence[Mapping[str, Any]]


class MetricRow(NamedTuple):
    """One line of the table: base against tuned in one measure. ``interval`` and ``verdict`` are in words."""

    name: str
    base: float
    tuned: float
    difference: float
    interval: str
    verdict: str


def score(losses: Losses, answers: Answers, general: Losses | None = None) -> dict[str, Any]:
    """Everything that ``eval/metrics.json`` holds.

    Args:
        losses: of ``compare_losses``. answers: of ``compare_answers``. general: of ``compare_general``, if it was asked.

    Returns:
        ``base`` and ``tuned`` (loss, perplexity, tokens, each metric's mean, stop_rate), ``difference`` (per measure: value,
        95 % interval, p, examples, outcome, verdict), ``outcome`` and ``verdict`` over loss and the chosen metric,
        ``general``, ``findings``, ``settings``. A measure that does not apply is null and has its reason in ``not_applicable``.
    """
    config = losses.trained.config
    columns = _columns(answers)
    reasons = _reasons(answers, config.metric)
    metrics: dict[str, Any] = {name: {**losses[name], **_means(columns, reasons, name)} for name in ("base", "tuned")}
    differences = _differences(losses, columns, reasons, config.seed)
    outcome, verdict = _overall(metrics, differences, config.metric)
    return {
        **metrics,
        "examples": len(answers),
        "loss_examples": len(losses.rows.tokens),
        "test_rows": losses.available,
        "metric": config.metric,
        "difference": {name: {**difference.to_dict(), **_direction(name)} for name, difference in differences.items()},
        "not_applicable": reasons,
        "outcome": outcome,
        "verdict": verdict,
        "general": general_report(general),
        "findings": [*losses.trained.findings, *_stop_findings(answers, config.max_new_tokens), *_row_findings(losses, answers)],
        "confidence": CONFIDENCE,
        "settings": _settings(losses),
    }


def _columns(answers: Answers) -> dict[str, dict[str, list[float]]]:
    """Per measure: the values of base and of tuned, an answer a value."""
    names = list(answers[0]["scores"]["tuned"]) if answers else []
    columns = {name: {who: [answer["scores"][who][name] for answer in answers] for who in ("base", "tuned")} for name in names}
    columns["stop_rate"] = {who: [float(answer[f"{who}_stopped"]) for answer in answers] for who in ("base", "tuned")}
    return columns


def _reasons(answers: Answers, metric: str) -> dict[str, str]:
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
    rows = losses.rows
    found = {"loss": loss_difference(losses, seed)}
    interval = perplexity_interval(rows.base, rows.tuned, rows.tokens, seed)
    if interval:  # perplexity rises and falls with the loss, so its verdict is the loss's
        value = losses["tuned"]["perplexity"] - losses["base"]["perplexity"]
        found["perplexity"] = Difference(**{**found["loss"].to_dict(), "value": value, "low": interval[0], "high": interval[1]})
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


def _direction(name: str) -> dict[str, str]:
    return {"better_when": "lower" if name in ("loss", "perplexity") else "higher"}


def _overall(metrics: dict[str, Any], differences: dict[str, Difference], metric: str) -> tuple[str, str]:
    """Loss and the chosen metric decide, nothing else: each is wrongly called better in at most 2.5 % of no-effect runs."""
    deciding = [name for name in (metric, "loss") if name in differences]
    said = {differences[name].outcome for name in deciding} - {NO_DIFFERENCE}
    outcome = "mixed" if len(said) == 2 else said.pop() if said else NO_DIFFERENCE
    parts = "; ".join(_phrase(name, metrics, differences[name]) for name in deciding)
    examples = differences[deciding[0]].examples
    identical = all(differences[name].identical for name in deciding)
    return outcome, f"{words(outcome, examples, identical)}: {parts}"


def _phrase(name: str, metrics: dict[str, Any], difference: Difference) -> str:
    values = f"{name.replace('_', ' ')} {metrics['base'][name]:.3g} → {metrics['tuned'][name]:.3g}"
    if difference.identical:
        return f"{values} ({difference.verdict})"
    span = f"{difference.value:+.3g}, 95 % interval {interval_text(difference.low, difference.high)}"
    return f"{values} ({span}: {difference.verdict}{_caveat(difference)})"


def _caveat(difference: Difference) -> str:
    """Why a difference whose interval misses zero is still not called one."""
    if difference.outcome != NO_DIFFERENCE or difference.low <= 0 <= difference.high:
        return ""
    return f"; below {difference.margin:.2g} it does not count" if difference.margin else "; too few of them differ"


def interval_text(low: float, high: float) -> str:
    """``+0.9 to +0.98``; no sign before zero."""
    return " to ".join(f"{bound:+.3g}" if bound else "0" for bound in (low, high))


def general_report(general: Losses | None) -> dict[str, Any] | None:
    """Whether old behaviour is kept: base, tuned, the difference and a sentence."""
    if general is None:
        return None
    difference = loss_difference(general, general.trained.config.seed)
    sentences = {
        WORSE: "The adapter changed how the model answers what it was not trained on.",
        BETTER: "The adapter also lowered the loss on what it was not trained on.",
        NO_DIFFERENCE: "What the model did before is kept, as far as this shows.",
    }
    change = f"loss {general['base']['loss']:.3g} → {general['tuned']['loss']:.3g}"
    span = f"difference {difference.value:+.3g}, 95 % interval {interval_text(difference.low, difference.high)}"
    return {
        "base": dict(general["base"]),
        "tuned": dict(general["tuned"]),
        "examples": difference.examples,
        "source": general.source,
        "difference": difference.to_dict(),
        "verdict": f"{difference.verdict}: {change} on {difference.examples} {general.source} ({span}). {sentences[difference.outcome]}",
    }


def _stop_findings(answers: Answers, max_new_tokens: int) -> list[str]:
    """A model that does not end its answers, told apart from answers that had too little room."""
    found = []
    short = [answer for answer in answers if answer["kind"] == "chat" and answer["expected_tokens"] < max_new_tokens]
    cut = sum(answer["kind"] == "chat" for answer in answers) - len(short)
    if cut:
        found.append(f"{cut} of {len(answers)} expected answers are longer than max_new_tokens={max_new_tokens}: they cannot be matched.")
    for who in ("base", "tuned"):
        stopped = sum(answer[f"{who}_stopped"] for answer in short)
        if short and stopped < len(short) / 2:
            never = "never ends its answers" if stopped == 0 else "mostly does not end its answers"
            advice = " Look in notebook 02 whether the end token is trained, or train longer." if who == "tuned" else ""
            found.append(
                f"The {who} model {never}: {stopped} of {len(short)} stopped by themselves within {max_new_tokens} tokens.{advice}"
            )
    return found


def _row_findings(losses: Losses, answers: Answers) -> list[str]:
    wanted = min(losses.available, losses.trained.config.eval_examples)
    left_out = wanted - len(answers)
    return (
        [f"{left_out} of {wanted} held-out rows were not asked: no answer in them, or a prompt above max_seq_length."]
        if left_out > 0
        else []
    )


def _settings(losses: Losses) -> dict[str, Any]:
    trained, config = losses.trained, losses.trained.config
    names = ("model_id", "metric", "eval_examples", "eval_batch_size", "max_new_tokens", "do_sample", "temperature", "top_p", "seed")
    return {
        **{name: getattr(config, name) for name in names},
        "adapter": trained.adapter.name,
        "device": trained.device,
        "dtype": trained.dtype,
        "largest_logit_change": trained.logits_moved,
    }


def metric_rows(metrics: Mapping[str, Any]) -> list[MetricRow]:
    """The table of base against tuned: (name, base, tuned, difference, interval, verdict), the loss first, old behaviour last."""
    rows = [
        MetricRow(
            name.replace("_", " "),
            metrics["base"][name],
            metrics["tuned"][name],
            difference["value"],
            interval_text(difference["low"], difference["high"]),
            difference["verdict"],
        )
        for name, difference in metrics["difference"].items()
    ]
    general = metrics.get("general")
    if general:
        low, high = general["difference"]["low"], general["difference"]["high"]
        values = general["base"]["loss"], general["tuned"]["loss"], general["difference"]["value"]
        rows.append(MetricRow("loss on general conversations", *values, interval_text(low, high), general["difference"]["verdict"]))
    return rows


def save(run: RunDir, metrics: Mapping[str, Any], answers: Answers, trained: Any = None) -> None:
    """Writes ``eval/metrics.json`` and ``eval/samples.jsonl``; the samples first, so that metrics never stand without them.

    Args:
        trained: what was evaluated; its adapter's and the data's fingerprints are kept with the metrics.
    """
    if not answers:
        raise InputError("there are no answers to save", where="eval/samples.jsonl", fix="run compare_answers first")
    made_from = origin.record(run, trained.adapter.folder) if trained is not None else {}
    with run.writing("saving the evaluation"):
        run.path("eval_metrics").unlink(missing_ok=True)
        run.write_lines("eval_samples", answers)
        run.write_json("eval_metrics", {**metrics, **made_from})
