"""What generated tests share: strategies for the texts and values that users type, and settings that keep a run short."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mac_lora_helpers.config import Config

#: Repeatable, without a time limit for one example: a busy machine must not decide a test.
bounded = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
few = settings(bounded, max_examples=25)
many = settings(bounded, max_examples=200)

#: What people paste: numbers in other spellings, paths, lists, secrets, escapes, other scripts, markup.
NASTY = st.sampled_from(
    [
        *("", " ", "\0", "nan", "inf", "-inf", "1e999", "-1", "0", "1_000", "１２", "1,5", "true", "None", "[]", "{}", "~", "~root/x"),
        *("../../etc", "/dev/null", "a,b,,c", ",", "a\nb", "\ud83d", "\u202eabc", "😀", "北京", "<script>alert(1)</script>", "{{7*7}}"),
        *("%n@%m %#", "${HOME}", "$(id)", "'; --", '"', "\\", "-p", "--help", "x" * 5000, "Q8_0, Q9_9", "hf_" + "a1B2" * 8),
        *("q_proj, q_proj", "*", "**", "[", "user/name/more", "user/..", ".git", "2h", "2 h", "9" * 400 + "h"),
    ]
)
TEXT = st.one_of(NASTY, st.text(max_size=40))
SCALAR = st.one_of(TEXT, st.integers(), st.floats(), st.booleans(), st.none())
VALUE = st.one_of(SCALAR, st.lists(SCALAR, max_size=3), st.dictionaries(TEXT, SCALAR, max_size=3))
NAME = st.one_of(st.sampled_from(list(Config.model_fields)), st.sampled_from([n.upper() for n in Config.model_fields]), TEXT)
#: Any JSON.
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)),
    max_leaves=12,
)
