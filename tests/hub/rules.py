"""What the stand-in refuses in a commit."""

from __future__ import annotations

import base64
import re

import yaml

from hub.state import LARGEST_REGULAR, LFS_SUFFIXES, Blob, Refusal, Repo

_FRONT = re.compile(r"^\s*---\r?\n(.*?)\r?\n---", re.S)


def good_path(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/") or ".git" in path.split("/"):
        raise Refusal(400, f"Invalid path: {path}")
    return path


def blob_of(repo: Repo, line: dict) -> Blob:
    """The content of one line of a commit, refused where the Hub refuses it."""
    value = line["value"]
    if line["key"] == "lfsFile":
        if value["algo"] != "sha256" or len(repo.objects.get(value["oid"], b"")) != value["size"]:
            raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
        return Blob(repo.objects[value["oid"]], True)
    content = base64.b64decode(value["content"])
    if len(content) > LARGEST_REGULAR or value["path"].endswith(LFS_SUFFIXES):
        raise Refusal(400, f"Your push was rejected because it contains binary files: {value['path']}")
    if value["path"] == "README.md" and (errors := yaml_errors(content.decode())):
        raise Refusal(400, "Invalid metadata in README.md: " + "; ".join(errors))
    return Blob(content, False)


def yaml_errors(content: str) -> list[str]:
    """What the Hub says about a card's metadata, as far as it is checked here: form, types, ``base_model``, ``license``."""
    match = _FRONT.match(content)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        return [f"invalid YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata must be a mapping"]
    errors = [f'"{key}" must be a string' for key in ("license", "library_name", "pipeline_tag") if not isinstance(data.get(key, ""), str)]
    errors += [f'"{key}" must be a list of strings' for key in ("tags", "datasets") if not _strings(data.get(key, []))]
    base = data.get("base_model", "a/b")
    if not isinstance(base, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
        errors.append('"base_model" must be a model id on the Hub')
    return errors


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
