"""``export/mlx``: the adapter as mlx-lm loads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.export.adapter import adapter_folder, read_adapter, trained_config
from mac_lora_helpers.export.mlx_adapter import to_mlx, write_mlx_folder


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
        MissingArtifact: no adapter. InputError: DoRA, or more than LoRA matrices of linear layers.
    """
    config = trained_config(run, config)
    adapter = read_adapter(adapter_folder(run, config))
    shapes, layers = linear_shapes(config)
    tensors, settings = to_mlx(adapter, shapes, layers)
    with run.folder("mlx") as folder:
        write_mlx_folder(folder, tensors, settings)
        size = sum(file.stat().st_size for file in folder.iterdir())
    parameters, modules = settings["lora_parameters"], len(tensors) // 2
    padded = modules - len(adapter.updates)
    return MlxReport(parameters["rank"], parameters["scale"], modules, padded, settings["num_layers"], size, "", run.path("mlx"))


def linear_shapes(config: Config) -> tuple[dict[str, tuple[int, int]], int]:
    """``(out, in)`` of every linear layer of the base, and its number of blocks; no weights are loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(config.model_path, trust_remote_code=config.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=config.trust_remote_code)
    shapes = {name: tuple(module.weight.shape) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return shapes, settings.num_hidden_layers
