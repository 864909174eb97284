"""Findings about packages, the model, disk and the Hub."""

from __future__ import annotations

from typing import Any

from mac_lora_helpers import language
from mac_lora_helpers.config import EMBEDDED, Config
from mac_lora_helpers.environment.checks import Check, fail, ok, warn
from mac_lora_helpers.environment.machine import Package
from mac_lora_helpers.environment.probe import Probe
from mac_lora_helpers.model import Base
from mac_lora_helpers.text import binary_size as size

LOGIN = "hf auth login"


def check_packages(packages: list[Package]) -> list[Check]:
    """One finding for all that is well, one for each package that is not. A missing torch has a finding of its own."""
    if not packages:
        detail = "the tested ranges cannot be read: this project's metadata or the package packaging is missing"
        return [warn("Packages", detail, "python -m pip install -e . packaging")]
    good = [f"{package.name} {package.version}" for package in packages if package.status == "ok"]
    checks = [ok("Packages", f"{len(good)} of {len(packages)} in the tested range: {', '.join(good[:5])}, …")] if good else []
    return checks + [_package(p) for p in packages if p.status == "outside" or (p.status == "missing" and p.name != "torch")]


def _package(package: Package) -> Check:
    name, fix = f"Package {package.name}", f'python -m pip install "{package.requirement}"'
    if package.status == "missing":
        return fail(name, f"{package.name} is not installed; tested with {package.tested}", fix)
    detail = f"{package.name} {package.version} is outside the tested range {package.tested}; names and defaults may differ"
    return warn(name, detail, fix)


def check_model(model: Base) -> Check:
    """The model's size and kind, and where its files are."""
    if model.problem:
        return fail("Model", f"{model.name}: {model.problem}", model.fix or "set model_id to a Hub id or a model folder")
    place = "on this machine" if model.local else "to be downloaded from the Hub"
    if model.parameters is None:
        detail = f"{model.name}: size unknown (no number in its name, and its weights are not here), {place}"
        return warn("Model", detail, f"look at https://huggingface.co/{model.name}")
    kinds = {"vision": f"takes more than text: {language.told(model.settings)}", "text": "text"}
    kind = kinds.get(model.kind, "taken for a text model")
    extra = f", quantized ({model.quantized})" if model.quantized else ""
    return ok("Model", f"{model.name}: {model.size} parameters ({model.source}), {kind}{extra}, {place}")


def check_disk(config: Config, model: Base, probe: Probe) -> Check:
    """Room for checkpoints and exports in the run directory, and for a download in the Hub's cache; one volume may hold both."""
    cache = (probe.hub_settings() or {}).get("cache") or "."
    run, hub = probe.disk(config.out_dir), probe.disk(cache) or {}
    if run is None:
        return warn("Disk", "the free space of the run directory's volume cannot be read", "df -h .")
    if not run.get("writable", True):
        return fail("Disk", "the run directory cannot be written to", "choose another out_dir")
    if model.parameters is None:
        return ok("Disk", f"{size(run['free'])} free for the run directory; what this model takes is unknown")
    needed = 8 * model.parameters  # the merged model in float32, and as much again for GGUF files and checkpoints
    download = 0 if model.local else 2 * model.parameters  # two bytes a weight on the Hub, as a rule
    if download and not hub.get("writable", True):
        return warn("Disk", f"{cache} cannot be written to: nothing can be downloaded", "export HF_HOME=/a/folder/you/can/write/to")
    detail = f"{size(run['free'])} free; checkpoints and exports take about {size(needed)}"
    detail += f", the download to {cache} {size(download)}" if download else ""
    shared = hub.get("volume") == run.get("volume")
    short = max(needed + (download if shared else 0) - run["free"], 0 if shared else download - hub.get("free", download))
    if short > 0:
        return fail("Disk", detail, f"free at least {size(short)} (hf cache prune; du -sh ~/* | sort -h), or move out_dir or HF_HOME")
    return ok("Disk", detail)


def check_hub(config: Config, model: Base, probe: Probe) -> list[Check]:
    """Login, and whether the Hub can be reached; asked only as far as this run needs the Hub, 3 s a question."""
    settings = probe.hub_settings()
    if settings is None:
        fix = 'python -m pip install "huggingface_hub"'
        return [warn("Hub", "huggingface_hub cannot be imported: no login, no downloads, no push", fix)]
    wanted = [] if model.local or model.problem else [f"models/{model.name}"]
    wanted += [] if config.data_files or config.dataset_id == EMBEDDED else [f"datasets/{config.dataset_id}"]
    online = bool(wanted or config.push) and not settings["offline"]
    who = probe.whoami() if online and settings["token"] else {}
    return [_login(config, settings, who), _reach(config, settings, wanted, who, probe)]


def _login(config: Config, settings: dict[str, Any], who: dict[str, Any]) -> Check:
    source = settings["token"]
    place = f"the {source}" if source == "token file" else source
    if not source and config.push:
        return fail("Hub login", "not logged in; push=true needs a token that can write", LOGIN)
    if not source:
        return ok("Hub login", f"not logged in: fine for public models and without push (to log in: {LOGIN})")
    if who.get("status") == 200:
        return ok("Hub login", f"logged in as {who.get('name') or 'an unnamed account'} (token from {place})")
    if who.get("status") in (401, 403):
        fix = LOGIN if source == "token file" else f"unset {source}, then: {LOGIN}"
        return (fail if config.push else warn)("Hub login", f"the Hub refuses the token from {place} ({who['status']})", fix)
    why = "offline" if settings["offline"] else "no usable answer" if who else "not asked, as this run needs nothing from the Hub"
    return ok("Hub login", f"a token is there (from {place}); whether it is valid is unknown: {why}")


def _reach(config: Config, settings: dict[str, Any], wanted: list[str], who: dict[str, Any], probe: Probe) -> Check:
    if not wanted and not config.push:
        return ok("Hub", "not needed: model and data are on this machine")
    names, endpoint = " and ".join(page.split("/", 1)[1] for page in wanted) or "the push", settings["endpoint"]
    if settings["offline"]:
        return warn("Hub", f"HF_HUB_OFFLINE is set: {names} must be in the cache already", "unset HF_HUB_OFFLINE")
    for page in wanted:
        if trouble := _page_trouble(page.split("/", 1)[1], who if "error" in who else probe.hub_page(page), endpoint):
            return warn("Hub", *trouble)
    if "error" in who:
        return warn("Hub", f"{endpoint} cannot be reached ({who['error']})", f"curl -I {endpoint}")
    return ok("Hub", f"{endpoint} has {names}" if wanted else f"the push goes to {endpoint}")


def _page_trouble(name: str, answer: dict[str, Any], endpoint: str) -> tuple[str, str] | None:
    """What keeps a model or data set from being fetched, and what to do; None if nothing does."""
    if "error" in answer:
        fix = f"curl -I {endpoint}; without a network: preset=smoke, a model folder, data_files"
        return f"{endpoint} cannot be reached ({answer['error']}); {name} can only be used if it is in the cache", fix
    if answer.get("status") in (401, 403, 404):
        return f"{name} does not exist on the Hub, or is private ({answer['status']})", f"check the spelling; if it is private: {LOGIN}"
    if answer.get("gated"):
        return f"{name} is gated: its terms must be accepted once", f"open {endpoint}/{name}, accept, then: {LOGIN}"
    if answer.get("status") != 200:
        return f"{endpoint} answered {answer.get('status')} for {name}", "try again later: https://status.huggingface.co"
    return None
