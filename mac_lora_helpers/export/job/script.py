"""The training job: notebooks 02, 03 and 04 of the local run, with its parameters, on other hardware; then a push.

Run by ``hf jobs uv run`` with the command in command.txt; storage there is ephemeral, so the job ends with a push of the adapter, its
card and the run's records, and of the executed notebooks if the repository is private. Here, in this project's environment:

    python train_job.py --device cpu --no-push --out outputs/job
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

# Filled in when the job is written.
JOB_JSON = "{}"
PAYLOAD = ""
JOB: dict[str, Any] = json.loads(JOB_JSON)


def main(arguments: list[str] | None = None) -> int:
    """Runs the job; 0: done, 1: a check failed, 2: bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="?", help="the zip with local model and data; default: inputs.zip beside this script")
    parser.add_argument("--out", default="outputs/job", help="run directory")
    parser.add_argument("--device", choices=["mps", "cuda", "cpu"], help="instead of the flavor's")
    parser.add_argument("--max-steps", type=int, help="a shorter run than the recipe's")
    parser.add_argument("--processes", type=int, default=JOB.get("processes", 1), help="that train together; default: the flavor's GPUs")
    parser.add_argument("--no-push", action="store_true", help="leave the result in the run directory")
    options = parser.parse_args(arguments)
    out, zipped = Path(options.out).expanduser().resolve(), Path(options.inputs or Path(__file__).with_name("inputs.zip")).resolve()
    values = {**JOB["parameters"], "out_dir": str(out), "device": options.device or JOB["device"]}
    values |= {"max_steps": options.max_steps} if options.max_steps else {}
    with tempfile.TemporaryDirectory(prefix="mac-lora-job-") as folder:
        unpack(Path(folder), zipped)
        sys.path.insert(0, folder)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = folder
        try:
            return work(values, out, options.processes, not options.no_push)
        finally:
            os.chdir(out.anchor)


def unpack(folder: Path, zipped: Path) -> None:
    """Puts the code and the local files into ``folder``; stops if they are not the ones the job was written with."""
    parts = [
        ("the code", lambda: base64.b64decode(PAYLOAD), JOB["package_sha256"]),
        ("inputs.zip", zipped.read_bytes, JOB["inputs_sha256"]),
    ]
    for name, read, expected in parts:
        if not expected:
            continue
        content = read() if name != "inputs.zip" or zipped.is_file() else b""
        if hashlib.sha256(content).hexdigest() != expected:
            what = "is missing: use the command in command.txt" if not content else "is not what this job was written with: write it again"
            sys.exit(f"{name} {what}")
        with zipfile.ZipFile(io.BytesIO(content)) as files:
            files.extractall(folder)


def work(values: dict[str, Any], out: Path, processes: int, push: bool) -> int:
    """Data, fingerprint, training, evaluation, push; the exit code of the first that failed."""
    from mac_lora_helpers.config import resolve
    from mac_lora_helpers.errors import UserError

    config = resolve({**values, "push": push}, env={})
    train = ["run", "--only", "03"] if processes == 1 else ["train"]
    try:
        if push:  # before hours of training: may this token write where the result has to go?
            from mac_lora_helpers.export.hub.plan import check_access

            print(f"the result will go to {check_access(config).repo_id}", flush=True)
        for command, count in ((["run", "--only", "02"], 1), (train, processes), (["run", "--only", "04"], 1)):
            if code := call(command, values, count):
                return code
            if "02" in command and (code := compare_data(out)):
                return code
        publish(config, out)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def call(command: list[str], values: dict[str, Any], processes: int) -> int:
    """``mac-lora`` with these parameters, in several processes under ``accelerate launch`` if there is more than one; its exit code."""
    launch = ["-m", "accelerate.commands.launch", "--num_processes", str(processes), "--num_machines", "1"]
    # On CPUs too the option is called so; with --cpu accelerate starts one process, whatever number it is given.
    launch += ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no"]
    words = [sys.executable, *(launch if processes > 1 else []), "-m", "mac_lora_helpers", *command]
    words += [word for name, value in values.items() for word in ("-p", name, str(value))]
    return subprocess.run(words, check=False, stdin=subprocess.DEVNULL).returncode


def compare_data(out: Path) -> int:
    """1, with what differs, if the tokens are not the local run's."""
    manifest = json.loads((out / "data" / "manifest.json").read_text(encoding="utf-8"))
    here, there = manifest["fingerprint"], JOB["fingerprint"]
    if here == there:
        print(f"same data as the local run: fingerprint {here}", flush=True)
        return 0
    parts = manifest.get("fingerprint_parts", {})
    names = {*JOB["fingerprint_parts"], *parts}
    changed = sorted(name for name in names if JOB["fingerprint_parts"].get(name) != parts.get(name))
    print(f"the data are not the local run's: fingerprint {here[:12]} here, {there[:12]} there", file=sys.stderr)
    print(f"  what differs: {', '.join(changed) or 'not recorded'}", file=sys.stderr)
    print("  to do: the source changed since 02 ran: run 02 and 03 again locally, then write the job again", file=sys.stderr)
    return 1


def publish(config: Any, out: Path) -> None:
    """Card, adapter and records: all that is left of a job is what it pushed. The records say which script made them."""
    from huggingface_hub import HfApi

    from mac_lora_helpers import export
    from mac_lora_helpers.artifacts import RunDir

    run, digest = RunDir(out), hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    made_by = {"script_sha256": digest, "job_id": os.environ.get("JOB_ID", ""), "flavor": JOB["flavor"], "fingerprint": JOB["fingerprint"]}
    run.write_json("job_result", made_by)
    export.write_card(run, config)
    pushed = export.push(export.plan_push(run, config), run)
    if not pushed["dry_run"] and config.private:
        HfApi().upload_folder(repo_id=pushed["repo_id"], folder_path=out / "notebooks", path_in_repo="run/notebooks")
    print(f"{'would go' if pushed['dry_run'] else 'pushed'} to {pushed['url'] or pushed['repo_id']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
