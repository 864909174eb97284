"""llama.cpp itself (the ``xllamacpp`` wheel), set up so that its numbers can be compared.

Keys and values in float32, no flash attention, no warm-up. The server opens a port on 127.0.0.1 whether one wants it or
not; a random key keeps other programs and web pages out. It gives log-probabilities only for what it generates, so it is
led along the reference's answer: where it goes another way, the reference's token is put in its place.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import secrets
import socket
import urllib.error
import urllib.request
from typing import Any

from mac_lora_helpers.export.equivalence.engines import serve
from mac_lora_helpers.export.equivalence.prompts import Prompt

#: Tokens generated at once, and first choices told for each.
_STRIDE, _CHOICES = 16, 8
#: Files up to this size run on one thread: more only wait for each other.
_SMALL = 100_000_000


def missing() -> str:
    """Why llama.cpp cannot be asked here, or empty."""
    if importlib.util.find_spec("xllamacpp") is None:
        return "llama.cpp is not installed (pip install xllamacpp)"
    try:  # in a network namespace of its own a machine may not reach itself
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=2):
            return ""
    except OSError:
        return "llama.cpp is asked over 127.0.0.1, and this machine's loopback is down"


class LlamaCpp:
    """A GGUF file in llama.cpp.

    ``job``: ``path``; ``lora``, a LoRA GGUF on top of it, or None; ``context`` in tokens; ``template``, what the chat template is told.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import xllamacpp

        self.name = f"llama.cpp (xllamacpp {importlib.metadata.version('xllamacpp')})"
        self._key, self._told = secrets.token_hex(16), dict(job.get("template") or {})
        self._server = xllamacpp.Server(_parameters(job, self._key))
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def reply(self, prompt: Prompt) -> dict[str, Any]:
        """llama.cpp's own ids of the chat, and what it says of the reference's answer."""
        logprobs: list[float | None] = []
        first: list[bool] = []
        ended = False
        while len(first) < len(prompt.answer):
            done = len(first)
            given = self._generate([*prompt.ids, *prompt.answer[:done]], min(_STRIDE, len(prompt.answer) - done))
            for token, choices in given["steps"]:
                wanted = prompt.answer[len(first)]
                logprobs.append(choices.get(wanted, min(choices.values())) if choices else None)
                first.append(token == wanted)
                ended = given["ended"]
                if token != wanted:
                    break
        ids, asked = self._ids(prompt)
        return {"ids": ids, "asked": asked, "logprobs": logprobs, "first": first, "ended": ended or not (prompt.closed and first[-1])}

    def _ids(self, prompt: Prompt) -> tuple[list[int], str]:
        """Ids that llama.cpp makes with its own template engine and tokenizer, and what it had to be told for them.

        It tells every template to let the model think; where the training did not, a chat must say so.
        """
        if prompt.messages is None:
            return self._tokens(prompt.text), ""
        body: dict[str, Any] = {"messages": prompt.messages, **({"tools": prompt.tools} if prompt.tools else {})}
        for more in ({}, {"enable_thinking": False}):
            told = {**self._told, **more}
            text = self._post("/apply-template", {**body, "chat_template_kwargs": told} if told else body)["prompt"]
            ids = self._tokens(text)
            if ids in (prompt.ids, prompt.today):
                return ids, json.dumps(told) if told else ""
        return ids, ""

    def _tokens(self, text: str) -> list[int]:
        """``/apply-template`` leaves the bos token out and this puts it in front again, so ids are compared, not text."""
        return self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def _generate(self, ids: list[int], count: int) -> dict[str, Any]:
        """Greedy tokens, each with its best choices; none where a token ends inside a character, which the server leaves out."""
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "n_probs": _CHOICES, "return_tokens": True, "cache_prompt": True}
        found = self._post("/completion", body)
        pieces, steps = list(found.get("completion_probabilities") or []), []
        for token in found["tokens"]:
            choices: dict[int, float] = {}
            if pieces and pieces[0]["id"] == token:
                piece = pieces.pop(0)
                listed = [piece, *piece["top_logprobs"]]
                choices = {item["id"]: -1e30 if item["logprob"] is None else float(item["logprob"]) for item in listed}
            steps.append((token, choices))
        if not steps:
            raise RuntimeError("llama.cpp generates nothing")
        return {"steps": steps, "ended": found["stop_type"] == "eos"}

    def chat(self, question: str, limit: int) -> dict[str, Any]:
        """A greedy chat reply, as an application gets it."""
        messages = [{"role": "user", "content": question}]
        reply = self._server.handle_chat_completions({"messages": messages, "max_tokens": limit, "temperature": 0, "cache_prompt": False})
        if "choices" not in reply:
            raise RuntimeError(f"llama.cpp refused the chat: {reply.get('error', reply)}")
        choice = reply["choices"][0]
        return {"prompt": question, "answer": choice["message"].get("content") or "", "ended": choice["finish_reason"] == "stop"}

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(self._server.listening_address + path, json.dumps(body).encode(), headers)
        try:
            with self._open(request, timeout=600) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"llama.cpp answered {error.code}: {error.read().decode(errors='replace')[:200]}") from None


def _parameters(job: dict[str, Any], key: str) -> Any:
    import xllamacpp as llama

    threads = 1 if os.path.getsize(job["path"]) < _SMALL else int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    parameters = llama.CommonParams()
    parameters.model.path = job["path"]
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = job["context"]
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
    if job.get("lora"):
        parameters.lora_adapters = [llama.CommonAdapterLoraInfo(job["lora"], 1.0)]
    return parameters


if __name__ == "__main__":
    serve(LlamaCpp)
