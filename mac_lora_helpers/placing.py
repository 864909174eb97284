"""From beside into its place: how a finished stage's artefacts take the place of the old ones, whole under a kill at any moment.

A stage is built in ``.building-NN``. Finishing it renames that folder to ``.finishing-NN``: from this moment the new artefacts
count. Then each is moved to its place; whoever next holds the lock ends what a dead process left undone.
"""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path

from mac_lora_helpers.files import read_json
from mac_lora_helpers.layout import ARTIFACTS, HOLDERS, NOTEBOOKS
from mac_lora_helpers.ownership import refuse_links

#: In a stage's folder: which old artefacts go; that it is to be taken up again; the old artefacts until all is in place.
JOURNAL, KEEP, OLD = ".journal.json", ".keep", ".old"


def building_of(root: Path, number: int) -> Path:
    """Where a notebook's artefacts are built."""
    return root / f".building-{number:02d}"


def finishing_of(root: Path, number: int) -> Path:
    """Where they wait to be put in place."""
    return root / f".finishing-{number:02d}"


def units(folder: Path) -> list[str]:
    """What a stage built: its artefacts and whatever lies beside them, each to be moved as one."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name in HOLDERS and path.is_dir() and not path.is_symlink():
            found += [f"{path.name}/{inner.name}" for inner in sorted(path.iterdir())]
        elif path.name not in (JOURNAL, KEEP, OLD):
            found.append(path.name)
    return found


def put_in_place(root: Path, number: int) -> None:
    """From a finished stage into the run directory. Killed at any moment and begun again it comes to the same end.

    Raises:
        InputError: the journal is damaged, or a link is in the way.
    """
    folder = finishing_of(root, number)
    refuse_links(root, folder.name)
    if (folder / JOURNAL).exists():
        journal = read_json(folder / JOURNAL, {"remove": [str]}, f"remove {folder.name} and run {NOTEBOOKS[number - 1]}.ipynb again")
        for unit in [*units(folder), *(ARTIFACTS[name][0] for name in journal["remove"] if name in ARTIFACTS)]:
            refuse_links(root, str(Path(unit).parent))
            new, target, old = folder / unit, root / unit, folder / OLD / unit
            if os.path.lexists(target) and not (new.is_file() and target.is_file()):
                old.parent.mkdir(parents=True, exist_ok=True)
                os.replace(target, old)
            if os.path.lexists(new):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(new, target)
    shutil.rmtree(folder)


def tidy(root: Path) -> None:
    """Whoever holds the lock ends what a dead process began: what was finished goes in place, what nobody takes up goes."""
    for number in range(1, 6):
        if os.path.lexists(finishing_of(root, number)):
            put_in_place(root, number)
        building = building_of(root, number)
        if building.is_dir() and not building.is_symlink() and not (building / KEEP).exists():
            shutil.rmtree(building)


def clear_half_files(base: Path) -> None:
    """What a killed process left under temporary names; an artefact that was being replaced goes back to its place."""
    executed = [base / ARTIFACTS["executed"][0] / f"{name}.ipynb" for name in NOTEBOOKS]
    for path in {*(base / relative for relative, _ in ARTIFACTS.values()), *executed}:
        for left in path.parent.glob(f".{glob.escape(path.name)}.????????.old"):
            if not path.exists():
                os.replace(left, path)
        half = f".{glob.escape(path.stem)}.????????{glob.escape(path.suffix)}" if path.suffix else ""
        for left in [*path.parent.glob(f".{glob.escape(path.name)}.????????*"), *(path.parent.glob(half) if half else ())]:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
