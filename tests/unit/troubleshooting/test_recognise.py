"""Each known failure is raised for real and recognised; unrelated errors get no answer."""

import pytest
from real_failures import REAL
from unrelated_errors import UNRELATED

from mac_lora_helpers.troubleshooting import explain, failures, recognise
from mac_lora_helpers.troubleshooting.table import groups

CASES = [pytest.param(key, case, id=case.__name__) for key, cases in REAL.items() for case in cases]
#: Told apart in other modules of these tests: the Hub's, the kernel's, the training's and the export's own.
ELSEWHERE = {
    "gated",
    "certificate",
    "login",
    "push-denied",
    "offline",
    "not-on-the-hub",
    "dead-kernel",
    "data-changed",
    "audit",
    "export-differs",
}


def raised(case, *arguments):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any kind; what matters is what is made of it
        case(*arguments)
    return caught.value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("key", "case"), CASES)
def test_the_real_thing_is_recognised(key, case, tmp_path):
    error = raised(case, tmp_path)
    found = explain(error)
    assert found is not None, repr(error)
    assert found.key == key, repr(error)


@pytest.mark.parametrize("case", UNRELATED, ids=lambda case: case.__name__)
def test_an_unrelated_error_gets_no_answer(case):
    assert explain(raised(case)) is None


#: Wording that only a Mac, a GPU or a terminal shows; read at the source that the table names.
RECORDED = [
    (
        "mps-operation",
        "NotImplementedError",
        "The operator 'aten::_linalg_solve_ex.result' is not currently implemented for the MPS device. If you want this op "
        "to be considered for addition. As a temporary "
        "fix, you can set the environment variable `PYTORCH_ENABLE_MPS_FALLBACK=1` to use the CPU as a "
        "fallback for this op. WARNING: this will be slower than running natively on MPS.",
    ),
    (
        "mps-operation",
        "TypeError",
        "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use float32 instead.",
    ),
    (
        "out-of-memory",
        "RuntimeError",
        "MPS backend out of memory (MPS allocated: 17.85 GB, other allocations: 368.00 KB, max allowed: 18.13 GB). Tried to allocate "
        "296.78 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory allocations.",
    ),
    ("out-of-memory", "RuntimeError", "Invalid buffer size: 16.00 GiB"),
    ("out-of-memory", "OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 14.75 GiB"),
    ("two-devices", "RuntimeError", "Placeholder storage has not been allocated on MPS device!"),
    ("two-devices", "RuntimeError", "Expected all tensors to be on the same device, but found at least two devices, mps:0 and cpu!"),
    (
        "rosetta",
        "ImportError",
        "dlopen(/x/_C.so, 0x0002): (mach-o file, but is an incompatible architecture (have 'arm64', need 'x86_64'))",
    ),
    ("rosetta", "ERROR", "No matching distribution found for torch>=2.13"),
]


@pytest.mark.parametrize(("key", "name", "text"), RECORDED)
def test_recorded_wordings(key, name, text):
    assert recognise(name, text).key == key


def test_every_line_of_the_table_is_tested():
    """A line is raised for real, or says where its wording was read, or shows no message at all."""
    recorded = {key for key, *_ in RECORDED}
    for failure in failures():
        if failure.signs:
            assert failure.key in {*REAL, *ELSEWHERE} or failure.recorded, failure.key
        assert not failure.recorded or failure.key in recorded or not failure.signs, failure.key


def test_keys_are_unique_and_every_line_says_what_to_do():
    assert len({failure.key for failure in failures()}) == len(failures())
    for failure in failures():
        assert failure.cause.endswith("."), failure.key
        assert failure.steps, failure.key
        assert failure.group in groups(), failure.key


def test_an_error_whose_text_cannot_be_had_is_no_problem():
    class Odd(Exception):
        def __str__(self):
            raise ValueError

    assert explain(Odd()) is None


def test_the_cause_counts_too():
    def fails():
        try:
            raise MemoryError
        except MemoryError as error:
            raise RuntimeError("the batch could not be made") from error

    assert explain(raised(fails)).key == "out-of-memory"
