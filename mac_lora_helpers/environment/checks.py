"""Findings about this machine and its torch. Pure functions of what was read; texts name no home directory and no token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.environment.device import Choice, bfloat16_speed, decide_device, decide_dtype, step_trouble, tried
from mac_lora_helpers.environment.machine import GIB, Machine, Package
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.redaction import portable
from mac_lora_helpers.text import binary_size as size

#: torch's allocator on MPS, read in its source (MPSAllocator.h): shares of Metal's recommended working set.
HIGH_DEFAULT, LOW_DEFAULT, HIGH_LIMIT = 1.7, 1.4, 2.0
HIGH, LOW, FALLBACK = "PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO", "PYTORCH_ENABLE_MPS_FALLBACK"
ARM_PYTHON = (
    "install an arm64 Python (from python.org, or `arch -arm64 brew install python@3.11`), open a Terminal that does not run under "
    "Rosetta (`arch` prints arm64), then: rm -rf .venv && make demo"
)
#: The way out where this machine cannot train.
ELSEWHERE = "train on HF Jobs or another cloud GPU (`hf jobs uv run`), or on a Mac with Apple Silicon"
#: Products with a longer inner dimension than this went wrong on M1 and M2 in torch 2.13 (pytorch#193487); the largest error that passes.
LONG, LONG_ERROR = 32_767, 1e-3


@dataclass(frozen=True)
class Check:
    """A finding.

    Attributes:
        name: what was looked at, in one or two words.
        status: ``ok``, ``warn`` (works, but not as well as it could) or ``fail`` (training cannot work).
        detail: what was found.
        fix: the command or the step that mends it; empty when there is nothing to mend.
    """

    name: str
    status: str
    detail: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """As in ``environment.json``."""
        return asdict(self)


def ok(name: str, detail: str) -> Check:
    return Check(name, "ok", portable(detail))


def warn(name: str, detail: str, fix: str) -> Check:
    return Check(name, "warn", portable(detail), portable(fix))


def fail(name: str, detail: str, fix: str) -> Check:
    return Check(name, "fail", portable(detail), portable(fix))


# The machine


def check_platform(machine: Machine) -> list[Check]:
    """Where the suite is at home, the chip, and macOS."""
    python, no_torch = f"Python {machine.python} ({machine.machine})", "and torch has no wheels for it since version 2.3"
    if machine.rosetta:
        return [
            fail("Platform", f"an x86_64 Python under Rosetta on {machine.chip}: it has no MPS, {no_torch}", ARM_PYTHON),
            _macos(machine),
        ]
    if machine.intel_mac:
        return [fail("Platform", f"an Intel Mac ({machine.chip}): no MPS, {no_torch}", ELSEWHERE), _macos(machine)]
    if machine.is_mac:
        return [ok("Platform", f"{machine.chip}, {machine.gpu_cores or 'unknown'} GPU cores; {python}"), _macos(machine)]
    if machine.system == "Linux":
        return [ok("Platform", f"Linux, {machine.chip}; {python}; what is said of Macs does not apply")]
    return [fail("Platform", f"{machine.system} is not supported", "use macOS, or Linux (on Windows: `wsl --install`)")]


def _macos(machine: Machine) -> Check:
    if machine.macos_major is None:
        return warn("macOS", "the version cannot be read; torch's wheels need 14 or later", "sw_vers -productVersion")
    detail = f"{machine.macos_version}; torch's wheels need 14 or later"
    update = "update macOS: System Settings > General > Software Update, or `softwareupdate --list`"
    return fail("macOS", detail, update) if machine.macos_major < 14 else ok("macOS", detail)


def check_memory(machine: Machine, needed: float | None) -> Check:
    """Memory against the guidance for Apple Silicon, and what is free now against what is needed (``None``: unknown)."""
    total, free = machine.memory_bytes, machine.free_memory_bytes
    if total is None:
        return warn("Memory", "its size cannot be read", "sysctl -n hw.memsize" if machine.is_mac else "free -h")
    advice, most = memory_guidance(total)
    detail = f"{size(total)} of unified memory ({advice})" if machine.apple_silicon else f"{size(total)}"
    detail += f", {size(free)} free" + (f", {size(machine.swap_used_bytes)} swapped to disk" if machine.swap_used_bytes > GIB else "")
    detail += f"; this model and recipe take roughly {size(needed)}" if needed else ""
    if needed and free is not None and needed > free:
        why = "; macOS swaps instead of failing, and a run that swaps hardly moves" if machine.is_mac else ""
        look = "open -a 'Activity Monitor'" if machine.is_mac else "top -o %MEM"
        return warn("Memory", detail + why, f"close other programs ({look}), or shorten max_seq_length")
    if machine.apple_silicon and most < 1e9:
        return warn("Memory", detail, "shorten max_seq_length, use a smaller model")
    return ok("Memory", detail)


def memory_guidance(total: int) -> tuple[str, float]:
    """Rough guidance for unified memory, and the parameters of the largest model that it names."""
    gib = total / GIB
    if gib < 15.5:
        return "below the 16 GB that the guidance starts at; models up to about 0.5B, short sequences", 0.65e9
    if gib < 31:
        return "start with about 0.5B to 1.5B", 2e9
    return ("about 1.5B to 3B", 3.5e9) if gib < 62 else ("larger experiments are possible; a long context can still fill it", math.inf)


def check_variables(machine: Machine, env: Mapping[str, str]) -> list[Check]:
    """What a user set for MPS, by the rules of torch's source: 0 ≤ low ≤ high ≤ 2, a high of 0 for no limit, the fallback a number."""
    told = ", ".join(f"{name}={env[name]}" for name in (HIGH, LOW, FALLBACK) if name in env)
    if not machine.is_mac or not told:
        return []
    try:
        high, low, _ = float(env.get(HIGH) or HIGH_DEFAULT), float(env.get(LOW) or LOW_DEFAULT), int(env.get(FALLBACK, "0"))
    except ValueError:
        return [fail("MPS variables", f"{told}: not a number, and torch may not even import with it", f"unset {HIGH} {LOW} {FALLBACK}")]
    if not 0 <= high <= HIGH_LIMIT or not 0 <= low <= (high or HIGH_LIMIT):
        detail = f"{told}: torch stops with 'invalid low watermark ratio' unless 0 ≤ low ({low:g}) ≤ high ({high:g}) ≤ {HIGH_LIMIT:g}"
        return [fail("MPS variables", detail, f"export {LOW}={min(max(high, 0), HIGH_LIMIT):g}, or: unset {HIGH} {LOW}")]
    if high == 0:
        detail = f"{told}: no limit; a run that is too large swaps and can make the whole Mac unresponsive"
        return [warn("MPS variables", detail, f"unset {HIGH}")]
    return [ok("MPS variables", f"{told}; operations that MPS lacks run on the CPU, slower, where the fallback is 1")]


# torch


def check_torch(facts: dict[str, Any], packages: list[Package]) -> Check:
    """Whether torch imports and answers."""
    wanted = next((package for package in packages if package.name == "torch"), None)
    requirement = wanted.requirement if wanted else "torch"
    again = f'python -m pip install --force-reinstall "{requirement}"'
    if facts.get("version") and not facts.get("error"):
        return ok("torch", f"torch {facts['version']} imports; {facts.get('threads') or '?'} CPU threads")
    if facts.get("version"):
        detail = f"torch {facts['version']} imports, but a trial step failed: {facts['error']}"
        return warn("torch", detail, f"update macOS or the GPU driver, then: {again}")
    if wanted is not None and wanted.version is None:
        return fail("torch", "torch is not installed", f'python -m pip install "{requirement}"')
    return fail("torch", f"torch is installed, but cannot be imported: {facts.get('error') or 'no reason given'}", again)


def device_and_dtype(config: Config, machine: Machine, facts: dict[str, Any]) -> tuple[Choice, Choice, list[Check]]:
    """Both choices; one that is refused becomes a failed finding and the choice that would be made without asking."""
    try:
        device = decide_device(config.device, machine, facts)
        checks = [_device(machine, device, facts)]
    except InputError as error:
        auto = decide_device("auto", machine, facts)
        device = Choice(auto.name, f"{error.what}; device=auto would take {auto.name}")
        checks = [fail("Device", error.what, f"use device=auto (it takes {auto.name}), or mend the reason")]
    try:
        dtype = decide_dtype(config.dtype, device.name, facts)
        return device, dtype, [*checks, ok("Dtype", f"{dtype.name}: {dtype.reason}{_other_dtype(dtype, device, machine, facts)}")]
    except InputError as error:
        detail = error.what + (_known_abort(machine) if config.dtype == "bfloat16" else "")
        return device, Choice("float32", error.what), [*checks, fail("Dtype", detail, error.fix)]


def _device(machine: Machine, device: Choice, facts: dict[str, Any]) -> Check:
    mps, cuda = facts.get("mps") or {}, facts.get("cuda") or {}
    detail = f"{device.name}: {device.reason}"
    if device.name == "mps" and mps.get("recommended_bytes"):
        detail += f"; Metal recommends a working set of at most {size(mps['recommended_bytes'])}"
    if device.name == "cuda":
        detail += f"; {size(cuda.get('memory_bytes'))} of its own memory, and what runs out fails at once instead of swapping"
    if not machine.apple_silicon or mps.get("available") or not facts.get("version"):
        return ok("Device", detail)
    if not mps.get("built"):
        return fail("Device", detail, "python -m pip install --force-reinstall torch")
    fix = "run outside a virtual machine or remote session, then: python -c 'import torch; print(torch.backends.mps.is_available())'"
    return warn("Device", detail, fix)


def _other_dtype(dtype: Choice, device: Choice, machine: Machine, facts: dict[str, Any]) -> str:
    """What float32, the default, is told about bfloat16."""
    if dtype.name != "float32" or not facts.get("version"):
        return ""
    if trouble := step_trouble(device.name, "bfloat16", facts):
        return f"; bfloat16 is not usable here ({trouble}{_known_abort(machine)})"
    return f"; bfloat16 would work: {bfloat16_speed(device.name, facts)}"


def _known_abort(machine: Machine) -> str:
    known = "M5" in machine.chip and (machine.macos_major or 0) >= 27
    return "; on M5 under macOS 27 torch aborts on bfloat16 products with a transposed weight (pytorch#197796)" if known else ""


def check_numbers(device: Choice, vocabulary: int | None, facts: dict[str, Any]) -> list[Check]:
    """What the device computed, against the CPU (the CPU against float64): a training step and a long product."""
    return [_step(device, facts), _long_product(device, vocabulary, facts)] if facts.get("version") else []


def _step(device: Choice, facts: dict[str, Any]) -> Check:
    against = f"the CPU in float{64 if device.name == 'cpu' else 32}"
    if trouble := step_trouble(device.name, "float32", facts):
        fix = "use device=cpu, and update macOS and torch" if device.name != "cpu" else "reinstall torch; the finding torch has the command"
        return fail("Computation", f"a training step on {device.name} does not agree with {against}: {trouble}", fix)
    run = tried(device.name, "float32", facts)
    errors = f"loss within {run['loss_error']:.1g}, gradients within {run['gradient_error']:.1g}"
    return ok("Computation", f"a training step on {device.name} agrees with {against}: {errors}")


def _long_product(device: Choice, vocabulary: int | None, facts: dict[str, Any]) -> Check:
    error, name = (facts.get("long_products") or {}).get(device.name), "Long products"
    if error is None:
        return ok(name, f"not tried on {device.name}")
    if error <= LONG_ERROR:
        return ok(name, f"a product as long as a vocabulary is right on {device.name} (within {error:.1g})")
    detail = f"products with an inner dimension over {LONG:,} are wrong on {device.name} (off by {error:.2g}), without a word from torch"
    upgrade = "a newer torch (2.14 mended this on M1 and M2): python -m pip install --upgrade torch; or device=cpu"
    if vocabulary is not None and vocabulary <= LONG:
        return warn(name, f"{detail}; this model's vocabulary of {vocabulary:,} is shorter", upgrade)
    return fail(name, f"{detail}; a vocabulary is as long as that: the head's gradient would be wrong", upgrade)
