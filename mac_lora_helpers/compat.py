"""Differences between library versions, here and nowhere else; and the libraries' chatter, switched off.

Each entry says which versions it is for; it goes when pyproject.toml's lower bound has passed them. ``make test-oldest`` and
``make test-newest`` run all tests on both ends of the stated ranges.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

#: (library, versions, message): warnings that a version raises about its own use of another library. Whoever runs a
#: notebook can do nothing about them.
WARNINGS = (
    # PEFT reads transformers' old name; its successor `is_activation_checkpointing` came with transformers 5.
    ("peft", ">=0.21.0,<0.22", ".*is_gradient_checkpointing.* is deprecated"),
)


@contextlib.contextmanager
def known_warnings() -> Iterator[None]:
    """Inside, the warnings of the table are not shown; all others are."""
    with warnings.catch_warnings():
        for _, _, message in WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=FutureWarning)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Progress bars and chatter of transformers off inside the block; a notebook step has one output."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with known_warnings():
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
