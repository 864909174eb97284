"""The only place that asks the operating system, the installation and the network.

Every answer is raw and small enough to be written down, so that every decision elsewhere is a pure function of
recorded answers. Nothing here raises: what cannot be found out is ``None``, or a text under ``error``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mac_lora_helpers import model
from mac_lora_helpers.environment import torch_probe
from mac_lora_helpers.errors import first_line
from mac_lora_helpers.redaction import portable

DISTRIBUTION = "mac-lora-helpers"
#: macOS keeps these outside a service's or an IDE's PATH at times.
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Probe:
    """Answers of the machine this process runs on.

    Args:
        env: environment variables; the process's own unless given.
        torch_timeout: seconds that importing and trying torch may take.
        hub_timeout: seconds that one question to the Hub may take, name resolution included.
    """

    def __init__(self, env: Mapping[str, str] | None = None, torch_timeout: float = 180, hub_timeout: float = 3) -> None:
        self.env: Mapping[str, str] = os.environ if env is None else env
        self.torch_timeout = torch_timeout
        self.hub_timeout = hub_timeout

    def system(self) -> dict[str, str]:
        """``system`` (Darwin, Linux, Windows), ``release``, ``machine`` (arm64, x86_64), ``platform`` (one line), ``python``."""
        return {
            "system": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
            "platform": platform.platform(),
            "python": platform.python_version(),
        }

    def command(self, *words: str) -> str | None:
        """What a command prints, stripped; ``None`` if it is not there, fails or takes longer than 10 s."""
        path = os.pathsep.join(filter(None, [self.env.get("PATH", ""), SYSTEM_PATH]))
        program = shutil.which(words[0], path=path)
        if program is None:
            return None
        # Without this variable macOS tells some Pythons that it is version 10.16.
        env = {**self.env, "SYSTEM_VERSION_COMPAT": "0", "LC_ALL": "C"}
        try:
            done = subprocess.run([program, *words[1:]], capture_output=True, text=True, timeout=10, env=env, stdin=subprocess.DEVNULL)
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def read_text(self, path: str) -> str | None:
        """A small system file such as ``/proc/cpuinfo``."""
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def memory(self) -> dict[str, int] | None:
        """``total``, ``available`` and ``swap_used`` in bytes."""
        try:
            import psutil

            memory = psutil.virtual_memory()
            answer = {"total": memory.total, "available": memory.available, "swap_used": 0}
            with contextlib.suppress(Exception):
                answer["swap_used"] = psutil.swap_memory().used
            return answer
        except Exception:
            with contextlib.suppress(ValueError, OSError, AttributeError):
                return {"total": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "swap_used": 0}
            return None

    def disk(self, path: str) -> dict[str, Any] | None:
        """``free`` and ``total`` bytes, ``volume`` (equal for two paths on one volume) and ``writable`` of the nearest existing folder."""
        folder = Path(os.path.abspath(os.path.expanduser(path)))
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        try:
            usage = shutil.disk_usage(folder)
            return {
                "free": usage.free,
                "total": usage.total,
                "volume": str(os.stat(folder).st_dev),
                "writable": os.access(folder, os.W_OK),
            }
        except OSError:
            return None

    def version(self, distribution: str) -> str | None:
        """Version of an installed distribution, without importing it."""
        try:
            return importlib.metadata.version(distribution)
        except Exception:
            return None

    def requirements(self) -> list[str]:
        """This project's requirement lines, extras marked; empty where its metadata is missing."""
        try:
            return importlib.metadata.requires(DISTRIBUTION) or []
        except Exception:
            return []

    def torch_facts(self) -> dict[str, Any]:
        """What ``torch_probe.py`` finds out, asked once; a crash, a hang or a broken installation ends up under ``error``."""
        return self._torch_facts

    def device_facts(self) -> dict[str, Any]:
        """Version and devices alone: asked in this process where torch is loaded already, which saves seconds; else ``torch_facts``."""
        torch = sys.modules.get("torch")
        if torch is None or "_torch_facts" in vars(self):
            return self.torch_facts()
        try:
            return {"version": torch.__version__, "error": None, **torch_probe.devices(torch)}
        except Exception as error:
            return {"version": None, "error": portable(torch_probe.told(error))}

    @functools.cached_property
    def _torch_facts(self) -> dict[str, Any]:
        # -P: this folder must not shadow the standard library for the script.
        words = [sys.executable or "python3", "-P", torch_probe.__file__]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=self.torch_timeout, env=dict(self.env), stdin=subprocess.DEVNULL
            )
            printed, complaint, code = done.stdout, done.stderr, done.returncode
        except subprocess.TimeoutExpired as late:
            printed, complaint, code = _text(late.stdout), f"no answer within {self.torch_timeout:g} s", None
        except (OSError, ValueError) as error:
            printed, complaint, code = "", str(error), 1
        return _parse_torch(printed, complaint, code)

    def hub_settings(self) -> dict[str, Any] | None:
        """Where the Hub client looks: ``endpoint``, ``cache``, ``offline``, and ``token``: the place it comes from, never the token."""
        try:
            from huggingface_hub import constants
        except Exception:
            return None
        token = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if self.env.get(name, "").strip()), None)
        if token is None and self._token_from_file():
            token = "token file"
        offline = bool(constants.HF_HUB_OFFLINE)
        return {"endpoint": constants.ENDPOINT, "cache": constants.HF_HUB_CACHE, "offline": offline, "token": token}

    def cached_folder(self, model_id: str) -> str | None:
        """Folder of a Hub model's files in the local cache."""
        with contextlib.suppress(Exception):
            return model.cached_folder(model_id)
        return None

    def whoami(self) -> dict[str, Any]:
        """``status`` and, if the Hub knows the token, ``name``; ``error`` if it cannot be asked in time."""
        token = self.env.get((self.hub_settings() or {}).get("token") or "", "").strip() or self._token_from_file()
        return self._ask_hub(lambda hub: {"name": hub.whoami(token=token).get("name")})

    def hub_page(self, page: str) -> dict[str, Any]:
        """``status`` of ``models/<id>`` or ``datasets/<id>``, asked without a token, and ``gated``; ``error`` if not in time."""
        kind, _, name = page.partition("/")
        return self._ask_hub(lambda hub: {"gated": hub.repo_info(name, repo_type=kind[:-1], timeout=self.hub_timeout, token=False).gated})

    def _ask_hub(self, question: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            from huggingface_hub import HfApi
            from huggingface_hub.errors import HfHubHTTPError

            try:
                return {"status": 200, **question(HfApi())}
            except HfHubHTTPError as error:
                return {"status": error.response.status_code}

        return bounded(ask, self.hub_timeout)

    def _token_from_file(self) -> str:
        from huggingface_hub import constants

        return (self.read_text(constants.HF_TOKEN_PATH) or "").strip()


@functools.cache
def this_machine() -> Probe:
    """The probe that is used where none is given; torch is asked once per process."""
    return Probe()


def bounded(question: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The answer, or an error after ``seconds``: a name server that hangs knows no time limit of its own."""
    answers: list[dict[str, Any]] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:
            answers.append({"error": f"{type(error).__name__}: {first_line(error)}"})

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else {"error": f"no answer within {seconds:g} s"}


def _parse_torch(printed: str, complaint: str, code: int | None) -> dict[str, Any]:
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    try:
        facts = json.loads(lines[-1])
    except (IndexError, ValueError):
        facts = {"version": None, "stage": "import"}
    if facts.get("stage") == "done":
        return {**facts, "error": facts.get("error") and portable(facts["error"])}
    last = next((line.strip() for line in reversed(complaint.splitlines()) if line.strip()), "")
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            last = f"the process was ended by {signal.Signals(-code).name}" + (f"; {last}" if last else "")
    facts["error"] = facts.get("error") or portable(f"{last[:300] or 'no answer'} (while asking torch: {facts['stage']})")
    return facts


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
