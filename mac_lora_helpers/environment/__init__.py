"""Notebook 01: this machine, installed versions, device and dtype with the reason, and where to run.

Every answer of the platform comes through a :class:`Probe`; every decision is a pure function of such answers.
Nothing here imports torch into this process: it is asked in a process of its own.
"""

from mac_lora_helpers.environment.device import Choice, choose_device, choose_dtype
from mac_lora_helpers.environment.machine import Machine, Package, read_machine, read_packages
from mac_lora_helpers.environment.probe import Probe, this_machine
from mac_lora_helpers.environment.report import EnvironmentReport, check_environment
from mac_lora_helpers.environment.verdict import Verdict

__all__ = [
    "Choice",
    "EnvironmentReport",
    "Machine",
    "Package",
    "Probe",
    "Verdict",
    "check_environment",
    "choose_device",
    "choose_dtype",
    "read_machine",
    "read_packages",
    "this_machine",
]
