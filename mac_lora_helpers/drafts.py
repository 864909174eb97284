"""What was typed into the forms of a run: kept in its run directory, so that Run All and a new kernel find it again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import ARTIFACTS, RunDir
from mac_lora_helpers.files import atomic_file, read_json
from mac_lora_helpers.redaction import portable_tree


class Draft:
    """The typed values of a run, by parameter name.

    It lies where the notebooks look when nobody typed another ``out_dir``: a typed ``out_dir`` is one of its values.
    Several notebooks may have it open, so the file is read again before each change.

    Args:
        out_dir: the run directory that holds it; made with the first value.
        names: parameters that may be kept. Consent is not among them: whatever else stands in the file is not read.
    """

    def __init__(self, out_dir: str | Path, names: Iterable[str]) -> None:
        self.path = Path(out_dir).expanduser().absolute() / ARTIFACTS["draft"][0]
        self.names = frozenset(names)

    def read(self) -> dict[str, Any]:
        """The kept values; none where nothing was typed.

        Raises:
            InputError: the file is damaged, or lies in a folder that this suite did not make.
        """
        RunDir(self.path.parent)
        if not self.path.is_file():
            return {}
        values = read_json(self.path, fix="delete it; what was typed into the forms is typed again")
        return {name: value for name, value in values.items() if name in self.names}

    def keep(self, name: str, value: Any) -> bool:
        """Keeps a value; False for a parameter that is never kept."""
        if name in self.names:
            self._write({**self.read(), name: value})
        return name in self.names

    def drop(self, *names: str) -> None:
        """Forgets the named values."""
        kept = {name: value for name, value in self.read().items() if name not in names}
        if kept or self.path.exists():
            self._write(kept)

    def _write(self, values: dict[str, Any]) -> None:
        # Without the run's lock: no stage reads this file, and somebody may type while another process trains.
        with atomic_file(RunDir(self.path.parent).path("draft")) as temporary:
            temporary.write_text(json.dumps(portable_tree(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
