"""Findings about this machine and its torch. Pure functions of what was read; texts name no home directory and no token."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.environment.device import Choice, bfloat16_speed, decide_device, decide_dtype, step_trouble, tried, why_no_mps
from mac_lora_helpers.environment.machine import GIB, Machine, Package, size
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.redaction import portable

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


def check_python(machine: Machine, requires_python: str | None) -> Check:
    """The interpreter's version against the range in the project's metadata."""
    detail = f"Python {machine.python} ({machine.machine})" + (f"; needed is {requires_python}" if requires_python else "")
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:  # a finding of its own
        return ok("Python", detail)
    if requires_python and not SpecifierSet(requires_python).contains(machine.python.rstrip("+"), prereleases=True):
        return fail("Python", detail, f"install Python {requires_python}, then: {NEW_ENVIRONMENT}")
    return ok("Python", detail)


def check_platform(machine: Machine) -> list[Check]:
    """Where the suite is at home and what differs elsewhere; the chip; macOS and its tools."""
    no_torch = "and torch has no wheels for it since version 2.3"
    if machine.rosetta:
        found = fail("Platform", f"an x86_64 Python under Rosetta on {machine.chip}: it has no MPS, {no_torch}", ARM_PYTHON)
    elif machine.intel_mac:
        found = fail("Platform", f"an Intel Mac ({machine.chip}): no MPS, {no_torch}", ELSEWHERE)
    elif machine.is_mac:
        found = ok("Platform", f"macOS on Apple Silicon ({machine.machine})")
    elif machine.system == "Linux":
        found = ok(
            "Platform", "Linux: everything runs on CUDA if there is such a GPU, else on the CPU; what is said of Macs does not apply"
        )
    else:
        found = fail("Platform", f"{machine.system} is not supported", "use macOS, or Linux (on Windows: `wsl --install`)")
    cores = f", {machine.gpu_cores or 'unknown'} GPU cores" if machine.apple_silicon else ""
    return [found, ok("Chip", machine.chip + cores), *([_macos(machine), _xcode(machine)] if machine.is_mac else [])]


def _macos(machine: Machine) -> Check:
    if machine.macos_major is None:
        return warn("macOS", "the version cannot be read; torch's wheels need 14 or later", "sw_vers -productVersion")
    detail = f"{machine.macos_version}; torch's wheels need 14 or later"
    update = "update macOS: System Settings > General > Software Update, or `softwareupdate --list`"
    return fail("macOS", detail, update) if machine.macos_major < 14 else ok("macOS", detail)


def _xcode(machine: Machine) -> Check:
    if machine.xcode_tools:
        return ok("Xcode tools", f"command line tools at {machine.xcode_tools}")
    return warn("Xcode tools", "the command line tools (git, make, a compiler) are not installed", "xcode-select --install")


def check_memory(machine: Machine, needed: float | None) -> list[Check]:
    """Memory against the guidance for Apple Silicon, and what is free now against what is needed (``None``: unknown)."""
    if machine.memory_bytes is None:
        return [warn("Memory", "its size cannot be read", "sysctl -n hw.memsize" if machine.is_mac else "free -h")]
    if not machine.apple_silicon:
        return [ok("Memory", f"{size(machine.memory_bytes)} of memory"), _free_memory(machine, needed)]
    advice, most = memory_guidance(machine.memory_bytes)
    detail = f"{size(machine.memory_bytes)} of unified memory: {advice}"
    check = ok("Memory", detail) if most > 1e9 else warn("Memory", detail, "shorten max_seq_length, use a smaller model")
    return [check, _free_memory(machine, needed)]


def memory_guidance(total: int) -> tuple[str, float]:
    """Rough guidance for unified memory, and the parameters of the largest model that it names."""
    gib = total / GIB
    if gib < 15.5:
        return "below the 16 GB that the guidance starts at; models up to about 0.5B, short sequences", 0.65e9
    if gib < 31:
        return "start with about 0.5B to 1.5B", 2e9
    return ("about 1.5B to 3B", 3.5e9) if gib < 62 else ("larger experiments are possible; a long context can still fill it", math.inf)


def _free_memory(machine: Machine, needed: float | None) -> Check:
    free = machine.free_memory_bytes
    if free is None:
        return ok("Free memory", "unknown")
    swap = f"; {size(machine.swap_used_bytes)} already swapped to disk" if machine.swap_used_bytes > GIB else ""
    detail = f"{size(free)} free{swap}" + (f"; this model and recipe take roughly {size(needed)}" if needed else "")
    if not needed or needed <= free:
        return ok("Free memory", detail)
    why = "; macOS swaps instead of failing, and a run that swaps hardly moves" if machine.is_mac else ""
    look = "open -a 'Activity Monitor'" if machine.is_mac else "top -o %MEM"
    return warn("Free memory", detail + why, f"close other programs ({look}), or shorten max_seq_length")


def check_variables(machine: Machine, env: Mapping[str, str]) -> list[Check]:
    """MPS's fallback and watermarks; elsewhere only that they have no effect."""
    if not machine.is_mac:
        there = [name for name in (FALLBACK, HIGH, LOW) if name in env]
        return [ok("MPS variables", f"{', '.join(there)} set, without effect here" if there else "not applicable")]
    return [_fallback(env.get(FALLBACK)), _watermarks(env.get(HIGH), env.get(LOW))]


def _fallback(value: str | None) -> Check:
    number = re.match(r"\s*([+-]?\d+)", value or "0")
    if value == "" or number is None:  # torch hands the text to std::stoi while it is imported (MPSFallback.mm)
        detail = f"{value!r} is no whole number, and torch may not even import with it"
        return fail(FALLBACK, detail, f"export {FALLBACK}=1, or: unset {FALLBACK}")
    if int(number[1]) == 0:
        return ok(FALLBACK, "off: an operation that MPS lacks stops the run and is named; set to 1 it runs on the CPU instead, slower")
    return ok(FALLBACK, f"{value}: operations that MPS lacks run on the CPU, which is slower and hides which ones they are")


def _watermarks(asked_high: str | None, asked_low: str | None) -> Check:
    """The allocator's limits, by the rules of torch's source: 0 ≤ high ≤ 2, low at most high, 0 for no limit."""
    unset = f"unset {HIGH} {LOW}"
    try:
        high, low = float(asked_high or HIGH_DEFAULT), float(asked_low or LOW_DEFAULT)
    except ValueError:
        high = low = -1.0
    if not 0 <= high <= HIGH_LIMIT:
        return fail(HIGH, f"high {asked_high}, low {asked_low}: torch refuses anything but numbers from 0 to {HIGH_LIMIT:g}", unset)
    if not 0 <= low <= (high or HIGH_LIMIT):
        detail = f"{high:g} is below the low watermark {low:g}: torch stops with 'invalid low watermark ratio {low:g}'"
        return fail(HIGH, detail, f"export {LOW}={high:g}, or: {unset}")
    if high == 0:
        return warn(HIGH, "0.0: no limit; a run that is too large swaps and can make the whole Mac unresponsive", f"unset {HIGH}")
    state = f"{high:g}" if asked_high else "not set"
    return ok(HIGH, f"{state}: torch stops with an out-of-memory error at {high:g} times Metal's recommended working set")


# torch


def check_torch(machine: Machine, facts: dict[str, Any], packages: list[Package]) -> list[Check]:
    """Whether torch imports and answers, and which GPU it sees."""
    wanted = next((package for package in packages if package.name == "torch"), None)
    requirement = wanted.requirement if wanted else "torch"
    again = f'python -m pip install --force-reinstall "{requirement}"'
    if facts.get("version") and not facts.get("error"):
        found = ok("torch", f"torch {facts['version']} imports; {facts.get('threads') or '?'} CPU threads")
    elif facts.get("version"):
        detail = f"torch {facts['version']} imports, but a trial step failed: {facts['error']}"
        found = warn("torch", detail, f"update macOS or the GPU driver, then: {again}")
    elif wanted is not None and wanted.version is None:
        found = fail("torch", "torch is not installed", f'python -m pip install "{requirement}"')
    else:
        found = fail("torch", f"torch is installed, but cannot be imported: {facts.get('error') or 'no reason given'}", again)
    return [found, _mps(machine, facts, again), *_cuda(machine, facts)]


def _mps(machine: Machine, facts: dict[str, Any], again: str) -> Check:
    mps = facts.get("mps") or {}
    if mps.get("available"):
        limit = f"; Metal recommends a working set of at most {size(mps['recommended_bytes'])}" if mps.get("recommended_bytes") else ""
        return ok("MPS", f"built and available{limit}")
    why = why_no_mps(machine, facts)
    if not machine.is_mac:
        return ok("MPS", f"not applicable: {why}")
    if machine.apple_silicon and facts.get("version") and not mps.get("built"):
        return fail("MPS", f"not built: {why}", again)
    fix = "run outside a virtual machine or remote session, then: python -c 'import torch; print(torch.backends.mps.is_available())'"
    return warn("MPS", f"{'built, but ' if mps.get('built') else ''}not available: {why}", fix)


def _cuda(machine: Machine, facts: dict[str, Any]) -> list[Check]:
    cuda = facts.get("cuda") or {}
    if machine.is_mac or not facts.get("version"):
        return []
    if not cuda.get("available"):
        return [ok("CUDA", "no CUDA GPU that torch can use: training runs on the CPU, which is slower")]
    detail = (
        f"{cuda.get('name', 'GPU')} with {size(cuda.get('memory_bytes'))} of its own, compute capability {cuda.get('capability', '?')}. "
        "Unlike MPS: memory that runs out fails at once instead of swapping, and bfloat16 is fast from capability 8.0 on"
    )
    return [ok("CUDA", detail)]


def check_numbers(config: Config, machine: Machine, device: Choice, vocabulary: int | None, facts: dict[str, Any]) -> list[Check]:
    """What the device computed, against the CPU (the CPU against float64): a training step, a long product, bfloat16."""
    if not facts.get("version"):
        return []
    return [_step(device, facts), _long_product(device, vocabulary, facts), _bfloat16(config, machine, device, facts)]


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


def _bfloat16(config: Config, machine: Machine, device: Choice, facts: dict[str, Any]) -> Check:
    """A failure only matters if bfloat16 is asked for."""
    trouble = step_trouble(device.name, "bfloat16", facts)
    if not trouble:
        return ok("bfloat16", f"a training step on {device.name} agrees with float32; {bfloat16_speed(device.name, facts)}")
    if "M5" in machine.chip and (machine.macos_major or 0) >= 27:
        trouble += "; on M5 under macOS 27 torch aborts on bfloat16 products with a transposed weight (pytorch#197796)"
    if config.dtype == "bfloat16":
        return fail("bfloat16", f"does not work on {device.name}: {trouble}", "use dtype=float32")
    return ok("bfloat16", f"not usable on {device.name} ({trouble}); float32, the default, does not need it")


def device_and_dtype(config: Config, machine: Machine, facts: dict[str, Any]) -> tuple[Choice, Choice, list[Check]]:
    """Both choices; one that is refused becomes a failed finding and the choice that would be made without asking."""
    try:
        device = decide_device(config.device, machine, facts)
        checks = [ok("Device", f"{device.name}: {device.reason}")]
    except InputError as error:
        auto = decide_device("auto", machine, facts)
        device = Choice(auto.name, f"{error.what}; device=auto would take {auto.name}")
        checks = [fail("Device", error.what, f"use device=auto (it takes {auto.name}), or mend the reason")]
    try:
        dtype = decide_dtype(config.dtype, device.name, facts)
        return device, dtype, [*checks, ok("Dtype", f"{dtype.name}: {dtype.reason}")]
    except InputError as error:
        return device, Choice("float32", error.what), [*checks, fail("Dtype", error.what, error.fix)]
