"""Cases, bands and baselines: what is read, what is refused, and with which line."""

import json

import pytest

from mac_lora_helpers.errors import InputError
from mac_lora_helpers.suite.cli import main
from mac_lora_helpers.suite.regress import bands, metrics
from mac_lora_helpers.suite.regress.cases import load_suite

BAND = "{metric: train_metrics.steps, kind: exact, reason: a parameter}"


def load(tmp_path, text):
    file = tmp_path / "cases.yaml"
    file.write_text(text)
    return load_suite(file)


def test_a_grid_is_one_case_for_each_combination(tmp_path):
    text = (
        "defaults: {parameters: {seed: 7}}\ncases:\n- {name: a, grid: {loss_on: [all, completion], lora_r: [4, 8]}, notebooks: [02, 03]}\n"
    )
    suite = load(tmp_path, text)
    assert [case.name for case in suite.cases] == ["a-all-4", "a-all-8", "a-completion-4", "a-completion-8"]
    assert suite.case("a-all-8").parameters == {"seed": 7, "loss_on": "all", "lora_r": 8}
    assert suite.case("a-all-8").notebooks == ("02", "03")


def test_bands_apply_where_their_figure_is_made(tmp_path):
    seen = "{metric: eval.seen, kind: exact, reason: made by rule}"
    text = f"bands: [{BAND}, {seen}]\ncases:\n- {{name: a, notebooks: [03]}}\n- {{name: b}}\n"
    suite = load(tmp_path, text)
    assert [band.metric for band in suite.case("a").bands] == ["train_metrics.steps"]
    assert len(suite.case("b").bands) == 2


def test_a_case_replaces_and_leaves_out_bands(tmp_path):
    text = f"bands: [{BAND}]\ncases:\n- {{name: a, without: [train_metrics.steps]}}\n"
    text += "- {name: b, bands: [{metric: train_metrics.steps, kind: at_least, width: 2, reason: other here}]}\n"
    suite = load(tmp_path, text)
    assert suite.case("a").bands == ()
    assert [band.kind for band in suite.case("b").bands] == ["at_least"]


def test_choosing_takes_along_what_a_case_needs(tmp_path):
    same = "{metric: train_metrics.last_loss, kind: same, case: b, width: 0.1, reason: the same sums}"
    text = "cases:\n- {name: a, notebooks: [02]}\n- {name: b, notebooks: [03], after: a, tags: [t]}\n"
    text += f"- {{name: c, bands: [{same}]}}\n- {{name: d}}\n"
    suite = load(tmp_path, text)
    assert [case.name for case in suite.choose(["c"], [])] == ["a", "b", "c"]
    assert [case.name for case in suite.choose([], ["t"])] == ["a", "b"]
    assert len(suite.choose([], [])) == 4


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("cases: []\n", 1, "at least 1"),
        ("cases:\n- name: a\n  notebooks: [02\n", 4, "not YAML"),
        ("cases:\n- name: a\n- name: b\n  paramters: {}\n", 4, "did you mean parameters?"),
        ("cases:\n- name: a\n  parameters:\n    max_stps: 3\n", 4, "did you mean max_steps?"),
        ("cases:\n- name: a\n  parameters:\n    seed: 1\n    max_steps: many\n", 5, "whole number"),
        ("defaults:\n  parameters: {lora_r: 0}\ncases:\n- name: a\n", 2, "lora_r"),
        ("cases:\n- name: a\n  parameters: {out_dir: x}\n", 3, "not a case's to set"),
        ("cases:\n- name: a\n  parameters: {data_files: nowhere.jsonl}\n", 3, "no such file"),
        ("cases:\n- name: a\n  notebooks: [07]\n", 3, "'01', '02'"),
        ("cases:\n- name: a\n  notebooks: [03, 02]\n", 3, "not in order"),
        ("cases:\n- name: a\n- name: a\n", 3, "two cases"),
        ("cases:\n- name: ../a\n", 2, "cannot be a case's name"),
        ("cases:\n- name: a\n  grid: {seed: []}\n", 3, "no values"),
        ("cases:\n- name: a\n  after: b\n- name: b\n", 2, "further down"),
        ("cases:\n- name: base\n- name: a\n  after: bsae\n", 3, "did you mean base?"),
        ("cases:\n- name: a\n  without: [train_metrics.step]\n", 3, "did you mean train_metrics.steps?"),
        (
            "bands:\n- {metric: eval.metrics.tuned.los, kind: exact, reason: long enough}\ncases:\n- name: a\n",
            2,
            "did you mean eval.metrics.tuned.loss?",
        ),
        ("bands:\n- {metric: eval.seen, kind: exact, width: 1, reason: long enough}\ncases:\n- name: a\n", 2, "has no width"),
        ("bands:\n- {metric: eval.seen, kind: relative, reason: long enough}\ncases:\n- name: a\n", 2, "needs a width"),
        ("bands:\n- {metric: eval.seen, kind: exact}\ncases:\n- name: a\n", 2, "reason"),
        ("bands:\n- {metric: eval.seen, kind: ratio, width: 2, reason: long enough}\ncases:\n- name: a\n", 2, "'of'"),
        (f"bands:\n- {BAND}\n- {BAND}\ncases:\n- name: a\n", 3, "two bands"),
        ("cases:\n- name: a\n  name: b\n", 3, "twice"),
        ("cases:\n- 5\n", 2, "a mapping is wanted"),
        ("cases:\n- name: a\n  about: !!python/name:os.system x\n", 3, "could not determine a constructor"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path, text, line, told):
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert told in str(caught.value)
    assert f"cases.yaml:{line}" in caught.value.where


@pytest.mark.parametrize(
    "content",
    [
        '{"case": "a"',
        '{"case": "a", "values": {}, "history": []}',
        '{"case": "b", "values": {}, "history": [{"when": "2026-01-01", "reason": "r"}]}',
        '{"case": "a", "values": {"train_metrics.stepz": 1}, "history": [{"when": "2026-01-01", "reason": "r"}]}',
        '{"case": "a", "values": {"train_metrics.last_loss": "low"}, "history": [{"when": "2026-01-01", "reason": "r"}]}',
        '{"case": "a", "values": {"train_metrics.last_loss": .nan}, "history": [{"when": "2026-01-01", "reason": "r"}]}',
        '{"case": "a", "valeus": {}, "history": [{"when": "2026-01-01", "reason": "r"}]}',
        "",
    ],
)
def test_a_broken_baseline_is_exit_2_before_anything_runs(tmp_path, monkeypatch, capsys, content):
    monkeypatch.chdir(tmp_path)
    band = "{metric: train_metrics.last_loss, kind: relative, width: 0.1, reason: rounding errors}"
    (tmp_path / "cases.yaml").write_text(f"bands: [{band}]\ncases:\n- name: a\n")
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines/a.json").write_text(content)
    assert main(["regress", "--cases", "cases.yaml", "--report", "r"]) == 2
    told = capsys.readouterr().err
    assert "baselines/a.json:1" in told
    assert "to do:" in told
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cases", "nowhere.yaml"],
        ["--case", "b"],
        ["--tag", "t"],
        ["--jobs", "0"],
        ["--jobs", "many"],
        ["--history", "nowhere"],
        ["--reason", "without update"],
        ["--update"],
        ["--update", "--reason", "  "],
        ["--report", "cases.yaml"],
    ],
)
def test_bad_usage_is_exit_2_before_anything_runs(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cases.yaml").write_text("cases:\n- name: a\n")
    given = arguments if "--report" in arguments else [*arguments, "--report", "r"]
    assert main(["regress", "--cases", "cases.yaml", *given]) == 2
    assert "to do:" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.yaml"]


def band(**keys):
    return bands.Band(metric="m", reason="long enough", **keys)


@pytest.mark.parametrize(
    ("keys", "got", "baseline", "passed"),
    [
        ({"kind": "exact"}, 5, 5, True),
        ({"kind": "exact"}, 5, 6, False),
        ({"kind": "exact"}, True, 1, False),
        ({"kind": "exact"}, None, None, True),
        ({"kind": "exact"}, None, True, False),
        ({"kind": "relative", "width": 0.1}, 1.09, 1.0, True),
        ({"kind": "relative", "width": 0.1}, 1.11, 1.0, False),
        ({"kind": "relative", "width": 0.1}, 0.89, 1.0, False),
        ({"kind": "relative", "width": 0.1}, -1.09, -1.0, True),
        ({"kind": "relative", "width": 0.1, "floor": 1.0}, 0.1, 0.01, True),
        ({"kind": "relative", "width": 0.1}, float("nan"), 1.0, False),
        ({"kind": "relative", "width": 0.1}, None, 1.0, False),
        ({"kind": "relative", "width": 0.1}, "1.0", 1.0, False),
        ({"kind": "at_least", "width": 0.1}, 0.95, 1.0, True),
        ({"kind": "at_least", "width": 0.1}, 2.0, 1.0, True),
        ({"kind": "at_least", "width": 0.1}, 0.85, 1.0, False),
        ({"kind": "at_least", "width": 0.5, "limit": 0.9}, 0.85, 1.0, False),
        ({"kind": "at_most", "width": 0.1}, 1.05, 1.0, True),
        ({"kind": "at_most", "width": 0.1}, 1.15, 1.0, False),
        ({"kind": "at_most", "width": 0.1}, 0.0, 1.0, True),
        ({"kind": "ratio", "width": 2, "of": "n"}, 5.9, 3.0, True),
        ({"kind": "ratio", "width": 2, "of": "n"}, 6.1, 3.0, False),
        ({"kind": "same", "width": 1e-6, "case": "c"}, 1.0, 1.0 + 1e-7, True),
        ({"kind": "same", "width": 1e-6, "case": "c"}, 1.0, 1.001, False),
        ({"kind": "same", "width": 1e-6, "case": "c"}, 1.0, None, False),
        ({"kind": "never", "value": False}, None, None, True),
        ({"kind": "never", "value": False}, 0, None, True),
        ({"kind": "never", "value": False}, False, None, False),
    ],
)
def test_bands(keys, got, baseline, passed):
    assert bands.compare(band(**keys), got, baseline).passed is passed


def test_figures_are_read_by_name(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "data").mkdir()
    entries = [{"name": "merged", "passed": True}, {"name": "GGUF F16", "passed": False}]
    (tmp_path / "export/equivalence.json").write_text(json.dumps({"artefacts": entries, "control": {"passed": False}}))
    (tmp_path / "train_log.jsonl").write_text('{"loss": 3}\n{"loss": 2}\n')
    (tmp_path / "train_metrics.json").write_text("{damaged")
    read = {name: metrics.read_metric(tmp_path, name) for name in metrics.KNOWN}
    assert read["export.equivalence[merged].passed"] is True
    assert read["export.equivalence[GGUF F16].passed"] is False
    assert read["export.equivalence[GGUF Q4_0].passed"] is None
    assert read["export.equivalence.control.passed"] is False
    assert read["train_log[1].loss"] == 2
    assert read["train_metrics.steps"] is None
    assert read["eval.seen"] is None


def test_a_figure_that_is_not_finite_is_a_word_and_red(tmp_path):
    (tmp_path / "train_log.jsonl").write_text('{"loss": NaN}\n')
    got = metrics.read_metric(tmp_path, "train_log[0].loss")
    assert got == "nan"
    assert not bands.compare(band(kind="relative", width=0.1), got, 1.0).passed


def test_a_file_that_holds_itself_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds itself"):
        load(tmp_path, "cases: &a\n- *a\n")


def test_every_metric_has_a_maker_and_a_place():
    for name in metrics.KNOWN:
        assert metrics.made_by(name) in range(6), name
        assert metrics.place_of(name) or name.startswith("cost."), name
        assert (metrics.made_by(name) == 0) == name.startswith("cost."), name


def test_evaluated_rows_that_were_trained_are_counted(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "data").mkdir()
    trained = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "data/train.jsonl").write_text(json.dumps(trained) + "\n")
    rows = [{"prompt": "a?", "expected": "b"}, {"prompt": "a?", "expected": "c"}]
    (tmp_path / "eval/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert metrics.read_metric(tmp_path, "eval.seen") == 1
