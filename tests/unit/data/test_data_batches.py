"""Batches of few shapes: every row once, seeded, little padding, tensors as labels say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mac_lora_helpers import data
from mac_lora_helpers.data.batches import LengthGroupedBatches, choose_buckets


def shapes_of(lengths, size: int, seed: int, grouped: bool = True) -> tuple[set[tuple[int, int]], float]:
    """(distinct shapes of an epoch's batches, share of padding), as batched here or in random order padded to each batch's longest row."""
    sizes = np.asarray(lengths)
    sampler = LengthGroupedBatches(sizes, size, seed)
    order = np.random.default_rng(seed).permutation(len(sizes))
    batches = list(sampler) if grouped else [order[start : start + size] for start in range(0, len(order), size)]
    longest = [int(sizes[batch].max()) for batch in batches]
    widths = [next(bucket for bucket in sampler.buckets if bucket >= width) for width in longest] if grouped else longest
    area = sum(len(batch) * width for batch, width in zip(batches, widths, strict=True))
    return {(len(batch), width) for batch, width in zip(batches, widths, strict=True)}, 1 - sizes.sum() / area


LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=200)


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_every_row_once_few_shapes_and_one_partial_batch_at_the_end(lengths, size, seed):
    sampler = LengthGroupedBatches(lengths, size, seed)
    batches = list(sampler)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert len(batches) == len(sampler)
    assert all(len(batch) == size for batch in batches[:-1])
    assert len(shapes_of(lengths, size, seed)[0]) <= 8
    assert list(sampler.sampler()) == list(itertools.chain(*batches)) == list(sampler.indices())


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), count=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_buckets_are_the_best_there_are(lengths, count):
    sizes = sorted(set(lengths))
    cost = lambda buckets: sum(min(bucket for bucket in buckets if bucket >= length) for length in lengths)  # noqa: E731
    choices = [c for n in range(1, count + 1) for c in itertools.combinations(sizes, n) if c[-1] == sizes[-1]]
    assert cost(choose_buckets(lengths, count)) == min(map(cost, choices))


def test_order_is_seeded_and_new_each_epoch():
    lengths = np.random.default_rng(0).integers(10, 500, 200)
    first, again, other = (LengthGroupedBatches(lengths, 4, seed) for seed in (1, 1, 2))
    assert list(first) == list(again) != list(other)
    before = list(first)
    first.set_epoch(1)
    assert list(first) != before
    first.set_epoch(0)
    assert list(first) == before


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ultrachat_like_lengths_have_few_shapes_and_little_padding(size):
    rng = np.random.default_rng(3)
    lengths = np.minimum(rng.lognormal(5.8, 0.6, 500).astype(int) + 20, 512)
    (ours, padding), (plain, others) = shapes_of(lengths, size, 42), shapes_of(lengths, size, 42, grouped=False)
    assert len(ours) <= 8
    assert padding <= 0.08
    assert len(plain) > 8 or others > padding


def test_collator_pads_to_the_bucket_and_masks_the_padding():
    from tokenizer_kinds import tokenizer_of

    tokenizer = tokenizer_of("qwen2")
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [5], "labels": [5]}]
    batch = data.make_collator(tokenizer, [4, 16])(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, tokenizer.pad_token_id], [5] + [tokenizer.pad_token_id] * 3]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100], [5, -100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert all(value.dtype == torch.long for value in batch.values())
    assert data.make_collator(tokenizer)(rows)["input_ids"].shape == (2, 3)
    assert data.make_collator(tokenizer, [2])(rows)["input_ids"].shape == (2, 3)


def test_data_loader_takes_both_views():
    from torch.utils.data import DataLoader

    lengths = [3, 9, 4, 8, 2]
    sampler = data.batch_sampler(lengths, 2, seed=0)
    rows = [{"input_ids": [index] * length, "labels": [index] * length} for index, length in enumerate(lengths)]
    from tokenizer_kinds import tokenizer_of

    collate = data.make_collator(tokenizer_of("qwen2"), sampler.buckets)
    one = [batch["input_ids"] for batch in DataLoader(rows, batch_sampler=sampler, collate_fn=collate)]
    two = [batch["input_ids"] for batch in DataLoader(rows, sampler=sampler.sampler(), batch_size=2, collate_fn=collate)]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert {batch.shape[1] for batch in one} <= set(sampler.buckets)
