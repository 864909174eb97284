"""Findings about the machine itself: Python, platform, chip, macOS, memory, variables. Pure functions of what was read."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mac_lora_helpers.environment.checks import Check, fail, ok, warn
from mac_lora_helpers.environment.device import macos_major
from mac_lora_helpers.environment.machine import GIB, Machine, size

#: torch's allocator on MPS, read in its source (MPSAllocator.h): shares of Metal's recommended working set.
HIGH_DEFAULT, LOW_DEFAULT, HIGH_LIMIT = 1.7, 1.4, 2.0
HIGH, LOW, FALLBACK = "PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO", "PYTORCH_ENABLE_MPS_FALLBACK"

NEW_ENVIRONMENT = "rm -rf .venv && make demo"
ARM_PYTHON = (
    "install an arm64 Python (from python.org, or `arch -arm64 brew install python@3.11`), open a Terminal that does not run under "
    "Rosetta (`arch` prints arm64), then: " + NEW_ENVIRONMENT
)
#: The way out where this machine cannot train.
ELSEWHERE = "train on HF Jobs or another cloud GPU (`hf jobs uv run`), or on a Mac with Apple Silicon"


def check_python(machine: Machine, requires_python: str | None) -> Check:
    """The interpreter's version against the range in the project's metadata."""
    detail = f"Python {machine.python} ({machine.machine})"
    if not requires_python:
        return ok("Python", detail)
    if not _in_range(machine.python, requires_python):
        return fail("Python", f"{detail}; needed is {requires_python}", f"install Python {requires_python}, then: {NEW_ENVIRONMENT}")
    return ok("Python", f"{detail}; needed is {requires_python}")


def _in_range(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True  # the missing package is a finding of its own
    return SpecifierSet(wanted).contains(version.rstrip("+"), prereleases=True)


def check_platform(machine: Machine) -> Check:
    """Where the suite is at home, and what differs elsewhere."""
    if machine.rosetta:
        detail = f"an x86_64 Python under Rosetta on {machine.chip}: it has no MPS, and torch has no wheels for it since version 2.3"
        return fail("Platform", detail, ARM_PYTHON)
    if machine.intel_mac:
        detail = f"an Intel Mac ({machine.chip}): no MPS, and torch has no wheels for Intel Macs since version 2.3"
        return fail("Platform", detail, ELSEWHERE)
    if machine.is_mac:
        return ok("Platform", f"macOS on Apple Silicon ({machine.machine})")
    if machine.system == "Linux":
        detail = (
            "Linux: there is no MPS; everything runs on CUDA if there is such a GPU, else on the CPU. What is said of MPS variables, "
            "unified memory and Xcode does not apply; results agree up to rounding, speed and memory do not"
        )
        return ok("Platform", detail)
    return fail("Platform", f"{machine.system} is not supported", "use macOS, or Linux (on Windows: `wsl --install`)")


def check_chip(machine: Machine) -> Check:
    """The chip and the cores of its GPU."""
    cores = f"{machine.gpu_cores} GPU cores" if machine.gpu_cores else "GPU cores unknown"
    return ok("Chip", f"{machine.chip}, {cores}" if machine.apple_silicon else machine.chip)


def check_macos(machine: Machine) -> list[Check]:
    """macOS and the command line tools; nothing elsewhere."""
    if not machine.is_mac:
        return []
    return [_macos_version(machine), _xcode(machine)]


def _macos_version(machine: Machine) -> Check:
    major = macos_major(machine)
    update = "update macOS: System Settings > General > Software Update, or `softwareupdate --list`"
    if major is None:
        return warn("macOS", "the version cannot be read; torch's wheels need 14 or later", "sw_vers -productVersion")
    if major < 14:
        return fail("macOS", f"{machine.macos_version}; torch's wheels need 14 or later", update)
    return ok("macOS", f"{machine.macos_version} (torch's wheels need 14 or later)")


def _xcode(machine: Machine) -> Check:
    if machine.xcode_tools:
        return ok("Xcode tools", f"command line tools at {machine.xcode_tools}")
    return warn("Xcode tools", "the command line tools (git, make, a compiler) are not installed", "xcode-select --install")


def check_memory(machine: Machine, needed: float | None) -> list[Check]:
    """Memory against the reference's guidance for Apple Silicon, and what is free now.

    Args:
        needed: bytes that this model and recipe take, roughly; ``None`` if unknown.
    """
    if machine.memory_bytes is None:
        return [warn("Memory", "its size cannot be read", "sysctl -n hw.memsize" if machine.is_mac else "free -h")]
    kind = "unified memory" if machine.apple_silicon else "memory"
    total = f"{size(machine.memory_bytes)} of {kind}"
    if not machine.apple_silicon:
        return [ok("Memory", total), _free_memory(machine, needed)]
    advice, enough = memory_guidance(machine.memory_bytes)
    check = (
        ok("Memory", f"{total}: {advice}")
        if enough
        else warn("Memory", f"{total}: {advice}", "shorten max_seq_length, use a smaller model")
    )
    return [check, _free_memory(machine, needed)]


def memory_guidance(total: int) -> tuple[str, bool]:
    """The reference's rough guidance for unified memory, and whether it covers this size at all."""
    gib = total / GIB
    if gib < 15.5:
        return "below the 16 GB that the guidance starts at; models up to about 0.5B, short sequences", False
    if gib < 31:
        return "start with about 0.5B to 1.5B", True
    if gib < 62:
        return "about 1.5B to 3B", True
    return "larger experiments are possible; a long context can still fill it", True


def _free_memory(machine: Machine, needed: float | None) -> Check:
    free = machine.free_memory_bytes
    if free is None:
        return ok("Free memory", "unknown")
    swap = f"; {size(machine.swap_used_bytes)} already swapped to disk" if machine.swap_used_bytes > GIB else ""
    detail = f"{size(free)} free{swap}"
    if needed is None:
        return ok("Free memory", detail)
    detail += f"; this model and recipe take roughly {size(needed)}"
    if needed > free:
        why = "; macOS swaps instead of failing, and a run that swaps hardly moves" if machine.is_mac else ""
        look = "open -a 'Activity Monitor'" if machine.is_mac else "top -o %MEM"
        return warn("Free memory", detail + why, f"close other programs ({look}), or shorten max_seq_length")
    return ok("Free memory", detail)


def check_variables(machine: Machine, env: Mapping[str, str]) -> list[Check]:
    """The MPS variables as they are set, with their meaning; only their presence is told where there is no MPS."""
    checks = [_fallback(env), *_watermarks(env)]
    if machine.apple_silicon:
        return checks
    names = [name for name in (FALLBACK, HIGH, LOW) if env.get(name)]
    return [ok("MPS variables", f"{', '.join(names)} set; no effect without MPS" if names else "none set; no effect without MPS")]


def _fallback(env: Mapping[str, str]) -> Check:
    value = env.get(FALLBACK)
    if value is not None and not re.match(r"\s*[+-]?\d", value):
        # torch hands the text to std::stoi while it is imported (MPSFallback.mm).
        return fail(
            FALLBACK, f"{value!r} is no whole number, and torch may not even import with it", f"export {FALLBACK}=1, or: unset {FALLBACK}"
        )
    if value is None or int(re.match(r"\s*([+-]?\d+)", value)[1]) == 0:
        return ok(FALLBACK, "off: an operation that MPS lacks stops the run and is named; set to 1 it runs on the CPU instead, slower")
    return ok(FALLBACK, f"{value}: operations that MPS lacks run on the CPU, which is slower and hides which ones they are")


def _watermarks(env: Mapping[str, str]) -> list[Check]:
    if not env.get(HIGH) and not env.get(LOW):
        return [ok(HIGH, f"not set: torch stops with an out-of-memory error at {HIGH_DEFAULT} times Metal's recommended working set")]
    high, low = _number(env.get(HIGH), HIGH_DEFAULT), _number(env.get(LOW), LOW_DEFAULT)
    unset = f"unset {HIGH} {LOW}"
    if high is None or low is None or not 0 <= high <= HIGH_LIMIT:
        detail = f"{HIGH}={env.get(HIGH, '')} {LOW}={env.get(LOW, '')}: torch refuses anything but numbers from 0 to {HIGH_LIMIT:g}"
        return [fail(HIGH, detail, unset)]
    checks = []
    if not 0 <= low <= (high or HIGH_LIMIT):
        detail = f"{high:g} is below the low watermark {low:g}: torch stops with 'invalid low watermark ratio {low:g}'"
        return [fail(HIGH, detail, f"export {LOW}={high:g}, or: {unset}")]
    if high == 0:
        checks.append(warn(HIGH, "0.0: no limit; a run that is too large swaps and can make the whole Mac unresponsive", f"unset {HIGH}"))
    elif env.get(HIGH):
        checks.append(ok(HIGH, f"{high:g}: torch stops with an out-of-memory error at {high:g} times Metal's recommended working set"))
    if env.get(LOW):
        checks.append(ok(LOW, f"{low:g}: above this share of the working set torch frees cached memory more eagerly"))
    return checks


def _number(text: str | None, default: float) -> float | None:
    try:
        return float(text) if text else default
    except ValueError:
        return None
