"""The workflows run the same commands as a developer, and the Makefile has them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
#: Commands that are not ``make``: CI's own entry, which the README's test command stands in.
OTHERS = {".ci/run"}


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_both_workflows_are_here():
    assert [path.name for path in WORKFLOWS] == ["scheduled.yml", "test.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_whole(path):
    workflow = yaml.safe_load(path.read_text())
    triggers = workflow[True]  # YAML 1.1 reads ``on`` as true
    assert triggers
    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 90 for job in workflow["jobs"].values())
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), step


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_command_is_one_of_ours(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for step in steps(yaml.safe_load(path.read_text())):
        command = step.get("run")
        if not command or command in OTHERS:
            continue
        made = re.fullmatch(r"make ([a-z-]+|test-\$\{\{ matrix\.versions \}\})", command)
        assert made, command
        assert made[1].startswith("test-${{") or made[1] in targets
    assert {"test-oldest", "test-newest", "audit", "regress", "drills"} <= targets


def test_macs_and_linux_run_the_tests_and_the_schedule():
    for path in WORKFLOWS:
        text = path.read_text()
        assert "macos-" in text
        assert "ubuntu-" in text
    scheduled = yaml.safe_load((ROOT / ".github/workflows/scheduled.yml").read_text())
    planned = {entry["cron"] for entry in scheduled[True]["schedule"]}
    named = set(re.findall(r"schedule == '([^']+)'", str(scheduled["jobs"])))
    assert planned == named, "each job waits for a time that is planned"


@pytest.mark.parametrize("script", ["test_versions.sh", "audit.sh", "setup_environment.sh"])
def test_scripts_can_be_read_and_run(script):
    path = ROOT / "tools" / script
    assert path.stat().st_mode & 0o100
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_unknown_versions_are_refused():
    done = subprocess.run(["bash", str(ROOT / "tools/test_versions.sh"), "latest"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "oldest|newest" in done.stderr


def test_an_audit_that_looked_at_nothing_is_no_pass(tmp_path):
    """Without the advisories, pip-audit may end with 0 and an empty list: the script must not."""
    for name in ("tools", ".venv.audit/bin"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / "tools/audit.sh", tmp_path / "tools")
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\n")
    answers = {
        '{"dependencies": []}': 3,
        '{"dependencies": [{"name": "numpy", "skip_reason": "not found on PyPI"}]}': 3,
        "": 3,
        '{"dependencies": [{"name": "numpy", "version": "2.4.6", "vulns": []}]}': 0,
        '{"dependencies": [{"name": "numpy", "version": "2.4.6", "vulns": [{"id": "X-1", "fix_versions": []}]}]}': 1,
    }
    (tmp_path / ".venv.audit/bin/python").symlink_to(shutil.which("python3"))
    for report, code in answers.items():
        tool = tmp_path / ".venv.audit/bin/pip-audit"
        find_output = 'while [ $# -gt 1 ]; do [ "$1" = --output ] && break; shift; done'
        tool.write_text(f"#!/bin/sh\n{find_output}\nprintf '%s' '{report}' > \"$2\"\nexit 0\n")
        tool.chmod(0o755)
        done = subprocess.run(["bash", "tools/audit.sh"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == code, (report, done.stdout, done.stderr)
        assert ("nothing was audited" in done.stderr) == (code == 3)
