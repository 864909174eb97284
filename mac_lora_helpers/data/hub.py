"""Rows from wherever the parameters say; data sets from the Hub, and readable reasons when they cannot be had."""

from __future__ import annotations

from typing import Any

from mac_lora_helpers.config import EMBEDDED, Config
from mac_lora_helpers.data.problems import brief, listed
from mac_lora_helpers.data.sources import Source, dataset_parts, embedded, load_files, own_splits, split_name
from mac_lora_helpers.errors import InputError


def load(config: Config) -> Source:
    """Opens the source that the parameters name; reads no rows yet from files.

    Raises:
        DataError: files that are missing, empty or of an unknown kind, all of them at once.
        InputError: a Hub data set that cannot be had, with the reason.
    """
    if config.data_patterns:
        return load_files(config)
    return embedded() if config.dataset_id == EMBEDDED else load_hub(config)


def load_hub(config: Config) -> Source:
    """A Hub data set (or a folder of one), memory-mapped: the split that is asked for, else its own splits.

    ``dataset_id`` may name a subset after a colon: ``user/name:subset``.

    Raises:
        InputError: gated, missing, offline, no such split or subset; with what to do.
    """
    import datasets

    name, _, subset = config.dataset_id.partition(":")
    asked = config.dataset_split if _split_is_asked(config) else None
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        found = datasets.load_dataset(name, subset or None, split=asked)
    except Exception as error:
        raise _readable(error, config) from error
    finally:
        if shown:
            datasets.utils.logging.enable_progress_bar()
    if asked:
        return Source(f"{config.dataset_id}, split {asked}", "hub", list(dataset_parts({asked: found}, config.dataset_id).values()), "hub")
    return _with_own_splits(found, config)


def _split_is_asked(config: Config) -> bool:
    """The recipe's own split belongs to the recipe's own data set."""
    default = type(config).model_fields["dataset_id"].default
    return config.asked("dataset_split") or config.dataset_id == default


def _with_own_splits(found: Any, config: Config) -> Source:
    names = [name for name in found if name in ("train", "validation", "valid", "test")]
    if len(found) > 1 and not (names and (len(names) == 1 or "train" in names)):
        names = [name for name in found if split_name(name)] if len({split_name(name) for name in found}) == len(found) else []
        if not names:
            raise InputError(
                f"{config.dataset_id} has the splits {listed(found)}",
                where="parameter dataset_split",
                fix=f"name one, with an optional slice: dataset_split={next(iter(found))}[:500]",
            )
    chosen = dataset_parts({name: found[name] for name in names or found}, config.dataset_id)
    parts, notes = own_splits(list(chosen.values()), list(chosen))
    return Source(f"{config.dataset_id}, split{'s' * (len(chosen) > 1)} {listed(chosen)}", "hub", parts, "hub", notes)


#: What the error's text shows → (what, what to do); ``{name}`` is the data set. The first that fits.
_REASONS = (
    (("gated", "GatedRepo"), "{name} is gated: its owner wants you to agree to terms first",
     "accept them on https://huggingface.co/datasets/{name}, then run: hf auth login"),
    (("OfflineMode", "ConnectError", "ConnectionError", "ConnectTimeout", "Couldn't reach", "Name or service", "LocalEntryNotFound"),
     "{name} is not on this machine and the Hub cannot be reached",
     "check the network (and HF_HUB_OFFLINE, HF_ENDPOINT), or use data_files, or dataset_id=embedded"),
    (("Unknown split", "split", "slice"), "no such split: {told}",
     "write it as in the data set's page, with an optional slice: train[:500], train[10%:20%]"),
    (("Config name is missing", "BuilderConfig"), "{name} has subsets: {told}", "name one: dataset_id={name}:subset"),
    (("NotFound", "401", "doesn't exist"), "the Hub has no data set {name}, or it is private",
     "check the spelling (user/name); for a private one run: hf auth login"),
    (("",), "{name} cannot be loaded: {told}", "try another data set, or export it to data_files"),
)  # fmt: skip


def _readable(error: Exception, config: Config) -> InputError:
    """The error for people; the kinds are the ones that ``datasets`` and its Hub client really raise."""
    chain: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in chain:
        chain.append(inner)
        inner = inner.__cause__ or inner.__context__
    text = " ".join(f"{type(item).__name__} {item}" for item in chain)
    what, fix = next((what, fix) for signs, what, fix in _REASONS if any(sign in text for sign in signs))
    split = "split" in what
    where = f"parameter dataset_split={config.dataset_split}" if split else f"parameter dataset_id={config.dataset_id}"
    told = {"name": config.dataset_id, "told": brief(error, 200)}
    return InputError(what.format(**told), where=where, fix=fix.format(**told))
