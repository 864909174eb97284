"""GGUF files: every family in the real llama.cpp, the fields its loader wants, refusals, the LoRA file, the Modelfile."""

import re
import stat

import numpy as np
import pytest
from family_tokenizers import QWEN_DEFAULT, byte_level, family_tokenizer
from trained_run import changed, make_trained

from mac_lora_helpers import export
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact
from mac_lora_helpers.export.adapter import trained_config
from mac_lora_helpers.export.equivalence import check as equivalence
from mac_lora_helpers.export.equivalence import engine_llama_cpp
from mac_lora_helpers.export.equivalence.artefacts import candidates
from mac_lora_helpers.export.equivalence.engines import Prompt
from mac_lora_helpers.export.equivalence.reference import Reference
from mac_lora_helpers.export.gguf import model as gguf_model
from mac_lora_helpers.export.gguf import tokenizer as gguf_tokenizer
from mac_lora_helpers.export.gguf import types as gguf_types
from mac_lora_helpers.export.gguf.modelfile import go_template, modelfile, read_pieces

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "qwen2": ("qwen2", None, {}),
    "qwen2 yarn": (
        "qwen2",
        None,
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 256}},
    ),
    "qwen3": ("qwen3", None, {"head_dim": 16}),
    "llama 3": ("llama", "llama3", {"tie_word_embeddings": False, "rope_parameters": LLAMA3_ROPE}),
    "llama 2": ("llama", "llama2", {"attention_bias": True}),
    "llama linear": ("llama", "gpt2", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "smollm": ("llama", "smollm", {}),
    "mistral": ("mistral", "mistral", {"tie_word_embeddings": False, "sliding_window": None}),
    "mistral tekken": ("mistral", "tekken", {"head_dim": 16}),
}
#: Families whose quantized files run as well; how a type is written does not depend on the family.
QUANTIZED = ("qwen2", "llama 3", "mistral")
PRE = {"qwen2": "qwen2", "qwen3": "qwen2", "llama 3": "llama-bpe", "llama 2": "default", "smollm": "smollm", "mistral tekken": "tekken"}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.skipif(not engine_llama_cpp.available(), reason="xllamacpp is not installed")
def test_every_family_passes_in_llama_cpp(tmp_path, name):
    family, kind, settings = FAMILIES[name]
    trained = make_trained(tmp_path, family, tokenizer=family_tokenizer(kind) if kind else None, **settings)
    export.merge(trained.run, trained.config)
    types = ["F16", "Q8_0", "Q4_0"] if name in QUANTIZED else ["F16"]
    files = export.write_gguf(trained.run, changed(trained.config, gguf_types=", ".join(types)))
    assert [file.type for file in files] == [*types, "LoRA"]
    assert [file.note for file in files] == [""] * len(files)
    reference = Reference(trained.run, trained_config(trained.run, trained.config))
    found = {item.name: equivalence.check_one(item, reference) for item in candidates(reference) if item.kind != "mlx"}
    assert len(found) == 3 + len(types)
    for item in found.values():
        assert item["passed"], item
        assert item["prompt_ids_equal"]
    assert found["LoRA GGUF"]["max_logprob_difference"] < 1e-4
    assert found["GGUF F16"]["max_logprob_difference"] < 0.05
    fields = _fields(files[0].path)
    arch = fields("general.architecture")
    assert arch == {"mistral": "llama"}.get(family, family)
    for key in ("context_length", "embedding_length", "block_count", "attention.head_count_kv", "rope.freq_base"):
        assert fields(f"{arch}.{key}") is not None
    assert fields("tokenizer.ggml.pre") == PRE.get(name, fields("tokenizer.ggml.pre"))
    assert fields("tokenizer.chat_template") is not None


def _fields(path):
    from gguf import GGUFReader

    reader = GGUFReader(path)
    return lambda key: None if reader.get_field(key) is None else reader.get_field(key).contents()


def test_a_file_names_no_folder_of_this_machine(tmp_path):
    trained = make_trained(tmp_path)
    export.merge(trained.run, trained.config)
    for file in export.write_gguf(trained.run, trained.config):
        assert str(tmp_path).encode() not in file.path.read_bytes()


def test_rows_that_do_not_fill_a_block_stay_f16_and_are_named(tmp_path):
    trained = make_trained(tmp_path, hidden_size=48, intermediate_size=64)
    export.merge(trained.run, trained.config)
    file = export.write_gguf(trained.run, changed(trained.config, gguf_types="Q4_0"))[0]
    assert "token_embd.weight" in file.kept
    assert "blk.0.ffn_down.weight" not in file.kept
    assert "stayed at F16" in file.note
    entry = next(item for item in export.check_equivalence(trained.run, trained.config).artefacts if item["kind"] == "gguf")
    assert entry["passed"], entry


def test_quantized_bytes_round_trip_through_the_package(trained):
    from gguf import GGUFReader, quants

    export.merge(trained.run, trained.config)
    file = export.write_gguf(trained.run, changed(trained.config, gguf_types="Q8_0"))[0]
    weights = gguf_model.StoredWeights(trained.run.path("merged"))
    tensor = next(item for item in GGUFReader(file.path).tensors if item.name == "blk.1.attn_v.weight")
    wanted = weights["model.layers.1.self_attn.v_proj.weight"].numpy()
    assert np.abs(quants.dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape) - wanted).max() < np.abs(wanted).max() / 100


def test_types_are_read_and_refused_with_the_nearest():
    assert gguf_types.parse_types(" f16, q8_0,F16,,Q4_K_M ") == ["F16", "Q8_0", "Q4_K_M"]
    assert gguf_types.parse_types("") == []
    with pytest.raises(InputError, match="Q8") as caught:
        gguf_types.parse_types("Q8")
    assert "did you mean Q8_0" in caught.value.fix


def test_no_types_no_files(trained):
    assert export.write_gguf(trained.run, changed(trained.config, gguf_types="")) == []
    with pytest.raises(MissingArtifact, match="merged"):
        export.write_gguf(trained.run, trained.config)


def test_other_families_name_the_official_converter():
    from transformers import AutoConfig

    with pytest.raises(InputError, match="gemma2") as caught:
        gguf_model.architecture(AutoConfig.for_model("gemma2"))
    assert "convert_hf_to_gguf.py" in caught.value.fix
    with pytest.raises(InputError, match="dynamic"):
        gguf_model.architecture(AutoConfig.for_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))
    with pytest.raises(InputError, match="SiLU"):
        gguf_model.architecture(AutoConfig.for_model("llama", hidden_act="gelu"))


def test_unknown_tokenizers_are_refused():
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    odd = PreTrainedTokenizerFast(tokenizer_object=byte_level(r"\p{L}+|.", ["<e>"]), eos_token="<e>")
    with pytest.raises(InputError, match="none of those known"):
        gguf_tokenizer.read_vocabulary(odd, len(odd))
    backend = byte_level(None, ["<e>"])
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match="Lowercase"):
        gguf_tokenizer.read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>"), 500)
    with pytest.raises(InputError, match="rows"):
        gguf_tokenizer.read_vocabulary(family_tokenizer("gpt2"), 10)


def test_k_quants_need_the_tool(trained, monkeypatch):
    export.merge(trained.run, trained.config)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(InputError, match="llama-quantize") as caught:
        export.write_gguf(trained.run, changed(trained.config, gguf_types="F16, Q4_K_M"))
    assert "brew install llama.cpp" in caught.value.fix
    assert not trained.run.has("gguf")


def test_k_quants_go_through_the_tool(trained, monkeypatch, tmp_path):
    """The program is a stand-in that copies; what it is called with is ours."""
    export.merge(trained.run, trained.config)
    tool = tmp_path / "bin" / "llama-quantize"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\n[ "$3" = Q4_K_M ] || { echo "cannot do $3" >&2; exit 1; }\nexec /bin/cp "$1" "$2"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tool.parent))
    files = export.write_gguf(trained.run, changed(trained.config, gguf_types="Q4_K_M"))
    assert [file.name for file in files] == ["base-tuned-Q4_K_M.gguf", "base-adapter-F32.gguf"]
    assert sorted(path.name for path in trained.run.path("gguf").iterdir()) == sorted([*(file.name for file in files), "Modelfile"])
    with pytest.raises(CheckFailed, match="cannot do Q6_K"):
        export.write_gguf(trained.run, changed(trained.config, gguf_types="Q6_K"))


@pytest.mark.skipif(not engine_llama_cpp.available(), reason="xllamacpp is not installed")
def test_scales_of_every_kind_are_in_the_lora_file(tmp_path):
    lora = {"r": 8, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}}
    trained = make_trained(tmp_path, "llama", lora=lora)
    export.merge(trained.run, trained.config)
    export.write_gguf(trained.run, changed(trained.config, gguf_types="F16"))
    entry = next(item for item in export.check_equivalence(trained.run, trained.config).artefacts if item["name"] == "LoRA GGUF")
    assert entry["passed"], entry
    assert entry["max_logprob_difference"] < 1e-4


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_that_is_no_plain_lora_has_no_lora_file_but_models(tmp_path):
    trained = make_trained(tmp_path, lora={"use_dora": True})
    export.merge(trained.run, trained.config)
    files = export.write_gguf(trained.run, changed(trained.config, gguf_types="F16"))
    assert [file.type for file in files] == ["F16"]
    assert "no LoRA GGUF beside it: a DoRA adapter cannot be written as a LoRA GGUF" in files[0].note
    entries = {item["name"]: item for item in export.check_equivalence(trained.run, trained.config).artefacts}
    assert entries["GGUF F16"]["passed"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_on_a_shared_head_has_no_lora_file(tmp_path):
    """A base GGUF with a shared head has no tensor that the update could go to."""
    lora = {"target_modules": ["q_proj", "lm_head"]}
    shared, own = make_trained(tmp_path / "a", lora=lora), make_trained(tmp_path / "b", lora=lora, tie_word_embeddings=False)
    for trained, types in ((shared, ["F16", "F32"]), (own, ["F16", "F32", "LoRA"])):
        export.merge(trained.run, trained.config)
        files = export.write_gguf(trained.run, changed(trained.config, gguf_types="F16, F32"))
        assert [file.type for file in files] == types
        assert ("shares with its embedding" in files[0].note) == (trained is shared)
        assert files[1].note == ""


@pytest.mark.parametrize(("window", "told"), [(64, True), (1024, False), (None, False)])
def test_a_window_that_llama_cpp_does_not_apply_is_told(tmp_path, window, told):
    trained = make_trained(tmp_path, "mistral", sliding_window=window)
    export.merge(trained.run, trained.config)
    model, lora = export.write_gguf(trained.run, changed(trained.config, gguf_types="F16"))
    wanted = f"llama.cpp's llama architecture has no sliding window: beyond {window} tokens of context the answers differ"
    assert model.note == (wanted if told else "")
    assert lora.note == ""


@pytest.mark.skipif(not engine_llama_cpp.available(), reason="xllamacpp is not installed")
def test_the_port_needs_the_key(trained):
    import urllib.error
    import urllib.request

    export.merge(trained.run, trained.config)
    engine = engine_llama_cpp.LlamaCpp(export.write_gguf(trained.run, changed(trained.config, gguf_types="F16"))[0].path, context=256)
    address = engine._server.listening_address
    request = urllib.request.Request(f"{address}/tokenize", b'{"content": "a"}', {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)
    assert address.startswith("http://127.0.0.1:")
    assert engine.prompt_ids(Prompt((), [{"role": "user", "content": "Hello"}]))
    assert set(engine.chat([{"role": "user", "content": "Hello"}], 4)) == {"text", "prompt_tokens", "ended"}
    engine.close()


@pytest.mark.skipif(not engine_llama_cpp.available(), reason="xllamacpp is not installed")
def test_a_damaged_file_is_refused_in_words(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckFailed, match=r"does not load bad\.gguf"):
        engine_llama_cpp.LlamaCpp(path)


@pytest.mark.parametrize("kind", ["llama3", "mistral", "tekken", "gpt2", "default system"])
def test_the_go_template_says_what_the_chat_template_says(kind):
    tokenizer = family_tokenizer("gpt2" if kind == "default system" else kind)
    if kind == "default system":
        tokenizer.chat_template = QWEN_DEFAULT
    pieces = read_pieces(tokenizer)
    text = go_template(pieces, None)
    chats = [["user"], ["user", "assistant", "user"], ["system", "user"], ["system", "user", "assistant", "user"]]
    for roles in chats:
        chat = [{"role": role, "content": f"text {index}"} for index, role in enumerate(roles)]
        if "system" in roles and pieces.system is None:
            continue
        given = chat if roles[0] == "system" or not pieces.default_system else [{"role": "system", "content": pieces.default_system}, *chat]
        assert _go(text, given) == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    made = modelfile(tokenizer, "m.gguf", add_bos=True)
    assert made.startswith("FROM ./m.gguf\n")
    assert f'PARAMETER stop "{tokenizer.eos_token}"' in made
    assert ("SYSTEM" in made) == (kind == "default system")
    assert tokenizer.bos_token is None or tokenizer.bos_token not in made


def _go(template: str, messages: list) -> str:
    """What Go's text/template makes of the range-and-if form that we write."""
    head, rest = template.split("{{ range .Messages }}", 1)
    body, tail = rest.rsplit("{{ end }}{{ end }}", 1)
    parts = re.split(r'{{ (?:else )?if eq \.Role "(\w+)" }}', body)
    branches = dict(zip(parts[1::2], parts[2::2], strict=True))
    return head + "".join(branches[turn["role"]].replace("{{ .Content }}", turn["content"]) for turn in messages) + tail


def test_a_template_with_logic_is_left_to_ollama():
    tokenizer = family_tokenizer("gpt2")
    tokenizer.chat_template = "{% for m in messages %}{{ loop.index }}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    assert read_pieces(tokenizer) is None
    assert "TEMPLATE" not in modelfile(tokenizer, "m.gguf", add_bos=False)
