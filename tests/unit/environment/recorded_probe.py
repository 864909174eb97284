"""A probe that answers from a recording, and the recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mac_lora_helpers.environment.probe import Probe

RECORDINGS = Path(__file__).with_name("recordings")


class RecordedProbe(Probe):
    """Answers as one machine did, or as one is made up to answer.

    A command or file that the recording does not name does not exist. Versions and ranges are this installation's own
    unless the recording overrides them, so that the ranges stay in one place.
    """

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__(env=answers.get("env", {}))
        self.answers = answers
        self.asked_hub: list[str] = []

    def system(self):
        return self.answers["system"]

    def command(self, *words):
        return self.answers.get("commands", {}).get(" ".join(words))

    def read_text(self, path):
        return self.answers.get("files", {}).get(path)

    def memory(self):
        return self.answers.get("memory")

    def disk(self, path):
        return self.answers.get("disk")

    def version(self, distribution):
        overrides = self.answers.get("versions", {})
        return overrides[distribution] if distribution in overrides else super().version(distribution)

    def torch_facts(self):
        return self.answers["torch"]

    def device_facts(self):
        return self.answers["torch"]

    def hub_settings(self):
        return self.answers.get("hub", {}).get("settings")

    def cached_folder(self, model_id):
        return None

    def whoami(self):
        self.asked_hub.append("whoami")
        return self.answers.get("hub", {}).get("whoami", {"error": "not recorded"})

    def hub_page(self, page):
        self.asked_hub.append(page)
        return self.answers.get("hub", {}).get("pages", {}).get(page, {"error": "not recorded"})


def recording_names() -> list[str]:
    return sorted(path.stem for path in RECORDINGS.glob("*.json"))


def load_recording(name: str) -> dict[str, Any]:
    return json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))
