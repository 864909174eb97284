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
    parser.add_argument("--device", choices=["auto", "mps", "cuda", "cpu"], help="instead of the best there is")
    parser.add_argument("--trace", help="a file for every batch's digest, every loss and all arguments; stops after training")
    return parser.parse_args(arguments)


def _inputs_archive(given: str | None) -> bytes:
    if not JOB["inputs_sha256"]:
        return b""
    path = Path(given) if given else Path(__file__).with_name("inputs.zip")
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
    from mac_lora_helpers.config import resolve

    changes = {name: value for name in ("max_steps", "device") if (value := getattr(options, name)) is not None}
    changes |= {"logging_steps": 1} if options.trace else {}
    config = resolve({**JOB["parameters"], "out_dir": str(options.out), "push": not options.no_push, **changes}, env={})
    run = RunDir(options.out)
    if not options.check:
        if JOB["gpu"] and not options.any_device:
            _require_gpu()
        if config.push:
            _require_access(config)
    make_data(run, config)
    if options.check:
        return
    trace = train(run, config, trace=bool(options.trace))
    if trace is not None:
        options.trace.write_text(json.dumps(trace), encoding="utf-8")
        return
    evaluate(run, config)
    publish(run, config)


def _require_gpu() -> None:
    import torch

    from mac_lora_helpers.errors import CheckFailed

    if not torch.cuda.is_available():
        raise CheckFailed(
            f"the flavor {JOB['flavor']} has a GPU, but torch {torch.__version__} cannot use it",
            where=f"torch was built for CUDA {torch.version.cuda}",
            fix="the driver may be older than that: try another flavor, or --any-device to train on the CPU",
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


def train(run: Any, config: Any, trace: bool = False) -> dict[str, Any] | None:
    """Notebook 03. With ``trace``: nothing is audited, and what was trained on is returned, for a comparison."""
    from mac_lora_helpers import data, training

    manifest, tokens = data.load_tokens(run)
    config = config.inherit(manifest["config"], "data", made_by="this job")
    device, dtype = training.place(run, config)
    print(f"training on {device.name} ({device.reason}) in {dtype.name}", flush=True)
    model = training.load_model(config, device, dtype)
    args = training.sft_config(config, run, device, dtype)
    lora = training.lora_config(config, model)
    trainer = training.build_trainer(model, data.load_tokenizer(config), tokens, lora, args, run, config, on_log=_print_log)
    batches = _trace_batches(trainer) if trace else []
    result = trainer.train(resume_from_checkpoint=training.last_checkpoint(run, config))
    if trace:
        losses = [row["loss"] for row in run.read_lines("train_log") if row.get("loss") is not None]
        resolved = {"SFTConfig": args.to_dict(), "LoraConfig": lora.to_dict(), "config": config.model_dump()}
        return {"resolved": _plain(resolved), "batches": batches, "losses": losses, "fingerprint": manifest["fingerprint"]}
    training.save_adapter(trainer, run, config)
    metrics = training.finish(trainer, result, run, config)
    print(f"loss {metrics['first_loss']:.4g} → {metrics['last_loss']:.4g} in {metrics['steps']} steps", flush=True)
    return None


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


def _print_log(rows: list[dict[str, Any]]) -> None:
    row = {name: value for name, value in rows[-1].items() if isinstance(value, (int, float))}
    names = ("step", "loss", "grad_norm", "learning_rate", "seconds")
    print(" ".join(f"{name}={row[name]:.6g}" for name in names if name in row), flush=True)


def evaluate(run: Any, config: Any) -> None:
    """Notebook 04."""
    from mac_lora_helpers import data, evaluation

    _, tokens = data.load_tokens(run)
    trained = evaluation.load(run, config)
    losses = evaluation.compare_losses(trained, tokens["test"])
    answers = evaluation.compare_answers(trained, run.read_lines("test"), config)
    metrics = evaluation.score(losses, answers)
    evaluation.save(run, metrics, answers)
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
