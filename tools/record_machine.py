"""Writes down what this machine answers to the environment check, as a recording for the tests.

    python tools/record_machine.py my-mac > tests/unit/environment/recordings/my-mac.json

The answers hold no token, no user name and no home directory; look the file through before you share it.
Fill in ``expect`` by hand: what the check *should* say about this machine.
"""

from __future__ import annotations

import json
import sys

from mac_lora_helpers.config import resolve
from mac_lora_helpers.environment import check_environment
from mac_lora_helpers.environment.probe import Probe
from mac_lora_helpers.redaction import portable

VARIABLES = ("PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO")


class RecordingProbe(Probe):
    """Asks this machine, keeps commands and files that had an answer, and asks the Hub nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: dict[str, str] = {}
        self.files: dict[str, str] = {}

    def command(self, *words):
        answer = super().command(*words)
        if answer is not None:
            self.commands[" ".join(words)] = answer
        return answer

    def read_text(self, path):
        answer = super().read_text(path)
        if answer is not None and path.startswith(("/proc/", "/sys/")):
            self.files[path] = answer if len(answer) < 200 else "\n".join(answer.splitlines()[:6])
        return answer

    def whoami(self):
        return {"error": "not asked while recording"}

    def hub_page(self, page):
        return {"error": "not asked while recording"}


def main() -> None:
    probe = RecordingProbe()
    check_environment(resolve({}, env={}), probe)
    disk, hub = probe.disk("."), probe.hub_settings()
    answers = {
        "recorded": "read off a machine",
        "note": " ".join(sys.argv[1:]),
        "system": probe.system(),
        "commands": probe.commands,
        "files": probe.files,
        "memory": probe.memory(),
        "disk": disk and {**disk, "volume": "run"},
        "env": {name: probe.env[name] for name in VARIABLES if name in probe.env},
        "torch": probe.torch_facts(),
        "hub": {"settings": hub},
        "expect": [],
    }
    print(portable(json.dumps(answers, indent=2)))


if __name__ == "__main__":
    main()
