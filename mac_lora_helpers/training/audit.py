"""After a training: did it really happen? Checked on the files, and on the model with the files loaded back."""

from __future__ import annotations

import math
import re
from typing import Any

from mac_lora_helpers.artifacts import RunDir, adapter_digest
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.training import resume
from mac_lora_helpers.training.batches import rows_of
from mac_lora_helpers.training.recipe import quiet
from mac_lora_helpers.training.saving import versions

#: Fewer optimizer steps than this: whether the loss went down is not judged.
JUDGED_STEPS = 10
#: Rows of each split whose loss is compared with the adapter off and on.
COMPARED_ROWS = 16
FIX = "look at train_log.jsonl; lower learning_rate, or train longer, and run 03_lora_training.ipynb again"


def finish(trainer: Any, result: Any, run: RunDir, config: Config) -> dict[str, Any]:
    """Audits the training and writes ``train_metrics.json``.

    The stated test for "the loss went down": over the first 16 distinct rows that the trainer saw, dropout off, the
    mean loss per supervised token with the saved adapter is lower than with the adapter off. With fewer than 10
    optimizer steps it is not judged (``null``), never passed.

    Returns:
        The metrics, as written.

    Raises:
        CheckFailed: a check of the audit failed; the metrics are written all the same.
        MissingArtifact: ``save_adapter`` has not run.
    """
    audit, losses = run_audit(trainer, run, config)
    metrics = {**_numbers(trainer, result), **losses, "audit": audit, "adapter_digest": adapter_digest(run.need("adapter"))}
    run.write_json("train_metrics", metrics)
    failed = [name for name, passed in audit.items() if passed is False]
    if failed:
        raise CheckFailed(f"the training did not pass its audit: {', '.join(failed)}", where="train_metrics.json, audit", fix=FIX)
    resume.write_state(trainer.folder, "finished", step=trainer.state.global_step)
    return metrics


def _numbers(trainer: Any, result: Any) -> dict[str, Any]:
    log, losses = trainer.run_log, trainer.run_log.losses
    window = max(1, min(10, len(losses) // 10))
    seconds = log.rows[-1]["seconds"] if log.rows else log.seconds
    return {
        "steps": result.global_step,
        "first_loss": _finite(sum(losses[:window]) / window),
        "last_loss": _finite(sum(losses[-window:]) / window),
        "loss_window": window,
        "seconds": seconds,
        "tokens": log.tokens,
        "supervised_tokens": log.supervised,
        "tokens_per_second": round(log.tokens / seconds, 1) if seconds else None,
        "peak_memory_bytes": max(trainer.meter.peak, trainer.peak_before),
        "predicted_memory_bytes": trainer.forecast.total_bytes,
        "predicted_memory_parts": trainer.forecast.parts,
        "not_predicted": trainer.forecast.reason or None,
        "device": trainer.args.device.type,
        "dtype": str(trainer.model.get_base_model().dtype).removeprefix("torch."),
        "data_fingerprint": trainer.identity["data_fingerprint"],
        "config_hash": trainer.identity["config_hash"],
        "resumed_from_step": trainer.resumed_from or None,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "fast_path": _fast_path(trainer.fast),
        "versions": versions(),
    }


def _fast_path(report: Any) -> dict[str, Any]:
    """Whether the fast path was on, and why."""
    if report is None:
        return {"on": False, "reason": "fast_path=off"}
    return {"on": report.applied, "reason": report.reason, "recomputed": report.plan.kind if report.plan else None}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def run_audit(trainer: Any, run: RunDir, config: Config) -> tuple[dict[str, bool | None], dict[str, Any]]:
    """The checks by name (None: not judged), and the losses that were compared."""
    tensors = _saved_tensors(run)
    seen = trainer.data_collator
    logits = _compare_logits(trainer, run)
    losses = _compare_losses(trainer, run)
    judged = trainer.state.global_step >= JUDGED_STEPS and bool(losses["seen_rows"])
    dtype = str(trainer.model.get_base_model().dtype).removeprefix("torch.")
    audit = {
        "finite": all(bool(tensor.isfinite().all()) for tensor in tensors.values()),
        "lora_b_nonzero": _all_b_nonzero(trainer, tensors),
        "logits_changed": logits["changed"],
        "saved_equals_trained": logits["equal"],
        "loss_fell": losses["train_loss_tuned"] < losses["train_loss_base"] if judged else None,
        "length_as_asked": trainer.args.max_length == config.max_seq_length and seen.longest <= config.max_seq_length,
        "dtype_as_asked": dtype == config.dtype,
        "batches_equal_data": (seen.foreign == 0 and bool(seen.seen)) if seen.seen or seen.foreign else None,
    }
    return audit, losses


def _saved_tensors(run: RunDir) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run.need("adapter") / "adapter_model.safetensors")


def _all_b_nonzero(trainer: Any, tensors: dict[str, Any]) -> bool:
    """Every adapted module has its ``lora_B`` in the file, none of them is all zeros, and they stand in the layers asked for."""
    wanted = sum(1 for name, _ in trainer.model.named_parameters() if "lora_B.default" in name)
    b = {name: tensor for name, tensor in tensors.items() if ".lora_B." in name}
    layers = trainer.model.peft_config["default"].layers_to_transform
    where = {int(number) for name in b for number in re.findall(r"\.(\d+)\.", name)[:1]}
    return len(b) == wanted > 0 and all(bool(tensor.any()) for tensor in b.values()) and (layers is None or where == set(layers))


def _compare_logits(trainer: Any, run: RunDir) -> dict[str, bool]:
    """The adapter read back from disk gives the trained model's logits, and others than the base's."""
    import torch

    model = trainer.model.eval()
    ids = torch.tensor([next(rows_of(trainer.tokens["train"]))[0].tolist()], device=trainer.args.device)
    with _from_disk(model, run), torch.no_grad():
        saved = model(input_ids=ids).logits.float()
        model.set_adapter("default")
        trained = model(input_ids=ids).logits.float()
        with model.disable_adapter():
            base = model(input_ids=ids).logits.float()
    tolerance = 1e-5 * trained.abs().max().item()
    return {
        "changed": bool(((saved - base).abs() > 0).any()) and bool(saved.isfinite().all()),
        "equal": bool((saved - trained).abs().max() <= tolerance),
    }


class _from_disk:
    """Loads ``adapter/`` from disk beside the trained adapter for the time of a block."""

    def __init__(self, model: Any, run: RunDir) -> None:
        self.model, self.folder = model, run.need("adapter")

    def __enter__(self) -> None:
        with quiet():
            self.model.load_adapter(str(self.folder), adapter_name="saved")
        self.model.set_adapter("saved")

    def __exit__(self, *_: Any) -> None:
        self.model.set_adapter("default")
        self.model.delete_adapter("saved")


def _compare_losses(trainer: Any, run: RunDir) -> dict[str, Any]:
    """Loss per supervised token, adapter off and on, over rows that were trained on and over rows that were not."""
    import itertools

    seen = trainer.data_collator.kept[:COMPARED_ROWS]
    valid = trainer.tokens.get("valid")
    held_out = [(ids.tolist(), labels.tolist()) for ids, labels in itertools.islice(rows_of(valid), COMPARED_ROWS)] if valid else []
    found: dict[str, Any] = {"seen_rows": len(seen), "valid_rows": len(held_out)}
    for name, rows in (("train", seen), ("valid", held_out)):
        tuned = _mean_loss(trainer, rows)
        with trainer.model.disable_adapter():
            base = _mean_loss(trainer, rows)
        found |= {f"{name}_loss_base": base, f"{name}_loss_tuned": tuned}
    return found


def _mean_loss(trainer: Any, rows: list[tuple[list[int], list[int]]]) -> float | None:
    import torch

    total, count, model = 0.0, 0, trainer.model.eval()
    for ids, labels in rows:
        batch = {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([labels]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        batch = {name: tensor.to(trainer.args.device) for name, tensor in batch.items()}
        with torch.no_grad():
            out = model(**batch, fused_lm_head=True)
        total -= out.log_probs.float().sum().item()
        count += int(out.label_mask.sum())
    return _finite(total / count) if count else None
