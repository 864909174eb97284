"""Each family of today's small models is trained by the suite's own code: tokens of notebook 02, three steps of 03, its audit.

``make families`` runs them all and writes what came out to ``docs/models.md``; ``make test`` runs three.
"""

import json

import pytest

from families.models import FAMILIES, configuration, tokenizer_of, write
from families.page import PAGE, RESULTS, page, record
from mac_lora_helpers import data, language, training
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.training import counting

QUICK = {"Qwen3", "LFM2, LFM2.5", "Gemma 3, vision-text"}
ROWS = [
    {"messages": [{"role": "user", "content": f"What is {a} and {b}?"}, {"role": "assistant", "content": f"It is {a + b}."}]}
    for a in range(6)
    for b in range(4)
]


def prepared(folder, tmp_path):
    """Run directory and config with the data of notebook 02."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    values = {"preset": "local", "model_id": str(folder), "data_files": str(rows), "max_seq_length": 512, "out_dir": str(tmp_path / "run")}
    values |= {"max_steps": 3, "gradient_accumulation_steps": 2, "lora_r": 4, "learning_rate": 1e-3, "device": "cpu", "seed": 1}
    config = resolve(values, env={})
    run = RunDir(config.out_dir)
    source = data.load(config)
    found = data.validate(source, config)
    splits = data.split(found, config)
    encoded = data.encode(splits, data.load_tokenizer(config), config)
    data.save(run, source, found, splits, encoded, config)
    return run, config


@pytest.mark.parametrize(
    "family", [pytest.param(one, id=one.model_type, marks=[] if one.name in QUICK else [pytest.mark.families]) for one in FAMILIES]
)
def test_a_family_trains_three_steps_and_passes_the_audit(family, tmp_path):
    run, config = prepared(write(family, tmp_path / "model"), tmp_path)
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    told = any("left out: vision" in note for note in run.read_json("manifest")["notes"])
    assert told is (family.vision is not None)
    metrics = training.run_training(run, config)
    assert metrics["steps"] == 3
    assert all(passed is not False for passed in metrics["audit"].values()), metrics["audit"]
    assert metrics["predicted_memory_bytes"], metrics["not_predicted"]
    names = adapted(run)
    assert not any(part in name for name in names for part in ("vision", "router", "lm_head", "tower"))
    targets = sorted({name.rsplit(".", 1)[-1] for name in names})
    path = "fast" if metrics["fast_path"]["on"] else "plain"
    record(family.name, {"trains": "yes", "targets": targets, "left out": language.left_out(settings), "path": path})


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.model_type)
def test_the_forecast_counts_what_a_real_forward_pass_keeps(family):
    """The tensors that autograd saves on the CPU with real numbers; sliding windows and experts are counted a little otherwise."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    shape = configuration(family, tokenizer_of(family)).get_text_config()
    config = resolve({"preset": "local", "device": "cpu"}, env={})
    base = AutoModelForCausalLM.from_config(shape)
    model = get_peft_model(base, counting.lora_for(config, base)).train()
    known, kept = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    ids = torch.ones(2, 96, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = base.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    found, real = counting.count(config, shape, 2, 96, "cpu"), sum(storage.nbytes() for storage in kept.values())
    assert hidden is not None
    assert found.outside + sum(found.layers) == pytest.approx(real, rel=0.16)


def adapted(run):
    """Modules with an adapter, from the file."""
    from safetensors import safe_open

    with safe_open(run.need("adapter") / "adapter_model.safetensors", framework="np") as stream:
        return [name.split(".lora_B")[0] for name in stream.keys() if ".lora_B" in name]  # noqa: SIM118


def test_the_page_is_what_was_recorded():
    """Only ``make families`` writes the results; the page must be made from them."""
    assert PAGE.read_text(encoding="utf-8") == page()
    assert {one.name for one in FAMILIES} == set(json.loads(RESULTS.read_text(encoding="utf-8")))
