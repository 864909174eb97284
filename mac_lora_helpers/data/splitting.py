"""Train, valid and test by content: copies of a row always land in the same split."""

from __future__ import annotations

import itertools
import math

import numpy as np

from mac_lora_helpers.config import Config
from mac_lora_helpers.data.problems import file_error
from mac_lora_helpers.data.sources import SPLITS as NAMES
from mac_lora_helpers.data.store import Examples
from mac_lora_helpers.data.validation import Found


class Splits(dict[str, Examples]):
    """``splits['train' | 'valid' | 'test']`` → rows; ``notes`` says what is unusual about the sizes."""

    def __init__(self, parts: dict[str, Examples], notes: list[str], shape: str, shared_prompts: int) -> None:
        super().__init__(parts)
        self.notes, self.shape, self.shared_prompts = notes, shape, shared_prompts


def split(found: Found, config: Config) -> Splits:
    """Deals the rows out to the splits.

    Rows are grouped by content (case and white space apart), the groups ordered by a seeded hash, and
    the first ``test_share`` of the groups are the test split, the next ``valid_share`` valid. There is
    at least one train and one test row; the embedded data set comes with its splits.

    Raises:
        DataError: too few different rows; says how many would do.
    """
    store = found.rows.store
    keys = store.keys
    if found.split_of is not None:
        which, notes = _complete(found.split_of, keys, config, found)
    else:
        which, notes = _deal(keys, config, found)
    notes = found.source.notes + notes
    parts = {name: Examples(store, np.flatnonzero(which == index)) for index, name in enumerate(NAMES)}
    # By sorting: these are hashes, for which NumPy's other way has no use (and with 2.0's bug, no answer).
    shared = np.isin(store.prompt_keys[parts["test"].indices], store.prompt_keys[parts["train"].indices], kind="sort")
    return Splits(parts, notes, found.shape, int(shared.sum()))


def _complete(which: np.ndarray, keys: np.ndarray, config: Config, found: Found) -> tuple[np.ndarray, list[str]]:
    """Splits that the source brings; a test or valid split that it lacks is dealt from its train rows."""
    missing = [name for name in NAMES if not (which == NAMES.index(name)).any()]
    if "train" in missing:
        raise file_error("no_rows", found.source.name, "the train split has no usable row")
    if not missing or (missing == ["valid"] and not config.valid_share):
        return which, []
    train = np.flatnonzero(which == NAMES.index("train"))
    if missing == ["valid"] and len(np.unique(keys[train])) < 10:
        return which, ["valid is empty: too few train rows to keep some back for the loss during training"]
    dealt, _ = _deal(keys[train], config, found)
    taken = np.isin(dealt, [NAMES.index(name) for name in missing])
    which = which.copy()
    which[train[taken]] = dealt[taken]
    counts = ", ".join(f"{name} ({int((which == NAMES.index(name)).sum()):,} rows)" for name in missing)
    return which, [f"the data bring no {' and no '.join(missing)} split; dealt from the train rows: {counts}"]


def _deal(keys: np.ndarray, config: Config, found: Found) -> tuple[np.ndarray, list[str]]:
    groups, member = np.unique(keys, return_inverse=True)
    count = len(groups)
    test, valid, notes = _sizes(count, config, found)
    order = np.argsort(_mix(groups, config.seed), kind="stable")
    split_of_group = np.zeros(count, dtype=np.int8)
    split_of_group[order[:test]] = NAMES.index("test")
    split_of_group[order[test : test + valid]] = NAMES.index("valid")
    return split_of_group[member], notes


def _sizes(count: int, config: Config, found: Found) -> tuple[int, int, list[str]]:
    """Groups for test and for valid; the rest is train."""
    where = found.source.name
    asked = config.source_of("valid_share") != "default" and config.valid_share > 0
    if config.valid_share + config.test_share >= 1:
        shares = f"valid_share={config.valid_share:g} and test_share={config.test_share:g} leave nothing to train on"
        raise file_error("no_rows", where, shares, fix="make the two shares smaller")
    if count < 2:
        wanted = max(2, math.ceil(1 / config.test_share))
        raise file_error(
            "no_rows", where, "only one row is different from the others; train and test need one each",
            fix=f"2 different rows would do; {wanted} give test its share of {config.test_share:g}",
        )  # fmt: skip
    test, valid = _shares(count, config)
    if asked and valid == 0:
        enough = next(more for more in itertools.count(count) if _shares(more, config)[1])
        raise file_error(
            "no_rows", where, f"{count} different rows leave none for valid_share={config.valid_share:g}",
            fix=f"{enough} different rows would do; or leave valid_share out",
        )  # fmt: skip
    notes = [] if valid else [f"valid is empty: {count} different rows are too few to keep some back for the loss during training"]
    if count * config.test_share < 1:
        notes.append(f"test holds one row: {count} different rows at a share of {config.test_share:g}")
    return test, valid, notes if config.valid_share else notes[1:]


def _shares(count: int, config: Config) -> tuple[int, int]:
    """Groups for test (at least one) and for valid (at least one of ten), of ``count``; train keeps at least one."""
    test = min(max(1, round(count * config.test_share)), count - 1)
    valid = max(round(count * config.valid_share), int(config.valid_share > 0 and count >= 10))
    return test, min(valid, count - test - 1)


def _mix(values: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64's finalizer over value + seed: a seeded order (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
