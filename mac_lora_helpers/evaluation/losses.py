"""Loss and perplexity of base and tuned on the same tokens, row by row."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mac_lora_helpers.config import EMBEDDED
from mac_lora_helpers.errors import CheckFailed, InputError
from mac_lora_helpers.evaluation.clock import in_time
from mac_lora_helpers.evaluation.questions import choose, trained_turn
from mac_lora_helpers.evaluation.trained import Trained, Which

IGNORED = -100
#: Rows that the losses are counted on, at most, per example that is answered.
ROWS_PER_EXAMPLE = 10
#: Share of ``eval_minutes`` for the loss; the rest is for the answers.
SHARE = 1 / 3
#: Bytes of float32 logits that one forward pass may build, unless a single row needs more.
LOGITS_BUDGET = 256 * 2**20
#: Everyday questions with plain answers: facts, arithmetic, rewriting, advice, code, refusal of the impossible.
CONVERSATIONS = Path(__file__).with_name("conversations.jsonl")


class RowLosses(NamedTuple):
    """Per row: ``tokens`` that count, and the negative log-likelihood of all of them in nats under both models."""

    tokens: np.ndarray
    base: np.ndarray
    tuned: np.ndarray


class Losses(dict[str, dict[str, float | int]]):
    """``{"base": {"loss", "perplexity", "tokens"}, "tuned": {…}}``, with the rows behind it.

    ``trained``: the model that was asked. ``available``: rows there were to choose from; ``of``: that were chosen, ``rows``: for
    which there was time. ``source``: where they come from.
    """

    def __init__(self, rows: RowLosses, trained: Trained, available: int, of: int, source: str) -> None:
        self.rows, self.trained, self.available, self.of, self.source = rows, trained, available, of, source
        for name in ("base", "tuned"):
            loss = float(getattr(rows, name).sum() / rows.tokens.sum())
            self[name] = {"loss": loss, "perplexity": perplexity(loss), "tokens": int(rows.tokens.sum())}


def perplexity(loss: float) -> float:
    """e^loss: among how many equally likely tokens the model hesitates; held below what a float can carry."""
    return math.exp(min(loss, 700.0))


def compare_losses(trained: Trained, rows: Sequence[Mapping[str, Sequence[int]]], source: str = "test") -> Losses:
    """Token-weighted loss (nats per token) and perplexity of base and tuned, over labels that are not -100.

    Args:
        rows: ``input_ids`` and ``labels`` of equal length, labels not shifted; such as ``tokens["test"]``. Of more than
            ten times ``eval_examples`` rows a seeded choice is taken, and when a third of ``eval_minutes`` is over, what is there counts.

    Raises:
        InputError: no label counts in any row. CheckFailed: a loss is NaN or infinite.
    """
    picked = choose(range(len(rows)), ROWS_PER_EXAMPLE * trained.config.eval_examples, trained.config.seed)
    chosen = [row for row in (_countable(rows[index]) for index in picked) if row is not None]
    if not chosen:
        fix = "see in notebook 02 which tokens are trained; a larger max_seq_length keeps more of the answers"
        raise InputError(f"none of the {len(rows)} rows has a token that counts", where=f"{source} split", fix=fix)
    config, done = trained.config, []
    order = np.random.default_rng(config.seed).permutation(len(chosen))
    sums = {which: np.zeros(len(chosen)) for which in ("base", "tuned")}
    for part in in_time(order, config.eval_batch_size, config.eval_minutes * SHARE, "rows scored by both"):
        for which, values in sums.items():
            values[part] = row_sums(trained, [chosen[index] for index in part], which)
            if not np.isfinite(values[part]).all():
                fix = "evaluate in float32; if it stays, the training has diverged: lower the learning rate"
                raise CheckFailed(f"the loss of the {which} model is NaN or infinite", where=f"{source} split", fix=fix)
        done += part
    done.sort()
    tokens = np.array([sum(label != IGNORED for label in chosen[index][1][1:]) for index in done])
    return Losses(RowLosses(tokens, sums["base"][done], sums["tuned"][done]), trained, len(rows), len(chosen), source)


def compare_general(trained: Trained) -> Losses:
    """Is old behaviour kept? Base against tuned on conversations that have nothing to do with the training data.

    The embedded model is asked the small talk that ships beside it, since it knows little else; any other one ``CONVERSATIONS``.

    Raises:
        InputError: the conversations' file cannot be read.
    """
    from mac_lora_helpers import smoke

    embedded = trained.config.model_id == EMBEDDED
    path = smoke.GENERAL if embedded else CONVERSATIONS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        fix = "install the package again; its data files are missing"
        raise InputError(f"the conversations cannot be read: {error.strerror}", where=path.name, fix=fix) from None
    rows = [labelled(*trained_turn(trained.tokenizer, json.loads(line)["messages"])) for line in lines if line.strip()]
    return compare_losses(trained, rows, source="embedded general conversations" if embedded else "general conversations")


def labelled(prompt: list[int], answer: list[int]) -> dict[str, list[int]]:
    """``input_ids`` and ``labels`` of an answer after its prompt."""
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def _countable(row: Mapping[str, Sequence[int]]) -> tuple[list[int], list[int]] | None:
    """(ids, labels) of a row in which some label after the first counts; the first has nothing before it to predict it."""
    ids, labels = list(row["input_ids"]), list(row["labels"])
    return (ids, labels) if any(label != IGNORED for label in labels[1:]) else None


def row_sums(trained: Trained, rows: Sequence[tuple[list[int], list[int]]], which: Which) -> np.ndarray:
    """Sum of the negative log-likelihoods (nats) of each row's labels, float64 (rows,)."""
    sums = np.zeros(len(rows))
    with trained.voice(which):
        for members in _batches(trained, rows):
            sums[members] = _batch_sums(trained, [rows[index] for index in members])
            release_memory(trained.device)
    return sums


def _batches(trained: Trained, rows: Sequence[tuple[list[int], list[int]]]) -> list[list[int]]:
    """Indices of rows that go through together: of like length, few enough for the logits to fit the budget."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
    vocabulary = trained.model.get_output_embeddings().weight.shape[0]
    batches: list[list[int]] = [[]]
    for index in order:
        bytes_needed = (len(batches[-1]) + 1) * len(rows[index][0]) * vocabulary * 4
        if batches[-1] and (len(batches[-1]) == trained.config.eval_batch_size or bytes_needed > LOGITS_BUDGET):
            batches.append([])
        batches[-1].append(index)
    return batches


def _batch_sums(trained: Trained, rows: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
    """Right-padded: under causal attention no real token looks at the padding."""
    import torch
    from torch.nn.functional import cross_entropy

    width = padded_width(max(len(ids) for ids, _ in rows), trained.device)
    pad = trained.model.generation_config.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in rows], device=trained.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows], device=trained.device)
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for _, row in rows], device=trained.device)
    columns = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()  # where some row has a label to predict
    with torch.inference_mode():
        logits = _logits(trained.model, columns, input_ids=ids, attention_mask=mask, use_cache=False)
        targets = labels[:, columns + 1]
        losses = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(targets.shape).cpu().double().numpy().sum(axis=1)


def padded_width(longest: int, device: str) -> int:
    """Columns of a batch: on MPS few distinct widths, since its allocator keeps buffers for every one it has seen."""
    return -(-longest // 32) * 32 if device == "mps" else longest


def release_memory(device: str) -> None:
    """Gives cached buffers back between two batches where keeping them is known to hurt."""
    if device == "mps":
        import torch

        torch.mps.empty_cache()


def _logits(model: Any, columns: Any, **inputs: Any) -> Any:
    """Logits at some positions only; the others are not built if the model can leave them out."""
    if "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters:
        return model(**inputs, logits_to_keep=columns).logits
    return model(**inputs).logits[:, columns]
