"""Metrics, verdicts and findings, and the two artefacts of the stage."""

import json
from collections import Counter

import pytest
from evaluation_runs import make_run, resolved, save_adapter, token_rows

from mac_lora_helpers import evaluation
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError


def measured(trained, rows, general=False):
    losses = evaluation.compare_losses(trained, token_rows(trained.tokenizer, rows))
    answers = evaluation.compare_answers(trained, rows, trained.config)
    return evaluation.score(losses, answers, evaluation.compare_general(trained) if general else None), answers


def with_answers(answers, who, share, text="right"):
    """The answers with a share of one side's replaced by the expected ones, scored anew."""
    from mac_lora_helpers.evaluation.metrics import BUILT_IN, score_answer

    changed = [dict(answer) for answer in answers]
    for index, answer in enumerate(changed):
        answer[who] = answer["expected"] if index < share * len(changed) else answer[who]
        answer["scores"] = {**answer["scores"], who: score_answer(answer[who], answer["expected"], BUILT_IN)}
    return changed


def test_the_contract_keys_and_more(trained, rows):
    metrics, answers = measured(trained, rows, general=True)
    for who in ("base", "tuned"):
        assert {"loss", "perplexity", "exact_match", "contains", "token_f1", "stop_rate", "tokens"} <= set(metrics[who])
    assert metrics["examples"] == 24 == len(answers)
    assert set(metrics["difference"]) == {"loss", "exact_match", "contains", "token_f1", "stop_rate"}
    for name, difference in metrics["difference"].items():
        assert difference["low"] <= difference["value"] <= difference["high"]
        assert difference["value"] == pytest.approx(metrics["tuned"][name] - metrics["base"][name])
    assert metrics["general"]["examples"] == 30
    json.dumps(metrics, allow_nan=False)


def test_saved_and_read_back(trained, rows, tmp_path):
    from mac_lora_helpers.artifacts import RunDir

    metrics, answers = measured(trained, rows)
    run = RunDir(tmp_path)
    evaluation.save(run, metrics, answers, trained)
    assert run.read_json("eval_metrics")["tuned"] == metrics["tuned"]
    lines = run.read_lines("eval_samples")
    assert [(line["prompt"], line["expected"], line["base"], line["tuned"]) for line in lines] == [
        (answer["prompt"], answer["expected"], answer["base"], answer["tuned"]) for answer in answers
    ]
    with pytest.raises(InputError):
        evaluation.save(run, metrics, [], trained)


def test_a_useless_adapter_makes_no_difference(useless, rows):
    metrics, _ = measured(useless, rows, general=True)
    assert metrics["outcome"] == "no difference shown"
    assert metrics["verdict"].startswith("no difference: the same on all 24 examples")
    assert metrics["general"]["verdict"].startswith("no difference")
    assert all(row.verdict.startswith("no difference") for row in evaluation.metric_rows(metrics))
    assert metrics["difference"]["loss"]["low"] == metrics["difference"]["loss"]["high"] == 0
    assert any("every lora_B is zero" in finding for finding in metrics["findings"])


@pytest.mark.parametrize("strength", [0.0, 1e-3])
def test_adapters_without_effect_are_not_called_better(model_folder, rows, tmp_path, strength):
    """20 seeds; the bar is one false "better" at most. Untrained noise moves the loss a little, on every row the same way."""
    outcomes = Counter()
    for seed in range(20):
        save_adapter(model_folder, tmp_path / str(seed), strength=strength, seed=seed)
        config = resolved(model_folder, adapter_dir=str(tmp_path / str(seed)), max_new_tokens=6)
        metrics, _ = measured(evaluation.load(make_run(tmp_path / "run", model_folder), config), rows[:12])
        outcomes[metrics["outcome"]] += 1
    assert outcomes["better"] <= 1, outcomes
    assert outcomes["no difference shown"] >= 19


@pytest.fixture
def parts(useless, rows):
    """Nothing differs; the tests then change one side."""
    losses = evaluation.compare_losses(useless, token_rows(useless.tokenizer, rows))
    return losses, evaluation.compare_answers(useless, rows, useless.config)


@pytest.mark.parametrize(
    ("who", "share", "loss_times", "outcome", "words"),
    [
        ("tuned", 0.75, 1.0, "better", "better: exact match 0 → 0.75 (+0.75, 95 % interval +0."),
        ("base", 0.75, 1.0, "worse", "worse: "),
        ("tuned", 0.75, 1.5, "mixed", "mixed: "),
        ("tuned", 0.0, 0.9, "better", "better: "),
        ("tuned", 0.0, 0.995, "no difference shown", "it does not count"),
    ],
)
def test_loss_and_metric_decide(parts, who, share, loss_times, outcome, words):
    losses, answers = parts
    losses.rows.tuned[:] *= loss_times
    losses["tuned"]["loss"] *= loss_times
    metrics = evaluation.score(losses, with_answers(answers, who, share))
    assert metrics["outcome"] == outcome
    assert words in metrics["verdict"]


def test_four_right_answers_of_four_are_too_few(parts):
    losses, answers = parts
    metrics = evaluation.score(losses, with_answers(answers[:4], "tuned", 1.0))
    assert metrics["difference"]["exact_match"]["verdict"] == "no difference shown with 4 examples"
    assert metrics["outcome"] == "no difference shown"


def test_the_metric_that_the_user_names_decides(parts):
    losses, answers = parts
    answers = with_answers(answers, "tuned", 1.0)
    for answer in answers:
        answer["scores"]["tuned"]["exact_match"] = 0.0
    assert evaluation.score(losses, answers)["outcome"] == "no difference shown"
    losses.trained.config.metric = "contains"
    assert evaluation.score(losses, answers)["outcome"] == "better"


def test_lost_behaviour(parts):
    losses, answers = parts
    general = evaluation.compare_general(losses.trained)
    general.rows.tuned[:] *= 1.3
    report = evaluation.score(losses, answers, general)["general"]
    assert report["difference"]["outcome"] == "worse"
    assert "changed how the model answers" in report["verdict"]


def test_a_model_that_never_stops_is_a_finding(trained, rows):
    metrics, _ = measured(trained, rows)
    assert metrics["tuned"]["stop_rate"] == 0
    assert any("The tuned model never ends its answers: 0 of 24" in finding for finding in metrics["findings"])


def test_answers_that_had_too_little_room_are_another_finding(trained, rows):
    trained.config.max_new_tokens = 2
    metrics, _ = measured(trained, rows)
    assert any("24 of 24 expected answers are longer than max_new_tokens=2" in finding for finding in metrics["findings"])
    assert not any("never ends" in finding for finding in metrics["findings"])


def test_examples_that_time_ran_out_for_are_told(trained, rows):
    losses = evaluation.compare_losses(trained, token_rows(trained.tokenizer, rows))
    answers = evaluation.compare_answers(trained, rows, trained.config)
    answers.coverage = {"examples": 8, "of": 24, "seconds": 600.0}
    metrics = evaluation.score(losses, answers)
    assert metrics["coverage"] == {"examples": 8, "of": 24, "seconds": 600.0}
    assert any("Asked 8 of 24 held-out examples" in finding for finding in metrics["findings"])


def test_rows_that_were_not_asked_are_told(trained, rows):
    rows[3]["messages"][-1]["content"] = " "
    metrics, _ = measured(trained, rows)
    assert metrics["examples"] == 23
    assert any("1 of 24 held-out rows were not asked" in finding for finding in metrics["findings"])


def test_plain_text_has_losses_and_no_scores(trained):
    rows = [{"text": f"User: Hello {index}\nAssistant: Hi there!"} for index in range(8)]
    ids = [trained.tokenizer(row["text"])["input_ids"] for row in rows]
    losses = evaluation.compare_losses(trained, [{"input_ids": row, "labels": row} for row in ids])
    metrics = evaluation.score(losses, evaluation.compare_answers(trained, rows, trained.config))
    assert metrics["tuned"]["exact_match"] is None
    assert "plain text" in metrics["not_applicable"]["exact_match"]
    assert metrics["tuned"]["loss"] > 0
    assert metrics["verdict"].count("loss") == 1
    assert [row.name for row in evaluation.metric_rows(metrics)] == ["loss", "stop rate"]


def test_json_is_looked_at_where_json_is_expected(trained, rows):
    metrics, _ = measured(trained, rows)
    assert metrics["tuned"]["valid_json"] is None
    for row in rows:
        row["messages"][-1]["content"] = '{"city": "Paris"}'
    metrics, _ = measured(trained, rows)
    assert metrics["tuned"]["valid_json"] == 0.0


def test_a_metric_of_the_users_own_is_in_the_table(trained, rows, tmp_path, monkeypatch):
    (tmp_path / "own_measure.py").write_text("def letters(answer, expected):\n    return len(answer)\n")
    monkeypatch.chdir(tmp_path)
    trained.config.metric = "own_measure:letters"
    metrics, answers = measured(trained, rows)
    assert metrics["tuned"]["own_measure:letters"] == pytest.approx(sum(len(answer["tuned"]) for answer in answers) / 24)
    assert "own measure:letters" in metrics["verdict"]
    assert "own measure:letters" in [row.name for row in evaluation.metric_rows(metrics)]


def test_the_embedded_model_is_asked_its_own_small_talk(tmp_path):
    from mac_lora_helpers import smoke

    run = make_run(tmp_path, smoke.MODEL_DIR, strength=1e-3)
    trained = evaluation.load(run, resolve({"device": "cpu"}, env={}))
    found = evaluation.compare_general(trained)
    assert found.source == "embedded general conversations"
    assert len(found.rows.tokens) == len(smoke.GENERAL.read_text().splitlines())
    assert found["base"]["loss"] < 0.5
