"""The training job: the same code, data and recipe as the local run, on other hardware.

Run by ``hf jobs uv run`` with the command in command.txt; storage there is ephemeral, so the job ends with a push
to a private repository. Here, in this project's environment:

    python train_job.py --check             # make the data again and compare the fingerprint
    python train_job.py --any-device --no-push --out outputs/job
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
    options = _options(arguments)
    options.out = Path(options.out).expanduser().resolve()
    options.trace = Path(options.trace).expanduser().resolve() if options.trace else None
    options.local_model = str(Path(options.local_model).expanduser().resolve()) if options.local_model else None
    options.inputs = Path(options.inputs or Path(__file__).with_name("inputs.zip")).resolve()
    archive = _inputs_archive(options.inputs)
    with tempfile.TemporaryDirectory(prefix="mac-lora-job-") as folder:
        unpack(Path(folder), archive)
        sys.path.insert(0, folder)
        os.chdir(folder)
        from mac_lora_helpers.errors import UserError

        try:
            work(options)
        except UserError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        finally:
            os.chdir(options.out.anchor)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="?", help="the zip with local model and data; default: inputs.zip beside this script")
    parser.add_argument("--out", default="outputs/job", help="run directory")
    parser.add_argument("--check", action="store_true", help="stop after the data's fingerprint")
    parser.add_argument("--any-device", action="store_true", help="go on without the GPU that the flavor has")
    parser.add_argument("--no-push", action="store_true", help="leave the result in the run directory")
    parser.add_argument("--max-steps", type=int, help="a shorter run than the recipe's")
    parser.add_argument("--local-model", help="a folder with the base, where this machine has it and need not ask the Hub")
    parser.add_argument("--device", choices=["auto", "mps", "cuda", "cpu"], help="instead of the best there is")
    parser.add_argument("--processes", type=int, default=JOB.get("processes", 1), help="that train together; default: the flavor's GPUs")
    parser.add_argument("--one-of-several", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--trace", help="a file for every batch's digest, every loss and all arguments; stops after training")
    return parser.parse_args(arguments)


def _inputs_archive(path: Path) -> bytes:
    if not JOB["inputs_sha256"]:
        return b""
    if not path.is_file():
        sys.exit(f"the job's local files are missing: {path.name}\n  to do: use the command in command.txt, which sends them along")
    return path.read_bytes()


def unpack(folder: Path, archive: bytes) -> None:
    """Puts the package's source and the local files into ``folder``; stops if they are not the ones the job was written with."""
    parts = [("the package", base64.b64decode(PAYLOAD), JOB["package_sha256"]), ("inputs.zip", archive, JOB["inputs_sha256"])]
    for name, content, expected in parts:
        if not expected:
            continue
        if hashlib.sha256(content).hexdigest() != expected:
            sys.exit(f"{name} is not what this job was written with\n  to do: write the job again with 05_export_and_push.ipynb")
        with zipfile.ZipFile(io.BytesIO(content)) as files:
            files.extractall(folder)


def work(options: argparse.Namespace) -> None:
    """Data, fingerprint, training, evaluation, push."""
    from mac_lora_helpers.artifacts import RunDir

    config, run = _config(options), RunDir(options.out)
    if options.one_of_several:
        return _train_together(run, config, options.processes)
    if not options.check:
        if JOB["gpu"] and not options.any_device:
            _require_gpu(options.processes)
        if config.push:
            _require_access(config)
    make_data(run, config)
    if options.check:
        return None
    if options.trace:
        options.trace.write_text(json.dumps(traced(run, config)), encoding="utf-8")
        return None
    train(run, config) if options.processes == 1 else _launch(options)
    evaluate(run, config)
    return publish(run, config)


def _config(options: argparse.Namespace) -> Any:
    from mac_lora_helpers.config import resolve

    changes = {name: value for name in ("max_steps", "device") if (value := getattr(options, name)) is not None}
    changes |= {"logging_steps": 1} if options.trace else {}
    changes |= {"model_id": options.local_model} if options.local_model else {}
    return resolve({**JOB["parameters"], "out_dir": str(options.out), "push": not options.no_push, **changes}, env={})


def _train_together(run: Any, config: Any, wanted: int) -> None:
    from mac_lora_helpers.errors import CheckFailed

    if os.environ.get("WORLD_SIZE") != str(wanted):
        found = os.environ.get("WORLD_SIZE", "1")
        raise CheckFailed(f"{wanted} processes were to train together, {found} were started", where="accelerate launch")
    train(run, config)


def _launch(options: argparse.Namespace) -> None:
    """This script again in several processes, one for each GPU, for the training alone; they share the recipe's batch."""
    from mac_lora_helpers.errors import CheckFailed

    words = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(options.processes), "--num_machines", "1"]
    # On CPUs too the option is called so; with --cpu accelerate starts one process, whatever number it is given.
    words += ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no"]
    words += [str(Path(__file__).resolve()), str(options.inputs), "--out", str(options.out), "--one-of-several"]
    words += ["--processes", str(options.processes)]
    words += [
        word
        for name in ("max_steps", "device")
        if (value := getattr(options, name))
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    code = subprocess.run(words, check=False).returncode
    if code:
        where = f"exit {code} of accelerate launch"
        raise CheckFailed(
            f"training in {options.processes} processes failed", where=where, fix="the first error in the lines above says why"
        )


def _require_gpu(count: int) -> None:
    import torch

    from mac_lora_helpers.errors import CheckFailed

    if not torch.cuda.is_available():
        raise CheckFailed(
            f"the flavor {JOB['flavor']} has a GPU, but torch {torch.__version__} cannot use it",
            where=f"torch was built for CUDA {torch.version.cuda}",
            fix="the driver may be older than that: try another flavor, or --any-device to train on the CPU",
        )
    if torch.cuda.device_count() < count:
        raise CheckFailed(
            f"{count} GPUs were asked for, and {torch.cuda.device_count()} are here", where=f"flavor {JOB['flavor']}", fix="--processes"
        )


def _require_access(config: Any) -> None:
    """Before hours of training: may this token write where the result has to go?"""
    from mac_lora_helpers.export.hub.plan import check_access

    who = check_access(config)
    print(f"the result will go to {who.repo_id} ({'private' if config.private else 'public'})", flush=True)


def write_data(run: Any, config: Any) -> dict[str, Any]:
    """Notebook 02; returns the manifest."""
    from mac_lora_helpers import data

    source = data.load(config)
    found = data.validate(source, config)
    splits = data.split(found, config)
    encoded = data.encode(splits, data.load_tokenizer(config), config)
    return data.save(run, source, found, splits, encoded, config)


def make_data(run: Any, config: Any) -> None:
    """Makes the tokens from the same source, and refuses any others than the local run's."""
    from mac_lora_helpers.errors import CheckFailed

    manifest = write_data(run, config)
    if not JOB["fingerprint"]:
        print(f"new data, fingerprint {manifest['fingerprint']}: {JOB['why_new']}", flush=True)
    elif manifest["fingerprint"] != JOB["fingerprint"]:
        changed = sorted(_different(JOB["fingerprint_parts"], manifest["fingerprint_parts"]))
        raise CheckFailed(
            f"the data are not the local run's: fingerprint {manifest['fingerprint'][:12]} here, {JOB['fingerprint'][:12]} there",
            where=f"what differs: {', '.join(changed) or 'not recorded'}",
            fix="the source changed since 02 ran: run 02 and 03 again locally, then write the job again",
        )
    else:
        print(f"same data as the local run: fingerprint {manifest['fingerprint']}", flush=True)


def _different(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """Names of the parts that are not equal."""
    names: list[str] = []
    for name in {*there, *here}:
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            names += _different(old, new, f"{prefix}{name}.")
        elif old != new:
            names.append(f"{prefix}{name}")
    return names


def train(run: Any, config: Any) -> None:
    """Notebook 03; in each of several processes, or in the only one."""
    from mac_lora_helpers import training

    metrics = training.run_training(run, config)
    if metrics is not None:
        print(f"loss {metrics['first_loss']:.4g} → {metrics['last_loss']:.4g} in {metrics['steps']} steps", flush=True)


def traced(run: Any, config: Any) -> dict[str, Any]:
    """Notebook 03's training, not audited and not saved: what was trained on and what came out, for a comparison."""
    from mac_lora_helpers import training

    names = training.run_cells({"run": run, "config": config}, last="trainer")
    trainer = names["trainer"]
    batches = _trace_batches(trainer)
    trainer.train()
    resolved = {"SFTConfig": names["args"].to_dict(), "LoraConfig": names["lora"].to_dict(), "config": names["config"].model_dump()}
    fingerprint = names["manifest"]["fingerprint"]
    return {"resolved": _plain(resolved), "batches": batches, "losses": trainer.run_log.losses, "fingerprint": fingerprint}


def _trace_batches(trainer: Any) -> list[str]:
    """A list that fills with the digest of ids and labels of every batch that is trained on, in order."""
    batches: list[str] = []
    step = trainer.training_step

    def traced(model: Any, inputs: dict[str, Any], *others: Any) -> Any:
        digest = hashlib.sha256()
        for name in ("input_ids", "labels"):
            digest.update(inputs[name].cpu().contiguous().numpy().tobytes())
        batches.append(digest.hexdigest())
        return step(model, inputs, *others)

    trainer.training_step = traced
    return batches


def _plain(value: Any) -> Any:
    """The value as JSON holds it; sets in order, everything unknown as text."""
    return json.loads(json.dumps(value, default=lambda item: sorted(item) if isinstance(item, set) else str(item)))


def evaluate(run: Any, config: Any) -> None:
    """Notebook 04."""
    from mac_lora_helpers import data, evaluation

    _, tokens = data.load_tokens(run)
    trained = evaluation.load(run, config)
    losses = evaluation.compare_losses(trained, tokens["test"])
    answers = evaluation.compare_answers(trained, run.read_lines("test"), config)
    metrics = evaluation.score(losses, answers)
    with run.begin(4) as stage:
        evaluation.save(stage, metrics, answers, trained)
    print(metrics["verdict"], flush=True)


def publish(run: Any, config: Any) -> None:
    """Card, adapter and records: all that is left of a job is what it pushed. The records say which script made them."""
    from mac_lora_helpers import export

    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    made_by = {"script_sha256": digest, "job_id": os.environ.get("JOB_ID", ""), "flavor": JOB["flavor"], "fingerprint": JOB["fingerprint"]}
    run.write_json("job_result", made_by)

    export.write_card(run, config)
    pushed = export.push(export.plan_push(run, config), run)
    print(f"{'would go' if pushed['dry_run'] else 'pushed'} to {pushed['url'] or pushed['repo_id']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
