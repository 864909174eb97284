"""llama.cpp itself (the ``xllamacpp`` wheel), set up so that its numbers can be compared.

Keys and values in float32, no flash attention, no prompt cache between prompts, no warm-up. The server opens a port on
127.0.0.1 whether one wants it or not; a random key keeps other programs and web pages out.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import secrets
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mac_lora_helpers.errors import CheckFailed, InputError
from mac_lora_helpers.export.equivalence.engines import Answer, Prompt
from mac_lora_helpers.files import portable

#: Texts that llama.cpp takes for an end of the answer, whatever the file names (``llama-vocab.cpp``).
_END_TEXTS = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "</s>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
    )
)
#: Files up to this size run on one thread: more only wait for each other.
_SMALL = 100_000_000


def available() -> bool:
    """Whether llama.cpp can be imported here."""
    return importlib.util.find_spec("xllamacpp") is not None


def missing() -> str:
    """Why llama.cpp cannot be asked for ids and log-probabilities here, or empty."""
    if not available():
        return "llama.cpp is not installed (pip install xllamacpp)"
    return "" if _loopback() else "llama.cpp is asked over 127.0.0.1, and this machine's loopback is down"


def _loopback() -> bool:
    """Whether this machine reaches itself; in a network namespace of its own it may not."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=2):
            return True
    except OSError:
        return False


class LlamaCpp:
    """A GGUF file in llama.cpp.

    Args:
        path: the model. lora: a LoRA GGUF on top of it, or None.
        context: tokens that prompt and answer take together.

    Raises:
        CheckFailed: llama.cpp does not load the file. InputError: it is not installed.
    """

    def __init__(self, path: Path, lora: Path | None = None, context: int = 2048) -> None:
        if not available():
            raise InputError("llama.cpp is not installed", where="xllamacpp", fix="pip install xllamacpp")
        import xllamacpp

        self.engine = f"llama.cpp (xllamacpp {importlib.metadata.version('xllamacpp')})"
        self._key = secrets.token_hex(16)
        start = time.perf_counter()
        try:
            self._server = xllamacpp.Server(_parameters(path, lora, context, self._key))
        except RuntimeError as error:
            name = path.name if lora is None else f"{lora.name} on {path.name}"
            raise CheckFailed(f"llama.cpp does not load {name}: {error}", where=portable(str(path)), fix="write the file again") from error
        self.load_seconds = time.perf_counter() - start
        self._rows, self._end, self.own_ends = _vocabulary(path)
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids that llama.cpp makes: its own template engine and tokenizer, as in a chat request.

        ``/apply-template`` leaves the bos token out and ``/tokenize`` puts it in front again, so ids are compared, not text.
        """
        text = prompt.text
        if prompt.messages is not None:
            body = {"messages": prompt.messages, **({"tools": prompt.tools} if prompt.tools else {})}
            text = self._post("/apply-template", body)["prompt"]
        return self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def answers(self, rows: Sequence[Sequence[int]], limit: int, drafts: Sequence[Answer] = ()) -> list[Answer]:
        return [self._answer(ids, limit) for ids in rows]

    def _answer(self, ids: Sequence[int], limit: int) -> Answer:
        request = {"prompt": list(ids), "n_predict": limit, "temperature": 0, "n_probs": 1, "return_tokens": True, "cache_prompt": False}
        reply = self._post("/completion", request)
        tokens, pieces = reply["tokens"], reply.get("completion_probabilities") or []
        if [piece["id"] for piece in pieces] == tokens:
            logprobs = [_finite(piece["logprob"]) for piece in pieces]
        else:
            logprobs = self.score(ids, tokens)
        if reply["stop_type"] == "eos":
            return Answer(tuple(tokens[:-1]), tuple(logprobs[:-1]), tokens[-1], logprobs[-1])
        return Answer(tuple(tokens), tuple(logprobs))

    def score(self, ids: Sequence[int], expected: Sequence[int]) -> list[float]:
        """Each expected token is forced in its turn; llama.cpp reports its probability before the forcing.

        The prompt cache is on here, so that a token costs one step.
        """
        return [self._score_one([*ids, *expected[:index]], token) for index, token in enumerate(expected)]

    def _score_one(self, ids: list[int], token: int) -> float:
        """Tokens that end inside a character are left out of the reply: they are looked up beside a forced end token."""
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "return_tokens": True, "cache_prompt": True}
        reply = self._post("/completion", {**body, "n_probs": 1, "logit_bias": [[token, 1e6]]})
        if reply["tokens"] != [token]:
            raise CheckFailed(f"llama.cpp has no token {token}", where="vocabulary", fix="write the file again")
        if reply.get("completion_probabilities"):
            return _finite(reply["completion_probabilities"][0]["logprob"])
        for count in (16, self._rows):
            reply = self._post("/completion", {**body, "n_probs": count, "logit_bias": [[self._end, 1e6]]})
            listed = {piece["id"]: piece["logprob"] for piece in reply["completion_probabilities"][0]["top_logprobs"]}
            if token in listed:
                return _finite(listed[token])
        raise CheckFailed(f"llama.cpp gives no probability for token {token}", where="vocabulary", fix="write the file again")

    def chat(self, messages: list[dict[str, str]], limit: int) -> dict[str, Any]:
        """A greedy chat reply, as an application gets it: ``{"text", "prompt_tokens", "ended"}``."""
        reply = self._server.handle_chat_completions({"messages": messages, "max_tokens": limit, "temperature": 0, "cache_prompt": False})
        if "choices" not in reply:
            raise CheckFailed(f"llama.cpp refused the chat: {reply.get('error', reply)}", where="chat template", fix="check the template")
        choice = reply["choices"][0]
        text = choice["message"].get("content") or ""
        return {"text": text, "prompt_tokens": reply["usage"]["prompt_tokens"], "ended": choice["finish_reason"] == "stop"}

    def close(self) -> None:
        with contextlib.suppress(AttributeError):
            del self._server

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(self._server.listening_address + path, json.dumps(body).encode(), headers)
        try:
            with self._open(request, timeout=600) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")[:300]
            raise CheckFailed(f"llama.cpp answered {error.code}: {reason}", where=path, fix="see the message") from error


def _finite(value: float | None) -> float:
    """JSON has no infinity: llama.cpp writes its lowest float or null for a probability of zero."""
    return -1e30 if value is None else float(value)


def _vocabulary(path: Path) -> tuple[int, int, frozenset[int]]:
    """Number of tokens, id of the end token that the file states, ids that llama.cpp takes for one by their text."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    end, tokens = reader.get_field("tokenizer.ggml.eos_token_id"), reader.get_field("tokenizer.ggml.tokens").contents()
    known = frozenset(index for index, token in enumerate(tokens) if token in _END_TEXTS)
    return len(tokens), int(end.contents()) if end else 0, known


def _parameters(path: Path, lora: Path | None, context: int, key: str) -> Any:
    import xllamacpp as llama

    threads = 1 if path.stat().st_size < _SMALL else _threads()
    parameters = llama.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = context
    parameters.n_parallel = parameters.n_threads_http = 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.n_gpu_layers = 0
    parameters.cache_type_k = parameters.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.warmup = parameters.cache_idle_slots = parameters.fit_params = False
    parameters.ui = parameters.endpoint_slots = False
    parameters.cache_ram_mib = parameters.n_ctx_checkpoints = 0
    parameters.verbosity = -1
    parameters.use_jinja = True
    parameters.hostnames, parameters.api_keys = ["127.0.0.1"], [key]
    if lora is not None:
        parameters.lora_adapters = [llama.CommonAdapterLoraInfo(str(lora), 1.0)]
    return parameters


def _threads() -> int:
    import torch

    return max(1, torch.get_num_threads())
