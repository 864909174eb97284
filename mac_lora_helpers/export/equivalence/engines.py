"""Asks an engine in a process of its own: a failed assertion ends that process alone, and its memory comes back.

The engine's module reads one job from its standard input and writes a line for every prompt as it is answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.export.equivalence.prompts import Prompt
from mac_lora_helpers.export.equivalence.scores import Reply
from mac_lora_helpers.redaction import portable

_PACKAGE = "mac_lora_helpers.export.equivalence"


class EngineFailed(CheckFailed):
    """An engine did not load a file, or ended while it answered."""


def ask(engine: str, job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the engine writes, line by line.

    Args:
        engine: ``llama_cpp`` or ``mlx_lm``; a module beside this one.

    Raises:
        EngineFailed: with the engine's own last words.
    """
    command = [sys.executable, "-P", "-m", f"{_PACKAGE}.engine_{engine}"]
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                json.dump(job, process.stdin)
            for line in process.stdout:
                found = json.loads(line)
                if "error" in found:
                    raise EngineFailed(portable(found["error"]), where=engine, fix="write the file again")
                yield found
            if process.wait():
                said.seek(0)
                lines = [line.strip() for line in said if line.strip()] or [f"ended with {process.returncode}"]
                words = next((line for line in lines if "ASSERT" in line), lines[-1])
                raise EngineFailed(portable(words)[:300], where=engine, fix="write the file again")
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def score(engine: str, job: Mapping[str, Any], prompts: Sequence[Prompt], about: dict[str, Any]) -> Iterator[Reply]:
    """The engine's replies to the prompts, as they come.

    Args:
        about: gets what the engine says of itself.
    """
    for found in ask(engine, {**job, "prompts": [asdict(prompt) for prompt in prompts]}):
        if "number" in found:
            yield Reply(**found)
        else:
            about.update(found)


def serve(open_engine: Callable[[dict[str, Any]], Any]) -> None:
    """The other side: opens the engine, answers the job's prompts until its time is up, at least ``least`` of them."""
    job = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an engine prints goes to the errors

    def tell(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=out, flush=True)

    start = time.perf_counter()
    try:
        engine = open_engine(job)
    except Exception as error:
        tell({"error": f"does not load: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"})
        return
    tell({"engine": engine.name, "load_seconds": round(time.perf_counter() - start, 3)})
    start = time.perf_counter()
    for number, prompt in enumerate(job.get("prompts", [])):
        spent = time.perf_counter() - start
        if number >= job["least"] and spent * (number + 1) / number > job["seconds"]:
            break
        try:
            tell({"number": number, **engine.reply(Prompt(**prompt))})
        except Exception as error:
            tell({"error": f"stops while it answers: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"})
            return
    for question in job.get("questions", []):
        tell(engine.chat(question, job["limit"]))
