"""Losses against transformers' own, row by row and weighted by tokens."""

import copy
import json

import numpy as np
import pytest
import torch
from evaluation_runs import make_run, resolved, token_rows
from tiny import tiny_model

from mac_lora_helpers import evaluation
from mac_lora_helpers.errors import CheckFailed, InputError
from mac_lora_helpers.evaluation import losses as room
from mac_lora_helpers.evaluation.losses import IGNORED, padded_width


def own_loss(trained, rows):
    """Token-weighted mean over rows, each through transformers' loss alone."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            tokens = int((labels[:, 1:] != IGNORED).sum())
            total += float(trained.model(input_ids=ids, labels=labels).loss) * tokens
            count += tokens
    return total / count, count


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_both_losses_are_those_of_transformers(trained, rows, batch):
    tokens = token_rows(trained.tokenizer, rows)
    trained.config.eval_batch_size = batch
    found = evaluation.compare_losses(trained, tokens)
    tuned, count = own_loss(trained, tokens)
    with trained.voice("base"):
        base, _ = own_loss(trained, tokens)
    assert found["base"] == {"loss": pytest.approx(base, rel=1e-5), "perplexity": pytest.approx(np.exp(base), rel=1e-4), "tokens": count}
    assert found["tuned"]["loss"] == pytest.approx(tuned, rel=1e-5)
    assert abs(base - tuned) > 0.01
    assert list(found) == ["base", "tuned"]


def test_labels_in_the_middle_and_at_the_first_place(trained):
    """A label on the first token has nothing before it that could predict it."""
    ids = trained.tokenizer("What is the capital of France? The capital.")["input_ids"]
    labels = [ids[0], IGNORED, *ids[2:5], *[IGNORED] * (len(ids) - 7), *ids[-2:]]
    found = evaluation.compare_losses(trained, [{"input_ids": ids, "labels": labels}])
    expected, _ = own_loss(trained, [{"input_ids": ids, "labels": labels}])
    assert found["tuned"]["tokens"] == 5
    assert found["tuned"]["loss"] == pytest.approx(expected, rel=1e-5)


def test_logits_are_built_where_labels_stand_and_within_the_budget(trained, rows, monkeypatch):
    shapes = []
    trained.model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    tokens = token_rows(trained.tokenizer, rows)
    evaluation.compare_losses(trained, tokens)
    longest = max(len(row["input_ids"]) for row in tokens)
    assert shapes
    assert all(width < longest for _, width, _ in shapes)
    vocabulary = trained.model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(room, "LOGITS_BUDGET", 2 * longest * vocabulary * 4)
    shapes.clear()
    evaluation.compare_losses(trained, tokens)
    assert max(count for count, _, _ in shapes) <= 3


def test_models_that_scale_or_cap_their_logits(tmp_path, rows):
    folder = tiny_model(tmp_path / "model", "gemma2", final_logit_softcapping=2.0, head_dim=8, initializer_range=0.2)
    trained = evaluation.load(make_run(tmp_path / "run", folder), resolved(folder))
    tokens = token_rows(trained.tokenizer, rows)
    assert evaluation.compare_losses(trained, tokens)["tuned"]["loss"] == pytest.approx(own_loss(trained, tokens)[0], rel=1e-5)


def test_many_rows_are_chosen_by_seed(trained, rows):
    tokens = token_rows(trained.tokenizer, rows)
    trained.config.eval_examples = 1
    found = evaluation.compare_losses(trained, tokens)
    assert len(found.rows.tokens) == 10
    assert found.available == 24
    trained.config.seed = 7
    assert evaluation.compare_losses(trained, tokens) != found


def test_when_its_time_is_over_what_is_there_counts(trained, rows):
    tokens = token_rows(trained.tokenizer, rows)
    everything = evaluation.compare_losses(trained, tokens)
    trained.config.eval_batch_size, trained.config.eval_minutes = 4, 1e-6
    found = evaluation.compare_losses(trained, tokens)
    assert (len(found.rows.tokens), found.of, found.available) == (4, 24, 24)
    assert set(found.rows.tokens) <= set(everything.rows.tokens)
    assert found.rows.base == pytest.approx([loss for loss in everything.rows.base if any(abs(loss - found.rows.base) < 1e-3)], rel=1e-3)


@pytest.mark.parametrize("rows", [[], [{"input_ids": [5, 6], "labels": [IGNORED, IGNORED]}], [{"input_ids": [5], "labels": [5]}]])
def test_nothing_that_counts(trained, rows):
    with pytest.raises(InputError, match="has a token that counts"):
        evaluation.compare_losses(trained, rows)


def test_a_diverged_adapter_is_named(trained, rows):
    trained = copy.copy(trained)
    with torch.no_grad():
        next(weight for name, weight in trained.model.named_parameters() if "lora_B" in name).fill_(float("nan"))
    with pytest.raises(CheckFailed, match="tuned model is NaN"):
        evaluation.compare_losses(trained, token_rows(trained.tokenizer, rows))


def test_mps_sees_few_widths():
    assert {padded_width(length, "mps") for length in range(1, 65)} == {32, 64}
    assert padded_width(33, "cpu") == 33


def test_general_conversations_count_answers_only(trained):
    found = evaluation.compare_general(trained)
    assert len(found.rows.tokens) == 30
    assert found.source == "general conversations"
    first = json.loads(room.CONVERSATIONS.read_text().splitlines()[0])["messages"]
    assert found.rows.tokens[0] == len(trained.tokenizer(first[-1]["content"])["input_ids"]) + 1
