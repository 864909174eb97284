"""Where to run: a rule of thumb (at most 3B, text, at most 1024 tokens, LoRA) applied to this machine, model and recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mac_lora_helpers import language
from mac_lora_helpers.config import Config
from mac_lora_helpers.environment.checks import ELSEWHERE, Check, memory_guidance
from mac_lora_helpers.environment.device import Choice
from mac_lora_helpers.environment.machine import GIB, Machine
from mac_lora_helpers.model import Base
from mac_lora_helpers.redaction import portable
from mac_lora_helpers.text import binary_size as size

#: "3B" models have up to 3.4e9 parameters, "7B" ones start at 6.5e9; in between it takes 64 GB.
UP_TO_3B, FROM_7B = 3.5e9, 6.5e9
LONGEST = 1024
#: Models that train at any length that there is memory for; and the most that a CPU alone is used for.
SMALL, CPU_LIMIT = 50e6, 300e6
#: Metal's recommended working set is about two thirds of the memory of smaller Macs (read), used where torch does not tell.
METAL_SHARE = 2 / 3
#: Findings that no setting mends: this interpreter on this machine cannot train.
FATAL = ("Platform", "macOS", "torch")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Verdict:
    """``where`` is local, cloud or unsupported; ``reasons`` are sentences, the deciding ones first."""

    where: str
    reasons: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def decide_verdict(
    machine: Machine, device: Choice, model: Base, config: Config, needed: float | None, checks: list[Check], facts: dict[str, Any]
) -> Verdict:
    """Unsupported if a finding makes training impossible; cloud if a limit of the rule or of this machine is passed; else local."""
    failed = [check for check in checks if check.status == "fail"]
    if fatal := [f"{check.name}: {check.detail}; to do: {check.fix}" for check in failed if check.name in FATAL]:
        return _verdict("unsupported", fatal + _still_possible(machine, facts))
    against = _recipe_limits(model) + ([] if device.name == "cuda" else _rule(model, config, machine))
    against += _memory_limit(machine, device, needed, facts) or _cpu_limit(machine, device, model)
    if against:
        return _verdict("cloud", [*against, f"way out: {ELSEWHERE}; notebook 05 writes the job"])
    first = [f"to mend first: {', '.join(check.name for check in failed)}"] if failed else []
    return _verdict("local", [*first, *_in_favour(machine, device, model, config, needed)])


def _verdict(where: str, reasons: list[str]) -> Verdict:
    return Verdict(where, [portable(reason) for reason in reasons])


def _still_possible(machine: Machine, facts: dict[str, Any]) -> list[str]:
    if not machine.intel_mac:
        return []
    if not facts.get("version"):
        return ["torch cannot be imported either, and pip has no current one for Intel Macs: not even the embedded model trains here"]
    return ["the embedded model (preset=smoke) still trains on this CPU, to learn from: `mac-lora run --preset smoke --from 02`"]


def _recipe_limits(model: Base) -> list[str]:
    """Limits that hold on every machine: this suite trains with LoRA on unquantized weights."""
    if not model.quantized:
        return []
    return [f"its weights are quantized ({model.quantized}): training those (QLoRA) needs CUDA libraries; use the original model here"]


def _rule(model: Base, config: Config, machine: Machine) -> list[str]:
    found, count = [], model.parameters or 0
    large = (machine.memory_bytes or 0) >= 62 * GIB and machine.apple_silicon
    if count >= FROM_7B:
        found.append(f"{model.size} parameters: 7B and more belong on a cloud GPU")
    elif count > UP_TO_3B and not large:
        found.append(f"{model.size} parameters: above the 3B that train well locally; below 7B it takes a Mac with 64 GB")
    if config.max_seq_length > LONGEST and (model.parameters is None or count > SMALL):
        found.append(f"{config.max_seq_length} tokens: a long context, above the {LONGEST} that train well locally")
    return found


def _memory_limit(machine: Machine, device: Choice, needed: float | None, facts: dict[str, Any]) -> list[str]:
    """On MPS Metal's recommended working set counts, elsewhere nine tenths of the device's memory."""
    budget = (facts.get("mps") or {}).get("recommended_bytes") if device.name == "mps" else None
    total = (facts.get("cuda") or {}).get("memory_bytes") if device.name == "cuda" else machine.memory_bytes
    budget = budget or (METAL_SHARE if device.name == "mps" else 0.9) * (total or 0)
    if needed is None or not budget or needed <= budget:
        return []
    owner = "this GPU" if device.name == "cuda" else "this machine"
    return [f"it takes roughly {size(needed)}, {owner} has {size(budget)} for it; shorter sequences or a smaller model need less"]


def _cpu_limit(machine: Machine, device: Choice, model: Base) -> list[str]:
    if device.name != "cpu" or (model.parameters or 0) <= CPU_LIMIT:
        return []
    mend = "; mend MPS first, then it trains here" if machine.apple_silicon else ""
    return [f"{model.size} parameters on the CPU alone: a GPU is many times faster{mend}"]


def _in_favour(machine: Machine, device: Choice, model: Base, config: Config, needed: float | None) -> list[str]:
    if model.problem:
        return []
    if model.parameters is None:
        reasons = [f"the size of {model.name} is unknown: local holds only if it has at most 3B parameters"]
    elif device.name == "cuda":
        reasons = [f"{model.size} parameters take roughly {size(needed)}, which this GPU has; the limits for a Mac do not apply"]
    else:
        within = f"within what trains locally (at most 3B, {LONGEST} tokens)"
        reasons = [f"{model.size} parameters, text, {config.max_seq_length} tokens, LoRA: {within}"]
        reasons.append(f"it takes roughly {size(needed)} of {size(machine.memory_bytes)}")
        advice, most = memory_guidance(machine.memory_bytes or 0)
        if machine.apple_silicon and model.parameters > most:
            reasons.append(f"larger than the guidance for this memory ({advice}): watch memory pressure")
    if model.kind == "vision":
        reasons.append(f"{model.name} takes more than text: {language.told(model.settings)}")
    if device.name == "cpu":
        reasons.append(f"{device.reason}: the CPU trains the same numbers, slower than a GPU")
    return reasons


def memory_needed(model: Base, config: Config, dtype: str) -> float | None:
    """Bytes that training takes, roughly, where no forecast could be made; ``None`` if the model's size is unknown.

    Half as much again as the weights, logits three times in float32, and 1 GiB for Python and the libraries.
    """
    if model.parameters is None:
        return None
    tokens = config.per_device_train_batch_size * config.max_seq_length
    return 1.5 * model.parameters * BYTES[dtype] + 3 * tokens * (vocabulary_of(model) or 150_000) * 4 + GIB


def vocabulary_of(model: Base) -> int | None:
    """The size of the model's vocabulary, from its config; None where that is not here."""
    text = model.settings.get("text_config") if isinstance(model.settings.get("text_config"), dict) else model.settings
    return text.get("vocab_size") if isinstance(text.get("vocab_size"), int) else None
