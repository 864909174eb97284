"""What a person sees: tables, coloured tokens, figures (matplotlib) and forms (ipywidgets).

Nothing here trains or decides. What a form or a figure asks of a stage is imported when it is asked; matplotlib is loaded
with the first figure.
"""

import importlib
from typing import Any

from mac_lora_helpers.text import size
from mac_lora_helpers.ui.ask import ask_box
from mac_lora_helpers.ui.form import config_form
from mac_lora_helpers.ui.memory_form import training_form
from mac_lora_helpers.ui.progress import Progress
from mac_lora_helpers.ui.settings import settings_table
from mac_lora_helpers.ui.stopping import stoppable
from mac_lora_helpers.ui.tables import Table, answers_table, audit_table, checks_table, files_table, training_table
from mac_lora_helpers.ui.tokens import TokenBrowser, TokenView, token_browser

_FIGURES = ("LiveLoss", "comparison_figure", "data_figure", "equivalence_figure", "loss_figure", "memory_figure")

__all__ = [
    "LiveLoss",
    "Progress",
    "Table",
    "TokenBrowser",
    "TokenView",
    "answers_table",
    "ask_box",
    "audit_table",
    "checks_table",
    "comparison_figure",
    "config_form",
    "data_figure",
    "equivalence_figure",
    "files_table",
    "loss_figure",
    "memory_figure",
    "settings_table",
    "size",
    "stoppable",
    "token_browser",
    "training_form",
    "training_table",
]


def __getattr__(name: str) -> Any:
    if name in _FIGURES:
        return getattr(importlib.import_module("mac_lora_helpers.ui.figures"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
