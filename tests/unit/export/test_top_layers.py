"""An adapter in the top layers only (``lora_layers``) through every export."""

from trained_run import make_trained

from mac_lora_helpers import export


def test_every_export_of_an_adapter_in_the_top_layer(tmp_path):
    trained = make_trained(tmp_path, lora={"layers_to_transform": [1], "layers_pattern": "layers"}, tie_word_embeddings=False)
    trained.run.write_json("train_config", {**trained.run.read_json("train_config"), "lora_layers": 1})
    assert export.merge(trained.run, trained.config).passed
    assert export.write_mlx(trained.run, trained.config).num_layers == 1
    names = [file.name for file in export.write_gguf(trained.run, trained.config)]
    assert any("adapter" in name for name in names), names
    report = export.check_equivalence(trained.run, trained.config)
    report.require_passed()
    assert {item["name"] for item in report.artefacts if item["passed"]} >= {"merged"}
    export.write_card(trained.run, trained.config)
    assert "| adapted layers, from the top | `1` |" in trained.run.path("card").read_text()
