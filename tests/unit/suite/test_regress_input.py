"""Cases, bands and baselines: what is read, what is refused, and with which line."""

import json

import pytest

from mac_lora_helpers.errors import InputError
from mac_lora_helpers.suite.cli import main
from mac_lora_helpers.suite.regress import figures
from mac_lora_helpers.suite.regress.cases import choose, load_cases
from mac_lora_helpers.suite.regress.figures import Band

BAND = "{metric: train_metrics.steps, kind: exact, reason: a parameter}"


def load(tmp_path, text):
    file = tmp_path / "cases.yaml"
    file.write_text(text)
    return {case.name: case for case in load_cases(file)}


def test_a_grid_is_one_case_for_each_combination(tmp_path):
    grid = "grid: {loss_on: [all, completion], lora_r: [4, 8]}"
    cases = load(tmp_path, f"defaults: {{parameters: {{seed: 7}}}}\ncases:\n- {{name: a, {grid}, notebooks: [02, 03]}}\n")
    assert list(cases) == ["a-all-4", "a-all-8", "a-completion-4", "a-completion-8"]
    assert cases["a-all-8"].parameters == {"seed": 7, "loss_on": "all", "lora_r": 8}
    assert cases["a-all-8"].notebooks == ("02", "03")


def test_bands_apply_where_their_figure_is_made_and_a_case_changes_them(tmp_path):
    seen = "{metric: eval.seen, kind: exact, reason: made by rule}"
    text = f"bands: [{BAND}, {seen}]\ncases:\n- {{name: a, notebooks: [03]}}\n- {{name: b}}\n"
    text += "- {name: c, notebooks: [03], without: [train_metrics.steps]}\n"
    text += "- {name: d, notebooks: [03], bands: [{metric: train_metrics.steps, kind: at_least, width: 2, reason: other here}]}\n"
    found = {name: [(band.metric, band.kind) for band in case.bands] for name, case in load(tmp_path, text).items()}
    steps = ("train_metrics.steps", "exact")
    assert found == {"a": [steps], "b": [steps, ("eval.seen", "exact")], "c": [], "d": [("train_metrics.steps", "at_least")]}


def test_choosing_takes_along_what_a_case_needs(tmp_path):
    same = "{metric: train_metrics.last_loss, kind: same, case: b, width: 0.1, reason: the same sums}"
    text = "cases:\n- {name: a, notebooks: [02]}\n- {name: b, notebooks: [03], after: a}\n"
    text += f"- {{name: c, bands: [{same}]}}\n- {{name: d}}\n"
    cases = tuple(load(tmp_path, text).values())
    assert [case.name for case in choose(cases, ["c"])] == ["a", "b", "c"]
    assert [case.name for case in choose(cases, ["b"])] == ["a", "b"]
    assert choose(cases, []) == cases


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("cases: []\n", 1, "at least 1"),
        ("cases:\n- name: a\n  notebooks: [02\n", 4, "not YAML"),
        ("cases:\n- name: a\n- name: b\n  paramters: {}\n", 4, "did you mean parameters?"),
        ("cases:\n- name: a\n  parameters:\n    max_stps: 3\n", 4, "did you mean max_steps?"),
        ("cases:\n- name: a\n  parameters:\n    seed: 1\n    max_steps: many\n", 5, "whole number"),
        ("defaults:\n  parameters: {lora_r: 0}\ncases:\n- name: a\n", 2, "lora_r"),
        ("cases:\n- name: a\n  parameters: {out_dir: x}\n", 3, "no parameter that a case can set"),
        ("cases:\n- name: a\n  parameters: {data_files: nowhere.jsonl}\n", 3, "nowhere.jsonl"),
        ("cases:\n- name: a\n  notebooks: [07]\n", 3, "'01', '02'"),
        ("cases:\n- name: a\n  notebooks: [03, 02]\n", 3, "not in order"),
        ("cases:\n- name: a\n- name: a\n", 3, "two cases"),
        ("cases:\n- name: ../a\n", 2, "cannot be a case's name"),
        ("cases:\n- name: a\n  grid: {seed: []}\n", 3, "no values"),
        ("cases:\n- name: a\n  after: b\n- name: b\n", 2, "does not stand above it"),
        ("cases:\n- name: base\n- name: a\n  after: bsae\n", 3, "did you mean base?"),
        ("bands:\n- {metric: evla.metrics.tuned.loss, kind: exact, reason: long enough}\ncases:\n- name: a\n", 2, "no artefact holds"),
        ("bands:\n- {metric: eval.seen, kind: exact, width: 1, reason: long enough}\ncases:\n- name: a\n", 2, "has no width"),
        ("bands:\n- {metric: eval.seen, kind: relative, reason: long enough}\ncases:\n- name: a\n", 2, "needs a width"),
        ("bands:\n- {metric: eval.seen, kind: exact}\ncases:\n- name: a\n", 2, "reason"),
        ("bands:\n- {metric: eval.seen, kind: ratio, width: 2, reason: long enough}\ncases:\n- name: a\n", 2, "'of'"),
        (f"bands:\n- {BAND}\n- {BAND}\ncases:\n- name: a\n", 3, "two bands"),
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
    "content", ['{"case": "a"', '{"case": "b", "values": {}}', '{"case": "a", "values": {"train_metrics.last_loss": "low"}}', "[]", ""]
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
        ["-k", "b"],
        ["--jobs", "0"],
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
    return Band(metric="m", reason="long enough", **keys)


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
    assert figures.compare(band(**keys), got, baseline)[0] is passed


def test_figures_are_read_by_name(tmp_path):
    (tmp_path / "export").mkdir()
    entries = [{"name": "merged", "passed": True}, {"name": "GGUF F16", "passed": False}]
    (tmp_path / "export/equivalence.json").write_text(json.dumps({"artefacts": entries, "control": {"passed": False}}))
    (tmp_path / "train_log.jsonl").write_text('{"loss": NaN}\n{"loss": 2}\n')
    (tmp_path / "train_metrics.json").write_text("{damaged")
    wanted = {
        "export.equivalence[merged].passed": True,
        "export.equivalence[GGUF F16].passed": False,
        "export.equivalence[GGUF Q4_0].passed": None,
        "export.equivalence.control.passed": False,
        "train_log[0].loss": "nan",
        "train_log[1].loss": 2,
        "train_metrics.steps": None,
        "eval.seen": None,
    }
    assert {name: figures.read_figure(tmp_path, name, {}) for name in wanted} == wanted
    assert not figures.compare(band(kind="relative", width=0.1), "nan", 1.0)[0]


def test_evaluated_rows_that_were_trained_are_counted(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "data").mkdir()
    trained = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "data/train.jsonl").write_text(json.dumps(trained) + "\n")
    rows = [{"prompt": "a?", "expected": "b"}, {"prompt": "a?", "expected": "c"}]
    (tmp_path / "eval/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert figures.read_figure(tmp_path, "eval.seen", {}) == 1
