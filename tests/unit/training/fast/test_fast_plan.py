"""What is computed again, by what fits."""

import pytest
from transformers import Qwen2Config

from mac_lora_helpers.training import fast
from mac_lora_helpers.training.fast.plan import kept

SHAPE = Qwen2Config(
    vocab_size=151936, hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, intermediate_size=4864
)


def sizes(**changes):
    return kept(SHAPE, **{"rows": 1, "length": 512, "itemsize": 4, **changes})


def test_nothing_is_computed_again_while_it_fits():
    all_of_it = sizes().layer * 24
    assert fast.choose_plan(sizes(), None).again(23) == "nothing"
    assert fast.choose_plan(sizes(), all_of_it) == fast.choose_plan(sizes(), None)
    assert fast.choose_plan(sizes(), all_of_it - 1).mlp_layers == 1


def test_a_smaller_budget_means_more_mlps_then_whole_layers_and_never_more_kept_than_allowed():
    seen = []
    for budget in range(int(1.1 * sizes().layer * 24), sizes().layer, -sizes().layer // 2):
        plan = fast.choose_plan(sizes(), budget)
        seen.append((plan.whole_layers, plan.mlp_layers))
        if not plan.whole_layers:
            assert plan.kept_bytes <= budget
    assert seen == sorted(seen) or [(w, 0 if w else n) for w, n in seen] == sorted((w, 0 if w else n) for w, n in seen)
    assert {(False, 0), (True, 0)} < set(seen)
    assert any(count and not whole for whole, count in seen)


def test_a_plan_names_each_layers_share():
    plan = fast.choose_plan(sizes(), sizes().layer * 24 - 3 * sizes().wide)
    assert [plan.again(index) for index in range(5)] == ["mlp", "mlp", "mlp", "nothing", "nothing"]
    assert (plan.kind, plan.mlp_layers) == ("mlp", 3)
    assert fast.choose_plan(sizes(), 0).again(0) == "layer"


@pytest.mark.parametrize("wanted", ["nothing", "mlp", "layers"])
def test_what_is_asked_for_is_done_whatever_it_takes(wanted):
    again = {"nothing": "nothing", "mlp": "mlp", "layers": "layer"}[wanted]
    assert fast.choose_plan(sizes(), 0, wanted).again(23) == again


def test_kept_bytes_follow_tokens_dtype_and_attention():
    assert sizes(length=1024).layer == 2 * sizes().layer
    assert sizes(rows=2).layer == 2 * sizes().layer
    assert sizes(itemsize=2).layer == pytest.approx(sizes().layer / 2, rel=0.01)
    assert sizes(device="mps").layer - sizes().layer == 14 * 512 * 512 * 4


def test_checkpointing_off_in_the_config_means_nothing_again(build):
    _, trainer = build(gradient_checkpointing=False)
    assert fast.make_fast(trainer, budget_bytes=0).plan.again(0) == "nothing"
    _, trainer = build("on", gradient_checkpointing=True)
    assert fast.make_fast(trainer, budget_bytes=0).plan.again(0) == "layer"
    assert fast.make_fast(trainer).plan.again(0) == "nothing", "this machine has room for a tiny model"
