"""How threads wait is chosen by the machine's load, before torch, and never over a user's own setting."""

import os
import subprocess
import sys

import pytest

from mac_lora_helpers import threads


def chosen(code, **env):
    """What a fresh process says after the code; this one's own choice is left out."""
    plain = {name: value for name, value in os.environ.items() if name not in (*threads.OWN, threads.CHOSEN)}
    said = "print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    script = f"import os, sys\nfrom mac_lora_helpers import config, threads\n{code}\n{said}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**plain, **env})
    return done.stdout.strip()


@pytest.mark.parametrize(("busy", "policy"), [(0.1, "None"), (1.0, "passive")])
def test_a_notebook_chooses_before_torch_is_imported(busy, policy):
    assert chosen(f"threads.busy_cores = lambda: {busy}; config.configure({{}})") == f"{policy} False"


def test_the_command_line_and_what_it_starts_make_one_choice():
    code = "threads.busy_cores = lambda: {0}; print(threads.settle()); import subprocess; subprocess.run([sys.executable, '-c', {1!r}])"
    child = "from mac_lora_helpers import threads; threads.busy_cores = None; print(threads.settle())"
    first, second, _ = chosen(code.format(1.0, child)).split("\n")
    assert first == second
    assert first.startswith("asleep (1.0 of ")


@pytest.mark.parametrize("name", threads.OWN)
def test_a_users_own_setting_wins(name):
    assert f"as you set it: {name}=7" in chosen("threads.busy_cores = lambda: 1.0; print(threads.settle())", **{name: "7"})


def test_too_late_is_said():
    assert "torch was imported before" in chosen("sys.modules['torch'] = sys; print(threads.settle())")


def test_a_busy_core_is_seen():
    """A process that computes, beside this one that looks."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            assert threads.busy_cores() > threads.BUSY
        finally:
            other.kill()
