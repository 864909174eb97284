"""Ordinary mistakes that the table must stay silent about, raised as they happen in a cell."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np


def _own(a: int) -> int:
    return a


def own_function_called_wrongly() -> None:
    _own(b=1)


def own_class_called_wrongly() -> None:
    type("Thing", (), {"__init__": lambda self: None})(max_seq_length=3)


def name_unknown() -> None:
    undefined_name  # noqa: B018, F821


def key_missing() -> None:
    {}["model"]


def attribute_missing() -> None:
    "text".memory  # noqa: B018


def list_too_short() -> None:
    [][3]


def value_wrong() -> None:
    int("out of memory")


def division() -> None:
    1 / 0  # noqa: B018


def asserted() -> None:
    assert "mps" == "cpu", "device"


def file_missing() -> None:
    Path("there/is/no/such/file.jsonl").read_text()


def module_of_the_users() -> None:
    __import__("my_own_helpers")


def name_in_a_users_module() -> None:
    exec("from json import nothing_like_it")  # noqa: S102


def json_of_the_users() -> None:
    json.loads("{")


def text_encoding() -> None:
    b"\xff".decode()


def math_domain() -> None:
    math.sqrt(-1)


def shapes_differ() -> None:
    import torch

    torch.ones(2, 3) @ torch.ones(2, 3)


def tensor_index() -> None:
    import torch

    torch.ones(2)[5]


def gradient_missing() -> None:
    import torch

    torch.ones(1).sum().backward()


def array_shapes() -> None:
    np.ones(2) + np.ones(3)


def weights_of_the_users_own_model() -> None:
    import torch

    torch.nn.Linear(2, 3).load_state_dict(torch.nn.Linear(3, 3).state_dict())


def import_of_a_part_of_ours_that_is_not_there() -> None:
    __import__("mac_lora_helpers_of_mine")


def folder_not_a_file() -> None:
    Path("/").read_text()


UNRELATED = [
    value for name, value in list(globals().items()) if callable(value) and not name.startswith("_") and value.__module__ == __name__
]
