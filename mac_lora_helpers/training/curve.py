"""The validation curve: the loss on rows that are not trained, measured while others are, and what it says.

The log's rows hold the measured losses (``eval_loss``), so a checkpoint's log is all that a resumed training needs to go on
with the same curve; only the best adapter so far is kept beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mac_lora_helpers.config import Config
from mac_lora_helpers.training import processes
from mac_lora_helpers.training.batches import IGNORED, Passes, collate, lengths_of

#: Points in a training, and the tokens that measuring them all may read, as a share of the trained ones: a token without
#: a way back takes about half as long, so that this stays below a tenth of the training.
POINTS, SHARE = 10, 0.15
#: From so many validation rows on the best adapter is kept: fewer tell the noise of a few rows.
ENOUGH_ROWS = 20
#: The file in a checkpoint that holds the best adapter so far.
BEST = "best_adapter.safetensors"
#: Above the lowest loss by this share: it has risen.
RISEN = 1.01


def every(config: Config, steps: int, rows: int) -> int:
    """Optimizer steps between two looks at the validation loss; 0: it is not measured."""
    if not rows or config.eval_steps < 0:
        return 0
    return config.eval_steps or max(1, round(steps / POINTS))


class Curve:
    """Measures the validation loss, and remembers the adapter that had the lowest.

    Args:
        valid: the split's rows, or None. steps: of the training. trained: tokens that it reads.
        step_rows, budget: rows of an optimizer step and tokens of a pass; measuring takes no larger ones.
    """

    def __init__(self, config: Config, valid: Any, steps: int, trained: int, step_rows: int, budget: int) -> None:
        self.every = every(config, steps, len(valid or ()))
        self.rows: list[dict[str, Any]] = _chosen(config, valid, trained, max(1, steps // self.every)) if self.every else []
        self.patience = config.early_stopping_patience
        self.keep_best = bool(self.rows) and (len(valid) >= ENOUGH_ROWS if config.keep_best == "auto" else bool(config.keep_best))
        self.best: dict[str, Any] = {}
        self.passes = Passes([len(row["input_ids"]) for row in self.rows], step_rows, budget) if self.rows else None

    def measure(self, trainer: Any, alone: bool = False) -> float:
        """The loss per supervised token with the adapter as it is now.

        Args:
            alone: one process measures all rows; otherwise each of several measures its share.
        """
        import torch

        rows = self.rows if alone else self.rows[processes.index() :: processes.count()]
        told = torch.zeros(2, dtype=torch.float64)
        for chosen in self.passes.split([len(row["input_ids"]) for row in rows]):
            told += torch.tensor(loss_of(trainer, [rows[index] for index in chosen]), dtype=torch.float64)
        loss, count = (told if alone else processes.total(told)).tolist()
        return loss / max(count, 1)

    def note(self, rows: Sequence[dict[str, Any]], model: Any) -> None:
        """After a measurement: keeps the adapter if its loss is the lowest so far."""
        if self.keep_best and points(rows)[-1] == lowest(rows):
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in model.named_parameters() if tensor.requires_grad}

    def exhausted(self, rows: Sequence[dict[str, Any]]) -> bool:
        """Whether the loss has not fallen for as many measurements as ``early_stopping_patience`` allows."""
        measured = points(rows)
        return bool(self.patience and measured) and len(measured) - 1 - measured.index(lowest(rows)) >= self.patience

    def write(self, folder: Path) -> None:
        """Lays the best adapter so far into a checkpoint."""
        if self.best:
            from safetensors.torch import save_file

            save_file(self.best, folder / BEST)

    def read(self, folder: Path) -> None:
        """Takes it from there."""
        if self.keep_best and (folder / BEST).is_file():
            from safetensors.torch import load_file

            self.best = load_file(folder / BEST)

    def restore(self, rows: Sequence[dict[str, Any]], model: Any) -> int | None:
        """Puts the best adapter in the model's place; its step, or None where the last one stays."""
        import torch

        if not self.keep_best or not self.best:
            return None
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if name in self.best:
                    tensor.copy_(self.best[name])
        return lowest(rows)[0]


def _chosen(config: Config, valid: Any, trained: int, points: int) -> list[dict[str, Any]]:
    """All rows where they were asked for or cost little, else as many as the share allows, spread evenly over the split."""
    lengths = lengths_of(valid)
    count = len(valid)
    if not config.eval_steps:
        count = max(1, min(count, int(SHARE * trained / (points * max(float(lengths.mean()), 1)))))
    keep = [index * len(valid) // count for index in range(count)]
    return [
        row for row in valid.select(keep).select_columns(["input_ids", "labels"]) if any(label != IGNORED for label in row["labels"][1:])
    ]


def loss_of(trainer: Any, rows: list[dict[str, Any]]) -> tuple[float, int]:
    """The summed loss over the rows' supervised tokens, and how many there are; dropout off, no gradient."""
    import torch

    model = trainer.model.eval()
    batch = {name: tensor.to(trainer.args.device) for name, tensor in collate(rows, trainer.processing_class.pad_token_id).items()}
    with torch.no_grad():
        out = model(**batch, use_cache=False, fused_lm_head=True)
    return -out.log_probs.float().sum().item(), int(out.label_mask.sum())


def points(rows: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, loss) of every measurement in the log."""
    return [(row["step"], row["eval_loss"]) for row in rows if row.get("eval_loss") is not None]


def lowest(rows: Sequence[dict[str, Any]]) -> tuple[int, float] | None:
    """The measurement with the lowest loss, the first of equals."""
    return min(points(rows), key=lambda point: point[1], default=None)


def words(rows: Sequence[dict[str, Any]], kept: bool = False) -> str:
    """What the curve says, in one sentence for a learner.

    Args:
        rows: the log. kept: whether the adapter of the lowest point is the one that is saved.
    """
    measured, best = points(rows), lowest(rows)
    if best is None:
        return "no validation loss was measured"
    (step, loss), (last, end) = best, measured[-1]
    where = f"the validation loss is lowest at step {step} ({loss:.3f})"
    if last == step and not (len(measured) > 1 and measured[-2][1] <= loss * RISEN):
        return f"{where}, the last one measured: more steps may help"
    saved = "; the adapter of that step is saved" if kept else ""
    if end > loss * RISEN:
        return f"{where} and has risen since ({end:.3f} at step {last}): the rows are being learned by heart{saved}"
    return f"{where} and has levelled off ({end:.3f} at step {last}): more steps would change little{saved}"
