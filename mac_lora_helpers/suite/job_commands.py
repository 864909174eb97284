"""``mac-lora job …``: the cloud job of a run directory from the command line: submit, status, logs, fetch, cancel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError, MissingArtifact
from mac_lora_helpers.redaction import portable

#: Command → what it does.
ACTIONS = {
    "submit": "start the job that notebook 05 wrote (it costs money), and go on",
    "status": "what the Hub knows of the job now",
    "logs": "its log so far",
    "fetch": "bring the finished adapter into a run directory of its own",
    "cancel": "stop it",
}


def add_job(commands: Any, make: Any) -> None:
    """Adds the sub-command ``job``; ``make`` makes a parser that knows ``-p``."""
    job = commands.add_parser(
        "job", help="the cloud job of a run directory: " + ", ".join(ACTIONS), description="The cloud job of a run directory."
    )
    actions = job.add_subparsers(required=True, metavar="ACTION")
    for name, text in ACTIONS.items():
        parser = make(actions, name, text)
        parser.set_defaults(action=name)
        parser.add_argument("--run-dir", metavar="DIR", help="the run directory (the same as -p out_dir DIR)")
        if name in ("logs", "submit"):
            parser.add_argument("--follow", action="store_true", help="until the job ends; Ctrl-C leaves it running")
        if name == "fetch":
            parser.add_argument("--into", metavar="DIR", help="the new run directory; default: the run directory's name with -cloud")


def run_job_command(action: str, config: Config, follow: bool = False, into: str | None = None) -> int:
    """Does it, prints a table, and returns the exit code: 1 for a job that failed.

    Raises:
        UserError: see ``mac_lora_helpers.export``'s job functions.
    """
    from mac_lora_helpers import export
    from mac_lora_helpers.ui.tables import Table

    if not Path(config.out_dir).expanduser().is_dir():
        raise InputError("no such run directory", where=portable(config.out_dir), fix="name the one that notebook 05 wrote the job into")
    run = RunDir(config.out_dir)
    if action == "logs" and not follow:
        for line in export.job_logs(run):
            print(line)
        return 0
    if action == "fetch":
        print(Table(["what", "value"], _fetch(run, into).rows()))
        return 0
    state = {
        "submit": lambda: export.submit_job(run, config.model_copy(update={"submit_job": True})),
        "cancel": lambda: export.cancel_job(run),
    }.get(action, lambda: export.job_status(run))()
    if follow:
        state = export.follow_job(run, state)
    print(Table(["what", "value"], state.rows()))
    return 130 if state.interrupted else 1 if state.stage in ("ERROR", "DELETED") else 0


def _fetch(run: RunDir, into: str | None) -> Any:
    """A submitted job must have finished; one that was started by hand is looked for in its repository."""
    from mac_lora_helpers import export

    try:
        state = export.job_status(run)
    except MissingArtifact:
        return export.fetch_job(run, into=into)
    return export.fetch_job(run, state, into)
