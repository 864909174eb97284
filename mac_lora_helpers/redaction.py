"""What no file and no message may hold: access tokens, keys, passwords, and where the user's home directory is.

One table, ``KINDS``, serves everything: parameters (refused), messages, logs, executed notebooks and cards (taken out) and what would
be published (refused by file and line). Most forms are those that the issuers document; gitleaks and detect-secrets list them too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

REMOVED = "<secret removed>"


@dataclass(frozen=True)
class Kind:
    """How one kind of secret is recognized.

    Attributes:
        starts: what it begins with; looking for these first is what makes large files quick.
        pattern: the whole of it; a group named ``value`` is what is taken out, else all.
        word: whether it must begin a word.
        any_case: whether upper and lower case are the same.
        issued: whether an issuer gave it this form; otherwise only the words around it tell.
    """

    starts: tuple[bytes, ...]
    pattern: bytes
    word: bool = True
    any_case: bool = False
    issued: bool = True

    @property
    def regex(self) -> re.Pattern[bytes]:
        """The pattern, compiled (``re`` keeps it)."""
        return re.compile(self.pattern, re.I if self.any_case else 0)


_MIXED = rb"(?=[A-Za-z0-9+/_.-]*\d)(?=[A-Za-z0-9+/_.-]*[A-Za-z])[A-Za-z0-9+][A-Za-z0-9+/_.-]{19,}"
_IS = rb"""\\?["']?\s{0,3}[=:]\s{0,3}\\?["']?"""
#: Kind → form. Weights and Biases, for example, has no form of its own: 40 hexadecimal digits after a name are "an assignment".
KINDS: dict[str, Kind] = {
    "Hugging Face token": Kind((b"hf_", b"api_org_"), rb"(?:hf|api_org)_[A-Za-z0-9]{16,}", word=False),
    "GitHub token": Kind((b"gh", b"github_pat_"), rb"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,}"),
    "GitLab token": Kind((b"glpat-", b"gldt-", b"glrt-", b"glptt-"), rb"gl(?:pat|dt|rt|ptt)-[A-Za-z0-9_-]{20,}"),
    "OpenAI or Anthropic key": Kind((b"sk-",), rb"sk-(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{20,}"),
    "Stripe key": Kind((b"sk_", b"rk_"), rb"[sr]k_(?:live|test|prod)_[A-Za-z0-9]{10,}"),
    "Groq key": Kind((b"gsk_",), rb"gsk_[A-Za-z0-9]{20,}"),
    "Replicate, NVIDIA, xAI or Perplexity key": Kind(
        (b"r8_", b"nvapi-", b"xai-", b"pplx-"), rb"r8_[A-Za-z0-9]{37}|nvapi-[A-Za-z0-9_-]{60,}|(?:xai|pplx)-[A-Za-z0-9]{40,}"
    ),
    "npm or PyPI token": Kind((b"npm_", b"pypi-"), rb"npm_[A-Za-z0-9]{30,}|pypi-AgE[A-Za-z0-9_-]{50,}"),
    "AWS access key": Kind((b"AKIA", b"ASIA", b"ABIA", b"ACCA"), rb"A(?:[KS]I|BI|CC)A[A-Z0-9]{16}(?![A-Za-z0-9])"),
    "Azure account key": Kind((b"AccountKey=",), rb"AccountKey=(?P<value>[A-Za-z0-9+/]{40,}={0,2})"),
    "Google key": Kind((b"AIza", b"GOCSPX-"), rb"AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{28}"),
    "Slack token": Kind((b"xox", b"xapp-"), rb"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{16,}"),
    "webhook address": Kind(
        (b"hooks.slack.com/", b"discord.com/api/", b"discordapp.com/api/", b"webhook.office.com/"),
        rb"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}"
        rb"|discord(?:app)?\.com/api/webhooks/\d{5,}/[A-Za-z0-9_-]{20,}|webhook\.office\.com/webhookb2/[A-Za-z0-9@/-]{30,}",
        word=False,
    ),
    "SendGrid key": Kind((b"SG.",), rb"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{30,}"),
    "Databricks token": Kind((b"dapi",), rb"dapi[a-f0-9]{32}(?![a-f0-9])"),
    "private key": Kind(
        (b"-----BEGIN ",),
        rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"
        rb"(?:[^-]{0,8000}-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----)?",
        word=False,
    ),
    "JSON web token": Kind((b"eyJ",), rb"eyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{15,}"),
    "password in an address": Kind(
        (b"://",), rb"://[^/\s:@\"'<>{}]{1,64}:(?P<value>[^/\s:@\"'<>{}]{6,})@[A-Za-z0-9]", word=False, issued=False
    ),
    "password in an assignment": Kind(
        (b"passw", b"pwd"),
        rb"(?:passw(?:or)?d|pwd)" + _IS + rb"""(?P<value>(?![/~$%.])(?=[^\s"'\\]*\d)[^\s"'\\,;<>{}()\[\]]{6,})""",
        word=False,
        any_case=True,
        issued=False,
    ),
    "secret in an assignment": Kind(
        (b"token", b"secret", b"api_key", b"apikey", b"access_key", b"accesskey"),
        rb"(?:token|secret|api_?key|access_?key)" + _IS + rb"(?P<value>" + _MIXED + rb")",
        word=False,
        any_case=True,
        issued=False,
    ),
}
#: Those whose form alone tells, without the words around it.
ISSUED = {name: kind for name, kind in KINDS.items() if kind.issued}
#: In JSON a line break is the letters \n, which belong to no word.
_IN_WORD = re.compile(rb"(?:(?<!\\)[A-Za-z0-9_]|[A-Za-mo-qsu-z0-9_])\Z")
_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)$", re.I)


def scan(text: bytes, kinds: Mapping[str, Kind] = KINDS) -> Iterator[tuple[str, int, int]]:
    """Kind, start and end of every secret in a text, kind by kind."""
    lower = text.lower() if any(kind.any_case for kind in kinds.values()) else text
    for name, kind in kinds.items():
        for start in kind.starts:
            place = (lower if kind.any_case else text).find(start)
            while place >= 0:
                inside = kind.word and place and _IN_WORD.search(text[max(0, place - 2) : place])
                hit = None if inside else kind.regex.match(text, place)
                if hit:
                    yield name, *hit.span("value" if "value" in hit.re.groupindex else 0)
                place = (lower if kind.any_case else text).find(start, hit.end() if hit else place + 1)


def find_secrets(text: str) -> list[str]:
    """The kinds of secrets in a text, each once; never the secrets themselves."""
    return list(dict.fromkeys(kind for kind, _, _ in scan(text.encode("utf-8", "surrogatepass"))))


def environment_secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the environment's tokens, keys and passwords are, by value: ``the value of NAME`` → value (12 characters or more)."""
    values = os.environ if environment is None else environment
    found = {f"the value of {name}": value for name, value in values.items() if _SECRET_NAME.search(name)}
    return {kind: value for kind, value in found.items() if len(value) >= 12 and not value.startswith(("/", "~"))}


def portable(text: str) -> str:
    """The text as it may stand in a file or a message: the home directory as ``~``, secrets taken out."""
    home = os.path.expanduser("~").rstrip("/")
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?=[/\\\s\"':,;)\]]|$)", "~", text)
    for value in environment_secrets().values():
        text = text.replace(value, REMOVED)
    return _without_secrets(text)


def portable_tree(value: Any) -> Any:
    """A JSON value with :func:`portable` applied to every text in it, keys too."""
    if isinstance(value, str):
        return portable(value)
    if isinstance(value, Mapping):
        return {portable(str(key)): portable_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable_tree(item) for item in value]
    return value


def _without_secrets(text: str) -> str:
    plain = text.encode("utf-8", "surrogatepass")
    parts, end = [], 0
    for begin, stop in sorted((begin, stop) for _, begin, stop in scan(plain)):
        if begin >= end:
            parts += [plain[end:begin], REMOVED.encode()]
        end = max(end, stop)
    return b"".join([*parts, plain[end:]]).decode("utf-8", "surrogatepass") if end else text
