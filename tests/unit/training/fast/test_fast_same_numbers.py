"""Plain against fast: the same losses and gradients in float32, step by step."""

from types import SimpleNamespace

import pytest
import torch
from training_rows import dataset, rows

from mac_lora_helpers import training
from mac_lora_helpers.training import fast

FAMILIES = ["qwen2", "llama", "qwen3", "mistral"]


def assert_same(plain, quick, tolerance=1e-4):
    assert len(plain) == len(quick) > 0
    assert quick[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)
    assert quick[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-5)
    for one, other in zip(plain, quick, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=tolerance), one["step"]
    assert plain[-1]["loss"] != plain[0]["loss"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_accumulation_and_padding(both, family_folder, family):
    plain, quick, trainers = both(model_id=str(family_folder(family)), max_steps=12, learning_rate=2e-3)
    assert_same(plain, quick)
    for one, other in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_fifty_steps_of_the_embedded_model(both, tmp_path):
    from mac_lora_helpers.config import EMBEDDED

    plain, quick, _ = both(model_id=EMBEDDED, max_steps=50, lora_r=16, lora_alpha=32)
    assert_same(plain, quick)


@pytest.mark.parametrize("recompute", ["nothing", "mlp", "layers"])
@pytest.mark.parametrize("dropout", [0, 0.3])
def test_what_is_computed_again_changes_nothing_and_dropout_draws_what_peft_draws(both, recompute, dropout):
    plain, quick, _ = both(recompute=recompute, lora_dropout=dropout, lora_targets="all-linear", learning_rate=2e-3)
    assert_same(plain, quick)


def test_dropout_draws_what_peft_draws_when_every_token_has_a_label(both):
    tokens = {"train": dataset([{**row, "labels": row["input_ids"]} for row in rows(12, shortest=16)])}
    plain, quick, _ = both(lora_dropout=0.3, tokens=tokens, learning_rate=2e-3, per_device_train_batch_size=1)
    assert_same(plain, quick)


def test_dropout_is_drawn_anew_for_every_step_and_none_in_evaluation(build, family_folder):
    _, trainer = build(lora_dropout=0.5)
    assert fast.make_fast(trainer).applied
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    ids = torch.arange(20).unsqueeze(0)
    trainer.model.train()
    losses = {trainer.model(input_ids=ids, labels=ids, fused_lm_head=True).loss.item() for _ in range(3)}
    assert len(losses) == 3
    trainer.model.eval()
    losses = {trainer.model(input_ids=ids, labels=ids, fused_lm_head=True).loss.item() for _ in range(3)}
    assert len(losses) == 1


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("qwen2", {"tie_word_embeddings": False}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"head_dim": 16, "attention_bias": True}),
        ("mistral", {"sliding_window": 8, "head_dim": 16}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ],
)
def test_variants_within_a_family(both, family_folder, family, shape):
    folder = family_folder(family, **shape)
    plain, quick, _ = both(model_id=str(folder), lora_targets="all-linear", learning_rate=2e-3)
    assert_same(plain, quick)


def test_few_labels_and_a_row_without_any(both):
    """A label on one token only, and batches in which a whole row has none."""
    made = [{**row, "labels": [-100] * (len(row["input_ids"]) - 1) + row["input_ids"][-1:]} for row in rows(12)]
    plain, quick, _ = both(tokens={"train": dataset(made)}, learning_rate=2e-3)
    assert_same(plain, quick)


@pytest.mark.parametrize("recompute", ["nothing", "mlp", "layers"])
def test_adapters_in_the_upper_layers_only(both, family_folder, recompute):
    folder = family_folder("qwen2", num_hidden_layers=4)
    plain, quick, trainers = both(recompute, model_id=str(folder), lora_layers=2, lora_dropout=0.2, learning_rate=2e-3)
    assert_same(plain, quick)
    lower = [p for name, p in trainers[1].model.named_parameters() if ".layers.0." in name or ".layers.1." in name]
    assert not any(parameter.requires_grad for parameter in lower)


def test_entropy_and_accuracy_are_trls(build, trained_rows):
    _, trainer = build()
    base = trainer.model.get_base_model()
    batch = trainer.data_collator([trained_rows["train"][index] for index in range(3)])
    trainer.model.train()
    plain = base(**batch, fused_lm_head=True)
    assert fast.make_fast(trainer).applied
    quick = base(**batch, fused_lm_head=True)
    for name in ("log_probs", "entropy", "loss"):
        torch.testing.assert_close(getattr(quick, name), getattr(plain, name), atol=2e-5, rtol=1e-5)
    assert torch.equal(quick.label_mask, plain.label_mask)
    assert torch.equal(quick.is_top1.bool(), plain.is_top1.bool())


def test_padding_of_the_chosen_rows_changes_nothing(both, monkeypatch):
    from mac_lora_helpers.training.fast import install

    monkeypatch.setitem(install.GRANULE, "cpu", 16)
    plain, quick, _ = both(learning_rate=2e-3)
    assert_same(plain, quick)


def test_resuming_gives_the_adapter_of_an_undisturbed_training(build):
    adapters = []
    for name in ("whole", "halves"):
        run, trainer = build(name, lora_dropout=0.1, max_steps=6, save_steps=3)
        assert fast.make_fast(trainer).applied
        trainer.train()
        if name == "halves":
            import shutil

            shutil.rmtree(run.path("checkpoints") / "checkpoint-6")
            _, trainer = build(name, lora_dropout=0.1, max_steps=6, save_steps=3)
            assert fast.make_fast(trainer).applied
            trainer.train(resume_from_checkpoint=str(run.path("checkpoints") / "checkpoint-3"))
        adapters.append({key: value.clone() for key, value in trainer.model.named_parameters() if "lora" in key})
    assert all(torch.equal(adapters[0][key], adapters[1][key]) for key in adapters[0])


def test_a_bfloat16_base_trains_float32_adapters(build, trainer_for, make, trained_rows, monkeypatch):
    half = SimpleNamespace(name="cpu"), SimpleNamespace(name="bfloat16")  # so small a model may not pass the probe
    monkeypatch.setattr(training, "place", lambda run, config: half)
    run, config = make(
        folder="half", fast_path="off", lora_dropout=0, max_steps=20, dtype="bfloat16", learning_rate=2e-3, logging_steps=1, lora_r=16
    )
    trainer = trainer_for(run, config, trained_rows)
    report = fast.make_fast(trainer)
    assert report.applied, report.reason
    trainer.train()
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    log = run.read_lines("train_log")
    monkeypatch.undo()
    full_run, full = build("full", max_steps=20, learning_rate=2e-3, lora_r=16, per_device_train_batch_size=1)
    full.train()
    assert log[-1]["loss"] == pytest.approx(full_run.read_lines("train_log")[-1]["loss"], rel=0.01)
