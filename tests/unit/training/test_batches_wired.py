"""Rows of like length meet, order is seeded, few shapes reach MPS, and a tiny model takes one CPU thread."""

import datasets
import numpy as np
import pytest
import torch

from mac_lora_helpers import data
from mac_lora_helpers.training.batches import Order, collator_for, dealt_out, lengths_of
from mac_lora_helpers.training.recipe import settle_threads
from mac_lora_helpers.training.sft import LoraTrainer


class Tokenizer:
    pad_token_id = 0


@pytest.fixture(scope="module")
def rows():
    sizes = np.random.default_rng(0).integers(5, 200, 300)
    return datasets.Dataset.from_dict({"input_ids": [[1] * n for n in sizes], "labels": [[1] * n for n in sizes]})


def shapes(rows, device):
    grouped = data.batch_sampler(lengths_of(rows), 1, seed=3)
    collate = collator_for(Tokenizer, grouped, device)
    return {collate([rows[index]])["input_ids"].shape for index in grouped.indices()}


def test_lengths_are_the_rows(rows):
    assert lengths_of(rows).tolist() == [len(ids) for ids in rows["input_ids"]]
    assert lengths_of(rows.select([5, 2])).tolist() == [len(rows[5]["input_ids"]), len(rows[2]["input_ids"])]


def test_few_shapes_on_mps_and_no_padding_elsewhere(rows):
    assert len(shapes(rows, "mps")) <= 8
    assert len(shapes(rows, "cpu")) > 100


def test_the_trainer_draws_from_the_grouped_order(rows):
    trainer = LoraTrainer.__new__(LoraTrainer)
    trainer.order = Order(data.batch_sampler(lengths_of(rows), 4, seed=3), 4)
    sampler = trainer._get_train_sampler()
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(len(rows)))
    assert first != second


@pytest.mark.parametrize(("parameters", "device", "threads"), [(2_000_000, "cpu", 1), (500_000_000, "cpu", 2), (2_000_000, "mps", 2)])
def test_threads(parameters, device, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    settle_threads(parameters, device)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(before)


def test_the_users_own_thread_count_stands(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    settle_threads(1000, "cpu")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.parametrize(("batch", "processes"), [(1, 2), (4, 2), (4, 3), (7, 4)])
def test_several_processes_see_one_process_batches_and_as_many_each(rows, batch, processes):
    """Dealt out in turn as accelerate does; what is filled up has no label."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    grouped = data.batch_sampler(lengths_of(rows), batch, seed=3)
    alone = list(grouped)
    filled, order = dealt_out(rows, batch, processes), Order(grouped, batch, processes)
    assert len(order) == len(filled) == len(list(order))
    batches = BatchSampler(order, batch, drop_last=False)
    shares = [list(BatchSamplerShard(batches, num_processes=processes, process_index=index)) for index in range(processes)]
    assert len({len(share) for share in shares}) == 1
    together = [part for turn in zip(*shares, strict=True) for part in turn]
    real = [[index for index in part if index < len(rows)] for part in together]
    assert [part for part in real if part] == alone
    assert all(set(filled[index]["labels"]) == {-100} for index in range(len(rows), len(filled)))
