"""``mac-lora regress``."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mac_lora_helpers.errors import InputError
from mac_lora_helpers.files import portable
from mac_lora_helpers.suite.regress import baselines as kept
from mac_lora_helpers.suite.regress import report as told
from mac_lora_helpers.suite.regress.bands import number
from mac_lora_helpers.suite.regress.cases import Case, Suite, load_suite
from mac_lora_helpers.suite.regress.judge import judge, measure
from mac_lora_helpers.suite.regress.page import html_page
from mac_lora_helpers.suite.regress.schedule import run_cases
from mac_lora_helpers.suite.runner import notebooks_folder
from mac_lora_helpers.ui.tables import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("--cases", metavar="FILE", help="the cases, in YAML (default: regression/cases.yaml of the project)")
    parser.add_argument("--report", metavar="DIR", help="report folder; one that was interrupted is gone on with")
    parser.add_argument("--history", metavar="DIR", help="folder of earlier report folders, for the trend (default: the report's parent)")
    parser.add_argument(
        "--case", action="append", default=[], metavar="NAME", help="this case alone, with those it needs; may be given again"
    )
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="the cases with this tag; may be given again")
    parser.add_argument("--jobs", default="1", metavar="N|auto", help="cases at once; auto: as many as memory and cores allow")
    parser.add_argument("--update", action="store_true", help="show the difference and take the figures as the new baselines")
    parser.add_argument("--reason", metavar="TEXT", help="why the baselines change; asked for on a terminal, kept in the baseline file")
    parser.add_argument("--list", action="store_true", help="show the cases and run nothing")


def regress(arguments: argparse.Namespace) -> int:
    """Runs the cases that are left, compares all, writes the report. 0: green. 1: red.

    Raises:
        InputError: cases, baselines or options that do not fit; nothing has run.
    """
    suite = load_suite(Path(arguments.cases) if arguments.cases else notebooks_folder().parent / "regression" / "cases.yaml")
    baselines = kept.load_baselines(suite)
    cases = suite.choose(arguments.case, arguments.tag)
    _check_options(arguments)
    if arguments.list:
        rows = [(case.name, " ".join(case.notebooks), case.after or "", ", ".join(case.tags), case.about) for case in cases]
        print(Table(["case", "notebooks", "after", "tags", "about"], rows))
        return 0
    began = datetime.now(UTC)
    folder = Path(arguments.report or f"outputs/regression/{began:%Y-%m-%d_%H%M%S}")
    _make(folder)
    with _alone(folder):
        return _run(arguments, suite, cases, baselines, folder, began)


def _run(
    arguments: argparse.Namespace, suite: Suite, cases: Sequence[Case], baselines: kept.Baselines, folder: Path, began: datetime
) -> int:
    try:
        run_cases(cases, folder, arguments.jobs, _say)
    except KeyboardInterrupt:
        again = shlex.join(["mac-lora", "regress", "--report", portable(str(folder))])
        print(f"mac-lora: go on with the cases left: {again}", file=sys.stderr)
        raise
    code = _update(suite, cases, baselines, folder, arguments.reason) if arguments.update else 0
    judged = judge(cases, baselines, folder)
    report = told.make(judged, began.isoformat(timespec="seconds"))
    past = told.past(folder, Path(arguments.history) if arguments.history else folder.absolute().parent)
    told.save(folder, report, html_page(report, folder, past))
    print("\n" + told.terminal(report, folder))
    return code or int(not all(case.passed for case in judged))


def _check_options(arguments: argparse.Namespace) -> None:
    if arguments.jobs != "auto" and not (arguments.jobs.isdigit() and int(arguments.jobs) > 0):
        raise InputError(f"{arguments.jobs!r} is no number of jobs", where="--jobs", fix="a number from 1 on, or auto")
    if arguments.history and not Path(arguments.history).is_dir():
        raise InputError(
            "no such folder", where=f"--history {portable(arguments.history)}", fix="name the folder that holds report folders"
        )
    if arguments.reason is not None and not arguments.update:
        raise InputError("--reason belongs to --update", where="--reason", fix="give both, or neither")
    if arguments.update and not (arguments.reason or "").strip() and not sys.stdin.isatty():
        raise InputError(
            "baselines change for a reason, and none was given",
            where="--update",
            fix='--reason "what changed, and why the new figures are right"',
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the report folder cannot be made: {error.strerror}", where=portable(str(folder)), fix="choose another --report"
        ) from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the report folder; the system lets go of it when this process ends, however it ends."""
    import fcntl

    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "another regression run works in this report folder"
            raise InputError(what, where=portable(str(folder)), fix="wait for it, or choose another --report") from None
        except OSError:  # a file system without locks
            pass
        yield


def _update(suite: Suite, cases: Sequence[Case], baselines: kept.Baselines, folder: Path, reason: str | None) -> int:
    """Writes the baselines of the cases that ran to their end; 1 if one did not."""
    ran, left = [], []
    for case, found in zip(cases, judge(cases, baselines, folder), strict=True):
        (ran if found.status == "passed" else left).append((case, found))
    differences = {case.name: kept.changes(baselines, case, measure(case, folder)) for case, _ in ran}
    changed = [(name, metric, *map(number, pair)) for name, found in differences.items() for metric, pair in found.items()]
    print(Table(["case", "metric", "baseline", "now"], changed, title=f"\n{len(changed)} figures would change"))
    if left:
        print(f"not updated, because they did not run to their end: {', '.join(case.name for case, _ in left)}")
    if not changed:
        return 0
    _refuse_useless([case for case, _ in ran], folder)
    reason = (reason or "").strip() or input("Why are the new figures right? (kept in the baseline files; empty: change nothing) ").strip()
    if not reason:
        raise InputError(
            "nothing was updated: no reason was given", where="--update", fix="say what changed, and why the new figures are right"
        )
    for case, _ in ran:
        if differences[case.name]:
            kept.write(baselines, case, measure(case, folder), reason, kept.conditions())
    return 0


def _refuse_useless(cases: Sequence[Case], folder: Path) -> None:
    for case in cases:
        for metric, value in measure(case, folder).items():
            if value in ("nan", "inf", "-inf"):
                what = f"{metric} is {value}, which is no figure to compare with"
                raise InputError(what, where=f"case {case.name}", fix="find out why; nothing was updated")


def _say(line: str) -> None:
    print(line, flush=True)
