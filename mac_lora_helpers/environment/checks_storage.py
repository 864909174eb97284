"""Findings about packages, disk, the model and the Hub."""

from __future__ import annotations

from typing import Any

from mac_lora_helpers import language
from mac_lora_helpers.config import EMBEDDED, Config
from mac_lora_helpers.environment.checks import Check, fail, ok, warn
from mac_lora_helpers.environment.fit import download_needed, run_disk_needed
from mac_lora_helpers.environment.machine import size
from mac_lora_helpers.environment.packages import Package
from mac_lora_helpers.environment.probe import Probe
from mac_lora_helpers.model import Base

LOGIN = "hf auth login"


def check_packages(packages: list[Package]) -> list[Check]:
    """One finding for all that is well, one for each package that is not. torch has findings of its own when it is missing."""
    if not packages:
        return [warn("Packages", "the tested ranges cannot be read: this project's metadata is missing", "python -m pip install -e .")]
    checks = [_package_check(package) for package in packages if package.status in ("missing", "outside") and not _told_by_torch(package)]
    good = [package for package in packages if package.status == "ok"]
    unknown = [package.name for package in packages if package.status == "unknown"]
    if unknown:
        checks.append(warn("Packages", "versions cannot be compared: packaging is missing", "python -m pip install packaging"))
    elif good:
        shown = ", ".join(f"{package.name} {package.version}" for package in good[:5])
        checks.insert(0, ok("Packages", f"{len(good)} of {len(packages)} in the tested range: {shown}, …"))
    return checks


def _told_by_torch(package: Package) -> bool:
    return package.name == "torch" and package.status == "missing"


def _package_check(package: Package) -> Check:
    fix = f'python -m pip install "{package.requirement}"'
    if package.status == "missing":
        return fail(f"Package {package.name}", f"{package.name} is not installed; tested with {package.tested}", fix)
    detail = f"{package.name} {package.version} is outside the tested range {package.tested}; names and defaults may differ"
    return warn(f"Package {package.name}", detail, fix)


def check_model(model: Base, config: Config) -> Check:
    """The model's size and kind, and where its files are."""
    if model.problem:
        return fail("Model", f"{model.name}: {model.problem}", model.fix or "set model_id to a Hub id or a model folder")
    place = "on this machine" if model.local else "to be downloaded from the Hub"
    kinds = {"vision": f"takes more than text: {language.told(model.settings)}", "text": "text"}
    kind = kinds.get(model.kind, "taken for a text model")
    extra = f", quantized ({model.quantized})" if model.quantized else ""
    if model.parameters is None:
        detail = f"{model.name}: size unknown (no number in its name, and its config is not here), {place}"
        return warn("Model", detail, f"look at https://huggingface.co/{model.name}, or run: hf download {model.name} config.json")
    return ok("Model", f"{model.name}: {model.size} parameters ({model.source}), {kind}{extra}, {place}")


def check_disk(config: Config, model: Base, probe: Probe) -> Check:
    """Room for checkpoints and exports on the run directory's volume, and for the download if it goes there too."""
    run = probe.disk(config.out_dir)
    if run is None:
        return warn("Disk", "the free space of the run directory's volume cannot be read", "df -h .")
    if not run.get("writable", True):
        return fail("Disk", "the run directory cannot be written to", "choose another out_dir")
    needed = run_disk_needed(model, config)
    if needed is None:
        return ok("Disk", f"{size(run['free'])} free for the run directory; what this model takes is unknown")
    cache = probe.disk((probe.hub_settings() or {}).get("cache") or ".")
    download = download_needed(model) or 0
    shared = bool(cache) and cache.get("volume") == run.get("volume") and download > 0
    total = needed + (download if shared else 0)
    detail = f"{size(run['free'])} free; checkpoints and exports take about {size(needed)}" + (
        f", the download {size(download)}" if shared else ""
    )
    if total > run["free"]:
        return fail("Disk", detail, f"free at least {size(total - run['free'])} (du -sh ~/* | sort -h), or set out_dir to another volume")
    return ok("Disk", detail)


def check_home(probe: Probe) -> list[Check]:
    """A missing home directory leaves the Hub client and matplotlib without a place for their caches."""
    home = probe.home()
    if home["exists"] and home["writable"]:
        return []
    what = "cannot be written to" if home["exists"] else "does not exist"
    fix = "export HOME=/a/folder/you/can/write/to (or HF_HOME and MPLCONFIGDIR)"
    return [warn("Home directory", f"the home directory {what}: login and caches have no place", fix)]


def check_hub(config: Config, model: Base, probe: Probe) -> list[Check]:
    """Login, cache, and whether the Hub can be reached; asked only as far as this run needs the Hub, 3 s a question."""
    settings = probe.hub_settings()
    if settings is None:
        return [
            warn("Hub", "huggingface_hub cannot be imported: no login, no downloads, no push", 'python -m pip install "huggingface_hub"')
        ]
    wanted = _wanted_pages(config, model)
    online = bool(wanted or config.push) and not settings["offline"]
    who = probe.whoami() if online and settings["token"] else {}
    return [_login(config, settings, who), _cache(model, settings, probe), _reach(config, settings, wanted, who, probe)]


def _wanted_pages(config: Config, model: Base) -> list[str]:
    """What this run takes from the Hub, unless the data set is in the cache already."""
    pages = [] if model.local or model.problem else [f"models/{model.name}"]
    return pages if config.data_files or config.dataset_id == EMBEDDED else [*pages, f"datasets/{config.dataset_id}"]


def _login(config: Config, settings: dict[str, Any], who: dict[str, Any]) -> Check:
    source = settings["token"]
    if not source:
        if config.push:
            return fail("Hub login", "not logged in; push=true needs a token that can write", LOGIN)
        return ok("Hub login", f"not logged in: fine for public models and without push (to log in: {LOGIN})")
    if who.get("status") == 200:
        return ok("Hub login", f"logged in as {who.get('name') or 'an unnamed account'} (token from {_place(source)})")
    if who.get("status") in (401, 403):
        fix = LOGIN if source == "token file" else f"unset {source}, then: {LOGIN}"
        return (fail if config.push else warn)("Hub login", f"the Hub refuses the token from {_place(source)} ({who['status']})", fix)
    why = (
        "offline"
        if settings["offline"]
        else "the Hub gave no usable answer"
        if who
        else "not asked, as this run needs nothing from the Hub"
    )
    return ok("Hub login", f"a token is there (from {_place(source)}); whether it is valid is unknown: {why}")


def _place(source: str) -> str:
    return f"the {source}" if source == "token file" else source


def _cache(model: Base, settings: dict[str, Any], probe: Probe) -> Check:
    cache = settings["cache"]
    disk = probe.disk(cache)
    if disk is None or not disk.get("writable", True):
        return warn("Hub cache", f"{cache} cannot be written to: nothing can be downloaded", "export HF_HOME=/a/folder/you/can/write/to")
    download = download_needed(model)
    needed = "; the model is on this machine" if model.local else f"; this model takes about {size(download)}" if download else ""
    detail = f"{cache}, {size(disk['free'])} free{needed}"
    if download and download > disk["free"]:
        return fail("Hub cache", detail, "hf cache prune, or: export HF_HOME=/a/larger/volume")
    return ok("Hub cache", detail)


def _reach(config: Config, settings: dict[str, Any], wanted: list[str], who: dict[str, Any], probe: Probe) -> Check:
    if not wanted and not config.push:
        return ok("Hub", "not needed: model and data are on this machine")
    names = " and ".join(page.split("/", 1)[1] for page in wanted) or "the push"
    if settings["offline"]:
        return warn("Hub", f"HF_HUB_OFFLINE is set: {names} must be in the cache already", "unset HF_HUB_OFFLINE")
    for page in wanted:
        trouble = _page_trouble(page, who if "error" in who else probe.hub_page(page), settings["endpoint"])
        if trouble:
            return trouble
    if "error" in who:
        return warn("Hub", f"{settings['endpoint']} cannot be reached ({who['error']})", f"curl -I {settings['endpoint']}")
    return ok("Hub", f"{settings['endpoint']} has {names}" if wanted else f"the push goes to {settings['endpoint']}")


def _page_trouble(page: str, answer: dict[str, Any], endpoint: str) -> Check | None:
    name = page.split("/", 1)[1]
    if "error" in answer:
        detail = f"{endpoint} cannot be reached ({answer['error']}); {name} can only be used if it is in the cache"
        return warn("Hub", detail, f"curl -I {endpoint}; without a network: preset=smoke, a model folder, data_files")
    if answer.get("status") in (401, 403, 404):
        detail = f"{name} does not exist on the Hub, or is private ({answer['status']})"
        return warn("Hub", detail, f"check the spelling; if it is private: {LOGIN}")
    if answer.get("gated"):
        return warn("Hub", f"{name} is gated: its terms must be accepted once", f"open {endpoint}/{name}, accept, then: {LOGIN}")
    if not 200 <= (answer.get("status") or 0) < 400:
        return warn("Hub", f"{endpoint} answered {answer.get('status')} for {name}", "try again later: https://status.huggingface.co")
    return None
