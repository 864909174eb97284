"""Device and dtype decisions, and the script that asks torch: real steps on the CPU, real crashes in a process of its own."""

import sys
import time

import pytest

from mac_lora_helpers.config import resolve
from mac_lora_helpers.environment import Choice, check_environment, choose_device, choose_dtype, read_machine, torch_probe
from mac_lora_helpers.environment.device import bfloat16_speed, decide_device, decide_dtype, step_trouble
from mac_lora_helpers.environment.probe import Probe
from mac_lora_helpers.errors import InputError

GOOD = {"finite": True, "loss": 5.0, "loss_after": 4.9, "loss_error": 1e-7, "gradient_error": 1e-6, "update_cosine": 1.0}


def trouble(run, dtype="float32"):
    return step_trouble("cpu", dtype, {"runs": {"cpu": {dtype: run}}})


@pytest.fixture(scope="module")
def facts():
    return Probe().torch_facts()


@pytest.fixture
def fake_torch(tmp_path, monkeypatch):
    """Puts a package named torch with the given source in front of the real one, for child processes only."""

    def put(source: str) -> Probe:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return Probe(torch_timeout=20)

    return put


def test_the_cpu_computes_what_float64_computes(facts):
    assert facts["stage"] == "done"
    assert facts["error"] is None
    assert trouble(facts["runs"]["cpu"]["float32"]) == ""
    assert 0 < facts["runs"]["cpu"]["float32"]["gradient_error"] < 1e-4


def test_bfloat16_is_really_tried(facts):
    run = facts["runs"]["cpu"]["bfloat16"]
    assert trouble(run, "bfloat16") == ""
    # bfloat16 keeps 8 bits: an error as small as float32's would mean that float32 was tried.
    assert run["gradient_error"] > 1e-3
    assert "times float32's speed" in bfloat16_speed("cpu", facts)


def test_wrong_gradients_are_found(monkeypatch):
    """A device that gets one product a little wrong, as MPS did with transposed operands, is told apart from rounding."""
    import torch

    reference, real = torch_probe.step(torch, "cpu", torch.float32), torch.nn.functional.linear

    def damaged(x, weight, *rest):
        return real(x, weight, *rest) * (1.01 if weight.shape[1] == torch_probe.RANK else 1)

    monkeypatch.setattr(torch.nn.functional, "linear", damaged)
    run = torch_probe.compare(torch, torch_probe.step(torch, "cpu", torch.float32), reference)
    assert "gradients are off" in trouble(run)


def test_a_lost_optimizer_step_is_found(monkeypatch):
    import torch

    reference = torch_probe.step(torch, "cpu", torch.float32)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    run = torch_probe.compare(torch, torch_probe.step(torch, "cpu", torch.float32), reference)
    found = trouble(run, "bfloat16")
    assert "optimizer step points elsewhere" in found
    assert "did not fall" in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss_error": 1e-3}, "loss is off"),
        ({"gradient_error": 1e-2}, "gradients are off"),
        ({"update_cosine": 0.9}, "points elsewhere"),
        ({"loss_after": 5.0}, "did not fall"),
        ({"finite": False}, "NaN"),
        ({"error": "TypeError: no bfloat16"}, "no bfloat16"),
    ],
)
def test_limits(change, said):
    assert trouble(GOOD) == ""
    assert said in trouble({**GOOD, **change})
    assert "not tried" in trouble(None)


def test_nan_passes_through_json():
    import torch

    good = torch_probe.step(torch, "cpu", torch.float32)
    run = torch_probe.compare(torch, {**good, "loss": float("nan")}, good)
    assert run["finite"] is False
    assert run["loss"] is None
    assert "NaN" in trouble(run)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise OSError('libtorch_cpu.so: cannot open shared object file')", "libtorch_cpu.so"),
        ("raise SystemExit('no AVX')", "no AVX"),
        ("import os\nos.abort()", "SIGABRT"),
        ("", "__version__"),  # an empty folder, as a half-removed installation leaves behind
    ],
)
def test_torch_that_cannot_be_imported(fake_torch, source, said):
    facts = fake_torch(source).torch_facts()
    assert facts["version"] is None
    assert said in facts["error"]


def test_the_home_directory_is_not_in_the_error(fake_torch, monkeypatch):
    monkeypatch.setenv("HOME", "/Users/somebody")
    assert "'~/lib/libtorch.so'" in fake_torch("raise OSError(\"'/Users/somebody/lib/libtorch.so'\")").torch_facts()["error"]


def test_torch_that_hangs(fake_torch):
    probe = fake_torch("import time\ntime.sleep(60)")
    probe.torch_timeout = 1
    begin = time.monotonic()
    assert "no answer within 1 s" in probe.torch_facts()["error"]
    assert time.monotonic() - begin < 10


def test_a_crash_on_one_device_keeps_what_was_known(fake_torch):
    source = """
import os
__version__ = "2.13.0"
class backends:
    class mps:
        is_built = is_available = staticmethod(lambda: True)
class mps: recommended_max_memory = staticmethod(lambda: 10 << 30)
class cuda: is_available = staticmethod(lambda: False)
def get_num_threads(): return 1
def __getattr__(name): os.abort()
"""
    facts = fake_torch(source).torch_facts()
    assert facts["mps"]["available"]
    assert facts["mps"]["recommended_bytes"] == 10 << 30
    assert "SIGABRT" in facts["error"]
    assert "a step on the CPU" in facts["error"]


def test_torch_is_asked_once(fake_torch, tmp_path):
    probe = fake_torch(f"open({str(tmp_path / 'asked')!r}, 'a').write('x')\nraise ImportError('no')")
    probe.torch_facts(), probe.torch_facts()
    assert (tmp_path / "asked").read_text() == "x"


def test_devices_are_asked_here_where_torch_is_loaded(facts, monkeypatch):
    import torch

    probe = Probe()
    monkeypatch.setattr(probe, "torch_facts", lambda: pytest.fail("a second process was not needed"))
    found = probe.device_facts()
    assert {key: found[key] for key in ("version", "mps", "cuda")} == {key: facts[key] for key in ("version", "mps", "cuda")}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: 1 / 0)
    assert "ZeroDivisionError" in probe.device_facts()["error"]


def finding(recorded, name, torch, **config):
    """The recorded machine's checks, with other answers of torch."""
    facts = {**recorded(name).answers["torch"], **torch}
    return {check.name: check for check in check_environment(resolve(config, env={}), recorded(name, torch=facts)).checks}


def test_a_product_as_long_as_a_vocabulary_is_compared_with_the_cpu(facts, recorded, monkeypatch):
    """torch 2.13 on M1 and M2: wrong without a word, found only where it is looked for."""
    import torch

    assert facts["long_products"]["cpu"] < 1e-5
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: real(a[:, :32767], b[:32767]) if a.dtype == torch.float32 else real(a, b))
    wrong = torch_probe.long_product_error(torch, "cpu")
    assert wrong > 0.1
    check = finding(recorded, "m2-pro-16gb", {"long_products": {"mps": wrong}}, preset="local")["Long products"]
    assert (check.status, "32,767" in check.detail, "upgrade torch" in check.fix) == ("fail", True, True)
    short = finding(recorded, "m2-pro-16gb", {"long_products": {"mps": wrong}})["Long products"]
    assert (short.status, "is shorter" in short.detail) == ("warn", True)
    assert finding(recorded, "m2-pro-16gb", {"long_products": {"mps": 1e-7}}, preset="local")["Long products"].status == "ok"


def test_bfloat16_that_aborts_on_an_m5_is_named(recorded):
    answers = recorded("m4-max-64gb").answers
    commands = {**answers["commands"], "sysctl -n machdep.cpu.brand_string": "Apple M5", "sw_vers -productVersion": "27.0"}
    runs = {**answers["torch"]["runs"], "mps": {"float32": answers["torch"]["runs"]["mps"]["float32"]}}
    ended = "the process was ended by SIGABRT (while asking torch: bfloat16 on mps)"
    probe = recorded("m4-max-64gb", commands=commands, torch={**answers["torch"], "runs": runs, "error": ended})
    for dtype, status in (("float32", "ok"), ("bfloat16", "fail")):
        report = check_environment(resolve({"preset": "local", "dtype": dtype}, env={}), probe)
        check = next(check for check in report.checks if check.name == "Dtype")
        assert (check.status, "M5 under macOS 27" in check.detail, report.device.name) == (status, True, "mps")


def test_importing_the_room_loads_no_torch():
    import subprocess

    code = (
        "import sys, mac_lora_helpers.environment; print([m for m in ('torch', 'transformers', 'psutil', 'packaging') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_device_as_asked_or_refused(recorded):
    mac, linux = recorded("m2-pro-16gb"), recorded("linux-cpu")
    assert choose_device(resolve({"device": "mps"}), mac).name == "mps"
    assert choose_device(resolve({}), mac).name == "mps"
    assert choose_device(resolve({"device": "cpu"}), mac).name == "cpu"
    assert choose_device(resolve({}), recorded("cuda-a10g")).name == "cuda"
    with pytest.raises(InputError, match=r"device=mps is not available: MPS is Apple's .* Linux"):
        choose_device(resolve({"device": "mps"}), linux)
    with pytest.raises(InputError, match="device=cuda is not available"):
        choose_device(resolve({"device": "cuda"}), mac)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rosetta-m1-pro", "Rosetta"),
        ("intel-old-torch", "Intel Mac"),
        ("m1-macos-13", "cannot be imported"),
        ("macos-virtual-machine", "no Metal device"),
        ("linux-cpu", "this is Linux"),
    ],
)
def test_why_there_is_no_mps(recorded, name, said):
    probe = recorded(name)
    choice = decide_device("auto", read_machine(probe=probe), probe.torch_facts())
    assert choice.name == "cpu"
    assert said in choice.reason


def test_mps_not_built_and_macos_too_old(recorded):
    probe = recorded("m1-macos-13")
    machine = read_machine(probe=probe)
    not_built = {"version": "2.13.0", "mps": {"built": False, "available": False}}
    too_old = {"version": "2.13.0", "mps": {"built": True, "available": False}}
    assert "built without MPS" in decide_device("auto", machine, not_built).reason
    assert "macOS 13.6.4 is too old" in decide_device("auto", machine, too_old).reason


def test_dtype(recorded):
    mps, cpu, cuda = (Choice(name, "") for name in ("mps", "cpu", "cuda"))
    mac, wrong = recorded("m4-max-64gb"), recorded("m2-wrong-numbers")
    assert "safe default" in choose_dtype(resolve({}), mps, mac).reason
    chosen = choose_dtype(resolve({"dtype": "bfloat16"}), mps, mac)
    assert (chosen.name, "1.2 times float32's speed: faster" in chosen.reason) == ("bfloat16", True)
    with pytest.raises(InputError, match="BFloat16 is not supported on MPS"):
        choose_dtype(resolve({"dtype": "bfloat16"}), mps, wrong)
    with pytest.raises(InputError, match=r"float16 is refused on mps.*NaN"):
        choose_dtype(resolve({"dtype": "float16"}), mps, mac)
    with pytest.raises(InputError, match="float16 is refused on cpu"):
        choose_dtype(resolve({"dtype": "float16"}), cpu, mac)
    with pytest.raises(InputError, match=r"float16 is refused on cuda: .*loss scaling"):
        choose_dtype(resolve({"dtype": "float16"}), cuda, recorded("cuda-a10g"))
    with pytest.raises(InputError, match="not tried"):
        decide_dtype("bfloat16", "mps", {})


def test_this_machine_gives_a_choice():
    device = choose_device(resolve({}))
    assert device.name in ("mps", "cuda", "cpu")
    assert device.reason
    assert choose_dtype(resolve({}), device).name == "float32"
