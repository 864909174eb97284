"""The config of a run: the parameters' values, and where each came from.

A value comes from, first match wins: the caller (``-p``, papermill, an edited ``parameters`` cell), the environment, the draft
(what was typed into a form of this run), the preset, the default.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError
from pydantic_core import PydanticCustomError

from mac_lora_helpers import threads
from mac_lora_helpers.artifacts import ARTIFACTS, CONSENT
from mac_lora_helpers.drafts import Draft
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.ownership import refuse_inputs
from mac_lora_helpers.parameters import EMBEDDED, EMBEDDED_DIR, PRESETS, Parameters, parameter_info, preset_values
from mac_lora_helpers.redaction import find_secrets, portable
from mac_lora_helpers.smoke.real import REAL, real_model
from mac_lora_helpers.troubleshooting import answer_in_notebook

__all__ = [
    "CONSENT",
    "EMBEDDED",
    "EMBEDDED_DIR",
    "PRESETS",
    "Config",
    "configure",
    "parameter_info",
    "preset_values",
    "resolve",
    "why_refused",
]

#: zsh and bash keep their own prompt in PROMPT/PS1; escapes like ``%n@%m %#`` are not a question.
_SHELL_PROMPT = re.compile(r"%[nmMdl~#?hyTtDLjB0-9(/{]|\$\{|\\[uhwW$]")


class Config(Parameters):
    """The resolved parameters of a run, and where each came from."""

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)
    _given: dict[str, tuple[Any, str]] = PrivateAttr(default_factory=dict)
    _draft: Draft | None = PrivateAttr(default=None)
    _in_notebook: bool = PrivateAttr(default=False)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).model_fields:
            _refuse_secrets({f"parameter {name}": value})
        kept = getattr(self, name, None)
        super().__setattr__(name, value)
        if name not in type(self).model_fields:
            return
        if self._in_notebook and name in ("out_dir", "data_files", "dataset_id", "model_id", "adapter_dir"):
            try:
                self.refuse_inputs_among_outputs()
            except InputError as error:
                super().__setattr__(name, kept)
                refused = {"type": PydanticCustomError("place", "{what}", {"what": error.what}), "loc": (name,), "input": value}
                raise ValidationError.from_exception_data("Config", [refused]) from None
        self._sources[name] = "form"
        if name in ("data_files", "dataset_id"):
            self.follow_data()

    def source_of(self, name: str) -> str:
        """Where the value came from: parameter, environment, form, draft, saved, preset or default."""
        return self._sources.get(name, "default")

    def asked(self, name: str) -> bool:
        """Whether somebody set the value for this run: neither preset, default nor an earlier notebook did."""
        return self.source_of(name) in ("parameter", "environment", "form", "draft")

    def given(self, name: str) -> str:
        """Who set the value outside the forms: parameter, environment, or nobody (empty)."""
        return self._given.get(name, (None, ""))[1]

    @property
    def draft(self) -> Draft | None:
        """Where a form keeps what is typed; None where nobody fills in forms."""
        return self._draft

    def preset_changes(self, preset: str) -> dict[str, Any]:
        """What choosing a preset changes: its values for all that nobody set, where they differ from the present ones."""
        free = {name: value for name, value in preset_values(preset).items() if self.source_of(name) in ("preset", "default")}
        return {name: value for name, value in free.items() if name != "preset" and value != getattr(self, name)}

    def take_preset(self, preset: str) -> None:
        """Takes a preset; what somebody set stays."""
        changes = self.preset_changes(preset)
        self.preset = preset
        for name, value in changes.items():
            self._take(name, value, "preset" if name in PRESETS[preset] else "default")

    def release(self, name: str) -> None:
        """The value that holds where nothing was typed into a form: the caller's, the environment's or the preset's."""
        value, source = self._given.get(name, (None, ""))
        if name == "preset":
            self.take_preset(value or self.preset)
            self._sources[name] = source or "default"
        elif source:
            self._take(name, value, source)
        else:
            self._take(name, preset_values(self.preset)[name], "preset" if name in PRESETS[self.preset] else "default")
        self.follow_data()

    def follow_data(self) -> None:
        """Takes the preset that fits the data, where nobody chose one."""
        if self.source_of("preset") == "default":
            wanted = _default_preset({name: getattr(self, name) for name in ("data_files", "dataset_id") if self.asked(name)})
            if wanted != self.preset:
                self.take_preset(wanted)
                self._sources["preset"] = "default"

    def _take(self, name: str, value: Any, source: str) -> None:
        setattr(self, name, value)
        self._sources[name] = source

    @property
    def model_path(self) -> str:
        """What ``from_pretrained`` takes: a folder if there is one, else the Hub id.

        Raises:
            InputError: the real model's wheel is not installed. CheckFailed: no room to unpack it.
        """
        if self.model_id == EMBEDDED:
            return str(EMBEDDED_DIR / "model")
        if self.model_id == REAL:
            return str(real_model())
        folder = Path(self.model_id).expanduser()
        return str(folder) if folder.is_dir() else self.model_id

    @property
    def data_patterns(self) -> list[str]:
        """``data_files`` as a list of paths or globs; a comma in the name of a real file is no separator."""
        whole = os.path.expanduser(self.data_files.strip())
        if not whole or Path(whole).exists():
            return [whole] if whole else []
        return [os.path.expanduser(part.strip()) for part in whole.split(",") if part.strip()]

    @property
    def effective_batch_size(self) -> int:
        """Rows per optimizer step on one device."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def inputs(self) -> list[tuple[str, str]]:
        """(parameter, path) of what this run reads from this machine's disk: files of data, a model's folder, an adapter's."""
        found = [("data_files", path) for pattern in self.data_patterns for path in [pattern, *glob.glob(pattern, recursive=True)]]
        named = [(name, os.path.expanduser(getattr(self, name))) for name in ("model_id", "dataset_id", "adapter_dir")]
        return [(name, path) for name, path in [*found, *named] if path not in ("", EMBEDDED, REAL) and os.path.exists(path)]

    def refuse_inputs_among_outputs(self) -> None:
        """An input must not lie where an output would; the run's own adapter may be named.

        Raises:
            InputError: one does. Nothing has been written.
        """
        root = Path(self.out_dir).expanduser().absolute()
        own = [root.resolve() / name for name in ("adapter", "checkpoints")]
        inputs = [(name, path) for name, path in self.inputs() if name != "adapter_dir" or not _is_below(Path(path).resolve(), root, own)]
        refuse_inputs(root, inputs, sorted((path for path, _ in ARTIFACTS.values()), key=len, reverse=True))

    def consents(self) -> list[str]:
        """What this run may do beside reading and computing, each in one line."""
        code = f"trust_remote_code is on: Python code that comes with {portable(self.model_id)} may run on this machine"
        sent = f"push is on: {self.push_artifacts} will be sent to {self.repo_id or 'the Hub'}"
        told = {"trust_remote_code": code, "push": sent, "submit_job": "submit_job is on: a cloud job will be started, and it costs money"}
        return [told[name] for name in CONSENT if getattr(self, name)]

    def names(self, *stages: str) -> list[str]:
        """Parameter names that the given stages own, in the order above."""
        return [name for name, field in type(self).model_fields.items() if field.json_schema_extra["stage"] in stages]

    def inherit(self, saved: Mapping[str, Any], *stages: str, made_by: str) -> Config:
        """A copy that takes the given stages' parameters, and the preset, from an earlier stage's saved config.

        Raises:
            InputError: the caller set one of them to something else; ``made_by`` must run again.
        """
        names = [name for name in ("preset", *self.names(*stages)) if name in saved and name not in CONSENT]
        had = resolve({"preset": self.preset, **{name: saved[name] for name in names}}, env={})
        for name in names:
            asked, kept = _expanded(getattr(self, name)), _expanded(getattr(had, name))
            if self.source_of(name) in ("parameter", "form") and asked != kept:
                raise InputError(
                    f"{name} is {getattr(self, name)!r} here, but the run directory was made with {getattr(had, name)!r}",
                    where=f"parameter {name}",
                    fix=f"run {made_by} again with this value, or leave it at {getattr(had, name)!r}",
                )
        own = {name: getattr(self, name) for name in type(self).model_fields if self.source_of(name) not in ("preset", "default")}
        merged = had.model_copy(update={name: value for name, value in own.items() if name not in names})
        merged._sources = {**had._sources, **self._sources, **dict.fromkeys(names, "saved")}
        merged._given, merged._draft, merged._in_notebook = self._given, self._draft, self._in_notebook
        for line in merged.consents()[: merged.trust_remote_code and merged.model_id != self.model_id]:
            print(line)
        return merged


def resolve(
    explicit: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None, draft: Mapping[str, Any] | None = None
) -> Config:
    """Builds the config from explicit values, the environment, a form's draft, the preset and the defaults, in that order.

    Raises:
        InputError: an unknown name (with the nearest known one), a value that holds a secret, or values that are not allowed,
            all of them at once.
    """
    explicit, draft = dict(explicit or {}), dict(draft or {})
    _refuse_unknown(explicit)
    from_env = _environment_values(os.environ if env is None else env)
    _refuse_secrets({f"parameter {name}": value for name, value in explicit.items()})
    _refuse_secrets({f"{name.upper()} in the environment": value for name, value in from_env.items()})
    preset = str({"preset": _default_preset(draft | from_env | explicit), **draft, **from_env, **explicit}["preset"])
    values, sources = {"preset": preset}, {}
    layers = {"preset": PRESETS.get(preset, {}), "draft": draft, "environment": from_env, "parameter": explicit}
    for source, layer in layers.items():
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise _readable(error, sources) from None
    config._sources = sources
    config._given = {name: (getattr(config, name), source) for name, source in sources.items() if source in ("environment", "parameter")}
    return config


def _default_preset(given: Mapping[str, Any]) -> str:
    """The recipe follows the data: with rows of one's own it is the real recipe, not the toy."""
    own = str(given.get("data_files") or "").strip() or str(given.get("dataset_id") or EMBEDDED) != EMBEDDED
    return "local" if own else Config.model_fields["preset"].default


def configure(namespace: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Config:
    """The config of a running notebook: pass ``globals()`` right after the ``parameters`` cell.

    A value counts as set by the caller when papermill injected it or when it differs from what the
    ``parameters`` cell holds in the repository. Relative paths start at the project's folder, also
    when Jupyter starts the kernel inside ``notebooks/``. Known failures of the cells below are answered from here on.
    What was typed into a form of this run counts again; a headless run takes only what its command says.
    """
    threads.settle()
    answer_in_notebook()
    if Path("01_environment_check.ipynb").exists():
        os.chdir("..")
    stored = preset_values(Config.model_fields["preset"].default)
    edited = {name: namespace[name] for name in stored if name in namespace and namespace[name] != stored[name]}
    injected = {name: namespace[name] for name in _injected_names(namespace) if name in namespace}
    explicit = {**edited, **injected}
    config = resolve(explicit, env)
    if os.environ.get("MAC_LORA_HEADLESS") != "1":
        draft = Draft(config.out_dir, set(Config.model_fields) - set(CONSENT))
        config = resolve(explicit, env, draft.read())
        config._draft = draft
    config.refuse_inputs_among_outputs()
    config._in_notebook = True
    print("\n".join(config.consents()), end="\n" if config.consents() else "")
    return config


def _injected_names(namespace: Mapping[str, Any]) -> list[str]:
    """Names that papermill's injected cell assigns; it starts with the comment ``# Parameters``."""
    cells = [cell for cell in namespace.get("In", []) if str(cell).startswith("# Parameters\n")]
    if not cells:
        return []
    try:
        body = ast.parse(cells[-1]).body
    except (SyntaxError, ValueError):  # a cell of the user's own that begins with the same comment, with a magic in it
        return []
    targets = [node.targets[0] for node in body if isinstance(node, ast.Assign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _environment_values(env: Mapping[str, str]) -> dict[str, str]:
    values = {name: env[name.upper()] for name in Config.model_fields if name.upper() in env}
    if "prompt" in values and _SHELL_PROMPT.search(values["prompt"]):
        del values["prompt"]
    if values.get("columns", "").strip().isdigit():  # a terminal's width, which shells and test runners export
        del values["columns"]
    return values


def _is_below(path: Path, root: Path, own: list[Path]) -> bool:
    return path == root.resolve() or any(folder == path or folder in path.parents for folder in own)


def _expanded(value: Any) -> Any:
    """Saved paths begin with ``~``; the same path written out is no contradiction."""
    return re.sub(r"(^|[\s,])~(?=/)", lambda m: m[1] + os.path.expanduser("~"), value) if isinstance(value, str) else value


def _refuse_unknown(names: Mapping[str, Any]) -> None:
    for name in names:
        if name not in Config.model_fields:
            near = difflib.get_close_matches(name.lower(), Config.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "see `mac-lora run --help` for the list"
            raise InputError(f"unknown parameter {name!r}", where=f"parameter {name}", fix=hint)


def _is_utf8(text: str) -> bool:
    """On a terminal that knows only ASCII a value's bytes stand in the text as they came; they may be UTF-8 all the same."""
    for convert in (str.encode, lambda value: os.fsencode(value).decode("utf-8")):
        with contextlib.suppress(UnicodeError):
            return convert(text) is not None
    return False


def _refuse_secrets(values: Mapping[str, Any]) -> None:
    """Parameters are stored in the executed notebooks and in ``run.json``, as text."""
    for place, value in values.items():
        if not _is_utf8(str(value)):
            raise InputError("the value is not UTF-8 text", where=place, fix="write it in UTF-8; a file of such a name can be renamed")
        kinds = find_secrets(str(value))
        if kinds:
            raise InputError(
                f"the value holds what looks like a secret ({kinds[0]}); parameters are stored in the executed notebooks",
                where=place,
                fix="leave it out; for the Hub log in with `hf auth login`, or set HF_TOKEN in the environment",
            )


def _readable(error: ValidationError, sources: Mapping[str, str]) -> InputError:
    problems, places = [], []
    for item in error.errors():
        name = str(item["loc"][0])
        source = sources.get(name, "default")
        told = {"environment": f"{name.upper()} in the environment", "draft": f"{name} in the form's draft (draft.json)"}
        places.append(told.get(source, f"parameter {name}"))
        problems.append(f"{name}={item['input']!r}: {_message(item)}")
    helps = [f"{p.split('=')[0]}: {Config.model_fields[p.split('=')[0]].description}" for p in problems]
    return InputError("; ".join(problems), where=", ".join(places), fix="; ".join(helps))


def why_refused(error: ValidationError) -> str:
    """The reason for which a single value was refused."""
    return _message(error.errors()[0])


def _message(item: Mapping[str, Any]) -> str:
    kinds = {
        "int_parsing": "not a whole number",
        "int_from_float": "not a whole number",
        "float_parsing": "not a number",
        "bool_parsing": "not true or false",
        "string_too_short": "must not be empty",
        "string_pattern_mismatch": "not of that form",
    }
    return kinds.get(item["type"], item["msg"][:1].lower() + item["msg"][1:])
