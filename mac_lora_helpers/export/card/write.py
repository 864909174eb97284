"""The model card: what the run recorded, in the Hub's metadata form.

Every figure comes from an artefact of the run. One that is missing is named in the card as not recorded;
nothing is guessed. The licence is the author's to choose.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mac_lora_helpers import __version__
from mac_lora_helpers.adapter import Adapter
from mac_lora_helpers.artifacts import ARTIFACTS, RunDir
from mac_lora_helpers.config import EMBEDDED, Config
from mac_lora_helpers.data.tokenizer import template_arguments
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.export.card import rows
from mac_lora_helpers.redaction import portable

#: What ``push_artifacts`` may name → the library that loads it; ``run`` is the run's own records and goes along with another kind only.
KINDS = {"adapter": "peft", "merged": "transformers", "gguf": "gguf", "mlx": "mlx", "run": ""}
#: Stands for the Hub user until a push knows who it is.
NOBODY = "YOUR_USERNAME"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
#: Metadata that people add to the card by hand; it survives a second ``write_card``.
_BY_HAND = ("license", "license_name", "license_link", "language")
_SOURCES = ("train_config", "manifest", "train_metrics", "eval_metrics", "equivalence", "environment")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_ASK = {
    True: 'messages = [{{"role": "user", "content": {prompt}}}]\n'
    'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)\n',
    False: 'inputs = tokenizer({prompt}, return_tensors="pt")\n',
}
_ANSWER = """answer = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""


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
        """What a notebook shows; its dollars are no formulas."""
        return f'<div class="mathjax_ignore tex2jax_ignore">\n\n{self.body}\n\n</div>'


@dataclass(frozen=True)
class Base:
    """The base model as a reader of the card can know it.

    Attributes:
        kind: ``hub`` (an id on the Hub), ``embedded`` (ships with this package) or ``folder`` (on the author's disk).
        name: the Hub id, ``embedded`` or the folder's own name; never a path.
    """

    kind: str
    name: str

    @classmethod
    def of(cls, model_id: str) -> Base:
        """Tells a Hub id from a folder: a path that exists or that only a path can look like."""
        if model_id == EMBEDDED:
            return cls("embedded", EMBEDDED)
        if _HUB_ID.fullmatch(model_id) and not Path(model_id).is_dir():
            return cls("hub", model_id)
        return cls("folder", Path(model_id).expanduser().name or "model")

    def values(self) -> dict[str, str]:
        """For the template: the base in words, what ``from_pretrained`` takes, its imports, and its name for a command."""
        text, code, imports = {
            "hub": (f"[{self.name}](https://huggingface.co/{self.name})", f'"{self.name}"', ""),
            "embedded": (
                "the small chat model that ships with `mac-lora-helpers`",
                'resolve({"preset": "smoke"}).model_path',
                "from mac_lora_helpers.config import resolve\n",
            ),
            "folder": (
                f"`{self.name}`, a model in a folder of the author's, not on the Hub",
                f'"path/to/{self.name}"  # the folder that holds the base model',
                "",
            ),
        }[self.kind]
        name = self.name if self.kind == "hub" else "path/to/base"
        return {"base_text": text, "base_code": code, "base_imports": imports, "base_name": name}


def write_card(run: RunDir, config: Config) -> Card:
    """Writes ``export/README.md`` from the run's artefacts.

    Metadata that was added by hand to an earlier card (the licence, the language) is kept.

    Raises:
        MissingArtifact: there is no adapter. InputError: a damaged artefact, or ``push_artifacts`` names an unknown kind.
        CheckFailed: figures in the run directory tell of another adapter.
    """
    from huggingface_hub import ModelCard, ModelCardData

    adapter, kinds = require_one_adapter(run, config), kinds_of(config)
    found = {name: run.read_json(name) for name in _SOURCES if run.has(name)}
    train_config = found.get("train_config", {})
    saved = {**found.get("manifest", {}).get("config", {}), **train_config.get("config", train_config)}
    base = Base.of(saved.get("model_id") or adapter.base or config.model_id)
    dataset = "" if saved.get("data_files") or saved.get("dataset_id") == EMBEDDED else saved.get("dataset_id", "")
    data = ModelCardData(
        base_model=base.name if base.kind == "hub" else None,
        datasets=[dataset] if dataset else None,
        library_name=KINDS[kinds[0]],
        pipeline_tag="text-generation",
        tags=["lora", "sft", "trl", "mac-lora-helpers", *[kind for kind in kinds if kind != "run" and kinds != ["adapter"]]],
        **_by_hand(run),
    )
    values = {
        **_usage(config, base, kinds, chat=found.get("manifest", {}).get("format") != "text"),
        **_figures(found, saved, adapter),
        "licence": _licence(base, dataset),
    }
    card = ModelCard.from_template(data, template_str=TEMPLATE.read_text(encoding="utf-8"), **values)
    text = portable(re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n")
    return Card(run.write_text("card", text), text, [ARTIFACTS[name][0] for name in _SOURCES if name not in found])


def require_one_adapter(run: RunDir, config: Config) -> Adapter:
    """The adapter to publish; figures of another one would be a lie in its card.

    Raises:
        MissingArtifact: the run has none. InputError: it cannot be read. CheckFailed: figures tell of another one.
    """
    adapter = Adapter.find(run, config)
    run.check_about(adapter.folder, *["train_metrics"] * adapter.own, "eval_metrics", "equivalence")
    return adapter


def kinds_of(config: Config) -> list[str]:
    """``push_artifacts`` as a list without repeats.

    Raises:
        InputError: a kind that does not exist.
    """
    kinds = list(dict.fromkeys(part.strip().lower() for part in config.push_artifacts.split(",") if part.strip()))
    if not set(kinds) <= set(KINDS) or kinds[:1] in ([], ["run"]):
        what = f"push_artifacts cannot be {config.push_artifacts!r}"
        raise InputError(what, where="parameter push_artifacts", fix=f"choose from {', '.join(KINDS)}")
    return kinds


def repo_name(config: Config) -> str:
    """The name of the repository: ``repo_id`` as given, else one made from the base model's name."""
    if config.repo_id.strip():
        return config.repo_id.strip()
    name = Base.of(config.model_id).name
    stem = "mac-lora-smoke" if name == EMBEDDED else re.sub(r"[^A-Za-z0-9._-]+", "-", name.split("/")[-1]).strip("-.").lower()
    return f"{stem or 'model'}-lora"


def _by_hand(run: RunDir) -> dict[str, Any]:
    """Metadata that a person added to the card that is there."""
    from huggingface_hub import ModelCard

    try:
        data = ModelCard.load(run.path("card"), ignore_metadata_errors=True).data.to_dict() if run.has("card") else {}
    except Exception:  # a card that cannot be read is replaced
        return {}
    return {key: data[key] for key in _BY_HAND if data.get(key)}


def _usage(config: Config, base: Base, kinds: list[str], chat: bool) -> dict[str, Any]:
    """How to load and ask what is published; texts as literals, which are the same in JSON and Python."""
    name = repo_name(config)
    more = "".join(f", {key}={value!r}" for key, value in template_arguments(config).items() if key != "today")
    repo, prompt = name if "/" in name else f"{NOBODY}/{name}", json.dumps(config.prompt, ensure_ascii=False)
    return {
        **base.values(),
        "title": name.split("/")[-1],
        "kinds": kinds,
        "repo": repo,
        "repo_literal": json.dumps(repo),
        "prompt_quoted": shlex.quote(" ".join(config.prompt.split())),
        "ask": _ASK[chat].format(prompt=prompt).replace("generation_prompt=True", f"generation_prompt=True{more}")
        + _ANSWER.format(tokens=config.max_new_tokens),
    }


def _figures(found: Mapping[str, Any], saved: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    metrics = found.get("eval_metrics", {})
    scores = rows.score_rows(metrics)
    return {
        "data": rows.data_rows(found, saved),
        "recipe": rows.recipe_rows(found, saved, adapter.settings),
        "scores": scores,
        "intervals": any("(" in row["difference"] for row in scores),
        "findings": metrics.get("findings", []),
        "examples": metrics.get("examples", "?"),
        "loss_examples": metrics.get("loss_examples"),
        "verdict": metrics.get("verdict", ""),
        "equivalence": [rows.equivalence_row(item) for item in found.get("equivalence", {}).get("artefacts", [])],
        "versions": rows.versions(found),
        "writer": f"mac-lora-helpers {__version__}",
    }


def _licence(base: Base, dataset: str) -> str:
    of = ["the base model's" if base.kind != "embedded" else "", f"the data's ({dataset})" if dataset else "the data's"]
    terms = " and ".join(part for part in of if part)
    return (
        "The author has to choose one: add `license: …` to the metadata at the top of this file "
        f"(see <https://huggingface.co/docs/hub/repositories-licenses>). {terms[0].upper()}{terms[1:]} terms apply too."
    )
