"""Device and dtype of a run, each with its reason.

``choose_*`` ask this machine; ``decide_*`` are the pure decisions over its answers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.environment.machine import Machine, read_machine
from mac_lora_helpers.environment.probe import Probe, this_machine
from mac_lora_helpers.errors import InputError

#: Largest relative error of the loss and of the gradients, and smallest cosine of the AdamW updates, that pass.
#: float32 differs between devices by rounding and order (1e-6 here); bfloat16 keeps 8 bits (gradients 1.4 % off here).
LIMITS = {"float32": (1e-4, 1e-3, 0.999), "bfloat16": (1e-2, 5e-2, 0.95)}
#: Why float16 weights are not trained on, by device. On CUDA it would take loss scaling, whose first steps overflow by
#: design: the guard against infinite gradients could not tell them from a broken training.
_NO_FLOAT16 = {
    "mps": "its small range overflows and the loss becomes NaN",
    "cpu": "the CPU gains nothing and its range overflows",
    "cuda": "its small gradients vanish without loss scaling, which this recipe does not do; bfloat16 needs none",
}


@dataclass(frozen=True)
class Choice:
    """A value and why it was chosen."""

    name: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def choose_device(config: Config, probe: Probe | None = None) -> Choice:
    """The device to train on: MPS, else CUDA, else the CPU, or the one that ``config.device`` names.

    Raises:
        InputError: the named device is not available here; the message says why.
    """
    if config.device == "cpu":
        return Choice("cpu", "asked for by device=cpu")
    probe = probe or this_machine()
    return decide_device(config.device, read_machine(config.out_dir, probe), probe.device_facts())


def choose_dtype(config: Config, device: Choice, probe: Probe | None = None) -> Choice:
    """The dtype of the base weights.

    Raises:
        InputError: ``config.dtype`` does not work on this device; the message says why.
    """
    probe = probe or this_machine()
    return decide_dtype(config.dtype, device.name, {} if config.dtype == "float32" else probe.torch_facts())


def decide_device(asked: str, machine: Machine, facts: dict[str, Any]) -> Choice:
    """See :func:`choose_device`; ``facts`` as ``torch_probe.py`` prints them."""
    mps, cuda = facts.get("mps") or {}, facts.get("cuda") or {}
    available = {"mps": bool(mps.get("available")), "cuda": bool(cuda.get("available")), "cpu": True}
    why_not = {"mps": why_no_mps(machine, facts), "cuda": "torch finds no CUDA GPU on this machine"}
    if asked != "auto" and not available[asked]:
        what = f"device={asked} is not available: {why_not[asked]}"
        raise InputError(what, where="parameter device", fix="use device=auto, or mend the reason")
    if asked != "auto":
        return Choice(asked, f"asked for by device={asked}")
    if available["mps"]:
        return Choice("mps", "MPS (the GPU of the Apple chip) is available")
    if available["cuda"]:
        return Choice("cuda", f"CUDA GPU {cuda.get('name', '')} is available; there is no MPS: {why_not['mps']}")
    return Choice("cpu", f"no GPU that torch can use: {why_not['mps']}; {why_not['cuda']}")


def why_no_mps(machine: Machine, facts: dict[str, Any]) -> str:
    """Why torch cannot use MPS here, in one sentence."""
    if not machine.is_mac:
        return f"MPS is Apple's GPU interface and this is {machine.system}"
    if machine.rosetta:
        return f"this Python is x86_64 and runs under Rosetta; MPS needs an arm64 Python on this {machine.chip}"
    if machine.intel_mac:
        return "an Intel Mac has no Apple GPU"
    if not facts.get("version"):
        return f"torch cannot be imported ({facts.get('error') or 'no answer'})"
    if not (facts.get("mps") or {}).get("built"):
        return f"torch {facts['version']} was built without MPS"
    if machine.macos_major is not None and machine.macos_major < 14:
        return f"macOS {machine.macos_version} is too old; torch needs 14 or later"
    return "torch has MPS, but finds no Metal device (a virtual machine or a session without a GPU)"


def decide_dtype(asked: str, device: str, facts: dict[str, Any]) -> Choice:
    """See :func:`choose_dtype`; ``facts`` as ``torch_probe.py`` prints them."""
    if asked == "float32":
        return Choice("float32", "the safe default: full precision works on every device" + (", MPS included" if device == "mps" else ""))
    if asked == "float16":
        what = f"dtype=float16 is refused on {device}: {_NO_FLOAT16.get(device, _NO_FLOAT16['mps'])}"
        raise InputError(what, where="parameter dtype", fix="use dtype=float32, or try dtype=bfloat16")
    if trouble := step_trouble(device, "bfloat16", facts):
        raise InputError(f"dtype=bfloat16 does not work on {device} here: {trouble}", where="parameter dtype", fix="use dtype=float32")
    return Choice("bfloat16", f"asked for; a training step in bfloat16 on {device} agrees with float32; {bfloat16_speed(device, facts)}")


def step_trouble(device: str, dtype: str, facts: dict[str, Any]) -> str:
    """What went wrong in the training step (forward, backward, AdamW) that was tried on a device; empty if it passed."""
    run = tried(device, dtype, facts)
    if run is None:
        return "the training step was not tried"
    if run.get("error"):
        return str(run["error"])
    if not run.get("finite"):
        return "the training step gave NaN or infinity"
    loss, gradient, cosine = LIMITS[dtype]
    found = [
        (run["loss_error"] > loss, f"the loss is off by {run['loss_error']:.2g} (at most {loss:g})"),
        (run["gradient_error"] > gradient, f"the gradients are off by {run['gradient_error']:.2g} (at most {gradient:g})"),
        (run["update_cosine"] < cosine, f"the optimizer step points elsewhere (cosine {run['update_cosine']:.3f}, at least {cosine:g})"),
        (run["loss_after"] >= run["loss"], "the loss did not fall after the optimizer step"),
    ]
    return "; ".join(text for wrong, text in found if wrong)


def bfloat16_speed(device: str, facts: dict[str, Any]) -> str:
    """How fast bfloat16 matrix products are against float32, in words."""
    slow, fast = ((tried(device, dtype, facts) or {}).get("gflops") for dtype in ("float32", "bfloat16"))
    if not slow or not fast:
        return "its speed was not measured"
    ratio = fast / slow
    gain = "faster" if ratio > 1.1 else "no gain in speed" if ratio > 0.7 else "slower"
    return f"matrix products at {ratio:.2g} times float32's speed: {gain}; the weights take half the memory"


def tried(device: str, dtype: str, facts: dict[str, Any]) -> dict[str, Any] | None:
    """What was measured of a training step; an error that ended the whole trial counts for all that was not reached."""
    run = ((facts.get("runs") or {}).get(device) or {}).get(dtype)
    return {"error": facts["error"]} if run is None and facts.get("error") else run
