"""After a training: did it really happen? Checked on the files, and on the model with the files loaded back."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from mac_lora_helpers.artifacts import adapter_digest
from mac_lora_helpers.errors import CheckFailed
from mac_lora_helpers.training import curve, resume
from mac_lora_helpers.training.batches import rows_of
from mac_lora_helpers.training.recipe import quiet
from mac_lora_helpers.training.saving import best_step, versions

#: Fewer optimizer steps than this: whether the loss went down is not judged.
JUDGED_STEPS = 10
#: Rows of each split whose loss is compared with the adapter off and on.
COMPARED_ROWS = 16
#: Relative difference between the validation loss as it was measured and that of the saved adapter, by dtype.
SAME_LOSS = {"float32": 1e-5}
FIX = "look at train_log.jsonl; lower learning_rate, or train longer, and run 03_lora_training.ipynb again"


def examine(trainer: Any) -> dict[str, Any]:
    """Audits the training and writes ``train_metrics.json``.

    The stated test for "the loss went down": over the first 16 distinct rows that the trainer saw, dropout off, the
    mean loss per supervised token with the saved adapter is lower than with the adapter off. With fewer than 10
    optimizer steps it is not judged (``null``), never passed.

    Returns:
        The metrics, as written.

    Raises:
        CheckFailed: a check of the audit failed; the metrics are written all the same.
        MissingArtifact: ``trainer.save_model()`` has not run.
    """
    tensors = _saved_tensors(trainer.run)
    losses = _compare_losses(trainer)
    audit = _audit(trainer, tensors, losses)
    metrics = {**_numbers(trainer), **losses, "audit": audit, "adapter_digest": adapter_digest(trainer.run.need("adapter"))}
    trainer.run.write_json("train_metrics", metrics)
    failed = [name for name, passed in audit.items() if passed is False]
    if failed:
        raise CheckFailed(f"the training did not pass its audit: {', '.join(failed)}", where="train_metrics.json, audit", fix=FIX)
    resume.write_state(trainer.folder, "finished", step=trainer.state.global_step)
    return metrics


def _numbers(trainer: Any) -> dict[str, Any]:
    log, losses = trainer.run_log, trainer.run_log.losses
    window = max(1, min(10, len(losses) // 10))
    seconds = log.rows[-1]["seconds"] if log.rows else log.seconds
    best = curve.lowest(log.rows)
    return {
        "steps": trainer.state.global_step,
        "engine": "torch",
        "first_loss": _finite(sum(losses[:window]) / window),
        "last_loss": _finite(sum(losses[-window:]) / window),
        "loss_window": window,
        "best_step": best[0] if best else None,
        "best_eval_loss": _finite(best[1]) if best else None,
        "saved_step": best_step(trainer) or trainer.state.global_step,
        "curve": curve.words(log.rows, trainer.curve.keep_best),
        "eval_seconds": round(log.eval_seconds, 3),
        "seconds": seconds,
        "tokens": log.tokens,
        "supervised_tokens": log.supervised,
        "tokens_per_second": round(log.tokens / seconds, 1) if seconds else None,
        "peak_memory_bytes": max(trainer.meter.peak, trainer.peak_before),
        "predicted_memory_bytes": trainer.forecast.total_bytes,
        "predicted_memory_parts": trainer.forecast.parts,
        "not_predicted": trainer.forecast.reason or None,
        "device": trainer.args.device.type,
        "dtype": _dtype(trainer),
        "data_fingerprint": trainer.identity["data_fingerprint"],
        "config_hash": trainer.identity["config_hash"],
        "resumed_from_step": trainer.resumed_from or None,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "fast_path": trainer.fast.told(),
        "versions": versions(),
    }


def _dtype(trainer: Any) -> str:
    return str(trainer.model.get_base_model().dtype).removeprefix("torch.")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _audit(trainer: Any, tensors: dict[str, Any], losses: dict[str, Any]) -> dict[str, bool | None]:
    """The checks by name; None: not judged."""
    seen, config = trainer.data_collator, trainer.config
    with _from_disk(trainer):
        logits, best = _compare_logits(trainer), _best_is_saved(trainer)
    judged = trainer.state.global_step >= JUDGED_STEPS and bool(losses["seen_rows"])
    return {
        "finite": all(bool(tensor.isfinite().all()) for tensor in tensors.values()),
        "lora_b_nonzero": _all_b_nonzero(trainer, tensors),
        "logits_changed": logits["changed"],
        "saved_equals_trained": logits["equal"],
        "best_is_saved": best,
        "loss_fell": losses["train_loss_tuned"] < losses["train_loss_base"] if judged else None,
        "length_as_asked": trainer.args.max_length == config.max_seq_length and seen.longest <= config.max_seq_length,
        "dtype_as_asked": _dtype(trainer) == config.dtype,
        "batches_equal_data": (seen.foreign == 0 and bool(seen.seen)) if seen.seen or seen.foreign else None,
    }


def _saved_tensors(run: Any) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run.need("adapter") / "adapter_model.safetensors")


def _all_b_nonzero(trainer: Any, tensors: dict[str, Any]) -> bool:
    """Every adapted module has its ``lora_B`` in the file, none of them is all zeros, and they stand in the layers asked for."""
    wanted = sum(1 for name, _ in trainer.model.named_parameters() if "lora_B.default" in name)
    b = {name: tensor for name, tensor in tensors.items() if ".lora_B." in name}
    layers = trainer.model.peft_config["default"].layers_to_transform
    where = {int(number) for name in b for number in re.findall(r"\.(\d+)\.", name)[:1]}
    return len(b) == wanted > 0 and all(bool(tensor.any()) for tensor in b.values()) and (layers is None or where == set(layers))


@contextlib.contextmanager
def _from_disk(trainer: Any) -> Iterator[None]:
    """The adapter in ``adapter/`` stands beside the trained one, and is the active one."""
    model = trainer.model
    with quiet():
        model.load_adapter(str(trainer.run.need("adapter")), adapter_name="saved")
    try:
        model.set_adapter("saved")
        yield
    finally:
        model.set_adapter("default")
        model.delete_adapter("saved")


def _compare_logits(trainer: Any) -> dict[str, bool]:
    """The adapter read back from disk gives the trained model's logits, and others than the base's."""
    import torch

    model = trainer.model.eval()
    ids = torch.tensor([next(rows_of(trainer.tokens["train"]))[0].tolist()], device=trainer.args.device)
    with torch.no_grad():
        saved = model(input_ids=ids).logits.float()
        model.set_adapter("default")
        trained = model(input_ids=ids).logits.float()
        with model.disable_adapter():
            base = model(input_ids=ids).logits.float()
        model.set_adapter("saved")
    tolerance = 1e-5 * trained.abs().max().item()
    return {
        "changed": bool(((saved - base).abs() > 0).any()) and bool(saved.isfinite().all()),
        "equal": bool((saved - trained).abs().max() <= tolerance),
    }


def _best_is_saved(trainer: Any) -> bool | None:
    """The adapter on disk has the lowest validation loss of the log; None where the last step's adapter is saved."""
    best = curve.lowest(trainer.run_log.rows)
    if not trainer.curve.keep_best or best is None:
        return None
    return math.isclose(trainer.curve.measure(trainer, alone=True), best[1], rel_tol=SAME_LOSS.get(_dtype(trainer), 1e-3))


def _compare_losses(trainer: Any) -> dict[str, Any]:
    """Loss per supervised token, adapter off and on, over rows that were trained on and over rows that were not."""
    seen = trainer.data_collator.kept[:COMPARED_ROWS]
    valid = trainer.tokens.get("valid")
    held_out = (
        [{"input_ids": ids.tolist(), "labels": labels.tolist()} for ids, labels in itertools.islice(rows_of(valid), COMPARED_ROWS)]
        if valid
        else []
    )
    found: dict[str, Any] = {"seen_rows": len(seen), "valid_rows": len(held_out)}
    for name, rows in (("train", seen), ("valid", held_out)):
        tuned = mean_loss(trainer, rows)
        with trainer.model.disable_adapter():
            base = mean_loss(trainer, rows)
        found |= {f"{name}_loss_base": base, f"{name}_loss_tuned": tuned}
    return found


def mean_loss(trainer: Any, rows: list[dict[str, list[int]]]) -> float | None:
    """The loss per supervised token over some rows, one at a time."""
    losses = [curve.loss_of(trainer, [row]) for row in rows]
    count = sum(labelled for _, labelled in losses)
    return _finite(sum(loss for loss, _ in losses) / count) if count else None
