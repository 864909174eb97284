"""mlx-lm: Metal on a Mac, its CPU build elsewhere. Prompt and answer go through it in one pass."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from mac_lora_helpers.export.equivalence.engines import serve
from mac_lora_helpers.export.equivalence.prompts import Prompt, render


class MlxLm:
    """A model folder in mlx-lm.

    ``job``: ``path``; ``lora``, an adapter folder or None; ``overrides``, config values that the folder lacks in mlx-lm's form.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import mlx.core as mx
        import mlx_lm

        self.name = f"mlx-lm {importlib.metadata.version('mlx-lm')}"
        self._mx = mx
        self._model, wrapped = mlx_lm.load(job["path"], model_config=job["overrides"], adapter_path=job.get("lora"))
        self._model.set_dtype(mx.float32)
        self._tokenizer = wrapped._tokenizer

    def reply(self, prompt: Prompt) -> dict[str, Any]:
        mx = self._mx
        logits = self._model(mx.array([[*prompt.ids, *prompt.answer[:-1]]]))[0, len(prompt.ids) - 1 :]
        scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        best = mx.argmax(scores, axis=-1).tolist()
        logprobs = [float(scores[index, token]) for index, token in enumerate(prompt.answer)]
        first = [mine == token for mine, token in zip(best, prompt.answer, strict=True)]
        return {"ids": render(self._tokenizer, prompt), "logprobs": logprobs, "first": first}


if __name__ == "__main__":
    serve(MlxLm)
