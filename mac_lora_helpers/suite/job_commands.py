"""``mac-lora job submit|fetch``; its state, its log and stopping it are ``hf jobs`` commands, which ``submit`` prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError


def add_job(commands: Any, add: Callable[[Any, str, str], Any]) -> None:
    """The command and its two actions."""
    text = "start the cloud job that notebook 05 wrote, and fetch its result"
    parser = commands.add_parser("job", help=text, description=text)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, told in (("submit", "start it; it costs money"), ("fetch", "its adapter, figures and notebooks, into a run directory")):
        action = add(actions, name, told)
        action.set_defaults(action=name, into=None)
        action.add_argument("--run-dir", metavar="DIR", help="the run directory (the same as -p out_dir DIR)")
        if name == "fetch":
            action.add_argument("--into", metavar="DIR", help="the new run directory; default: the run directory's name with -cloud")


def run_job_command(action: str, config: Config, into: str | None = None) -> int:
    """Does it and prints a table; 0. See ``mac_lora_helpers.export`` for what is raised."""
    from mac_lora_helpers import export
    from mac_lora_helpers.ui.tables import Table

    if not Path(config.out_dir).expanduser().is_dir():
        raise InputError("no such run directory", where=config.out_dir, fix="name the one that notebook 05 wrote the job into")
    run = RunDir(config.out_dir)
    submit = {"submit_job": True}
    rows = export.fetch_job(run, into) if action == "fetch" else export.submit_job(run, config.model_copy(update=submit))
    print(Table(["what", "value"], rows))
    return 0
