"""The command line ``mac-lora``.

Exit codes: 0 done; 1 ran and found a failure; 2 bad input or usage, nothing written; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from mac_lora_helpers import __version__, threads
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import PRESETS, Config, resolve
from mac_lora_helpers.errors import InputError, UserError
from mac_lora_helpers.redaction import portable
from mac_lora_helpers.suite.job_commands import add_job
from mac_lora_helpers.suite.runner import hush
from mac_lora_helpers.troubleshooting import explain

#: Before a value that is not to be read as an option; no argument of a process can hold it.
_LITERAL = "\0"


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, runs the command, and turns foreseeable errors into one message and an exit code."""
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # as after `| head -1`: whoever read has seen enough
        hush()
        return 0


def _main(argv: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without these characters gets their numbers, not a failure
            stream.reconfigure(errors="backslashreplace")
    arguments = parse(argv)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is signal.SIG_DFL:  # under nohup SIGHUP stays ignored
            signal.signal(signum, _stop)
    try:
        return arguments.command(arguments)
    except UserError as error:
        known = getattr(error, "known", None) or explain(error)
        more = f"\n  more:  {known.anchor}" if known else ""
        print(f"mac-lora: {portable(str(error))}{more}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mac-lora: interrupted; what was finished is in the run directory", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        print(f"mac-lora: {portable(f'{known}{chr(10)}{_original(error)}')}", file=sys.stderr)
        return 1


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; ``-p NAME VALUE`` takes its value as it is, also one that begins with a dash.

    Raises:
        SystemExit: what argparse does not understand; it has said why.
    """
    words, place = list(sys.argv[1:] if argv is None else argv), 0
    while place < len(words):
        if words[place] == "-p" and place + 2 < len(words):
            words[place + 2] = _LITERAL + words[place + 2]
            place += 2
        place += 1
    arguments = _parser().parse_args(words)
    if hasattr(arguments, "parameters"):
        arguments.parameters = [(name, value.removeprefix(_LITERAL)) for name, value in arguments.parameters]
    return arguments


def _original(error: Exception) -> str:
    """The error itself, below its answer: kind, text and the line that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({os.path.basename(frame.filename)}, line {frame.lineno})" for frame in place)
    return f"The original error{where}:\n  {''.join(traceback.format_exception_only(error)).strip()}"


def _stop(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mac-lora", description="Small LoRA fine-tuning jobs on a Mac: the notebooks, headless.")
    parser.add_argument("--version", action="version", version=f"mac-lora {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    names = "parameters: " + " ".join(Config.model_fields)
    run = _command(commands, "run", _run, "execute the notebooks in order, into the run directory", names)
    run.add_argument("--preset", choices=list(PRESETS), help=Config.model_fields["preset"].description)
    run.add_argument("--run-dir", metavar="DIR", help="the run directory (the same as -p out_dir DIR)")
    run.add_argument("--only", action="append", default=[], metavar="NN", help="run this notebook alone; may be given again")
    run.add_argument("--from", dest="start", metavar="NN", help="start at this notebook")
    run.add_argument("--notebooks", metavar="DIR", help="execute the notebooks of this folder instead of the project's own")
    train = _command(commands, "train", _train, "notebook 03 alone, without a notebook; also under accelerate launch", names)
    train.add_argument("--run-dir", metavar="DIR", help="the run directory, with the data of notebook 02 (the same as -p out_dir DIR)")
    doctor = _command(commands, "doctor", _doctor, "check this machine and its packages", names)
    check = _command(commands, "check-data", _check_data, "load and validate data, train nothing", names)
    check.add_argument("paths", nargs="+", metavar="PATH", help="data files")
    _add_regress(commands)
    add_job(commands, lambda actions, name, text: _command(actions, name, _job, text, names))
    estimate = _command(commands, "estimate", _estimate, "memory that a training run would take, and whether it fits", names)
    for command in (doctor, check, estimate):
        command.add_argument("--json", action="store_true", help="one JSON document on stdout and nothing else")
    return parser


def _add_regress(commands: Any) -> None:
    from mac_lora_helpers.suite.regress.command import add_arguments, regress

    text = "run the regression cases and hold their figures against the baselines"
    parser = commands.add_parser("regress", help=text, description=text)
    parser.set_defaults(command=regress)
    add_arguments(parser)


def _command(commands: Any, name: str, action: Any, text: str, epilog: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, epilog=epilog)
    parser.set_defaults(command=action)
    parser.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter; may be given again"
    )
    return parser


def _explicit(arguments: argparse.Namespace, **options: Any) -> dict[str, Any]:
    """What the caller set, by ``-p`` or by an option of the same meaning."""
    explicit: dict[str, Any] = {}
    for name, value in [*arguments.parameters, *((n, v) for n, v in options.items() if v is not None)]:
        if name in explicit and explicit[name] != value:
            raise InputError(f"{name} is given twice: {explicit[name]!r} and {value!r}", where=f"parameter {name}", fix="give it once")
        explicit[name] = value
    return explicit


def _config(explicit: dict[str, Any]) -> Config:
    threads.settle()
    config = resolve(explicit)
    for line in config.consents():
        print(f"mac-lora: {line}", file=sys.stderr)
    if config.source_of("prompt") == "preset" and "PROMPT" in os.environ:
        print("mac-lora: PROMPT holds the shell's own prompt and is not used as a question", file=sys.stderr)
    return config


def _run(arguments: argparse.Namespace) -> int:
    from mac_lora_helpers.suite.preflight import preflight
    from mac_lora_helpers.suite.runner import choose, run_suite
    from mac_lora_helpers.suite.summary import summary

    explicit = _explicit(arguments, preset=arguments.preset, out_dir=arguments.run_dir)
    config = _config(explicit)
    names = choose(arguments.only, arguments.start)
    preflight(config)
    record = run_suite(config, {name: getattr(config, name) for name in explicit}, names, notebooks=arguments.notebooks)
    total = sum(entry["seconds"] for entry in record["notebooks"])
    print("\n".join(["", *summary(RunDir(config.out_dir), names)]))
    print(f"done in {total:.0f} s: {portable(str(config.out_dir))}")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from mac_lora_helpers.suite.train import train

    return train(_config(_explicit(arguments, out_dir=arguments.run_dir)))


def _job(arguments: argparse.Namespace) -> int:
    from mac_lora_helpers.suite.job_commands import run_job_command

    config = _config(_explicit(arguments, out_dir=arguments.run_dir))
    return run_job_command(arguments.action, config, arguments.into)


def _doctor(arguments: argparse.Namespace) -> int:
    from mac_lora_helpers import environment
    from mac_lora_helpers.ui.tables import checks_table

    config = _config(_explicit(arguments))
    report = environment.check_environment(config, needed=_forecast_bytes(config))
    result = report.to_dict()
    if arguments.json:
        _print_json(result)
    else:
        print(checks_table(report.checks))
        print(f"\nverdict: {report.verdict.where}")
        print("\n".join(f"  {reason}" for reason in report.verdict.reasons))
    failed = any(check["status"] == "fail" for check in result["checks"])
    return 1 if failed or result["verdict"]["where"] == "unsupported" else 0


def _forecast_bytes(config: Config) -> int | None:
    """None where nothing can be counted, for one because the libraries are missing, which the check will say."""
    try:
        from mac_lora_helpers import training
    except ImportError:
        return None
    return training.forecast(config).total_bytes


def _check_data(arguments: argparse.Namespace) -> int:
    from mac_lora_helpers import data
    from mac_lora_helpers.suite.preflight import check_model_folder
    from mac_lora_helpers.ui.tables import Table
    from mac_lora_helpers.ui.tokens import TokenView

    config = _config(_explicit(arguments, data_files=", ".join(arguments.paths)))
    found = data.validate(data.load(config), config)
    splits = data.split(found, config)
    check_model_folder(config)
    try:
        tokenizer = data.load_tokenizer(config, here_only=True)
    except InputError as error:
        tokenizer, why = None, error.what
    encoded = data.encode(splits, tokenizer, config) if tokenizer else None
    rows = data.overview(found, encoded, splits)
    if not encoded:
        told = f"the rows were checked, their tokens not counted: {why.split(':')[0]}"
        rows += [("tokens", "not counted", f"{told}; -p model_id FOLDER (or embedded) counts with another tokenizer")]
    if arguments.json:
        _print_json(data.overview_json(found, encoded, rows))
        return 0
    print(Table(["what", "value", "meaning"], rows, title=found.source.name))
    if encoded:
        print(TokenView(data.token_view(encoded, tokenizer, "train", 0), title="\nthe first row of train, as the model will see it"))
    return 0


def _estimate(arguments: argparse.Namespace) -> int:
    from mac_lora_helpers import environment, training
    from mac_lora_helpers.suite.preflight import check_model_folder
    from mac_lora_helpers.ui.tables import Table

    config = _config(_explicit(arguments))
    check_model_folder(config)
    result = training.estimate(config)
    table, where = result.pop("table"), environment.check_environment(config, needed=result["memory"]["total_bytes"]).verdict.to_dict()
    if arguments.json:
        _print_json({**result, "where": where})
        return 0
    print(Table(["what", "value", "meaning"], table, title=f"{result['model_id']}: {result['verdict']}"))
    print("\n".join([*filter(None, [result["advice"]]), f"where to run: {where['where']}", *(f"  {r}" for r in where["reasons"])]))
    return 0


def _print_json(value: Any) -> None:
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print(portable(json.dumps(value, indent=2, ensure_ascii=plain, default=str)))
