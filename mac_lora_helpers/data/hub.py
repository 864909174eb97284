"""Data sets from the Hub, and readable reasons when they cannot be had."""

from __future__ import annotations

from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.data.problems import brief, listed
from mac_lora_helpers.data.sources import Source, dataset_parts, own_splits, split_name
from mac_lora_helpers.errors import InputError


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


def _readable(error: Exception, config: Config) -> InputError:
    """The error for people; the kinds are the ones that ``datasets`` and its Hub client really raise."""
    text = " ".join(f"{type(item).__name__} {item}" for item in _chain(error))
    where, name = f"parameter dataset_id={config.dataset_id}", config.dataset_id
    if "gated" in text.lower() or "GatedRepo" in text:
        fix = f"accept them on https://huggingface.co/datasets/{name}, then run: hf auth login"
        return InputError(f"{name} is gated: its owner wants you to agree to terms first", where=where, fix=fix)
    if any(sign in text for sign in _OFFLINE):
        fix = "check the network (and HF_HUB_OFFLINE, HF_ENDPOINT), or use data_files, or dataset_id=embedded"
        return InputError(f"{name} is not on this machine and the Hub cannot be reached", where=where, fix=fix)
    if "Unknown split" in text or "split" in str(error).lower() or "slice" in str(error).lower():
        fix = "write it as in the data set's page, with an optional slice: train[:500], train[10%:20%]"
        return InputError(f"no such split: {brief(error, 200)}", where=f"parameter dataset_split={config.dataset_split}", fix=fix)
    if "Config name is missing" in text or "BuilderConfig" in text:
        return InputError(f"{name} has subsets: {brief(error, 200)}", where=where, fix=f"name one: dataset_id={name}:subset")
    if "NotFound" in text or "401" in text or "doesn't exist" in text:
        fix = "check the spelling (user/name); for a private one run: hf auth login"
        return InputError(f"the Hub has no data set {name}, or it is private", where=where, fix=fix)
    return InputError(f"{name} cannot be loaded: {brief(error, 200)}", where=where, fix="try another data set, or export it to data_files")


_OFFLINE = ("OfflineMode", "ConnectError", "ConnectionError", "ConnectTimeout", "Couldn't reach", "Name or service", "LocalEntryNotFound")


def _chain(error: BaseException | None) -> list[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen
