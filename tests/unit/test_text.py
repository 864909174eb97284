import pytest

from mac_lora_helpers import text
from mac_lora_helpers.errors import InputError


@pytest.mark.parametrize(("count", "words"), [(None, "unknown"), (999, "999 B"), (7_400_000, "7.4 MB"), (1_234_500_000_000, "1,234.5 GB")])
def test_sizes(count, words):
    assert text.size(count) == words


@pytest.mark.parametrize(("count", "words"), [(None, "unknown"), (2**34, "16.0 GiB"), (812 * 2**20, "812 MiB")])
def test_memory_as_it_is_sold(count, words):
    assert text.binary_size(count) == words


@pytest.mark.parametrize(("seconds", "words"), [(None, "unknown"), (0.42, "0.42 s"), (45, "45 s"), (720, "12 min"), (12_600, "3.5 h")])
def test_durations(seconds, words):
    assert text.duration(seconds) == words


@pytest.mark.parametrize(("share", "words"), [(0, "0 %"), (0.004, "0.4 %"), (0.372, "37 %"), (1, "100 %")])
def test_shares(share, words):
    assert text.percent(share) == words


def test_the_nearest_name():
    assert text.near("max_step", ["max_steps", "seed"]) == "did you mean max_steps?"
    assert text.near("zzz", ["seed"], otherwise="see the list") == "see the list"


def test_control_characters_are_seen_and_not_obeyed():
    assert text.visible("a\x1b[31m\x07\u202e\tb\n") == "a\\x1b[31m\\x07\\u202e\tb\n"
    assert text.visible("😀 naïve") == "😀 naïve"
    assert "\x1b" not in str(InputError("bad key", where="row 1: \x1b]0;title\x07"))
