"""``track=trackio``: the log's rows in a local Trackio, whatever the environment says; and what is said without it."""

import builtins
import importlib.util
import os
import sqlite3
import subprocess
import sys

import pytest

from mac_lora_helpers.errors import InputError
from mac_lora_helpers.training.track import PROJECT, Tracker

IDENTITY = {"config_hash": "0123456789"}


def test_without_the_package_it_says_what_to_install(make, trainer_for, tokens, monkeypatch):
    real = builtins.__import__

    def without(name, *others, **more):
        if name == "trackio":
            raise ImportError("No module named 'trackio'")
        return real(name, *others, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    run, config = make(track="trackio")
    with pytest.raises(InputError, match="the package trackio is not installed") as told:
        trainer_for(run, config, tokens)
    assert 'pip install -e ".[track]"' in str(told.value)


class Recorder:
    """Stands where the package stands, to see what is asked of it and under which environment."""

    def __init__(self, broken=False):
        self.calls, self.broken = [], broken

    def __getattr__(self, name):
        def call(*arguments, **more):
            self.calls.append((name, arguments, more, {key for key in os.environ if key.startswith("TRACKIO_")}))
            if self.broken:
                raise OSError("no room")

        return call


def tracker_with(package, make, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", package)
    return Tracker(*make(), IDENTITY)


def test_nothing_is_sent_away_and_each_row_is_logged_once(make, monkeypatch):
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL"):
        monkeypatch.setenv(name, "me/public")
    package = Recorder()
    tracker = tracker_with(package, make, monkeypatch)
    rows = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    for count in (1, 2, 3):
        tracker.rows(rows[:count])
    tracker.finish()
    assert [name for name, *_ in package.calls] == ["init", "log", "log", "log", "finish"]
    assert not {"space_id", "server_url", "dataset_id", "bucket_id"} & set(package.calls[0][2])
    assert package.calls[0][2]["name"] == "run-01234567"
    assert all(environment <= {"TRACKIO_DIR"} for *_, environment in package.calls)
    assert [(arguments[0], more["step"]) for name, arguments, more, _ in package.calls if name == "log"][2] == ({"loss": 1 / 3}, 3)
    assert os.environ["TRACKIO_SPACE_ID"] == "me/public"


def test_trouble_there_does_not_stop_a_training(make, monkeypatch, capsys):
    package = Recorder(broken=True)
    tracker = tracker_with(package, make, monkeypatch)
    for _ in range(3):
        tracker.rows([{"step": 1, "loss": 1.0}])
    tracker.finish()
    assert "Trackio is off, training goes on (OSError: no room)" in capsys.readouterr().out


REAL = """
import sys
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import resolve
from mac_lora_helpers.training.track import Tracker
tracker = Tracker(RunDir(sys.argv[1]), resolve({}, env={}), {"config_hash": "0123456789"})
rows = [{"step": step, "loss": 1 / step, "seconds": 0.1} for step in (1, 2, 3)]
tracker.rows(rows[:2]); tracker.rows(rows); tracker.finish()
"""


def test_the_real_one_keeps_the_rows_on_this_machine(tmp_path, need):
    need(importlib.util.find_spec("trackio"), 'trackio: pip install -e ".[track]"')
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "kept")}
    done = subprocess.run([sys.executable, "-c", REAL, str(tmp_path / "run")], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == ""
    with sqlite3.connect(tmp_path / "kept" / f"{PROJECT}.db") as database:
        assert database.execute("select count(*) from metrics").fetchone() == (3,)
