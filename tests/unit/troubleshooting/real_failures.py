"""Known failures as they really happen: each function raises what the library raises, none builds a message."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import sys
from pathlib import Path

from tiny import tiny_model

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve

QUESTION = [{"role": "user", "content": "Hello"}]


# Installing


def package_missing(folder: Path) -> None:
    found = sys.modules.pop("gguf", None)
    paths, sys.path[:] = list(sys.path), [str(folder)]
    importlib.invalidate_caches()
    try:
        importlib.import_module("gguf")
    finally:
        sys.path[:] = paths
        if found:
            sys.modules["gguf"] = found


def name_gone(folder: Path) -> None:
    exec("from transformers import TFTrainer", {})  # noqa: S102 - a cell of an old notebook


def version_refused(folder: Path) -> None:
    from transformers.utils.versions import require_version

    require_version("numpy>=99")


def library_calls_library(folder: Path) -> None:
    """The guide's old pins: transformers' trainer calls accelerate with an argument that it did not have before 1.0."""
    import accelerate
    from transformers import Trainer, TrainingArguments

    today = accelerate.Accelerator.unwrap_model
    accelerate.Accelerator.unwrap_model = lambda self, model, keep_fp32_wrapper=True: model
    try:
        rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 2
        arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none", save_strategy="no", max_steps=1, disable_tqdm=True)
        Trainer(_model(folder), arguments, train_dataset=rows).train()
    finally:
        accelerate.Accelerator.unwrap_model = today


def sentencepiece_hidden(folder: Path) -> None:
    """transformers' own check, with the library hidden from it."""
    from transformers.utils import import_utils

    kept = import_utils.BACKENDS_MAPPING["sentencepiece"]
    import_utils.BACKENDS_MAPPING["sentencepiece"] = (lambda: False, kept[1])
    try:
        import_utils.requires_backends("LlamaTokenizer", "sentencepiece")
    finally:
        import_utils.BACKENDS_MAPPING["sentencepiece"] = kept


# Device and number format


def mps_not_here(folder: Path) -> None:
    import torch

    torch.empty(1, device="mps")


def cuda_not_here(folder: Path) -> None:
    import torch

    torch.empty(1, device="cuda")


def device_refused(folder: Path) -> None:
    from mac_lora_helpers import environment

    environment.choose_device(resolve({"device": "mps"}, {}))


def half_on_the_cpu(folder: Path) -> None:
    import torch

    torch.linalg.qr(torch.ones(2, 2, dtype=torch.float16))


def float16_refused(folder: Path) -> None:
    from mac_lora_helpers import environment

    config = resolve({"dtype": "float16", "device": "cpu"}, {})
    environment.choose_dtype(config, environment.choose_device(config))


# Memory and disk


def tensor_too_large(folder: Path) -> None:
    import torch

    torch.empty(10**14)


def array_too_large(folder: Path) -> None:
    import numpy

    numpy.zeros(10**15)


def bytes_too_many(folder: Path) -> None:
    bytearray(1 << 60)


def disk_full(folder: Path) -> None:
    with open("/dev/full", "w") as stream:
        stream.write("x" * 100_000)


# Models and tokenizers


def _model(folder: Path, **sizes: int):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model(folder / "model", **sizes))


def _tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model(folder / "model"))


def weights_missing(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model(folder / "model")
    (model / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(model)


def tokenizer_missing(folder: Path) -> None:
    from mac_lora_helpers import data

    model = tiny_model(folder / "model")
    for file in model.glob("tokenizer*"):
        file.unlink()
    data.load_tokenizer(resolve({"model_id": str(model)}, {}))


def weights_cut_off(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights = tiny_model(folder / "model") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])
    AutoModelForCausalLM.from_pretrained(weights.parent)


def weights_are_a_pointer(folder: Path) -> None:
    from safetensors.torch import load_file

    (folder / "a.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    load_file(folder / "a.safetensors")


def _edited(folder: Path, **values: object) -> Path:
    file = tiny_model(folder / "model") / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return file.parent


def architecture_unknown(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(_edited(folder, model_type="brandnew"))


def code_of_its_own(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = _edited(folder, model_type="brandnew", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)


def token_beyond_the_embedding(folder: Path) -> None:
    import torch

    _model(folder)(torch.tensor([[100_000]]))


# Data


def template_missing(folder: Path) -> None:
    tokenizer = _tokenizer(folder)
    tokenizer.chat_template = None
    tokenizer.apply_chat_template(QUESTION)


def template_missing_in_ours(folder: Path) -> None:
    from mac_lora_helpers import data

    tokenizer = _tokenizer(folder)
    tokenizer.chat_template = None
    data.render_prompt(tokenizer, QUESTION)


def template_raises(folder: Path) -> None:
    tokenizer = _tokenizer(folder)
    tokenizer.chat_template = "{{ raise_exception('Conversation roles must alternate user/assistant') }}"
    tokenizer.apply_chat_template(QUESTION)


def no_padding_token(folder: Path) -> None:
    tokenizer = _tokenizer(folder)
    tokenizer.pad_token = None
    tokenizer(["a", "longer than that"], padding=True)


def json_broken(folder: Path) -> None:
    import datasets

    (folder / "bad.jsonl").write_text('{"a": 1}\n{"a": \n')
    datasets.load_dataset("json", data_files=str(folder / "bad.jsonl"), split="train", cache_dir=str(folder))


def _encode(folder: Path, text: str, **parameters: object) -> None:
    from mac_lora_helpers import data

    (folder / "d.jsonl").write_text(text)
    config = resolve({"preset": "smoke", "data_files": str(folder / "d.jsonl"), **parameters}, {})
    found = data.validate(data.load(config), config)
    data.encode(data.split(found, config), data.load_tokenizer(config), config)


def rows_broken(folder: Path) -> None:
    _encode(folder, '{"messages": [{"role": "user", "content": "no answer"}]}\n' * 3)


def rows_too_long(folder: Path) -> None:
    rows = [[*QUESTION, {"role": "assistant", "content": f"{i} is a number, and this answer is a long one. " * 9}] for i in range(8)]
    _encode(folder, "".join(json.dumps({"messages": row}) + "\n" for row in rows), max_seq_length=32)


# Training


def peft_targets(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    get_peft_model(_model(folder), LoraConfig(target_modules=["query_key_value"], task_type="CAUSAL_LM"))


def peft_target_is_no_layer(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    get_peft_model(_model(folder), LoraConfig(target_modules=["self_attn"], task_type="CAUSAL_LM"))


def our_targets(folder: Path) -> None:
    from mac_lora_helpers import training

    training.find_targets(_model(folder), "query_key_value")


def sft_config_renamed(folder: Path) -> None:
    from trl import SFTConfig

    SFTConfig(output_dir=str(folder), max_seq_length=512)


def sft_trainer_renamed(folder: Path) -> None:
    from trl import SFTTrainer

    SFTTrainer(model=None, tokenizer=None)


def training_arguments_renamed(folder: Path) -> None:
    from transformers import TrainingArguments

    TrainingArguments(output_dir=str(folder), evaluation_strategy="no")


def four_bit_argument(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_model(folder / "model"), load_in_4bit=True)


def sampling_from_nan(folder: Path) -> None:
    import torch

    model = _model(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    model.generate(torch.tensor([[5, 6]]), do_sample=True, max_new_tokens=2)


def adapter_of_another_size(folder: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    get_peft_model(_model(folder), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder / "adapter")
    PeftModel.from_pretrained(_model(folder / "other", hidden_size=64), folder / "adapter")


# Jupyter, papermill, the command line


def parameter_unknown(folder: Path) -> None:
    resolve({"max_step": 3}, {})


def parameter_of_the_wrong_kind(folder: Path) -> None:
    resolve({"max_steps": "ten"}, {})


def papermill_parameter_missing(folder: Path) -> None:
    import papermill

    papermill.execute_notebook(str(folder / "{which}.ipynb"), None, {"seed": 1})


def earlier_notebook(folder: Path) -> None:
    RunDir(folder / "run").read_json("manifest")


def other_settings(folder: Path) -> None:
    resolve({"model_id": "a"}, {}).inherit({"model_id": "b"}, "data", made_by="02_data_formatting.ipynb")


def foreign_adapter(folder: Path) -> None:
    run = RunDir(folder / "run")
    run.write_json("train_config", {"adapter_digest": "of another adapter"})
    run.check_trained()


def two_runs_in_one_folder(folder: Path) -> None:
    from mac_lora_helpers import locks

    with locks.running(folder, "one run"), locks.running(folder, "another"):
        pass


def out_dir_is_a_file(folder: Path) -> None:
    (folder / "file").touch()
    RunDir(folder / "file" / "run")


def port_taken(folder: Path) -> None:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        first.listen()
        second.bind(first.getsockname())


def asks_a_question(folder: Path) -> None:
    with open(os.devnull) as nobody, contextlib.ExitStack() as after:
        after.callback(setattr, sys, "stdin", sys.stdin)
        sys.stdin = nobody
        input("go on? ")


#: The failure that each of them is.
REAL = {
    "package-missing": [package_missing],
    "versions": [name_gone, version_refused, library_calls_library],
    "sentencepiece": [sentencepiece_hidden],
    "no-such-device": [mps_not_here, cuda_not_here, device_refused],
    "half-precision": [half_on_the_cpu, float16_refused],
    "out-of-memory": [tensor_too_large, array_too_large, bytes_too_many],
    "disk-full": [disk_full],
    "model-files": [weights_missing, tokenizer_missing],
    "damaged-weights": [weights_cut_off, weights_are_a_pointer],
    "unknown-architecture": [architecture_unknown, code_of_its_own],
    "vocabulary": [token_beyond_the_embedding],
    "no-chat-template": [template_missing, template_missing_in_ours],
    "template-refuses": [template_raises],
    "padding-token": [no_padding_token],
    "rows": [json_broken, rows_broken],
    "too-long": [rows_too_long],
    "lora-targets": [peft_targets, peft_target_is_no_layer, our_targets],
    "renamed-arguments": [sft_config_renamed, sft_trainer_renamed, training_arguments_renamed, four_bit_argument],
    "loss-nan": [sampling_from_nan],
    "other-adapter": [adapter_of_another_size],
    "parameters": [parameter_unknown, parameter_of_the_wrong_kind, papermill_parameter_missing],
    "earlier-notebook": [earlier_notebook],
    "other-settings": [other_settings, foreign_adapter],
    "in-use": [two_runs_in_one_folder],
    "not-writable": [out_dir_is_a_file],
    "port": [port_taken],
    "waiting": [asks_a_question],
}
