"""The cloud job: one script that carries this code, the command that starts it, and what it is made of.

The script makes the data again from the same source and refuses to train when the tokens' fingerprint is not the
local run's. What differs from the local run is asked for by name (``job_overrides``) and listed. Nothing is submitted here.
"""

from __future__ import annotations

import base64
import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config, resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export.card.write import repo_name
from mac_lora_helpers.export.job import record as records
from mac_lora_helpers.export.job import script as job_script
from mac_lora_helpers.export.job.flavor import choose_flavor, processes_of
from mac_lora_helpers.export.job.overrides import differences, overrides_of, told
from mac_lora_helpers.export.job.payload import inputs_of, package_zip, sha256, zip_of
from mac_lora_helpers.export.job.pins import pins
from mac_lora_helpers.export.job.record import COMMAND, INPUTS, RECORD, SCRIPT
from mac_lora_helpers.files import portable

#: Python versions that the pins are made for; the job image has 3.12.
PYTHON = ">=3.11,<3.14"
#: Parameters that belong to this machine's run and not to the recipe.
_AT_HOME = ("out_dir", "push", "adapter_dir", "gguf_types", "job_flavor", "job_timeout", "job_overrides", "check_parity", "submit_job")
_AT_HOME += ("track",)
_NOT_RECIPE = ("preset", "repo_id", "private", "push_artifacts", *_AT_HOME)
#: What a job pushes: without the records nobody could tell what the adapter is the result of.
_PUSHED = "adapter, run"


@dataclass(frozen=True)
class Job:
    """A written job.

    Attributes:
        folder: holds the script, ``job.json``, ``command.txt`` and, if local files travel along, ``inputs.zip``.
        record: the content of ``job.json``.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def command(self) -> list[str]:
        """The words of the command that submits the job."""
        return list(self.record["command"])

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) for a table."""
        record = self.record
        rows = [
            ("hardware", f"{record['flavor']}: {record['flavor_reason']}"),
            *([("GPUs", _together(record))] if record["processes"] > 1 else []),
            ("stops after", record["timeout"]),
            ("result goes to", f"{record['repo_id']} ({'private' if record['private'] else 'public'})"),
            ("needs", "a Hub login that may write and start jobs (`hf auth login`); jobs cost money: `hf jobs hardware`"),
            ("data", f"the same tokens, or it refuses: {record['fingerprint']}" if record["fingerprint"] else record["why_new"]),
            ("differs from the local run", "; ".join(told(item) for item in record["differences"]) or "nothing"),
            ("travels along", _travels(record["inputs"])),
            ("look at it first", shlex.join(["hf", "jobs", "uv", "run", "--dry-run", *self.command[4:]])),
        ]
        if job := record.get("job"):
            same = job["script_sha256"] == record["script"]["sha256"]
            rows.append(("submitted", f"{job['namespace']}/{job['id']}{'' if same else ', with an earlier script'}"))
        return [*rows, ("start it", shlex.join(self.command))]


def write_job(run: RunDir, config: Config, changes: Mapping[str, Any] | None = None) -> Job:
    """Writes ``export/job/``: ``train_job.py``, ``job.json``, ``command.txt``, and ``inputs.zip`` where local files are needed.

    Args:
        changes: parameters that shall differ from the local run (more data, a longer context, another model), beside
            those in ``job_overrides``; each is listed in ``differences``. A change of data or model means new tokens,
            so no fingerprint is compared.

    Raises:
        MissingArtifact: 02 or 03 has not run. InputError: a flavor that does not exist, local files that are too large,
            parameters that differ from the local run without being named, or ``job_overrides`` that cannot be.
    """
    manifest, saved = run.read_json("manifest"), run.config("train_config")
    recipe, listed = _recipe(config, saved, {**overrides_of(config), **(changes or {})})
    flavor, reason = choose_flavor(recipe)
    files, moved = inputs_of(recipe)
    archive, package = (zip_of(files) if files else b""), package_zip()
    job = {
        "parameters": {**_parameters(recipe), **moved},
        **_identity(manifest, listed, recipe),
        "flavor": flavor,
        "gpu": not flavor.startswith("cpu"),
        "processes": processes_of(flavor, recipe),
        "differences": [told(item) for item in listed],
        "package_sha256": sha256(package),
        "inputs_sha256": sha256(archive) if archive else "",
    }
    script = script_text(job, package)
    record = {
        **{name: value for name, value in job.items() if name not in ("gpu", "fingerprint_parts")},
        "flavor_reason": reason,
        "timeout": config.job_timeout,
        "repo_id": job["parameters"]["repo_id"],
        "private": config.private,
        "secrets": ["HF_TOKEN"],
        "differences": listed,
        "at_home": {name: portable(str(getattr(recipe, name))) for name in moved},
        "inputs": [{"path": name, "bytes": path.stat().st_size} for name, path in sorted(files.items())],
        "script": {"path": SCRIPT, "bytes": len(script.encode()), "sha256": sha256(script.encode())},
        "dependencies": pins()[0],
        "submitted": False,
        **_submitted_before(run),
    }
    record["command"] = _command(run, config, record)
    return _write(run, record, script, archive)


def _identity(manifest: Mapping[str, Any], listed: Sequence[Mapping[str, Any]], recipe: Config) -> dict[str, Any]:
    """What the job's tokens have to be: the local run's, or new ones where data or model were asked to differ."""
    new = sorted({item["parameter"] for item in listed} & set(recipe.names("data")))
    if new:
        return {"fingerprint": "", "fingerprint_parts": {}, "why_new": f"made new because {', '.join(new)} differ from the local run"}
    return {"fingerprint": manifest["fingerprint"], "fingerprint_parts": manifest.get("fingerprint_parts", {}), "why_new": ""}


def _recipe(config: Config, saved: Mapping[str, Any], changes: dict[str, Any]) -> tuple[Config, list[dict[str, Any]]]:
    """The job's parameters and the list of what differs from the local run.

    Raises:
        InputError: something differs that ``changes`` does not name.
    """
    values = {name: value for name, value in saved.items() if name in Config.model_fields}
    mine = {name: getattr(config, name) for name in (*_NOT_RECIPE, *config.names("evaluation"))}
    owned = config.names("data", "training")
    asked = [name for name in owned if config.source_of(name) in ("parameter", "form") and name in values and name not in changes]
    silent = [name for name in asked if getattr(config, name) != values[name]]
    if silent:
        raise InputError(
            f"{', '.join(silent)} differ from the local run",
            where=f"parameter {silent[0]}: {getattr(config, silent[0])!r} here, {values[silent[0]]!r} in train_config.json",
            fix="leave them as they were trained, or name them in job_overrides, so that the job lists them as differences",
        )
    recipe = resolve({**config.model_dump(), **values, **mine, **changes}, env={})
    local = {**config.model_dump(), **values}
    return recipe, differences(changes, local, recipe)


def _parameters(recipe: Config) -> dict[str, Any]:
    """The parameters that the script resolves: every one but those that only this machine's run has."""
    values = recipe.model_dump(exclude=set(_AT_HOME))
    values |= {"repo_id": repo_name(recipe), "push_artifacts": _PUSHED, "device": "auto"}
    return {name: portable(value) if isinstance(value, str) else value for name, value in values.items()}


def _together(record: Mapping[str, Any]) -> str:
    dropout = record["parameters"]["lora_dropout"]
    note = f"; each draws its own dropout, so losses agree with one GPU's only roughly (lora_dropout is {dropout})" if dropout else ""
    return f"{record['processes']} train together (accelerate launch) and share the recipe's batch{note}"


def _travels(inputs: list[dict[str, Any]]) -> str:
    if not inputs:
        return "nothing but code"
    size = sum(item["bytes"] for item in inputs)
    return f"{len(inputs)} local files of model and data, {size / 2**20:.1f} MiB, in {INPUTS} (into a private bucket of yours)"


def script_text(job: Mapping[str, Any], package: bytes) -> str:
    """The script: a PEP 723 header, then ``script.py`` with the job and the package's source filled in."""
    source = Path(job_script.__file__).read_text(encoding="utf-8")
    text = json.dumps(job, indent=1, ensure_ascii=True).replace("'", "\\u0027")
    payload = "\n".join(textwrap.wrap(base64.b64encode(package).decode(), 140))
    for line, filled in (('JOB_JSON = "{}"', f"JOB_JSON = r'''{text}'''"), ('PAYLOAD = ""', f'PAYLOAD = """\n{payload}\n"""')):
        if source.count(f"\n{line}\n") != 1:
            raise AssertionError(f"script.py has no line {line}")
        source = source.replace(f"\n{line}\n", f"\n{filled}\n")
    return f"{header()}\n\n{_told(job['differences'])}{source}"


def header() -> str:
    """The PEP 723 block: Python, direct pins, and the rest of the lock as constraints for uv."""
    direct, rest = pins()
    lines = ["/// script", f'requires-python = "{PYTHON}"', "dependencies = [", *(f"  {json.dumps(line)}," for line in direct), "]"]
    lines += ["", "[tool.uv]", "constraint-dependencies = [", *(f"  {json.dumps(line)}," for line in rest), "]", "///"]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _told(differing: Sequence[str]) -> str:
    """What differs from the local run, as comments below the header; a value's line breaks must not end the comment."""
    lines = ["Differs from the local run:", *(f"  {' '.join(line.split())}" for line in differing)]
    return "".join(f"# {line}\n" for line in lines) + "\n" if differing else ""


def _command(run: RunDir, config: Config, record: Mapping[str, Any]) -> list[str]:
    """``hf jobs uv run``, its flags before the script; the token goes by name, never by value."""
    folder = Path(config.out_dir) / run.path("job").relative_to(run.root)
    words = ["hf", "jobs", "uv", "run", "--flavor", record["flavor"], "--timeout", record["timeout"], "--secrets", "HF_TOKEN"]
    if "/" in record["repo_id"]:
        words += ["--namespace", record["repo_id"].split("/")[0]]
    return [portable(str(word)) for word in [*words, folder / SCRIPT, *([folder / INPUTS] if record["inputs"] else [])]]


def _submitted_before(run: RunDir) -> dict[str, Any]:
    """A job that was submitted from this run directory is not forgotten when its script is written anew."""
    old = records.read(run) if (run.path("job") / RECORD).is_file() else {}
    return {name: old[name] for name in ("submitted", "job", "earlier_jobs") if old.get(name)}


def _write(run: RunDir, record: dict[str, Any], script: str, archive: bytes) -> Job:
    with run.folder("job") as folder:
        (folder / SCRIPT).write_text(script, encoding="utf-8")
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (folder / COMMAND).write_text(shlex.join(record["command"]) + "\n", encoding="utf-8")
        if archive:
            (folder / INPUTS).write_bytes(archive)
    return Job(run.path("job"), record)
