"""The base model on disk: found, counted, recognized for what it is, and refused before anything is opened that could run code."""

import json
import pickle
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer

from mac_lora_helpers import model
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError


def of(folder, **values):
    return resolve({"model_id": str(folder), **values}, env={})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "model")


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def shard(folder, names=("a.safetensors", "b.safetensors")):
    """The same weights in two files, with an index that names them."""
    tensors = load_file(folder / model.SINGLE)
    (folder / model.SINGLE).unlink()
    placed = {key: names[at % 2] for at, key in enumerate(sorted(tensors))}
    for name in set(names):
        save_file({key: tensors[key] for key in placed if placed[key] == name}, folder / name, {"format": "pt"})
    (folder / model.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return placed


def refused(config):
    with pytest.raises(InputError) as caught:
        model.require_base(config)
    assert caught.value.fix
    assert model.find_base(config).problem
    return str(caught.value)


def test_a_folder_is_counted_from_its_weights_in_one_file_or_several(folder):
    from transformers import AutoModelForCausalLM

    true = AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    base = model.find_base(of(folder))
    assert (base.parameters, base.source, base.kind, base.local, base.problem) == (true, "counted in its weights", "text", True, "")
    shard(folder)
    assert model.find_base(of(folder)).parameters == true
    assert model.require_base(of(folder)) == str(folder)
    (folder / "b.safetensors").unlink()
    assert "b.safetensors is missing" in refused(of(folder))


def test_the_embedded_model():
    base = model.find_base(resolve({}, env={}))
    assert (base.local, base.kind, base.size) == (True, "text", "1.82 M")


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return open, (str(self.place), "w")


@pytest.mark.parametrize("way", ["alone", "in the index", "in the config"])
def test_a_pickle_is_refused_unopened(folder, tmp_path, way):
    with (folder / "pytorch_model.bin").open("wb") as stream:
        pickle.dump(Trap(tmp_path / "opened"), stream)
    if way == "alone":
        (folder / model.SINGLE).unlink()
    if way == "in the index":
        placed = shard(folder)
        (folder / model.INDEX).write_text(json.dumps({"weight_map": {**placed, sorted(placed)[0]: "pytorch_model.bin"}}))
    if way == "in the config":
        edit(folder / "config.json", transformers_weights="pytorch_model.bin")
    message = refused(of(folder))
    assert "pytorch_model.bin" in message
    assert "can run code" in message
    with pytest.raises(InputError):
        model.load_base(of(folder))
    assert not (tmp_path / "opened").exists()


def test_a_file_outside_the_folder_is_not_followed(folder, tmp_path):
    placed = shard(folder)
    shutil.copy(folder / "b.safetensors", tmp_path / "b.safetensors")
    (folder / model.INDEX).write_text(json.dumps({"weight_map": {**placed, sorted(placed)[1]: "../b.safetensors"}}))
    assert "outside the folder" in refused(of(folder))


def test_an_adapter_given_as_the_model(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "someone/the-base"}))
    message = refused(of(folder))
    assert "LoRA adapter" in message
    assert "adapter_dir" in message
    assert "someone/the-base" in message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX, 4 bits"),
        ({"quantization": {"group_size": 64, "bits": 4}, "quantization_config": {"group_size": 64, "bits": 4}}, "MLX, 4 bits"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
    ],
)
def test_quantized_checkpoints(folder, settings, said):
    edit(folder / "config.json", **settings)
    message = refused(of(folder))
    assert f"quantized ({said})" in message
    assert "original model" in message


def test_a_gguf_file_and_a_folder_of_them(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF\x03\0\0\0")
    assert "a GGUF file" in refused(of(file))
    assert "GGUF files" in refused(of(tmp_path))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no readable config.json"),
        ({"config.json": "{broken"}, "no readable config.json"),
        ({"config.json": "[" * 100_000}, "no readable config.json"),
        ({"config.json": '{"architectures": ["BertForMaskedLM"]}'}, "no causal language model"),
        ({"config.json": '{"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": true}'}, "no causal language model"),
        ({"config.json": '{"architectures": ["LlamaForCausalLM"]}'}, "no *.safetensors weights"),
        ({"config.json": "{}", "model.safetensors": "\x7f" * 40}, "damaged or cut short"),
    ],
)
def test_folders_that_are_no_model(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert said in refused(of(tmp_path))


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such", "a/b/c"])
def test_a_folder_that_is_not_there(name):
    assert "no such folder" in refused(of(name))


def test_a_vision_model_by_its_config(folder):
    edit(folder / "config.json", vision_config={}, architectures=["Gemma3ForConditionalGeneration"])
    assert model.find_base(of(folder)).kind == "vision"
    assert model.require_base(of(folder)) == str(folder)


@pytest.mark.parametrize(
    ("name", "parameters", "kind", "quantized"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 500e6, "unknown", False),
        ("Qwen/Qwen2.5-7B-Instruct-1M", 7e9, "unknown", False),
        ("somebody/long-1M-context-7B", 7e9, "unknown", False),
        ("mistralai/Mixtral-8x7B-v0.1", 56e9, "unknown", False),
        ("Qwen/Qwen3-30B-A3B", 30e9, "unknown", False),
        ("google/gemma-3-270m-it", 270e6, "unknown", False),
        ("microsoft/Phi-3-mini-4k-instruct", None, "unknown", False),
        ("openai-community/gpt2", None, "unknown", False),
        ("roneneldan/TinyStories-33M", 33e6, "unknown", False),
        ("llava-hf/llava-1.5-7b-hf", 7e9, "vision", False),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3e9, "vision", False),
        ("HuggingFaceTB/SmolVLM-500M-Instruct", 500e6, "vision", False),
        ("OpenGVLab/InternVL2_5-1B", 1e9, "vision", False),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", 11e9, "vision", False),
        ("deepseek-ai/deepseek-vl2-tiny", None, "vision", False),
        ("unsloth/Qwen2.5-0.5B-bnb-4bit", 500e6, "unknown", True),
        ("TheBloke/Llama-2-7B-GPTQ", 7e9, "unknown", True),
        ("Qwen/Qwen2.5-0.5B-Instruct-AWQ", 500e6, "unknown", True),
    ],
)
def test_what_a_hub_id_tells(name, parameters, kind, quantized):
    base = model.base_from_name(name)
    assert (base.parameters, base.kind, bool(base.quantized)) == (parameters, kind, quantized)


# In the Hub's cache, and on the Hub


@pytest.fixture
def cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def put_in_cache(cache, folder, files, name="someone/model-1B"):
    """As huggingface_hub lays a downloaded model down."""
    repo = cache / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    for file in files:
        shutil.copy(folder / file, snapshot / file)
    return name


def test_a_cached_model_is_used_without_a_network(cache, folder):
    name = put_in_cache(cache, folder, ["config.json", "model.safetensors", "generation_config.json"])
    base = model.find_base(of(name))
    assert (base.local, base.parameters) == (True, model.find_base(of(folder)).parameters)
    assert model.require_base(of(name)) == name
    assert model.base_weights(of(name))["digest"] == model.base_weights(of(folder))["digest"]


def test_a_cache_that_holds_the_config_alone_is_no_problem(cache, folder):
    name = put_in_cache(cache, folder, ["config.json"])
    base = model.find_base(of(name))
    assert (base.local, base.problem, base.kind, base.parameters) == (False, "", "text", 1e9)
    assert model.base_weights(of(name)) is None


def test_a_cached_pickle_is_refused(cache, folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    name = put_in_cache(cache, folder, ["config.json", "pytorch_model.bin"])
    assert "can run code" in refused(of(name))


# Stop tokens


def test_stop_tokens_are_the_tokenizers_the_models_and_the_templates(folder, cache):
    tokenizer = tiny_tokenizer()
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    tokenizer.eos_token = "<|endoftext|>"
    assert model.turn_end(tokenizer) == end
    assert model.stop_tokens(of(folder), tokenizer) == [pad, end]
    edit(folder / "generation_config.json", eos_token_id=[pad, 7])
    assert model.stop_tokens(of(folder), tokenizer) == [pad, 7, end]
    name = put_in_cache(cache, folder, ["config.json", "generation_config.json"])
    assert model.stop_tokens(of(name), tokenizer) == [pad, 7, end]
