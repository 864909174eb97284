"""A vision-text checkpoint is a text model here: the same logits, nothing of the tower; what cannot be had is refused before training."""

import json

import pytest
from families.models import FAMILIES, write
from tiny import tiny_model

from mac_lora_helpers import language, model
from mac_lora_helpers.config import resolve
from mac_lora_helpers.environment import check_environment
from mac_lora_helpers.errors import InputError

VISION = [one for one in FAMILIES if one.vision is not None]


@pytest.mark.parametrize("family", VISION, ids=lambda one: one.model_type)
def test_the_language_part_gives_the_whole_models_logits(family, tmp_path):
    import torch
    from transformers import AutoModelForImageTextToText

    folder = write(family, tmp_path / "model")
    config = resolve({"model_id": str(folder)}, env={})
    part = model.load_base(config).eval()
    whole = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        assert torch.equal(part(input_ids=ids).logits, whole(input_ids=ids).logits)
    assert not any("vision" in name or "visual" in name for name, _ in part.named_modules())
    assert language.left_out(json.loads((folder / "config.json").read_text()))[0] == "vision"


def test_notebook_01_says_what_is_left_out_from_the_config_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings("gemma3_text", audio_config={"model_type": "some_audio"})))
    report = check_environment(resolve({"preset": "local", "model_id": str(tmp_path)}, env={}))
    told = " ".join(check.detail for check in report.checks if check.name == "Model")
    told += " ".join(report.verdict.reasons)
    assert "only its language part is trained, on text; left out: vision, audio" in told or "no *.safetensors" in told
    assert language.told(settings("gemma3_text")).endswith("left out: vision")


def test_a_language_part_that_transformers_does_not_have_is_refused_by_01_and_02(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings("qwen2_5_vl_text", model_type="qwen2_5_vl")))
    config = resolve({"model_id": str(tmp_path)}, env={})
    base = model.find_base(config)
    assert "no text model for its language part (qwen2_5_vl_text)" in base.problem
    assert "docs/models.md" in base.fix
    with pytest.raises(InputError, match="language part"):
        model.require_base(config)
    with pytest.raises(InputError, match="language part"):
        language.notes(base.settings)


def test_weights_under_unknown_names_are_refused_and_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write(VISION[1], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({name.replace("language_model", "speaker"): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(InputError, match="layer 0 of its language part are not there under a known name"):
        model.load_base(resolve({"model_id": str(folder)}, env={}))


def test_a_text_model_is_loaded_as_it_stands(tmp_path):
    assert language.language_part(resolve({"model_id": str(tiny_model(tmp_path / "text"))}, env={})) == {}
    assert language.left_out({"model_type": "qwen2", "rope_config": {}}) == []


def settings(text, **more):
    """A vision-text ``config.json``."""
    return {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"model_type": text},
        "vision_config": {"model_type": "siglip_vision_model"},
        **more,
    }
