"""Findings about torch: whether it imports, the devices it sees, and whether they compute what the CPU computes."""

from __future__ import annotations

from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.environment.checks import Check, fail, ok, warn
from mac_lora_helpers.environment.device import (
    Choice,
    bfloat16_speed,
    bfloat16_trouble,
    decide_device,
    decide_dtype,
    float32_trouble,
    why_no_mps,
)
from mac_lora_helpers.environment.machine import Machine, size
from mac_lora_helpers.environment.packages import Package
from mac_lora_helpers.errors import InputError


def check_torch(facts: dict[str, Any], packages: list[Package]) -> Check:
    """Whether torch imports and answers."""
    wanted = next((package for package in packages if package.name == "torch"), None)
    requirement = wanted.requirement if wanted else "torch"
    if facts.get("version") and not facts.get("error"):
        return ok("torch", f"torch {facts['version']} imports; {facts.get('threads') or '?'} CPU threads")
    if facts.get("version"):
        fix = f'update macOS or the GPU driver, then: python -m pip install --force-reinstall "{requirement}"'
        return warn("torch", f"torch {facts['version']} imports, but a trial step failed: {facts['error']}", fix)
    if wanted is not None and wanted.version is None:
        return fail("torch", "torch is not installed", f'python -m pip install "{requirement}"')
    fix = f'python -m pip install --force-reinstall --no-cache-dir "{requirement}"'
    return fail("torch", f"torch is installed, but cannot be imported: {facts.get('error') or 'no reason given'}", fix)


def check_mps(machine: Machine, facts: dict[str, Any], packages: list[Package]) -> Check:
    """MPS built and available, with the reason if not; told as not applicable off the Mac."""
    mps = facts.get("mps") or {}
    if mps.get("available"):
        limit = f"; Metal recommends a working set of at most {size(mps['recommended_bytes'])}" if mps.get("recommended_bytes") else ""
        return ok("MPS", f"built and available{limit}")
    why = why_no_mps(machine, facts)
    if not machine.is_mac:
        return ok("MPS", f"not applicable: {why}")
    requirement = next((package.requirement for package in packages if package.name == "torch"), "torch")
    if machine.apple_silicon and facts.get("version") and not mps.get("built"):
        return fail("MPS", f"not built: {why}", f'python -m pip install --force-reinstall "{requirement}"')
    fix = "run outside a virtual machine or remote session, then: python -c 'import torch; print(torch.backends.mps.is_available())'"
    return warn("MPS", f"{'built, but ' if mps.get('built') else ''}not available: {why}", fix)


def check_cuda(machine: Machine, facts: dict[str, Any]) -> list[Check]:
    """What differs on a CUDA machine; nothing on a Mac."""
    cuda = facts.get("cuda") or {}
    if machine.is_mac or not facts.get("version"):
        return []
    if not cuda.get("available"):
        return [ok("CUDA", "no CUDA GPU that torch can use: training runs on the CPU, fine for the embedded model, slow above 0.1B")]
    detail = (
        f"{cuda.get('name', 'GPU')} with {size(cuda.get('memory_bytes'))} of its own, compute capability {cuda.get('capability', '?')}. "
        "Unlike MPS: memory that runs out fails at once instead of swapping, and bfloat16 is fast from capability 8.0 on"
    )
    return [ok("CUDA", detail)]


def check_numbers(device: Choice, facts: dict[str, Any]) -> Check:
    """A LoRA training step in float32 on the chosen device, compared with the CPU (the CPU with float64)."""
    against = "the CPU in float64" if device.name == "cpu" else "the CPU in float32"
    trouble = float32_trouble(device.name, facts)
    if not trouble:
        run = facts["runs"][device.name]["float32"]
        detail = f"a training step on {device.name} agrees with {against}: loss within {run['loss_error']:.1g}, gradients within "
        return ok("Computation", detail + f"{run['gradient_error']:.1g}")
    fix = (
        "use device=cpu, and update macOS and torch" if device.name != "cpu" else "reinstall torch; the finding named torch has the command"
    )
    return fail("Computation", f"a training step on {device.name} does not agree with {against}: {trouble}", fix)


def check_bfloat16(config: Config, device: Choice, facts: dict[str, Any]) -> Check:
    """The bfloat16 probe: forward, backward and optimizer step compared with float32. A failure only matters if it is asked for."""
    trouble = bfloat16_trouble(device.name, facts)
    if not trouble:
        return ok("bfloat16", f"a training step on {device.name} agrees with float32; {bfloat16_speed(device.name, facts)}")
    if config.dtype == "bfloat16":
        return fail("bfloat16", f"does not work on {device.name}: {trouble}", "use dtype=float32")
    return ok("bfloat16", f"not usable on {device.name} ({trouble}); float32, the default, does not need it")


def device_and_dtype(config: Config, machine: Machine, facts: dict[str, Any]) -> tuple[Choice, Choice, list[Check]]:
    """Both choices; one that is refused becomes a failed finding and the choice that would be made without asking."""
    checks = []
    try:
        device = decide_device(config.device, machine, facts)
    except InputError as error:
        auto = decide_device("auto", machine, facts)
        device = Choice(auto.name, f"{error.what}; device=auto would take {auto.name}")
        checks.append(fail("Device", error.what, f"use device=auto (it takes {auto.name}), or mend the reason"))
    else:
        checks.append(ok("Device", f"{device.name}: {device.reason}"))
    try:
        dtype = decide_dtype(config.dtype, device.name, facts)
    except InputError as error:
        dtype = Choice("float32", error.what)
        checks.append(fail("Dtype", error.what, error.fix))
    else:
        checks.append(ok("Dtype", f"{dtype.name}: {dtype.reason}"))
    return device, dtype, checks
