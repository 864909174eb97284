"""Scores of single answers, and metrics of the user's own."""

import pytest

from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.evaluation.metrics import BUILT_IN, contains, exact_match, find_metric, token_f1, valid_json
from mac_lora_helpers.parameters import METRICS


def test_the_config_knows_the_same_names():
    assert tuple(BUILT_IN) == METRICS


@pytest.mark.parametrize(
    ("metric", "answer", "expected", "value"),
    [
        (exact_match, " Paris\n", "Paris", 1),
        (exact_match, "paris", "Paris", 0),
        (contains, "It is PARIS, of course.", "Paris", 1),
        (contains, "Par is", "Paris", 0),
        (contains, "anything", "", 0),
        (contains, "", "", 1),
        (valid_json, '{"a": [1, null]}', "", 1),
        (valid_json, "[]", "", 1),
        (valid_json, "5", "", 0),
        (valid_json, '{"a": NaN}', "", 0),
        (valid_json, '{"a": 1} and more', "", 0),
        (valid_json, "[" * 100_000, "", 0),
        (token_f1, "the capital is Paris", "Paris", 0.4),
        (token_f1, "Paris! Paris!", "paris", 2 / 3),
        (token_f1, "", "", 1),
        (token_f1, "", "Paris", 0),
        (token_f1, "Größe 北京", "größe", 2 / 3),
    ],
)
def test_values(metric, answer, expected, value):
    assert metric(answer, expected) == pytest.approx(value)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_scores.py").write_text(
        "def length(answer, expected):\n    return len(answer)\n"
        "def right(answer, expected):\n    return answer == expected\n"
        "def broken(answer, expected):\n    return answer.no_such_thing\n"
        "def nothing(answer, expected):\n    return None\n"
        "def endless(answer, expected):\n    return float('inf')\n"
        "value = 3\n"
    )
    (tmp_path / "does_not_import.py").write_text("raise RuntimeError('half-written')\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("own_module")
class TestOwnMetric:
    def test_a_function_beside_the_notebook(self):
        assert find_metric("my_scores:length")("four", "x") == 4.0
        assert find_metric("my_scores:right")("x", "x") == 1.0

    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("no_such_module:f", "No module named"),
            ("my_scores:no_such_function", "no attribute 'no_such_function'"),
            ("my_scores:value", "not a metric"),
            ("my_scores", "not a metric"),
            ("does_not_import:f", "half-written"),
            ("exact", "No module named"),
        ],
    )
    def test_a_bad_name_is_refused(self, name, what):
        with pytest.raises(InputError, match=what) as caught:
            find_metric(name)
        assert caught.value.fix

    @pytest.mark.parametrize(("name", "what"), [("broken", "AttributeError"), ("nothing", "returned None"), ("endless", "returned inf")])
    def test_a_function_that_fails_is_named_with_the_example(self, name, what):
        with pytest.raises(InputError, match=what) as caught:
            find_metric(f"my_scores:{name}")("an answer", "the expected one")
        assert f"my_scores:{name}" in caught.value.where
        assert "the expected one" in caught.value.where


@pytest.mark.parametrize("name", ["exact-match", "f1", "os.system", "a b:c", "module:", ":f", ""])
def test_the_parameter_refuses_what_is_no_metric(name):
    with pytest.raises(InputError, match="metric"):
        resolve({"metric": name}, env={})
