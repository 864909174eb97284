"""The model card: what the run recorded, in the Hub's metadata form.

Every figure comes from an artefact of the run. One that is missing is named in the card as not recorded;
nothing is guessed. The licence is the author's to choose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mac_lora_helpers import __version__
from mac_lora_helpers.artifacts import ARTIFACTS, RunDir
from mac_lora_helpers.config import EMBEDDED, Config
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export.card import rows as card_rows
from mac_lora_helpers.export.card.template import CARD
from mac_lora_helpers.export.card.usage import Base, uses
from mac_lora_helpers.files import portable

#: What ``push_artifacts`` may name; ``run`` is the run's own records and goes along with another kind only.
KINDS = ("adapter", "merged", "gguf", "mlx", "run")
#: Stands for the Hub user until a push knows who it is.
NOBODY = "YOUR_USERNAME"
#: Metadata that people add to the card by hand; it survives a second ``write_card``.
_BY_HAND = ("license", "license_name", "license_link", "language")
_LIBRARY = {"adapter": "peft", "merged": "transformers", "gguf": "gguf", "mlx": "mlx"}
_SOURCES = ("train_config", "manifest", "train_metrics", "eval_metrics", "equivalence", "environment")


@dataclass(frozen=True, repr=False)
class Card:
    """A written model card.

    Attributes:
        path: where it lies.
        text: metadata and Markdown.
        missing: artefacts that were not there, by file name; the card says so too.
    """

    path: Path
    text: str
    missing: list[str]

    @property
    def body(self) -> str:
        """The Markdown below the metadata."""
        return self.text.split("\n---\n", 1)[-1].lstrip("\n")

    def __repr__(self) -> str:
        """The text a terminal shows; no absolute path reaches a stored notebook."""
        return self.body

    def _repr_markdown_(self) -> str:
        return self.body


def write_card(run: RunDir, config: Config) -> Card:
    """Writes ``export/README.md`` from the run's artefacts.

    Metadata that was added by hand to an earlier card (the licence, the language) is kept.

    Raises:
        MissingArtifact: there is no adapter. InputError: a damaged artefact, or ``push_artifacts`` names an unknown kind.
        CheckFailed: figures in the run directory tell of another adapter.
    """
    from huggingface_hub import ModelCard

    require_one_adapter(run, config)
    found = {name: run.read_json(name) for name in _SOURCES if run.has(name)}
    found["adapter_config"] = _adapter_config(run, config)
    kinds = kinds_of(config)
    base = Base.of(base_id(found, config))
    values = _card_values(found, config, base, kinds)
    card = ModelCard.from_template(_card_data(found, base, kinds, _by_hand(run)), template_str=CARD, **values)
    text = portable(re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n")
    path = run.write_text("card", text)
    return Card(path, text, [ARTIFACTS[name][0] for name in _SOURCES if name not in found])


def require_one_adapter(run: RunDir, config: Config) -> None:
    """Figures of another adapter would be a lie in this one's card."""
    if not config.adapter_dir:
        run.check_trained()
        run.check_about(adapter_folder(run, config), "train_metrics")
    run.check_about(adapter_folder(run, config), "eval_metrics", "equivalence")


def kinds_of(config: Config) -> list[str]:
    """``push_artifacts`` as a list without repeats.

    Raises:
        InputError: a kind that does not exist.
    """
    kinds = list(dict.fromkeys(part.strip().lower() for part in config.push_artifacts.split(",") if part.strip()))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or kinds[:1] in ([], ["run"]):
        raise InputError(
            f"push_artifacts cannot be {config.push_artifacts!r}", where="parameter push_artifacts", fix=f"choose from {', '.join(KINDS)}"
        )
    return kinds


def repo_name(config: Config) -> str:
    """The name of the repository: ``repo_id`` as given, else one made from the base model's name."""
    if config.repo_id.strip():
        return config.repo_id.strip()
    name = Base.of(config.model_id).name
    stem = "mac-lora-smoke" if name == EMBEDDED else re.sub(r"[^A-Za-z0-9._-]+", "-", name.split("/")[-1]).strip("-.").lower()
    return f"{stem or 'model'}-lora"


def adapter_folder(run: RunDir, config: Config) -> Path:
    """The adapter to publish: ``adapter_dir``, else the run's own.

    Raises:
        MissingArtifact: the run has none. InputError: ``adapter_dir`` is no adapter.
    """
    if not config.adapter_dir:
        return run.need("adapter")
    folder = Path(config.adapter_dir).expanduser().absolute()
    if not (folder / "adapter_config.json").is_file():
        raise InputError(
            "adapter_dir holds no adapter_config.json", where=portable(config.adapter_dir), fix="name the folder that training wrote"
        )
    return folder


def _adapter_config(run: RunDir, config: Config) -> dict[str, Any]:
    import json

    path = adapter_folder(run, config) / "adapter_config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the adapter's configuration cannot be read: {error}", where=path.name, fix="train again") from None


def base_id(found: Mapping[str, Any], config: Config) -> str:
    """What the adapter was trained on: the saved config's ``model_id``, else PEFT's own record, else the parameter."""
    saved = _saved(found)
    return saved.get("model_id") or found.get("adapter_config", {}).get("base_model_name_or_path") or config.model_id


def _saved(found: Mapping[str, Any]) -> dict[str, Any]:
    train_config = found.get("train_config", {})
    return {**found.get("manifest", {}).get("config", {}), **train_config.get("config", train_config)}


def _by_hand(run: RunDir) -> dict[str, Any]:
    """Metadata that a person added to the card that is there."""
    from huggingface_hub import ModelCard

    if not run.has("card"):
        return {}
    try:
        data = ModelCard.load(run.path("card"), ignore_metadata_errors=True).data.to_dict()
    except Exception:  # a card that cannot be read is replaced
        return {}
    return {key: data[key] for key in _BY_HAND if data.get(key)}


def _card_data(found: Mapping[str, Any], base: Base, kinds: list[str], by_hand: Mapping[str, Any]) -> Any:
    """The Hub's metadata; ``base_model`` and ``datasets`` only where they are ids on the Hub."""
    from huggingface_hub import ModelCardData

    dataset = _dataset_id(found)
    forms = [kind for kind in kinds if kind != "run"]
    tags = ["lora", "sft", "trl", "mac-lora-helpers", *([] if forms == ["adapter"] else forms)]
    return ModelCardData(
        base_model=base.name if base.kind == "hub" else None,
        datasets=[dataset] if dataset else None,
        library_name=_LIBRARY[kinds[0]],
        pipeline_tag="text-generation",
        tags=tags,
        **by_hand,
    )


def _dataset_id(found: Mapping[str, Any]) -> str:
    saved = _saved(found)
    dataset = saved.get("dataset_id", "")
    return "" if saved.get("data_files") or dataset == EMBEDDED else dataset


def _card_values(found: Mapping[str, Any], config: Config, base: Base, kinds: list[str]) -> dict[str, Any]:
    name = repo_name(config)
    repo = name if "/" in name else f"{NOBODY}/{name}"
    chat = found.get("manifest", {}).get("format") != "text"
    metrics, saved = found.get("eval_metrics", {}), _saved(found)
    scores, intervals = card_rows.scores(metrics)
    return {
        "title": name.split("/")[-1],
        "summary": f"A LoRA fine-tune of {base.text}, made with [TRL](https://github.com/huggingface/trl)'s `SFTTrainer`.",
        "uses": uses(base, kinds, repo, chat=chat, prompt=config.prompt, max_new_tokens=config.max_new_tokens),
        "data": card_rows.data_rows(found, saved),
        "recipe": card_rows.recipe_rows(found, saved),
        "scores": scores,
        "findings": [str(finding) for finding in metrics.get("findings", [])],
        "intervals": intervals,
        "examples": metrics.get("examples", "?"),
        "loss_examples": metrics.get("loss_examples"),
        "verdict": metrics["verdict"] if isinstance(metrics.get("verdict"), str) else "",
        "equivalence": [card_rows.equivalence_row(item) for item in found.get("equivalence", {}).get("artefacts", [])],
        "versions": card_rows.versions(found),
        "writer": f"mac-lora-helpers {__version__}",
        "licence": _licence(base, _dataset_id(found)),
    }


def _licence(base: Base, dataset: str) -> str:
    of = ["the base model's" if base.kind != "embedded" else "", f"the data's ({dataset})" if dataset else "the data's"]
    terms = " and ".join(part for part in of if part)
    return (
        "The author has to choose one: add `license: …` to the metadata at the top of this file "
        f"(see <https://huggingface.co/docs/hub/repositories-licenses>). {terms[0].upper()}{terms[1:]} terms apply too."
    )
