"""Notebook 03's recipe, from model to audited adapter, on a tiny model."""

import json
from types import SimpleNamespace

import pytest
from training_rows import dataset, rows, trained_by_cells

from mac_lora_helpers import training
from mac_lora_helpers.errors import CheckFailed, InputError, MissingArtifact


def test_a_training_leaves_adapter_log_config_and_metrics_with_the_contract_keys(make, train, tokens):
    run, config = make(max_steps=6, logging_steps=2, eval_steps=6)
    _, metrics = train(run, config, tokens)

    contract = "steps first_loss last_loss seconds tokens tokens_per_second peak_memory_bytes predicted_memory_bytes device dtype "
    contract += "data_fingerprint engine best_step best_eval_loss"
    assert set(contract.split()) <= set(metrics)
    assert metrics["steps"] == 6
    assert metrics["data_fingerprint"] == "sha256:data-1"
    assert metrics["audit"]["finite"]
    assert metrics["audit"]["lora_b_nonzero"]
    assert metrics["audit"]["logits_changed"]
    assert metrics["audit"]["batches_equal_data"]
    assert metrics["audit"]["loss_fell"] is None, "six steps are too few to judge"
    assert metrics == run.read_json("train_metrics")

    log = run.read_lines("train_log")
    assert [row["step"] for row in log] == [1, 2, 4, 6]
    assert set("step loss grad_norm learning_rate epoch tokens seconds memory_bytes".split()) <= set(log[0])
    assert log[0]["learning_rate"] == pytest.approx(2e-4)
    assert log[-1]["learning_rate"] < log[0]["learning_rate"]

    saved = run.read_json("train_config")
    assert saved["config"]["learning_rate"] == 2e-4
    assert saved["lora"]["targets"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert saved["dtype"] == "float32"
    names = {path.name for path in run.path("adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert "training_args.bin" not in names


def test_no_file_of_the_run_names_the_folder_it_was_made_in(make, train, tokens):
    run, config = make(max_steps=2)
    train(run, config, tokens)
    adapter = json.loads((run.path("adapter") / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == config.model_id
    for path in run.root.rglob("*"):
        if path.is_file() and path.name != "train_config.json":
            assert str(run.root).encode() not in path.read_bytes(), path


def test_the_trainer_sees_the_rows_as_they_are(make, trainer_for, tokens):
    run, config = make(max_steps=-1, per_device_train_batch_size=3)
    trainer = trainer_for(run, config, tokens)
    wanted = sorted((tuple(row["input_ids"]), tuple(row["labels"])) for row in tokens["train"])
    seen = []
    for batch in trainer.get_train_dataloader():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            length = int(mask.sum())
            assert (labels[length:] == -100).all()
            seen.append((tuple(ids[:length].tolist()), tuple(labels[:length].tolist())))
    assert sorted(seen) == wanted


def test_a_changed_label_in_a_batch_fails_the_audit(make, trainer_for, tokens):
    run, config = make()
    trainer = trainer_for(run, config, tokens)
    honest = trainer.data_collator.inner

    def tampered(examples):
        batch = honest(examples)
        batch["labels"][0, 0] = batch["input_ids"][0, 0]
        return batch

    trainer.data_collator.inner = tampered
    trainer.train()
    trainer.save_model()
    with pytest.raises(CheckFailed, match="batches_equal_data"):
        training.examine(trainer)
    assert run.read_json("train_metrics")["audit"]["batches_equal_data"] is False


def test_what_stands_in_the_cells_reaches_trl_and_peft(make, tokens):
    knobs = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "use_rslora": True, "use_dora": True}
    run, config = make(gradient_checkpointing=True, learning_rate=1e-3, save_steps=7, **knobs)
    names = trained_by_cells(run, config, tokens)
    args, lora, trainer = names["args"], names["lora"], names["trainer"]
    assert (args.bf16, args.fp16, args.packing, args.max_length) == (False, False, False, 32)
    assert (args.lr_scheduler_type, args.warmup_steps, args.weight_decay, args.save_steps) == ("cosine", 2, 0.1, 7)
    assert (args.gradient_accumulation_steps, args.learning_rate) == (2, 1e-3)
    assert (lora.use_rslora, lora.use_dora) == (True, True)
    assert not trainer.fast.applied
    assert "variant of LoRA" in trainer.fast.reason
    assert args.activation_checkpointing
    assert args.activation_checkpointing_kwargs == {"use_reentrant": False}
    assert args.report_to == []
    assert args.dataloader_num_workers == 0
    assert args.logging_nan_inf_filter is False


@pytest.mark.parametrize("checkpointing", [True, False])
def test_no_deprecated_setting_is_used(make, trainer_for, tokens, checkpointing, recwarn):
    run, config = make(gradient_checkpointing=checkpointing)
    trainer_for(run, config, tokens).train()
    told = [
        str(w.message) for w in recwarn if issubclass(w.category, (FutureWarning, DeprecationWarning)) and "deprecated" in str(w.message)
    ]
    assert not [text for text in told if "checkpoint" in text or "max_length" in text], told


def test_two_rows_and_a_batch_larger_than_the_data_train(make, train, tokens):
    run, config = make(max_steps=1, per_device_train_batch_size=8, logging_steps=10)
    _, metrics = train(run, config, {"train": tokens["train"].select(range(2))})
    assert metrics["steps"] == 1
    assert metrics["first_loss"] == metrics["last_loss"] > 0
    assert [row["step"] for row in run.read_lines("train_log")] == [1]
    assert metrics["best_step"] is None
    assert metrics["valid_loss_tuned"] is None


def test_whole_epochs_when_max_steps_is_not_set(make, train, tokens):
    run, config = make(max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=4)
    _, metrics = train(run, config, tokens)
    assert metrics["steps"] == 6
    assert metrics["tokens"] == 2 * sum(len(ids) for ids in tokens["train"]["input_ids"])


def test_a_loss_that_does_not_fall_fails_the_audit(make, train, tokens):
    run, config = make(max_steps=12, learning_rate=1e-12, lora_dropout=0)
    with pytest.raises(CheckFailed, match="loss_fell"):
        train(run, config, tokens)
    assert run.read_json("train_metrics")["audit"]["loss_fell"] is False
    run, config = make(folder="good", max_steps=12, learning_rate=5e-3)
    metrics = train(run, config, tokens)[1]
    assert metrics["audit"]["loss_fell"] is True
    assert metrics["train_loss_tuned"] < metrics["train_loss_base"]
    assert metrics["last_loss"] < metrics["first_loss"]


def test_rows_without_a_label_are_refused_before_the_start(make, trainer_for):
    made = rows(4)
    made[2]["labels"] = [-100] * len(made[2]["labels"])
    made[3]["labels"] = [5] + [-100] * (len(made[3]["labels"]) - 1)
    run, config = make()
    with pytest.raises(CheckFailed, match="2 of 4 rows have no token to learn from"):
        trainer_for(run, config, {"train": dataset(made)})


def test_rows_longer_than_asked_are_refused(make, trainer_for, tokens):
    run, config = make(max_seq_length=10)
    with pytest.raises(CheckFailed, match="at most 10"):
        trainer_for(run, config, tokens)


def test_no_rows_name_the_notebook(make, trainer_for, tokens):
    run, config = make()
    with pytest.raises(MissingArtifact, match="02_data_formatting"):
        trainer_for(run, config, {"train": tokens["train"].select([])})


def test_a_model_that_is_not_there(make):
    _, config = make(model_id="/no/such/folder")
    with pytest.raises(InputError, match="no such folder"), training.loading(config, SimpleNamespace(name="cpu")):
        pass


def test_whoever_watches_hears_of_every_step_from_the_start_and_cannot_stop_the_training(make, train, tokens, capsys):
    run, config = make(max_steps=4, logging_steps=1, eval_steps=-1)
    calls = []

    def on_log(rows, now):
        calls.append((len(rows), now["step"], now["of"], now["seconds_left"] is not None))
        if len(calls) == 4:
            raise ValueError("no display")

    _, metrics = train(run, config, tokens, on_log=on_log)
    assert calls == [(0, 0, 4, False), (1, 1, 4, False), (2, 2, 4, True), (3, 3, 4, True)]
    assert metrics["steps"] == 4
    assert "no display" in capsys.readouterr().out


@pytest.mark.parametrize(("path", "lines"), [("auto", 1), ("off", 0)])
def test_training_says_which_path_it_takes_and_nothing_else(path, lines, make, train, tokens, capfd):
    run, config = make(fast_path=path, gradient_checkpointing=False)
    train(run, config, tokens)
    out, err = capfd.readouterr()
    assert out.count("fast path on: same numbers as the plain path") == out.count("\n") == lines
    assert err == ""


def test_trackio_is_the_librarys_own_and_stays_here(make, trainer_for, tokens, monkeypatch):
    import importlib.util
    import os

    run, config = make(track="trackio")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="the package trackio is not installed") as told:
        trainer_for(run, config, tokens)
    assert 'pip install -e ".[track]"' in str(told.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/public")
    monkeypatch.setenv("TRACKIO_DIR", "here")
    assert training.running(config, SimpleNamespace(name="cpu"), tokens)["report_to"] == "trackio"
    assert [name for name in os.environ if name.startswith("TRACKIO_")] == ["TRACKIO_DIR"]


def test_an_adapter_is_trained_further(make, train, tokens, capsys):
    first, config = make(max_steps=12, learning_rate=5e-3, lora_dropout=0)
    _, before = train(first, config, tokens)
    run, config = make(folder="further", max_steps=12, learning_rate=5e-3, lora_dropout=0, lora_r=16, start_adapter=str(first.root))
    trainer, after = train(run, config, tokens)
    assert trainer.run_log.losses[0] < before["first_loss"]
    assert after["train_loss_tuned"] < before["train_loss_tuned"]
    assert run.read_json("train_config")["lora"]["r"] == 4, "the adapter's own rank"
    assert "the training starts from" in capsys.readouterr().out
    _, config = make(folder="other", start_adapter=str(first.root / "checkpoints"))
    with pytest.raises(InputError, match="no PEFT adapter"):
        trained_by_cells(run, config, tokens)


def test_what_an_export_cannot_hold_is_said_before_the_training(make, trainer_for, tokens, capsys):
    run, config = make(use_dora=True)
    trainer_for(run, config, tokens)
    assert "an MLX adapter cannot hold DoRA" in capsys.readouterr().out
