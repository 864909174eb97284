"""Data sets from the Hub, and readable reasons when they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.data.problems import brief
from mac_lora_helpers.data.readers import Record
from mac_lora_helpers.data.sources import Part, Source
from mac_lora_helpers.errors import InputError


def load_hub(config: Config) -> Source:
    """A Hub data set (or a folder of one) with an optional split slice, memory-mapped.

    ``dataset_id`` may name a subset after a colon: ``user/name:subset``.

    Raises:
        InputError: gated, missing, offline, no such split or subset; with what to do.
    """
    import datasets

    name, _, subset = config.dataset_id.partition(":")
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        found = datasets.load_dataset(name, subset or None, split=config.dataset_split)
    except Exception as error:
        raise _readable(error, config) from error
    finally:
        if shown:
            datasets.utils.logging.enable_progress_bar()
    label = f"{config.dataset_id}[{config.dataset_split}]".replace("{", "{{").replace("}", "}}")
    part = Part(f"{label}: row {{}}", lambda: _records(found))
    return Source(f"{config.dataset_id}, split {config.dataset_split}", "hub", [part], "hub")


def _records(dataset: Any) -> Iterator[Record]:
    number = 0
    for batch in dataset.iter(batch_size=128):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield Record(number, dict(zip(names, values, strict=True)))


def _readable(error: Exception, config: Config) -> InputError:
    """The error for people; the kinds are the ones that ``datasets`` and its Hub client really raise."""
    chain = _chain(error)
    text = " ".join(f"{type(item).__name__} {item}" for item in chain)
    where = f"parameter dataset_id={config.dataset_id}"
    if "gated" in text.lower() or "GatedRepo" in text:
        return InputError(
            f"{config.dataset_id} is gated: its owner wants you to agree to terms first",
            where=where,
            fix=f"accept them on https://huggingface.co/datasets/{config.dataset_id}, then run: hf auth login",
        )
    if _offline(text):
        return InputError(
            f"{config.dataset_id} is not on this machine and the Hub cannot be reached",
            where=where,
            fix="check the network (and HF_HUB_OFFLINE, HF_ENDPOINT), or use data_files, or dataset_id=embedded",
        )
    if "Unknown split" in text or "split" in str(error).lower() or "slice" in str(error).lower():
        return InputError(
            f"no such split: {brief(error, 200)}",
            where=f"parameter dataset_split={config.dataset_split}",
            fix="write it as in the data set's page, with an optional slice: train[:500], train[10%:20%]",
        )
    if "Config name is missing" in text or "BuilderConfig" in text:
        return InputError(
            f"{config.dataset_id} has subsets: {brief(error, 200)}", where=where, fix=f"name one: dataset_id={config.dataset_id}:subset"
        )
    if "NotFound" in text or "401" in text or "doesn't exist" in text:
        return InputError(
            f"the Hub has no data set {config.dataset_id}, or it is private",
            where=where,
            fix="check the spelling (user/name); for a private one run: hf auth login",
        )
    return InputError(
        f"{config.dataset_id} cannot be loaded: {brief(error, 200)}", where=where, fix="try another data set, or export it to data_files"
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen


def _offline(text: str) -> bool:
    signs = ("OfflineMode", "ConnectError", "ConnectionError", "ConnectTimeout", "Couldn't reach", "Name or service", "LocalEntryNotFound")
    return any(sign in text for sign in signs)
