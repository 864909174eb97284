"""``export/mlx``: the adapter as mlx-lm loads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export.adapter import adapter_folder, read_adapter, trained_config
from mac_lora_helpers.export.equivalence import engine_mlx
from mac_lora_helpers.export.mlx.adapter import to_mlx, write_mlx_folder
from mac_lora_helpers.export.mlx.config import mlx_keys
from mac_lora_helpers.export.mlx.support import refusal, stored_shapes


@dataclass(frozen=True)
class MlxReport:
    """What was written.

    Args:
        rank, scale: of every module in mlx-lm's form. modules: adapted modules; padded: of them, filled with zeros.
        num_layers: blocks counted from the last. bytes: size of the folder. note: empty, or what to know.
    """

    rank: int
    scale: float
    modules: int
    padded: int
    num_layers: int
    bytes: int
    note: str
    path: Path

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": self.path.name}

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, value, meaning) for a table."""
        return [
            ("modules", str(self.modules), f"{self.padded} of them filled with zeros: mlx-lm adapts the same layers in every block"),
            ("rank", str(self.rank), "the largest rank; smaller ones are filled with zeros"),
            ("scale", f"{self.scale:g}", "alpha / r (alpha / √r when rank-stabilised); differing scales are folded into lora_b"),
            ("size", f"{self.bytes / 1e6:.2f} MB", "export/mlx"),
        ]


def write_mlx(run: RunDir, config: Config) -> MlxReport:
    """Writes ``export/mlx/adapters.safetensors`` and ``adapter_config.json``.

    Raises:
        MissingArtifact: no adapter.
        InputError: DoRA, more than LoRA matrices of linear layers, or a family that mlx-lm does not support.
    """
    config = trained_config(run, config)
    adapter = read_adapter(adapter_folder(run, config))
    base = _settings(config)
    _require_supported(config, base)
    shapes = linear_shapes(base, config.trust_remote_code)
    tensors, settings = to_mlx(adapter, shapes, base.num_hidden_layers, base.model_type)
    with run.folder("mlx") as folder:
        write_mlx_folder(folder, tensors, settings)
        size = sum(file.stat().st_size for file in folder.iterdir())
    parameters, modules = settings["lora_parameters"], len(tensors) // 2
    padded = modules - len(adapter.updates)
    return MlxReport(parameters["rank"], parameters["scale"], modules, padded, settings["num_layers"], size, "", run.path("mlx"))


def _settings(config: Config) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(config.model_path, trust_remote_code=config.trust_remote_code)


def _require_supported(config: Config, settings: Any) -> None:
    """Raises InputError if mlx-lm is here and says that it does not take the base."""
    if not engine_mlx.available():
        return
    values = settings.to_dict()
    why = refusal({**values, **mlx_keys(values)}, stored_shapes(local_folder(config.model_path)))
    if why:
        raise InputError(why, where="model_type", fix="use the adapter or the merged model in transformers; a later mlx-lm may support it")


def local_folder(model_path: str) -> Path:
    """A model's folder: itself, or the Hub's cache, which training has filled."""
    if Path(model_path).is_dir():
        return Path(model_path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model_path, local_files_only=True))


def linear_shapes(settings: Any, trust_remote_code: bool = False) -> dict[str, tuple[int, int]]:
    """``(out, in)`` of every linear layer of the base that has a weight of its own; no weights are loaded.

    A head that shares the embedding's weight is left out. GPT-2's Conv1D is a linear layer with its weight transposed.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings() if settings.get_text_config().tie_word_embeddings else None
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head:
            rows, columns = module.weight.shape
            shapes[name] = (columns, rows) if isinstance(module, Conv1D) else (rows, columns)
    return shapes
