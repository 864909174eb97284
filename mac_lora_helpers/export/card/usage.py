"""The card's "how to use it": code a reader can copy, for each kind of file that is published."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from mac_lora_helpers.config import EMBEDDED

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

ADAPTER = """\
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
{imports}
base = {base}
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = PeftModel.from_pretrained(model, {repo}{subfolder}).eval()

{ask}"""

MERGED = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({repo}{subfolder})
model = AutoModelForCausalLM.from_pretrained({repo}{subfolder}, dtype=torch.float32).eval()

{ask}"""

ASK_CHAT = """\
messages = [{{"role": "user", "content": {prompt}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""

ASK_TEXT = """\
inputs = tokenizer({prompt}, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""

GGUF = """\
hf download {repo} --include "{folder}*" --local-dir downloaded
cd downloaded/{folder}
ollama create my-model -f Modelfile && ollama run my-model"""

MLX = """\
hf download {repo} --include "{folder}*" --local-dir downloaded
mlx_lm.generate --model {base} --adapter-path downloaded/{folder} --prompt {prompt}"""


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

    @property
    def text(self) -> str:
        """The base in the card's words."""
        if self.kind == "hub":
            return f"[{self.name}](https://huggingface.co/{self.name})"
        if self.kind == "embedded":
            return "the small chat model that ships with `mac-lora-helpers`"
        return f"`{self.name}`, a model in a folder of the author's, not on the Hub"

    @property
    def code(self) -> tuple[str, str]:
        """Import lines and the Python expression that ``from_pretrained`` takes."""
        if self.kind == "embedded":
            return "from mac_lora_helpers.config import resolve\n", 'resolve({"preset": "smoke"}).model_path'
        if self.kind == "folder":
            return "", f'"path/to/{self.name}"  # the folder that holds the base model'
        return "", f'"{self.name}"'


def uses(base: Base, artifacts: list[str], repo: str, *, chat: bool, prompt: str, max_new_tokens: int) -> list[dict[str, str]]:
    """One entry (text, language, code) per kind of published file.

    Args:
        artifacts: what is published; the first lies at the repository's root, the others in folders of their names.
        chat: whether the data were conversations, so that the prompt goes through the chat template.
    """
    ask = (ASK_CHAT if chat else ASK_TEXT).format(prompt=_literal(prompt), tokens=max_new_tokens)
    makers = {"adapter": _adapter, "merged": _merged, "gguf": _gguf, "mlx": _mlx}
    return [makers[name](base, repo, "" if name == artifacts[0] else name, ask, prompt) for name in artifacts if name in makers]


def _adapter(base: Base, repo: str, folder: str, ask: str, prompt: str) -> dict[str, str]:
    imports, expression = base.code
    code = ADAPTER.format(imports=imports, base=expression, repo=_literal(repo), subfolder=_subfolder(folder), ask=ask)
    return {"text": "The LoRA adapter on its base, with PEFT (`pip install peft transformers torch`):", "language": "python", "code": code}


def _merged(base: Base, repo: str, folder: str, ask: str, prompt: str) -> dict[str, str]:
    code = MERGED.format(repo=_literal(repo), subfolder=_subfolder(folder), ask=ask)
    return {"text": "The merged model, which needs neither the base nor PEFT:", "language": "python", "code": code}


def _gguf(base: Base, repo: str, folder: str, ask: str, prompt: str) -> dict[str, str]:
    code = GGUF.format(repo=repo, folder=f"{folder}/" if folder else "")
    return {"text": "The GGUF files, with Ollama (llama.cpp and LM Studio open them too):", "language": "bash", "code": code}


def _mlx(base: Base, repo: str, folder: str, ask: str, prompt: str) -> dict[str, str]:
    name = base.name if base.kind == "hub" else "path/to/base"
    code = MLX.format(repo=repo, folder=f"{folder}/" if folder else "", base=name, prompt=shlex.quote(" ".join(prompt.split())))
    return {"text": "The adapter in MLX's form, on Apple Silicon (`pip install mlx-lm`):", "language": "bash", "code": code}


def _literal(text: str) -> str:
    """A double-quoted string literal, the same in JSON and Python."""
    return json.dumps(text, ensure_ascii=False)


def _subfolder(folder: str) -> str:
    return f', subfolder="{folder}"' if folder else ""
