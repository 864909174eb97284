"""A few lines at the end of a run: what was learned, what was checked, where to look."""

from __future__ import annotations

from collections.abc import Iterable

from mac_lora_helpers.artifacts import NOTEBOOKS, RunDir
from mac_lora_helpers.errors import UserError
from mac_lora_helpers.export.job.write import read_record
from mac_lora_helpers.redaction import portable


def summary(run: RunDir, names: Iterable[str]) -> list[str]:
    """Lines for a terminal about the notebooks that have just run."""
    tellers = dict(zip(NOTEBOOKS, (_environment, _data, _training, _evaluation, _export), strict=True))
    lines = []
    for name in names:
        try:
            lines.append(tellers[name](run))
        except (UserError, KeyError, TypeError) as error:
            lines.append(f"{name}: no summary ({type(error).__name__})")
    return [portable(line) for line in lines]


def _environment(run: RunDir) -> str:
    found = run.read_json("environment")
    return f"machine     {found['verdict']['where']}: {found['device']['name']}, {found['dtype']['name']}"


def _data(run: RunDir) -> str:
    found = run.read_json("manifest")
    rows, tokens = found["splits"], found["tokens"]
    counted = f"{tokens['supervised']:,} of {tokens['total']:,} tokens trained"
    return f"data        {rows['train']:,} rows to train on, {rows['test']:,} held out, {counted}"


def _training(run: RunDir) -> str:
    found = run.read_json("train_metrics")
    return f"training    loss {found['first_loss']:.3f} → {found['last_loss']:.3f} in {found['steps']} steps; audit passed; adapter/"


def _evaluation(run: RunDir) -> str:
    found = run.read_json("eval_metrics")
    base, tuned = found["base"]["exact_match"], found["tuned"]["exact_match"]
    if base is None or tuned is None:
        return f"evaluation  loss {found['base']['loss']:.3f} → {found['tuned']['loss']:.3f} on held-out rows: {found['outcome']}"
    right = f"right on {found['examples']} held-out questions: {base:.0%} before, {tuned:.0%} after"
    return f"evaluation  {right}; loss {found['base']['loss']:.3f} → {found['tuned']['loss']:.3f}: {found['outcome']}"


def _export(run: RunDir) -> str:
    states = [item["passed"] for item in run.read_json("equivalence")["artefacts"]]
    sent = run.read_json("push")
    told = f"{states.count(True)} of {len(states)} exported forms say what the adapter says"
    left = states.count(None)
    pushed = "nothing was pushed" if sent["dry_run"] else f"pushed to {sent['url']}"
    job = read_record(run).get("job")
    cloud = f"; cloud job {job['namespace']}/{job['id']}" if job else ""
    return f"export      {told}{f', {left} not checked' if left else ''}; {pushed}{cloud}"
