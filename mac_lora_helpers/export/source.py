"""What is exported: the base on disk, the adapter as plain matrices, the tokenizer, the tokens that end an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mac_lora_helpers.adapter import WEIGHTS, Adapter
from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError, UserError, first_line
from mac_lora_helpers.language import language_part
from mac_lora_helpers.model import local_folder, quiet, require_base, settle_threads, stop_tokens
from mac_lora_helpers.redaction import portable

_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


@dataclass(frozen=True)
class Update:
    """One module's update.

    Args:
        module: name in the base model, such as ``model.layers.0.self_attn.q_proj``.
        a: float32 ``(r, in)``. b: float32 ``(out, r)``.
        scale: factor of ``b @ a``: alpha / r, or alpha / √r when rank-stabilised (arXiv:2312.03732).
    """

    module: str
    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def delta(self) -> np.ndarray:
        """The update of the weight, float32 ``(out, in)``."""
        return np.float32(self.scale) * (self.b @ self.a)

    def norm(self) -> float:
        """The update's Frobenius norm, computed without the update itself."""
        product = (self.b.T @ self.b).astype(np.float64) * (self.a @ self.a.T)
        return self.scale * math.sqrt(max(float(product.sum()), 0.0))


@dataclass(frozen=True)
class Updates:
    """An adapter's updates.

    Args:
        settings: ``adapter_config.json``. modules: one update per adapted linear module.
        other: names of stored tensors that are not LoRA matrices of a linear module
            (DoRA magnitudes, embedding LoRA, fully trained modules, biases).
    """

    settings: dict[str, Any]
    modules: dict[str, Update]
    other: list[str]

    @classmethod
    def of(cls, adapter: Adapter) -> Updates:
        """Reads an adapter's matrices.

        Raises:
            InputError: halves of a pair are missing. CheckFailed: NaN or infinity.
        """
        settings, other = adapter.settings, []
        sides: dict[str, dict[str, np.ndarray]] = {}
        for name, tensor in adapter.tensors.items():
            match = _KEY.match(name)
            if name.endswith(".base_layer.weight") or (name.endswith(".base_layer.bias") and settings.get("bias", "none") == "none"):
                continue  # PEFT's copy of a frozen head or embedding, unchanged
            if match is None or tensor.ndim != 2:
                other.append(name)
            else:
                sides.setdefault(match["module"], {})[match["side"]] = tensor.float().numpy()
        return cls(settings, {module: _update(module, pair, settings) for module, pair in sides.items()}, other)

    @property
    def plain(self) -> bool:
        """Whether it is nothing but low-rank updates of linear layers."""
        return not (self.settings.get("use_dora") or self.other)

    def require_plain(self, target: str) -> Updates:
        """These updates, if ``target`` can hold all of the adapter.

        Raises:
            InputError: it is DoRA or holds more than LoRA matrices of linear modules.
        """
        if self.plain:
            return self
        what = f"a DoRA adapter cannot be written as {target}: its magnitudes are no low-rank update"
        if not self.settings.get("use_dora"):
            what = f"{target} holds LoRA matrices of linear layers only; this adapter also has {', '.join(self.other[:3])}"
        raise InputError(what, where="adapter", fix="export the merged model instead; it holds everything that was trained")


def _update(module: str, pair: dict[str, np.ndarray], settings: dict[str, Any]) -> Update:
    if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
        raise InputError(f"lora_A and lora_B of {module} do not make a pair", where=WEIGHTS, fix="train or save the adapter again")
    return Update(module, pair["A"], pair["B"], scale_of(module, pair["A"].shape[0], settings))


def scale_of(module: str, rank: int, settings: dict[str, Any]) -> float:
    """alpha / r or, rank-stabilised, alpha / √r; ``alpha_pattern`` as PEFT matches it (full name or its end)."""
    alpha = settings["lora_alpha"]
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


@dataclass(frozen=True)
class Source:
    """What is exported.

    Args:
        adapter: on disk. base: folder of the base model. options: how the base is loaded beside its dtype.
        tokenizer: the run's. ends: ids that end an answer.
    """

    config: Config
    adapter: Adapter
    base: Path
    options: dict[str, Any]
    tokenizer: Any
    ends: list[int]

    @property
    def folder(self) -> Path:
        return self.adapter.folder

    @property
    def updates(self) -> Updates:
        return Updates.of(self.adapter)

    def rows(self) -> list[tuple[str, str]]:
        """(what, value) for a table."""
        settings = self.adapter.settings
        return [
            ("base model", portable(self.config.model_id)),
            ("adapter", f"{portable(self.adapter.name)}, rank {settings.get('r')}, alpha {settings.get('lora_alpha')}"),
            ("an answer ends with", " or ".join(self.tokenizer.convert_ids_to_tokens(self.ends)) or "nothing: no end token"),
        ]

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Inside, what PyTorch, transformers and PEFT say about base or adapter becomes one sentence.

        Raises:
            InputError: the base cannot be loaded, or the adapter does not belong to it.
        """
        from safetensors import SafetensorError

        try:
            with quiet():
                yield
        except UserError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            where = f"base {portable(self.config.model_id)}, adapter {portable(self.adapter.name)}"
            fix = "name the model that the adapter was trained on, whole and at its place"
            raise InputError(f"base and adapter do not go together: {portable(first_line(error))}", where=where, fix=fix) from error

    def prepare(self, base: Any) -> str:
        """Gives the loaded base's head a weight of its own where the adapter changes only one of its two uses.

        Merging into a weight that embedding and head share would change both (the drift of tied models after a merge).

        Returns:
            What was done, in words.
        """
        import torch

        settle_threads(base.num_parameters(), "cpu")
        settings = self.adapter.settings
        if not base.config.get_text_config().tie_word_embeddings:
            return "separate weights in the base"
        ends = (base.get_output_embeddings(), base.get_input_embeddings())
        names = [name for name, module in base.named_modules() if any(module is end for end in ends)]
        touched = sorted(name.rpartition(".")[2] for name in names if _is_named(name, settings))
        touched = touched or (["the embedding"] if settings.get("trainable_token_indices") else [])
        if not touched or settings.get("ensure_weight_tying"):
            return f"shares the embedding's weights, {'untouched by the adapter' if not touched else 'tied adapter'}"
        head = base.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        base.config.get_text_config().tie_word_embeddings = False
        return f"untied: the adapter trains {' and '.join(touched)} alone"


def open_source(run: RunDir, config: Config) -> Source:
    """Base, adapter and tokenizer of the export, checked as far as that goes without loading a model.

    Raises:
        MissingArtifact: no adapter. InputError: a folder is not what it should be, or nothing ends an answer.
        CheckFailed: the adapter is not the one that was trained on these data and this base, or holds NaN.
    """
    from mac_lora_helpers.data import load_tokenizer

    config = config.inherit(run.config("train_config"), "data", "training", made_by="03_lora_training.ipynb")
    adapter, tokenizer = Adapter.find(run, config), load_tokenizer(config)
    require_base(config)
    _ = adapter.tensors  # refuses NaN before anything is made of it
    base, ends = local_folder(config), stop_tokens(config, tokenizer)
    if base is None:
        raise InputError("the base model is not on this machine", where=portable(config.model_id), fix="run 03_lora_training.ipynb first")
    if not ends:
        fix = "use a tokenizer with an eos token"
        raise InputError("neither the tokenizer nor the model names an end token", where="tokenizer", fix=fix)
    options = {"trust_remote_code": config.trust_remote_code, "use_safetensors": True, **language_part(config)}
    return Source(config, adapter, base.absolute(), options, tokenizer, ends)  # the converters run in a folder of their own


def _is_named(module: str, settings: dict[str, Any]) -> bool:
    """Whether the adapter's settings name a module, by PEFT's rules: a regular expression, full names or their ends."""
    targets, saved = settings.get("target_modules") or [], settings.get("modules_to_save") or []
    if isinstance(targets, str):
        return bool(re.fullmatch(targets, module)) or _ends_with(module, saved)
    return _ends_with(module, [*targets, *saved])


def _ends_with(module: str, names: list[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
