"""Kills each stage by each signal, and runs it again. Started as a process of its own, which forks the stages.

    python kill_stages.py FINISHED_RUN VALUES_JSON WORK_FOLDER

Prints one JSON line for each kill; ends with 1 if anything was lost, mixed or left behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from drills import conftest as runs
from drills.conftest import Made
from mac_lora_helpers.artifacts import ARTIFACTS
from mac_lora_helpers.errors import UserError
from mac_lora_helpers.ownership import MARKER


def stage_01(made: Made) -> None:
    from mac_lora_helpers import environment

    made.run.write_json("environment", environment.check_environment(made.config).to_dict())


def stage_02(made: Made) -> None:
    runs.format_data(made)


def stage_05(made: Made) -> None:
    from exporting import export_all

    from mac_lora_helpers import export

    with made.run.begin(5) as stage:
        export_all(stage, made.config)
        export.write_card(stage, made.config)


STAGES: list[Callable[[Made], None]] = [stage_01, stage_02, runs.train, runs.evaluate, stage_05]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
#: Shares of a stage's time at which it is killed, one for each signal.
MOMENTS = [0.3, 0.6, 0.9]


def forked(stage: Callable[[Made], None], made: Made, kill: int = 0, after: float = 0.0) -> tuple[str, float]:
    """Runs a stage in a child; how it ended, and the seconds it took."""
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with made.run.running(stage.__name__):
                stage(made)
            code = 0
        except (KeyboardInterrupt, UserError):
            code = 3
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    if kill:
        time.sleep(after)
        os.kill(child, kill)
    status = os.waitpid(child, 0)[1]
    ended = {0: "finished", 3: "stopped in words"}.get(os.waitstatus_to_exitcode(status), f"ended {os.waitstatus_to_exitcode(status)}")
    return ended, time.monotonic() - begin


def digests(folder: Path, stage: int) -> dict[str, str]:
    """Artefacts of the stages before this one."""
    found = {}
    for path, number in ARTIFACTS.values():
        if 0 < number < stage and (folder / path).exists():
            for file in [folder / path, *(folder / path).rglob("*")]:
                if file.is_file() and "checkpoints" not in str(file):
                    found[str(file.relative_to(folder))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def unreadable(made: Made) -> list[str]:
    """JSON artefacts that are there and cannot be read."""
    broken = []
    for name, (path, _) in ARTIFACTS.items():
        if not made.run.has(name) or not path.endswith((".json", ".jsonl")):
            continue
        try:
            made.run.read_json(name) if path.endswith(".json") else made.run.read_lines(name)
        except UserError as error:
            broken.append(f"{path}: {error.what}")
    return broken


def leftovers(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if "checkpoints" not in str(path) and path.name != MARKER]


def drill(number: int, kill: int, share: float, finished: Made, seconds: float, folder: Path) -> list[str]:
    """One kill and one rerun; what went wrong."""
    stage = STAGES[number - 1]
    for attempt in range(5):  # a stage may be quicker than it was when it was timed
        made = finished.copy(folder)
        if number == 3:
            shutil.rmtree(folder / "checkpoints")
        before = digests(folder, number)
        ended, _ = forked(stage, made, kill, seconds * share / 2**attempt)
        if ended != "finished":
            break
        shutil.rmtree(folder)
    else:
        return ["it ended before it could be killed"]
    wrong = unreadable(made)
    again, _ = forked(stage, made)
    if again != "finished":
        wrong.append(f"the rerun {again}")
    if digests(folder, number) != before:
        wrong.append("an earlier stage's artefacts changed")
    wrong += leftovers(folder)
    if (
        number <= 3
        and (folder / "adapter/adapter_model.safetensors").read_bytes()
        != (finished.folder / "adapter/adapter_model.safetensors").read_bytes()
    ):
        wrong.append("the adapter is not the one of a training that was left alone")
    from drills.test_damaged_artefacts import read_data, read_for_export

    for reader in (read_data, read_for_export):
        try:
            reader(made)
        except UserError as error:
            wrong.append(f"{reader.__name__}: {error.what}")
    print(json.dumps({"stage": number, "signal": signal.Signals(kill).name, "ended": ended, "wrong": wrong}), flush=True)
    shutil.rmtree(folder)
    return wrong


def main(source: str, values: str, work: str, only: str = "12345") -> int:
    import torch  # noqa: F401  loaded once, before the forks
    import trl  # noqa: F401

    finished, failed = Made(Path(source), json.loads(values)), 0
    for number in map(int, only):
        scratch = finished.copy(Path(work) / "timed")
        if number == 3:
            shutil.rmtree(scratch.folder / "checkpoints")
        ended, seconds = forked(STAGES[number - 1], scratch)
        failed += ended != "finished"
        shutil.rmtree(scratch.folder)
        for kill, share in zip(SIGNALS, MOMENTS, strict=True):
            failed += bool(drill(number, kill, share, finished, seconds, Path(work) / f"{number}-{kill}"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
