"""Where to run: the reference's rubric (at most 3B, text, at most 1024 tokens, LoRA) applied to this machine, model and recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mac_lora_helpers import language
from mac_lora_helpers.config import EMBEDDED, Config
from mac_lora_helpers.environment.checks import Check
from mac_lora_helpers.environment.checks_machine import ELSEWHERE, memory_guidance
from mac_lora_helpers.environment.device import Choice
from mac_lora_helpers.environment.fit import memory_needed
from mac_lora_helpers.environment.machine import GIB, Machine, size
from mac_lora_helpers.files import portable
from mac_lora_helpers.model import Base

#: "3B" models have up to 3.4e9 parameters, "7B" ones start at 6.5e9; in between it takes 64 GB.
UP_TO_3B, FROM_7B = 3.5e9, 6.5e9
LONGEST = 1024
#: Models that train in minutes on any CPU, at any length that fits; and the most that a CPU alone is good for.
SMALL, CPU_LIMIT = 50e6, 100e6
#: Metal's recommended working set is about two thirds of the memory of smaller Macs (read), used where torch does not tell.
METAL_SHARE = 2 / 3
#: Findings that no setting mends: this interpreter on this machine cannot train.
FATAL = ("Python", "Platform", "macOS", "torch")


@dataclass(frozen=True)
class Verdict:
    """``where`` is local, cloud or unsupported; ``reasons`` are sentences, the deciding ones first."""

    where: str
    reasons: list[str]

    def to_dict(self) -> dict[str, Any]:
        return {"where": self.where, "reasons": list(self.reasons)}


def decide_verdict(
    machine: Machine, device: Choice, dtype: Choice, model: Base, config: Config, checks: list[Check], facts: dict[str, Any]
) -> Verdict:
    """Unsupported if a finding makes training impossible; cloud if a limit of the rubric or of this machine is passed; else local."""
    fatal = [check for check in checks if check.status == "fail" and check.name in FATAL]
    if fatal:
        reasons = [f"{check.name}: {check.detail}; to do: {check.fix}" for check in fatal]
        return _verdict("unsupported", [*reasons, *_still_possible(machine, config, facts)])
    needed = memory_needed(model, config, dtype.name)
    if device.name == "cuda":
        against = _recipe_limits(model) + _cuda_limits(needed, facts)
    else:
        against = _recipe_limits(model) + _rubric(model, config, machine) + _machine_limits(machine, device, model, needed, facts)
    if against:
        return _verdict("cloud", [*against, f"way out: {ELSEWHERE}; notebook 05 writes the job"])
    broken = [check.name for check in checks if check.status == "fail"]
    first = [f"to mend first: {', '.join(broken)}"] if broken else []
    return _verdict("local", [*first, *_in_favour(machine, device, model, config, needed)])


def _verdict(where: str, reasons: list[str]) -> Verdict:
    return Verdict(where, [portable(reason) for reason in reasons])


def _still_possible(machine: Machine, config: Config, facts: dict[str, Any]) -> list[str]:
    if not machine.intel_mac:
        return []
    if not facts.get("version"):
        return ["torch cannot be imported either, and pip has no current one for Intel Macs: not even the embedded model trains here"]
    example = "this run's embedded model" if config.model_id == EMBEDDED else "the embedded model (preset=smoke)"
    return [f"{example} still trains on this CPU, to learn from: `mac-lora run --preset smoke --from 02`; nothing larger is worth it"]


def _recipe_limits(model: Base) -> list[str]:
    """Limits that hold on every machine: this suite trains with LoRA on unquantized weights."""
    if not model.quantized:
        return []
    return [f"its weights are quantized ({model.quantized}): training those (QLoRA) needs CUDA libraries; use the unquantized model here"]


def _rubric(model: Base, config: Config, machine: Machine) -> list[str]:
    found = []
    count = model.parameters or 0
    large = (machine.memory_bytes or 0) >= 62 * GIB and machine.apple_silicon
    if count >= FROM_7B:
        found.append(f"{model.size} parameters: 7B and more belong on a cloud GPU")
    elif count > UP_TO_3B and not large:
        found.append(f"{model.size} parameters: above the 3B that train well locally; below 7B it takes a Mac with 64 GB")
    if config.max_seq_length > LONGEST and (model.parameters is None or count > SMALL):
        found.append(f"{config.max_seq_length} tokens: a long context, above the {LONGEST} that train well locally")
    return found


def _machine_limits(machine: Machine, device: Choice, model: Base, needed: float | None, facts: dict[str, Any]) -> list[str]:
    budget = memory_budget(machine, device, facts)
    if needed is not None and budget is not None and needed > budget:
        return [f"it takes roughly {size(needed)}, this machine has {size(budget)} for it; shorter sequences or a smaller model would fit"]
    if device.name == "cpu" and (model.parameters or 0) > CPU_LIMIT:
        mend = "; mend MPS first, then it trains here" if machine.apple_silicon else ""
        return [f"{model.size} parameters on the CPU alone: seconds a row, hours to days a run{mend}"]
    return []


def memory_budget(machine: Machine, device: Choice, facts: dict[str, Any]) -> float | None:
    """Bytes that training may take: Metal's recommended working set on MPS, nine tenths of the memory on the CPU."""
    if device.name != "mps":
        return 0.9 * machine.memory_bytes if machine.memory_bytes else None
    recommended = (facts.get("mps") or {}).get("recommended_bytes")
    return recommended or (METAL_SHARE * machine.memory_bytes if machine.memory_bytes else None)


def _cuda_limits(needed: float | None, facts: dict[str, Any]) -> list[str]:
    memory = (facts.get("cuda") or {}).get("memory_bytes")
    if needed is None or not memory or needed <= 0.9 * memory:
        return []
    return [f"it takes roughly {size(needed)}, this GPU has {size(memory)}"]


def _in_favour(machine: Machine, device: Choice, model: Base, config: Config, needed: float | None) -> list[str]:
    reasons = [f"{model.name} takes more than text: {language.told(model.settings)}"] if model.kind == "vision" else []
    if model.parameters is None and not model.problem:
        reasons.append(f"the size of {model.name} is unknown: local holds only if it has at most 3B parameters")
    elif model.parameters is None:
        return reasons
    elif device.name == "cuda":
        reasons.append(f"{model.size} parameters take roughly {size(needed)} and fit on this GPU; the limits for a Mac do not apply")
    else:
        tokens = f"{config.max_seq_length} tokens"
        reasons.append(f"{model.size} parameters, text, {tokens}, LoRA: within what trains locally (at most 3B, {LONGEST} tokens)")
        reasons.append(f"it takes roughly {size(needed)} of {size(machine.memory_bytes)}")
    if device.name == "cpu":
        reasons.append(f"there is no MPS here ({device.reason}): the CPU trains a model this small in minutes; a real model wants a GPU")
    return reasons + _caution(machine, model)


def _caution(machine: Machine, model: Base) -> list[str]:
    """A warning where the reference's memory guidance names smaller models than this one."""
    if not machine.apple_silicon or not machine.memory_bytes or not model.parameters:
        return []
    gib = machine.memory_bytes / GIB
    upper = 0.65e9 if gib < 15.5 else 2e9 if gib < 31 else UP_TO_3B if gib < 62 else float("inf")
    if model.parameters > upper:
        return [
            f"larger than the guidance for {size(machine.memory_bytes)} ({memory_guidance(machine.memory_bytes)[0]}): watch memory pressure"
        ]
    return ["tight on 8 GB: close other programs first"] if gib < 15.5 and model.parameters > SMALL else []
