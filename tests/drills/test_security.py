"""What SECURITY.md promises: no foreign code, no writing outside the cache, no markup from data, no token anywhere."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drills.conftest import rows
from drills.fuzzing import TEXT, bounded, few
from mac_lora_helpers import ui
from mac_lora_helpers.config import resolve
from mac_lora_helpers.errors import UserError
from mac_lora_helpers.text import visible

# Code that comes with a model


def test_code_that_comes_with_a_model_does_not_run_by_itself(model_with_code, tmp_path, monkeypatch):
    from mac_lora_helpers import training

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, mark = model_with_code
    config = resolve({"model_id": str(folder), "device": "cpu"}, env={})
    from mac_lora_helpers.artifacts import RunDir

    place = training.place(RunDir(tmp_path / "run"), config)
    for attempt in (lambda: training.load_model(config, *place), lambda: training.estimate(config)):
        with pytest.raises(UserError) as told:
            attempt()
        assert told.value.fix
    assert not mark.exists()


def test_allowed_code_is_named(model_with_code, tmp_path, capsys):
    """In a process of its own: the code that runs stays loaded."""
    folder, mark = model_with_code
    command = [sys.executable, "-m", "mac_lora_helpers", "estimate", "-p", "model_id", str(folder), "-p", "trust_remote_code", "true"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert "trust_remote_code is on" in done.stderr
    assert mark.exists(), done.stderr


def test_allowed_code_is_in_the_card(light):
    from mac_lora_helpers.export import write_card

    assert "trust_remote_code" not in write_card(light.run, light.config).text
    saved = light.run.read_json("train_config")
    saved["config"]["trust_remote_code"] = True
    light.run.write_json("train_config", saved)
    assert "`trust_remote_code` was on" in write_card(light.run, light.config).text


def test_only_the_parameter_switches_it_on():
    """No call in the package passes anything but the parameter, and none opens a pickle whole."""
    for file in Path(ui.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
                assert (node.arg, node.value.value) not in (("trust_remote_code", True), ("weights_only", False)), file


# Downloads


@pytest.mark.parametrize(
    "name", ["../../outside.json", "/etc/outside.json", "a/../../../outside.json", "..\\outside.json", "a//../../b.json"]
)
def test_a_file_name_cannot_leave_the_cache(name, tmp_path):
    """Names as a dishonest Hub could list them; the protection is huggingface_hub's own."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.file_download import _create_symlink, _get_pointer_path

    storage = tmp_path / "cache" / "models--a--b"
    (storage / "blobs").mkdir(parents=True)
    try:
        pointer = Path(_get_pointer_path(str(storage), "0" * 40, name)).resolve()
    except ValueError:
        pass  # refused by name
    else:
        assert pointer.is_relative_to(storage), "it stays inside"
    assert callable(_create_symlink)
    with pytest.raises(Exception, match=r".+"):
        hf_hub_download("a/b", name, cache_dir=tmp_path / "cache", local_files_only=True)
    assert not list(tmp_path.rglob("outside.json"))


# Markup from data

MARKUP = st.one_of(
    TEXT,
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            "</td></tr></table><img src=x onerror=alert(1)>",
            "' onmouseover='alert(1)",
            '" style="x:expression(alert(1))',
            "<!-- ",
            "<svg/onload=alert(1)>",
            "&lt;b&gt;",
            "]]><iframe>",
            "<a href='javascript:alert(1)'>x</a>",
            "\u2028<b>",
            "<style>*{display:none}</style>",
            "<|im_start|>",
        ]
    ),
)


class Seen(HTMLParser):
    """Tags, attribute names and text of a piece of HTML, by a real parser."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self.others = [], set(), "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.others += [value for name, value in attrs if name != "style" and value and "javascript:" in value]

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.others.append(data)


OURS = {"table", "caption", "thead", "tbody", "tr", "th", "td", "div", "span", "mark", "b", "strong", "details", "summary", "p"}


def harmless(markup: str, plain: str) -> Seen:
    """Only our own tags, as many as with plain text in the data's place."""
    seen, wanted = Seen(markup), Seen(plain)
    assert set(seen.tags) <= OURS
    assert seen.tags == wanted.tags
    assert seen.attributes == wanted.attributes
    assert not seen.others
    return seen


@bounded
@given(MARKUP, MARKUP, MARKUP)
def test_tables_show_markup_as_text(a, b, c):
    table = ui.Table([a, "x"], [(b, a), (c, b)], title=a, note=c)
    plain = ui.Table(["p", "x"], [("p" * len(b), "p"), ("p", "p")], title="p" if a else "", note="p" if c else "")
    seen = harmless(table._repr_html_(), plain._repr_html_())
    for value in (a, b, c):
        assert visible(value).strip() in seen.text


@bounded
@given(MARKUP, MARKUP)
def test_token_views_show_markup_as_text(a, title):
    def view(text, title):
        pieces = [SimpleNamespace(text=text, kind=kind, id=3) for kind in ("trained", "context", "special")]
        return ui.TokenView(pieces, title=title)._repr_html_()

    harmless(view(a, title), view("p", "p"))


@bounded
@given(MARKUP, MARKUP, MARKUP)
def test_answers_show_markup_as_text(prompt, base, tuned):
    answer = {"prompt": prompt, "base": base, "tuned": tuned, "expected": base}
    markup = ui.answers_table([answer])._repr_html_()
    seen = Seen(markup)
    assert set(seen.tags) <= OURS
    assert seen.attributes <= {"style", "scope", "class"}
    assert not seen.others


@few
@given(MARKUP)
def test_errors_show_markup_as_text(text):
    """An error reaches a notebook as plain text, never as HTML."""
    lines = UserError(text, where=text, fix=text)._render_traceback_()
    assert all(isinstance(line, str) for line in lines)


@few
@given(MARKUP)
def test_a_prompt_cannot_break_out_of_the_cards_code(light_card, text):
    """Prompt and names from data stand inside code; the fences still pair."""
    from mac_lora_helpers.export import write_card

    made = light_card
    values = {**made.values, "out_dir": str(made.folder), "push_artifacts": "adapter, merged, gguf, mlx"}
    try:
        config = resolve({**values, "prompt": f"{text}\n```\n<script>x</script>\n"}, env={})
    except UserError:
        return
    body = write_card(made.run, config).body
    outside, inside = [], False
    for line in body.splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            outside.append(line)
    assert not inside
    assert "<script" not in "\n".join(outside)
    assert "onerror" not in "\n".join(outside)


@pytest.fixture(scope="module")
def light_card(whole, tmp_path_factory):
    return whole[0].copy(tmp_path_factory.mktemp("card") / "run", "checkpoints")


@few
@given(MARKUP)
def test_the_cards_metadata_stay_metadata(light_card, text):
    """Whatever a person wrote above an earlier card, the next one has whole front matter."""
    import yaml

    from mac_lora_helpers.export import write_card

    card = light_card.folder / "export/README.md"
    card.write_bytes(f"---\nlicense: {text}\nlanguage: [{text}]\n---\n{text}\n---\n".encode("utf-8", "replace"))
    written = write_card(light_card.run, light_card.config).text
    head = yaml.safe_load(written.split("---\n")[1])
    assert head["library_name"] == "peft"
    assert "<script" not in written.split("\n---\n", 1)[1]


# Tokens

SECRET = "hf_" + "s3CrEt" * 6
PLAIN_SECRET = "no-usual-form-" + "k7Q" * 8


def processes_of(folder: str) -> str:
    """Command lines of every process that belongs to a run."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if folder in line or "ipykernel" in line or "mac_lora_helpers" in line:
                found.append(line)
        except OSError:
            continue
    return "\n".join(found)


COMMANDS = [
    *(["doctor"], ["estimate", "--json"], ["check-data", "d.jsonl"], ["check-data", "broken.jsonl"], ["run", "--only", "03"]),
    ["run", "-p", "repo_id", SECRET],
]


@pytest.mark.parametrize(("secret", "command"), [(SECRET, c) for c in COMMANDS] + [(PLAIN_SECRET, COMMANDS[4])])
def test_no_command_tells_the_token(secret, command, tmp_path):
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(12, "x")))
    (tmp_path / "broken.jsonl").write_text('{"messages": [\n')
    environment = {**os.environ, "HF_TOKEN": secret, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "mac_lora_helpers", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert secret not in done.stdout + done.stderr
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_run_keeps_the_token_to_itself(tmp_path):
    """Every file, every output and every command line of a run of the five notebooks, and of one that fails with the token in its error."""
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "HF_TOKEN": SECRET, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path / "home")}
    quick = {"max_steps": 4, "eval_examples": 2, "max_new_tokens": 4, "gguf_types": "F16"}
    arguments = [part for name, value in quick.items() for part in ("-p", name, str(value))]
    command = [sys.executable, "-m", "mac_lora_helpers", "run", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines, ended = [], threading.Event()

    def watch() -> None:
        while not ended.wait(2):
            lines.append(processes_of(str(tmp_path)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out = process.communicate(timeout=850)[0]
    ended.set()
    watcher.join()
    assert process.returncode == 0, out
    assert "ipykernel" in "".join(lines), "nothing was watched"
    assert SECRET not in out
    assert SECRET not in "".join(lines)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


# JupyterLab

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def lab_command() -> list[str]:
    lines = MAKEFILE.read_text().splitlines()
    recipe = next(lines[i + 1] for i, line in enumerate(lines) if line.startswith("lab:"))
    return recipe.strip().split()


def test_make_lab_listens_on_this_machine_only_and_keeps_its_token():
    command = " ".join(lab_command())
    assert "--ip=127.0.0.1" in command
    for weak in ("token=", "password=", "0.0.0.0", "--ip=*", "disable_check_xsrf", "allow_origin", "allow_remote_access", "--allow-root"):
        assert weak not in command


@pytest.mark.slow
def test_make_lab_refuses_whoever_has_no_token(tmp_path):
    """Started as ``make lab`` starts it, on another port and without opening a browser."""
    import re
    import socket
    import time
    import urllib.error
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = [part for part in lab_command()[1:] if not part.endswith(".ipynb")]
    root = ["--allow-root"] if os.geteuid() == 0 else []
    folders = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "HOME")}
    environment = {**{k: v for k, v in os.environ.items() if k != "JUPYTER_TOKEN"}, **folders}
    process = subprocess.Popen(
        [sys.executable, *own, "--no-browser", f"--port={port}", "--ServerApp.port_retries=0", *root],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told = ""
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/lab\S*\?token=(\w+)", told)):
            line = process.stderr.readline()
            assert line, told
            told += line
        threading.Thread(target=process.stderr.read, daemon=True).start()
        token = found[1]
        assert len(token) >= 32
        time.sleep(0.5)
        address = f"http://127.0.0.1:{port}/api/contents"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(address, timeout=20)
        assert refused.value.code == 403
        with urllib.request.urlopen(f"{address}?token={token}", timeout=20) as answer:
            assert answer.status == 200
        other = socket.gethostbyname(socket.gethostname())
        if not other.startswith("127."):
            with pytest.raises((ConnectionRefusedError, TimeoutError)), socket.create_connection((other, port), timeout=5):
                pass
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(tmp_path / "HOME", ignore_errors=True)
