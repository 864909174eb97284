"""What a person sees: tables, coloured tokens, figures (matplotlib) and forms (ipywidgets).

Plain data goes in; a table, a figure or a form comes out. Nothing here trains, loads or decides.
"""

from mac_lora_helpers.ui.ask import ask_box
from mac_lora_helpers.ui.figures import LiveLoss, comparison_figure, data_figure, equivalence_figure, loss_figure
from mac_lora_helpers.ui.forms import config_form, fit_form
from mac_lora_helpers.ui.progress import Progress
from mac_lora_helpers.ui.stopping import stoppable
from mac_lora_helpers.ui.tables import Table, answers_table, audit_table, checks_table, config_table, files_table, size, training_table
from mac_lora_helpers.ui.tokens import TokenBrowser, TokenView, token_browser

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
    "size",
    "stoppable",
    "token_browser",
    "training_table",
]
