"""What a person sees: tables, coloured tokens, figures (matplotlib) and forms (ipywidgets).

Plain data goes in; a table, a figure or a form comes out. Nothing here trains, loads or decides. matplotlib is loaded
with the first figure, so that tables can be shown without it.
"""

import importlib
from typing import Any

from mac_lora_helpers.ui.ask import ask_box
from mac_lora_helpers.ui.forms import config_form, fit_form
from mac_lora_helpers.ui.progress import Progress
from mac_lora_helpers.ui.stopping import stoppable
from mac_lora_helpers.ui.tables import Table, answers_table, audit_table, checks_table, config_table, files_table, size, training_table
from mac_lora_helpers.ui.tokens import TokenBrowser, TokenView, token_browser

_FIGURES = ("LiveLoss", "comparison_figure", "data_figure", "equivalence_figure", "loss_figure")
_MEMORY = "memory_figure"

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
    "config_table",
    "data_figure",
    "equivalence_figure",
    "files_table",
    "fit_form",
    "loss_figure",
    "memory_figure",
    "size",
    "stoppable",
    "token_browser",
    "training_table",
]


def __getattr__(name: str) -> Any:
    if name in _FIGURES:
        return getattr(importlib.import_module("mac_lora_helpers.ui.figures"), name)
    if name == _MEMORY:
        return importlib.import_module("mac_lora_helpers.ui.memory_bars").memory_figure
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
