"""A training that goes wrong stops at that step, keeps what was good, and says what to do."""

import math
import resource
from pathlib import Path

import pytest
import torch
from training_rows import dataset, rows

from mac_lora_helpers import training
from mac_lora_helpers.training import guards, resume
from mac_lora_helpers.training.guards import LossGuard, MemoryGuard, MemoryState, TrainingStopped

GB = 10**9


def from_step(trainer, step, action):
    """Calls ``action`` once before the given optimizer step begins."""
    from transformers import TrainerCallback

    class Before(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == step - 1:
                action()

    trainer.add_callback(Before())


def first_layer(trainer):
    return trainer.model.get_base_model().model.layers[0]


def nan_forward(trainer):
    first_layer(trainer).mlp.down_proj.weight.data[0, 0] = math.nan


def inf_gradient(trainer):
    parameter = next(p for n, p in trainer.model.named_parameters() if "lora_B" in n)
    parameter.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize(
    ("poison", "told"), [(nan_forward, "the loss is nan"), (inf_gradient, "the gradient norm is nan|the gradient norm is inf")]
)
def test_nan_stops_at_its_step_and_keeps_the_adapter_of_the_step_before(poison, told, make, trainer_for, tokens):
    run, config = make(max_steps=12, save_steps=5)
    trainer = trainer_for(run, config, tokens)
    good = {}

    def act():
        good.update({name: p.detach().clone() for name, p in trainer.model.named_parameters() if "lora_" in name})
        poison(trainer)

    from_step(trainer, 7, act)
    with pytest.raises(TrainingStopped, match="stopped at step 7") as stopped:
        trainer.train()
    assert stopped.match(told)
    assert "learning_rate=1.0e-04" in str(stopped.value)
    assert "max_seq_length=24" in str(stopped.value)
    assert "adapter of step 6" in str(stopped.value)

    from safetensors.torch import load_file

    folder = run.path("checkpoints")
    kept = load_file(folder / resume.LAST_GOOD / "adapter_model.safetensors")
    assert len(kept) == len(good) > 0
    for name, tensor in kept.items():
        assert torch.equal(tensor, good[name.replace(".weight", ".default.weight")])
    assert [row["step"] for row in run.read_lines("train_log")][-1] < 7
    assert [path.name for path in resume.checkpoints(folder)] == ["checkpoint-5"]
    assert not run.has("adapter")


def test_after_such_a_stop_the_same_settings_go_on_and_others_start_over(make, trainer_for, tokens, capsys):
    run, config = make(max_steps=12, save_steps=5)
    trainer = trainer_for(run, config, tokens)
    from_step(trainer, 7, lambda: nan_forward(trainer))
    with pytest.raises(TrainingStopped):
        trainer.train()
    assert training.last_checkpoint(run, config).endswith("checkpoint-5")
    run, config = make(max_steps=12, save_steps=5, learning_rate=1e-4)
    assert training.last_checkpoint(run, config) is None
    assert "starts again" in capsys.readouterr().out


def test_nan_in_the_first_step_keeps_nothing(make, trainer_for, tokens):
    run, config = make()
    trainer = trainer_for(run, config, tokens)
    nan_forward(trainer)
    with pytest.raises(TrainingStopped, match="no adapter to keep"):
        trainer.train()
    assert not (run.path("checkpoints") / resume.LAST_GOOD).exists()


@pytest.fixture
def fitted(tmp_path):
    """A tiny base model that already knows the rows: its loss starts near zero, so that it can explode."""
    from tiny import tiny_model
    from transformers import AutoModelForCausalLM

    folder = tiny_model(tmp_path / "fitted")
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.tensor([row["input_ids"] for row in rows(4, shortest=24)])
    for _ in range(60):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def test_a_learning_rate_that_is_far_too_high_stops_the_training(make, trainer_for, tokens, fitted):
    run, config = make(model_id=str(fitted), max_steps=60, learning_rate=0.5, save_steps=5, gradient_accumulation_steps=4)
    trainer = trainer_for(run, config, tokens)
    with pytest.raises(TrainingStopped, match="the loss explodes") as stopped:
        trainer.train()
    assert trainer.state.global_step < 30
    assert "learning_rate=2.5e-01" in str(stopped.value)
    assert resume.read_state(run.path("checkpoints"))["status"] == "stopped"


def test_a_step_without_labels_stops_the_training(make, trainer_for, tokens):
    run, config = make(max_steps=4)
    trainer = trainer_for(run, config, tokens)
    honest, calls = trainer.data_collator.inner, []

    def forgetful(examples):
        batch = honest(examples)
        calls.append(1)
        if len(calls) > 2:  # the rows of a step go through together
            batch["labels"][:] = -100
        return batch

    trainer.data_collator.inner = forgetful
    with pytest.raises(TrainingStopped, match="step 3: its batches have no token to learn from"):
        trainer.train()


def test_losses_that_are_noisy_but_sound_do_not_stop():
    guard = LossGuard()
    noisy = [3.0, 2.5, 4.5, 2.0, 2.2, 5.9, 5.9, 1.0, 0.1, 4.0, 6.5, 6.5, 0.3]
    assert not any(guard.explodes(loss) for loss in noisy)


def test_three_losses_in_a_row_above_the_limit_explode():
    guard = LossGuard([3.0, 3.1, 2.9, 2.8, 3.0])
    assert guard.limit == 6.0
    assert [guard.explodes(loss) for loss in (6.1, 7.0, 6.2)] == [False, False, True]


def test_a_blow_up_at_the_second_step_does_not_raise_its_own_limit():
    losses = [0.1, 6.0, 7.0, 6.0, 5.0, 6.0, 6.0]
    assert LossGuard(losses, rows=8).explodes(6.0)
    assert not LossGuard(losses, rows=1).explodes(6.0), "one row tells no level"
    assert LossGuard([3.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0], rows=1, vocabulary=400).limit == 11.0
    assert LossGuard([4.9] * 5, vocabulary=400).limit == pytest.approx(math.log(400) + 1, abs=1e-6)


def test_a_loss_near_zero_may_double():
    guard = LossGuard([0.05] * 5)
    assert not any(guard.explodes(loss) for loss in [0.4] * 10)


def state(available=8 * GB, swap=0, pressure=1):
    return MemoryState(total=16 * GB, available=available, swap_used=swap, pressure=pressure)


@pytest.mark.parametrize(
    ("states", "told"),
    [
        ([state(), state(swap=GB), state(swap=int(1.5 * GB))], ""),
        ([state(swap=5 * GB), state(swap=5 * GB)], ""),
        ([state(), state(swap=int(1.7 * GB))], "swap grew by 1.7 GB"),
        ([state(), state(pressure=4), state()], ""),
        ([state(), state(pressure=4), state(pressure=4)], "critical memory pressure"),
        ([state(), state(pressure=2), state(pressure=2)], ""),
        ([state(available=GB // 10), state(available=GB // 10)], "almost no free memory: 100.0 MB of 16.0 GB"),
    ],
)
def test_memory_guard(states, told):
    answers = iter(states)
    guard = MemoryGuard(read=lambda: next(answers), every=5)
    problems = [guard.problem(now=10.0 * index) for index in range(len(states))]
    assert problems[:-1] == [""] * (len(states) - 1)
    assert problems[-1].startswith(told)
    assert bool(problems[-1]) == bool(told)


def test_memory_guard_looks_rarely():
    looks = []
    guard = MemoryGuard(read=lambda: looks.append(1) or state(), every=5)
    for now in (0, 1, 4.9, 5.1, 6, 11):
        guard.problem(now=now)
    assert len(looks) == 3


def test_this_machine_can_be_read():
    now = guards.read_memory_state()
    assert now.total > now.available > 0
    assert now.pressure == 1 or now.pressure in (2, 4)


def test_a_machine_that_swaps_stops_with_a_checkpoint_that_can_be_continued(make, trainer_for, train, tokens):
    run, config = make(max_steps=6, save_steps=50)
    trainer = trainer_for(run, config, tokens)
    swap = iter([0, 0, 3 * GB])
    trainer.memory_guard = MemoryGuard(read=lambda: state(swap=next(swap)), every=0)
    with pytest.raises(TrainingStopped, match=r"swap grew by 3\.0 GB") as stopped:
        trainer.train()
    assert "needs about" in str(stopped.value)
    assert training.last_checkpoint(run, config).endswith("checkpoint-3")
    _, metrics = train(run, config, tokens)
    assert metrics["resumed_from_step"] == 3


def test_out_of_memory_is_answered_with_numbers(make, trainer_for):
    """A real one: this process may not grow by more than a few hundred megabytes, which the fast path would do with."""
    run, config = make(max_seq_length=1024, per_device_train_batch_size=64, gradient_checkpointing=False, fast_path="off")
    trainer = trainer_for(run, config, {"train": dataset(rows(64, shortest=1024, longest=1024))})
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 400_000_000, before[1]))
    try:
        with pytest.raises(TrainingStopped, match="memory ran out in step 1") as stopped:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    text = str(stopped.value)
    assert "a batch of 64 × 1024 tokens needs about" in text
    assert "per_device_train_batch_size=1 with gradient_accumulation_steps=128 would need about" in text
    assert "MB are free" in text or "GB are free" in text


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.97 GB, other allocations: 1 MB, max allowed: 18.13 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("Invalid buffer size: 9.27 GB"), True),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_out_of_memory(error, memory):
    assert guards.is_out_of_memory(error) is memory


def test_other_errors_pass_through(make, trainer_for, tokens):
    run, config = make()
    trainer = trainer_for(run, config, tokens)

    def broken():
        raise RuntimeError("something else")

    from_step(trainer, 2, broken)
    with pytest.raises(RuntimeError, match="something else"):
        trainer.train()
