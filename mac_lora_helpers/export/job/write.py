"""Writing the job: one script that carries this code and the run's parameters, the command that starts it, and what it is made of.

The script runs the notebooks themselves, so that it is the same run by construction; it refuses to train when the tokens' fingerprint
is not the local run's. Nothing is submitted here.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import io
import json
import re
import shlex
import textwrap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import CONSENT, EMBEDDED, EMBEDDED_DIR, Config, preset_values, resolve
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.export.card.write import repo_name
from mac_lora_helpers.export.hub.scan import known_secrets, scan_files, texts_of
from mac_lora_helpers.export.job import script as job_script
from mac_lora_helpers.export.job.pins import header
from mac_lora_helpers.files import atomic_file
from mac_lora_helpers.layout import notebooks_folder
from mac_lora_helpers.model import find_base
from mac_lora_helpers.redaction import portable, portable_tree
from mac_lora_helpers.text import near, size

RECORD, SCRIPT, INPUTS, COMMAND = "job.json", "train_job.py", "inputs.zip", "command.txt"
PACKAGE = Path(__file__).parents[2]
#: Parameters below, flavor: the rules of thumb of Hugging Face's own training guide. Memory and prices change: `hf jobs hardware`.
FLAVORS = ((1e9, "t4-small"), (3e9, "a10g-small"), (7e9, "a10g-large"), (float("inf"), "a100-large"))
#: Local models and data up to this size travel with the job; larger ones belong on the Hub.
LARGEST_INPUTS = 64 * 2**20
#: Parameters that belong to this machine's run and not to the recipe. Consent is asked for again: the submitting run's own.
AT_HOME = ("out_dir", "device", "adapter_dir", "job_flavor", "job_timeout", "track", "push", "submit_job")


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
        record, look = self.record, shlex.join(["hf", "jobs", "uv", "run", "--dry-run", *self.command[4:]])
        local = (
            f"{len(record['inputs'])} local files, {size(sum(item['bytes'] for item in record['inputs']))}, into a private bucket of yours"
        )
        rows = [
            ("hardware", f"{record['flavor']}: {record['flavor_reason']}; prices: `hf jobs hardware`"),
            ("GPUs", f"{record['processes']}, which share the recipe's batch" if record["processes"] > 1 else ""),
            ("stops after", record["timeout"]),
            ("result goes to", f"{record['repo_id']} ({'private' if record['private'] else 'public'})"),
            ("needs", "a Hub login that may write and start jobs (`hf auth login`); a job costs money from its first second"),
            ("data", f"the same tokens, or it refuses: {record['fingerprint']}"),
            ("travels along", local if record["inputs"] else "nothing but code"),
            ("look at it first", look),
            ("start it", shlex.join(self.command)),
        ]
        if job := record.get("job"):
            rows += [("submitted", f"{job['namespace']}/{job['id']}"), *((what, shlex.join(words)) for what, words in follow(job).items())]
        return [row for row in rows if row[1]]


def follow(job: Mapping[str, str]) -> dict[str, list[str]]:
    """The commands that show and stop a job that was submitted."""
    named = ["--namespace", job["namespace"], job["id"]]
    return {
        "its state": ["hf", "jobs", "inspect", *named],
        "its log": ["hf", "jobs", "logs", *named],
        "stop it": ["hf", "jobs", "cancel", *named],
    }


class TooLarge(InputError):
    """Local files are more than a job carries along."""


def offer_job(run: RunDir, config: Config) -> list[tuple[str, str]]:
    """Writes the job; where the model is on this machine alone and too large to travel, says so and stops nothing.

    Returns:
        (what, value) for a table.

    Raises:
        InputError, CheckFailed, MissingArtifact: as :func:`write_job`; too large as well, if ``submit_job`` asks for the job.
    """
    try:
        return write_job(run, config).rows()
    except TooLarge as error:
        if config.submit_job:
            raise
        return [("no job was written", error.what), ("to do", error.fix)]


def write_job(run: RunDir, config: Config) -> Job:
    """Writes ``export/job/``: ``train_job.py``, ``job.json``, ``command.txt``, and ``inputs.zip`` where local files are needed.

    Raises:
        MissingArtifact: 02 or 03 has not run. InputError: a flavor that does not exist, or whose GPUs cannot share the batch; local
            files that are missing or too large. CheckFailed: one of them holds a secret.
    """
    manifest, saved = run.read_json("manifest"), run.config("train_config")
    recipe = resolve({**config.model_dump(), **_kept(saved, config)}, env={})
    flavor, reason = choose_flavor(recipe)
    files, moved = inputs_of(recipe)
    archive, package = zip_of(files) if files else b"", code_zip()
    # Only what differs from the preset: a value that is said counts as the caller's, such as a split that was the Hub's alone.
    usual = preset_values(recipe.preset)
    parameters = {name: value for name, value in recipe.model_dump(exclude=set(AT_HOME)).items() if value != usual[name]}
    parameters["preset"] = recipe.preset
    job = {
        "parameters": portable_tree({**parameters, "repo_id": repo_name(recipe), "push_artifacts": "adapter, run", **moved}),
        "fingerprint": manifest["fingerprint"],
        "fingerprint_parts": manifest.get("fingerprint_parts", {}),
        "flavor": flavor,
        "device": "cpu" if flavor.startswith("cpu") else "cuda",
        "processes": processes_of(flavor, recipe),
        "package_sha256": sha256(package),
        "inputs_sha256": sha256(archive) if archive else "",
    }
    script = script_text(job, package)
    record = {
        **{name: value for name, value in job.items() if name != "fingerprint_parts"},
        "flavor_reason": reason,
        "timeout": config.job_timeout,
        "repo_id": job["parameters"]["repo_id"],
        "private": config.private,
        "at_home": {name: portable(str(getattr(recipe, name))) for name in moved},
        "inputs": [{"path": name, "bytes": path.stat().st_size} for name, path in sorted(files.items())],
        "script": {"path": SCRIPT, "bytes": len(script.encode()), "sha256": sha256(script.encode())},
        "submitted": False,
    }
    if (run.path("job") / RECORD).is_file():  # a job that was submitted is not forgotten when its script is written anew
        record |= {name: value for name, value in read_record(run).items() if name in ("submitted", "job") and value}
    record["command"] = _command(run, config, record)
    with run.folder("job") as folder:
        (folder / SCRIPT).write_text(script, encoding="utf-8")
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (folder / COMMAND).write_text(shlex.join(record["command"]) + "\n", encoding="utf-8")
        if archive:
            (folder / INPUTS).write_bytes(archive)
    return Job(run.path("job"), record)


def _kept(saved: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """What the local run was made with."""
    return {name: saved[name] for name in ("preset", *config.names("data", "training")) if name in saved and name not in CONSENT}


def read_record(run: RunDir) -> dict[str, Any]:
    """``export/job/job.json``.

    Raises:
        MissingArtifact: no job was written. InputError: the record is damaged.
    """
    path, fix = run.path("job") / RECORD, "write the job: run 05_export_and_push.ipynb, or `mac-lora run --only 05`"
    if not path.is_file():
        raise MissingArtifact(f"export/job/{RECORD} is missing", where=str(run.root), fix=fix)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        wrong = [name for name in ("command", "script", "repo_id", "fingerprint", "parameters", "private") if name not in record]
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{RECORD} cannot be read: {error}", where=str(path), fix=fix) from None
    if wrong:
        raise InputError(f"{RECORD} has no {', '.join(wrong)}", where=str(path), fix=fix)
    return record


def update_record(run: RunDir, **changes: Any) -> dict[str, Any]:
    """Writes some of the record's entries anew, whole or not at all, and returns the record."""
    record = {**read_record(run), **changes}
    with atomic_file(run.path("job") / RECORD) as temporary:
        temporary.write_text(portable(json.dumps(record, indent=2)) + "\n", encoding="utf-8")
    return record


def script_text(job: Mapping[str, Any], package: bytes) -> str:
    """The script: a PEP 723 header, then ``script.py`` with the job and the code filled in."""
    source = Path(job_script.__file__).read_text(encoding="utf-8")
    text = json.dumps(job, indent=1, ensure_ascii=True).replace("'", "\\u0027")
    payload = "\n".join(textwrap.wrap(base64.b64encode(package).decode(), 140))
    for line, filled in (('JOB_JSON = "{}"', f"JOB_JSON = r'''{text}'''"), ('PAYLOAD = ""', f'PAYLOAD = """\n{payload}\n"""')):
        before, after = source.split(f"\n{line}\n")
        source = f"{before}\n{filled}\n{after}"
    return f"{header()}\n\n{source}"


def _command(run: RunDir, config: Config, record: Mapping[str, Any]) -> list[str]:
    """``hf jobs uv run``, its flags before the script; the token goes by name, never by value."""
    folder = Path(config.out_dir) / run.path("job").relative_to(run.root)
    words = ["hf", "jobs", "uv", "run", "--flavor", record["flavor"], "--timeout", record["timeout"], "--secrets", "HF_TOKEN"]
    words += ["--namespace", record["repo_id"].split("/")[0]] if "/" in record["repo_id"] else []
    return [portable(str(word)) for word in [*words, folder / SCRIPT, *([folder / INPUTS] if record["inputs"] else [])]]


def choose_flavor(config: Config) -> tuple[str, str]:
    """The hardware and the reason for it.

    Raises:
        InputError: ``job_flavor`` names none.
    """
    from huggingface_hub import JobHardware

    known = [str(item.value) for item in JobHardware]
    if config.job_flavor in known:
        return config.job_flavor, "chosen by job_flavor"
    if config.job_flavor != "auto":
        fix = f"{near(config.job_flavor, known)} `hf jobs hardware` lists all of them with their prices"
        raise InputError(f"there is no flavor {config.job_flavor!r}", where="parameter job_flavor", fix=fix.strip())
    count = find_base(config).parameters
    if not count:
        return "a10g-small", "the model's size is not known; this flavor suits up to about 3 billion parameters"
    return next(flavor for limit, flavor in FLAVORS if count < limit), f"for {count / 1e9:.3g} billion parameters"


def processes_of(flavor: str, config: Config) -> int:
    """One process for each GPU of the flavor; they share the recipe's batch, so that the run stays the same run.

    Raises:
        InputError: the batch cannot be shared among them evenly.
    """
    match = re.search(r"x(\d+)$", flavor)
    count, steps = int(match[1]) if match else 1, config.gradient_accumulation_steps
    if steps % count:
        what = f"{flavor} has {count} GPUs, and {steps} gradient accumulation steps cannot be shared among them"
        fix = f"a flavor with one GPU, or gradient_accumulation_steps that are a multiple of {count}"
        raise InputError(what, where="parameter job_flavor", fix=fix)
    return count


def code_zip() -> bytes:
    """The package's source, the notebooks and the lock as a zip, the same bytes for the same source."""
    content = (path for ending in ("py", "toml", "jinja", "jsonl") for path in PACKAGE.rglob(f"*.{ending}"))
    files = [path for path in content if "smoke" not in path.parts or path.suffix == ".py"]
    notebooks = {f"{PACKAGE.name}/notebooks/{path.name}": path for path in notebooks_folder().glob("0*.ipynb")}
    return zip_of({path.relative_to(PACKAGE.parent).as_posix(): path for path in files} | notebooks)


def inputs_of(config: Config) -> tuple[dict[str, Path], dict[str, str]]:
    """Local files that the job needs (name in the zip → file), and the parameters that point to them there.

    Raises:
        InputError: files that are missing or too large to travel. CheckFailed: one of them holds a secret.
    """
    used = [("model", config.model_id == EMBEDDED), ("data", not config.data_files and config.dataset_id == EMBEDDED)]
    paths = [path for name, wanted in used if wanted for path in texts_of(EMBEDDED_DIR / name)]
    files, moved = {path.relative_to(PACKAGE.parent).as_posix(): path for path in paths}, {}
    if config.model_id != EMBEDDED and (folder := Path(config.model_path)).is_dir():
        moved["model_id"] = f"inputs/{folder.resolve().name}"
        files |= {f"{moved['model_id']}/{path.relative_to(folder).as_posix()}": path for path in texts_of(folder)}
    if config.data_patterns:
        data = _data_files(config.data_patterns)
        files, moved["data_files"] = files | data, ", ".join(data)
    total = sum(path.stat().st_size for path in files.values())
    if total > LARGEST_INPUTS:
        what = f"the local model and data are {size(total)}; a job carries up to {size(LARGEST_INPUTS)} along"
        fix = "put the model or the data set on the Hub (private is fine) and use its id as model_id or dataset_id"
        raise TooLarge(what, where=", ".join(moved) or "model_id", fix=fix)
    if findings := scan_files(files.values(), Path("/"), known_secrets()):
        listed = "; ".join(Path(finding).name for finding in findings[:5])
        fix = "remove it (and revoke it), make the data again with 02, then write the job again"
        raise CheckFailed("a file that the job would carry holds what looks like a secret", where=listed, fix=fix)
    return files, moved


def _data_files(patterns: list[str]) -> dict[str, Path]:
    """Every data file once, in order, under a name of its own without a comma, which separates names in ``data_files``."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        paths = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise InputError("a data file is missing", where=pattern, fix="the job takes the files that 02 read: put them back")
        found.update(dict.fromkeys(map(Path, paths)))
    return {f"inputs/data-{number}/{path.name.replace(',', '_')}": path for number, path in enumerate(found)}


def zip_of(files: Mapping[str, Path]) -> bytes:
    """A zip with sorted names and no dates, so that the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, files[name].read_bytes())
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(content).hexdigest()
