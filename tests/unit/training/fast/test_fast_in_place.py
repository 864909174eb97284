"""The model stays PEFT's: what is untouched, what falls back, what is kept and skipped."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from training_rows import dataset

from mac_lora_helpers.training import fast
from mac_lora_helpers.training.fast import head, mlp, projections


def first_batch(trainer):
    """The first pass of the first step."""
    return trainer._deal(next(iter(trainer.get_train_dataloader())))[0]


def saved_bytes(run):
    """Bytes that autograd keeps while ``run`` makes a graph, parameters left out; each storage once."""
    seen = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return sum(storage.nbytes() for storage in seen.values()), result


def test_after_training_adapter_off_merge_and_saving_are_pefts(build, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run, trainer = build(max_steps=10, learning_rate=2e-2)
    untrained = AutoModelForCausalLM.from_pretrained(trainer.config.model_id)
    assert fast.make_fast(trainer).applied
    trainer.train()
    trainer.save_model()
    model, ids = trainer.model.eval(), torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        tuned = model(input_ids=ids).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids).logits, untrained(input_ids=ids).logits)
        loaded = PeftModel.from_pretrained(untrained, run.path("adapter"))
        torch.testing.assert_close(loaded(input_ids=ids).logits, tuned)
        with loaded.disable_adapter():
            assert (tuned - loaded(input_ids=ids).logits).abs().max() > 1e-3
        assert model.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape == (1, 23)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, tuned, atol=1e-4, rtol=1e-4)


def test_outside_of_a_step_the_layers_are_untouched_and_undo_restores_the_model(build):
    _, trainer = build()
    base = trainer.model.get_base_model()
    before = base.forward
    assert fast.make_fast(trainer).applied
    trainer.train()
    assert not [name for name, module in base.model.named_modules() if "forward" in module.__dict__]
    fast.undo(trainer)
    assert base.forward == before
    assert "_fast_path" not in base.__dict__


def test_evaluation_and_a_switched_off_adapter_take_the_plain_path(build):
    _, trainer = build()
    assert fast.make_fast(trainer).applied
    base, batch = trainer.model.get_base_model(), first_batch(trainer)
    taken = base._fast_path.steps
    with torch.no_grad():
        trainer.model(**batch, fused_lm_head=True)
    trainer.model.eval()
    trainer.model(**batch, fused_lm_head=True)
    trainer.model(**batch)
    trainer.model.train()
    with trainer.model.disable_adapter():
        trainer.model(**batch, fused_lm_head=True)
    assert base._fast_path.steps == taken
    trainer.model(**batch, fused_lm_head=True)
    assert base._fast_path.steps == taken + 1


def test_a_hook_that_comes_later_is_called(build):
    _, trainer = build()
    assert fast.make_fast(trainer).applied
    base, batch, seen = trainer.model.get_base_model(), first_batch(trainer), []
    trainer.model.train()
    hook = base.model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    taken = base._fast_path.steps
    trainer.model(**batch, fused_lm_head=True)
    assert (seen, base._fast_path.steps) == ([1], taken)
    hook.remove()
    trainer.model(**batch, fused_lm_head=True)
    assert (seen, base._fast_path.steps) == ([1], taken + 1)


def test_comparing_leaves_adapter_modes_and_random_state_alone(build):
    _, trainer = build(lora_dropout=0.1)
    trainer.model.eval()
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    state = torch.get_rng_state()
    report = fast.make_fast(trainer)
    assert report.applied
    assert 0 <= report.differences["loss"] < 1e-5
    assert 0 < report.differences["gradient"] < 1e-4
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module.training for module in trainer.model.modules())
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None


def test_a_path_that_computes_something_else_is_refused(build, monkeypatch):
    _, trainer = build()
    right = head._score

    def wrong(*inputs):
        return right(*inputs) * 1.01

    monkeypatch.setattr(head, "_score", wrong)
    report = fast.make_fast(trainer)
    assert not report.applied
    assert "gradient differs by" in report.reason
    assert "_fast_path" not in trainer.model.get_base_model().__dict__
    trainer.train()


def test_a_device_that_cannot_run_it_keeps_the_plain_path(build, monkeypatch):
    _, trainer = build(max_steps=2)

    def unsupported(*_):
        raise NotImplementedError("The operator 'aten::silu_backward' is not implemented for this device.\nmore")

    monkeypatch.setattr(mlp, "_backward_gates", unsupported)
    report = fast.make_fast(trainer)
    assert not report.applied
    assert "it fails: NotImplementedError: The operator 'aten::silu_backward' is not implemented for this device." in report.reason
    trainer.train()


@pytest.mark.parametrize(("family", "sizes"), [("gpt2", True), ("gemma", False), ("phi", False), ("gpt_neox", False)])
def test_other_families_keep_the_plain_path_and_train(build, family_folder, family, sizes):
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4} if sizes else {}
    _, trainer = build(model_id=str(family_folder(family, **shape)), max_steps=2)
    report = fast.make_fast(trainer)
    assert not report.applied
    assert report.reason.startswith(f"{family} is not one of llama")
    trainer.train()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model.model.layers[0].mlp.register_forward_hook(lambda *_: None), "hooks watch"),
        (lambda model: model.model.norm.weight.requires_grad_(True), "is trained"),
        (lambda model: model.model.layers[1].mlp.up_proj.weight.requires_grad_(True), "is trained"),
        (lambda model: model.set_attn_implementation("eager"), "eager"),
        (lambda model: setattr(model.config, "hidden_act", "gelu"), "gelu"),
        (lambda model: setattr(model.model.layers[0].self_attn.q_proj, "_disable_adapters", True), "active adapter"),
        (lambda model: setattr(model.config, "final_logit_softcapping", 30.0), "scaled or capped"),
    ],
)
def test_what_differs_is_named(build, change, said):
    _, trainer = build()
    change(trainer.model.get_base_model())
    report = fast.make_fast(trainer)
    assert not report.applied
    assert said in report.reason


def test_dora_is_not_known(build):
    _, trainer = build(use_dora=True)
    report = fast.make_fast(trainer)
    assert not report.applied
    assert "DoRA" in report.reason


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("dropout", [0, 0.1])
@pytest.mark.parametrize("recompute", ["nothing", "mlp", "layers"])
def test_what_is_kept_is_what_the_plan_says(build, family_folder, family, dropout, recompute):
    folder = family_folder(family, hidden_size=64, intermediate_size=256, num_hidden_layers=4)
    tokens = {"train": dataset([{"input_ids": list(range(64)), "labels": list(range(64))}] * 2)}
    _, trainer = build(model_id=str(folder), tokens=tokens, max_seq_length=64, lora_dropout=dropout, gradient_accumulation_steps=1)
    report = fast.make_fast(trainer, recompute=recompute)
    trainer.model.train()
    batch, base = first_batch(trainer), trainer.model.get_base_model()
    measured, _ = saved_bytes(lambda: base(**batch, fused_lm_head=True))
    # with whole layers, the plan counts one layer's recomputation, which happens in the backward pass
    planned = report.plan.kept_bytes - (
        fast.plan.kept(base.config, 2, 64, 4, trainer.model.active_peft_config).layer if recompute == "layers" else 0
    )
    beside = 3 * 128 * 64 * 4 + 64 * 16 * 2 * 4
    assert planned <= measured <= 1.1 * planned + beside


def test_the_path_keeps_less_than_the_plain_one_and_skips_what_no_label_depends_on(build, family_folder):
    """Without a label: no head, and in the last layer no attention output and no MLP, forward and backward."""
    width, inner = 64, 256
    folder = family_folder("qwen2", hidden_size=width, intermediate_size=inner, num_hidden_layers=4)
    ids, kept, work = list(range(64)), {}, {}
    for name, labels in {"all": ids, "few": [-100] * 48 + ids[48:]}.items():
        tokens = {"train": dataset([{"input_ids": ids, "labels": labels}] * 2)}
        _, trainer = build(name, model_id=str(folder), tokens=tokens, max_seq_length=64, gradient_accumulation_steps=1)
        trainer.model.train()
        base, batch = trainer.model.get_base_model(), first_batch(trainer)
        plain_bytes, plain_work = work_of(base, batch)
        assert fast.make_fast(trainer).applied
        kept[name], work[name] = work_of(base, batch)
        assert kept[name] < 0.8 * plain_bytes
        assert work[name] < plain_work
    head_rows, layer_rows = 2 * (63 - 16), 2 * (64 - 16)
    a_row = width * base.config.vocab_size
    a_layer_row = width * width + 3 * width * inner
    skipped = 4 * head_rows * a_row + 4 * layer_rows * a_layer_row
    assert work["all"] - work["few"] == pytest.approx(skipped, rel=0.03)


def test_below_the_lowest_adapter_nothing_is_kept_and_nothing_runs_backward(build, family_folder):
    """Two of four layers: what is kept is the plan's, half of all four's; backward work is the upper two's alone."""
    folder = family_folder("qwen2", hidden_size=64, intermediate_size=256, num_hidden_layers=4)
    ids = list(range(64))
    tokens, kept, work = {"train": dataset([{"input_ids": ids, "labels": ids}] * 2)}, {}, {}
    for layers in (0, 2):
        _, trainer = build(
            str(layers), model_id=str(folder), tokens=tokens, max_seq_length=64, lora_layers=layers, gradient_checkpointing=False
        )
        report, base = fast.make_fast(trainer), trainer.model.get_base_model()
        trainer.model.train()
        batch = first_batch(trainer)
        kept[layers], work[layers] = work_of(base, batch)
        beside = 3 * 128 * 64 * 4 + 64 * 16 * 2 * 4
        assert report.plan.kept_bytes <= kept[layers] <= 1.1 * report.plan.kept_bytes + beside
    assert kept[2] < 0.65 * kept[0]
    a_token = 2 * (64 * 64 + 64 * 32) + 3 * 64 * 256  # weights of a layer: a multiplication each, forward and backward
    assert work[0] - work[2] > 2 * 2 * 128 * a_token


def work_of(base, batch):
    kept, _ = saved_bytes(lambda: base(**batch, fused_lm_head=True))
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place_flops}) as counter:
        base(**batch, fused_lm_head=True).log_probs.sum().backward()
    base.zero_grad()
    return kept, counter.get_total_flops()


def in_place_flops(onto, left, right, out_shape=None, **_):
    """PyTorch's counter leaves out the in-place product; the shapes come without their tensors."""
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_turned_product_is_the_product(dtype):
    x, weight = torch.randn(5, 12, dtype=dtype), torch.randn(7, 12, dtype=dtype)
    whole, tolerance = x @ weight.t(), 1e-5 if dtype == torch.float32 else 2e-2
    turned = projections.product(x, weight.t(), turned=True)
    torch.testing.assert_close(turned, whole, rtol=tolerance, atol=tolerance)
    assert turned.stride() == (1, 5)
    assert projections.product(x, weight.t()).stride() == (7, 1)
