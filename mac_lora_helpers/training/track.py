"""The log in Trackio's dashboard, if wanted: on this machine only, nothing is sent anywhere.

Trackio keeps its figures in a folder of its own (``TRACKIO_DIR``, else its cache) and shows them with ``trackio show``.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError

PROJECT = "mac-lora-helpers"
#: Environment names by which Trackio would send its figures to a Space, a server, a data set, a bucket or a web hook.
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL")


class Tracker:
    """Hands new rows of the log to Trackio; what goes wrong there does not stop a training.

    Args:
        run: its folder's name is the run's name. identity: from ``resume.identity``; a training that is gone on with
            goes on with its run.

    Raises:
        InputError: the package is not installed.
    """

    def __init__(self, run: RunDir, config: Config, identity: dict[str, Any]) -> None:
        with _local():
            try:
                import trackio
            except ImportError:
                raise InputError(
                    "track=trackio, but the package trackio is not installed",
                    where="parameter track",
                    fix='pip install -e ".[track]", or set track=off',
                ) from None
        self.trackio, self.seen = trackio, 0
        self.name = f"{run.root.resolve().name}-{identity['config_hash'][:8]}"
        self.settings = {name: getattr(config, name) for name in config.names("training")}
        self.on = False

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """All rows of the log so far; those that are new are logged."""
        with self._forgiving():
            if not self.seen:
                kept = {"resume": "allow", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
                self.trackio.init(project=PROJECT, name=self.name, config=self.settings, **kept)
                self.on, self.seen = True, rows[0]["step"] - 1
            for row in rows if self.on else ():
                if row["step"] > self.seen:
                    self.seen = row["step"]
                    self.trackio.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def finish(self) -> None:
        """Writes what is left."""
        with self._forgiving():
            if self.on:
                self.trackio.finish()

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            with _local(), contextlib.redirect_stdout(io.StringIO()):
                yield
        except Exception as error:
            self.on = False
            print(f"Trackio is off, training goes on ({type(error).__name__}: {error}).")


@contextlib.contextmanager
def _local() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in _ELSEWHERE if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
