"""Rows of like length go through the model together: within the budget, in few shapes, with the losses of one row at a time."""

import datasets
import numpy as np
import pytest
import torch
from training_rows import dataset, rows

from mac_lora_helpers.training.batches import Order, Passes, choose_buckets, dealt_out, largest_pass, lengths_of, plan_passes
from mac_lora_helpers.training.recipe import settle_threads

LENGTHS = {
    "even": np.random.default_rng(0).integers(32, 513, 3000),
    "short": np.random.default_rng(1).integers(20, 101, 956),
    "mostly short": np.clip(np.random.default_rng(2).lognormal(4.5, 0.35, 4000).astype(int), 8, 512),
    "long": np.random.default_rng(3).integers(300, 513, 1000),
    "alike": np.full(100, 100),
}


def of_lengths(sizes):
    return datasets.Dataset.from_dict({"input_ids": [[1] * n for n in sizes], "labels": [[1] * n for n in sizes]})


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("step_rows", [8, 12, 7])
def test_an_epoch_shows_few_shapes_with_little_padding_and_every_row_once(name, step_rows):
    lengths = LENGTHS[name]
    passes = plan_passes(lengths, step_rows, 512, seed=42)
    for epoch in range(3):
        order = passes.order(np.random.default_rng([42, epoch]))
        assert sorted(order) == list(range(len(lengths)))
        shapes, padding = passes.shapes(order)
        assert len(shapes) <= 12
        assert padding <= 0.08
        assert max(count * width for count, width in shapes) <= 512


def test_eight_rows_of_a_hundred_tokens_are_two_passes():
    passes = Passes([100] * 64, rows=8, budget=512)
    assert [len(part) for part in passes.split([100] * 8)] == [4, 4]
    assert largest_pass([100] * 64, 8, 512) == (4, 100)
    assert largest_pass([100] * 64 + [512], 8, 512) == (1, 512)
    assert largest_pass([100] * 3, 8, 512) == (3, 100)


def test_several_processes_make_equally_many_passes():
    passes = Passes([100] * 64, rows=8, budget=800)
    parts = passes.split([100] * 8, at_least=3)
    assert sorted(len(part) for part in parts) == [2, 2, 4]
    assert sorted(row for part in parts for row in part) == list(range(8))


def test_buckets_have_the_least_padding():
    lengths = [1, 2, 3, 10, 11, 50]
    assert choose_buckets(lengths, 3) == [3, 11, 50]
    assert choose_buckets(lengths, 9) == sorted(set(lengths))


def test_the_order_is_drawn_anew_each_epoch_from_the_seed():
    data = of_lengths(LENGTHS["short"][:100])
    order = Order(plan_passes(lengths_of(data), 8, 512, 3), 3, 100)
    first = list(order)
    assert list(order) == first
    order.set_epoch(1)
    assert list(order) != first


@pytest.mark.parametrize(("path", "accumulation"), [("off", 8), ("auto", 8), ("off", 6)])
def test_the_losses_are_those_of_one_row_at_a_time(make, trainer_for, path, accumulation):
    """The same rows in each step; the second training may not put any two of them together."""
    logs, passes = [], []
    for name in ("together", "alone"):
        run, config = make(folder=name, fast_path=path, lora_dropout=0, max_steps=8, gradient_accumulation_steps=accumulation,
                           max_seq_length=96, logging_steps=1, learning_rate=2e-3)  # fmt: skip
        trainer = trainer_for(run, config, {"train": dataset(rows(48))})
        if name == "alone":
            trainer.passes.split = lambda lengths, at_least=1: [[row] for row in sorted(range(len(lengths)), key=lambda row: -lengths[row])]
        calls = []
        deal = trainer._deal
        trainer._deal = lambda inputs, deal=deal, calls=calls: calls.append(parts := deal(inputs)) or parts
        trainer.train()
        logs.append(run.read_lines("train_log"))
        passes.append(sum(map(len, calls)))
    assert passes[1] == 8 * accumulation
    assert passes[0] <= passes[1] / 2.5
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert one["tokens"] == other["tokens"]


def test_the_forecast_counts_the_largest_pass(make, trainer_for):
    run, config = make(max_seq_length=96, gradient_accumulation_steps=8)
    trainer = trainer_for(run, config, {"train": dataset(rows(40, shortest=20))})
    assert trainer.forecast.shape == largest_pass(lengths_of(trainer.tokens["train"]), 8, 96)
    assert trainer.forecast.shape[0] > 1


@pytest.mark.parametrize(("parameters", "device", "threads"), [(2_000_000, "cpu", 1), (500_000_000, "cpu", 2), (2_000_000, "mps", 2)])
def test_threads(parameters, device, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    settle_threads(parameters, device)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("batch", "processes"), [(1, 2), (4, 2), (4, 3), (7, 4)])
def test_several_processes_see_one_process_batches_and_as_many_each(batch, processes):
    """Dealt out in turn as accelerate does; what is filled up has no label."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    data = of_lengths(np.random.default_rng(0).integers(5, 200, 300))
    passes, filled = plan_passes(lengths_of(data), batch, 400, seed=3), dealt_out(data, batch, processes)
    order = Order(passes, 3, len(filled))
    alone = list(BatchSampler(Order(passes, 3, 300), batch, drop_last=False))
    batches = BatchSampler(order, batch, drop_last=False)
    shares = [list(BatchSamplerShard(batches, num_processes=processes, process_index=index)) for index in range(processes)]
    assert len({len(share) for share in shares}) == 1
    together = [part for turn in zip(*shares, strict=True) for part in turn]
    real = [[index for index in part if index < 300] for part in together]
    assert [part for part in real if part] == alone
    assert all(set(filled[index]["labels"]) == {-100} for index in range(300, len(filled)))
