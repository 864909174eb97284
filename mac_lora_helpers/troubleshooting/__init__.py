"""Known failures: recognized where they happen, answered with cause and next step, the original error kept.

One table, ``failures.toml``, feeds the answers in notebooks and on the command line, and ``docs/troubleshooting.md``. It is edited without
Python. Imports nothing heavy and nothing of ours.
"""

from mac_lora_helpers.troubleshooting.notebook import answer_in_notebook
from mac_lora_helpers.troubleshooting.table import Failure, explain, failures, recognise, shown_in

__all__ = ["Failure", "answer_in_notebook", "explain", "failures", "recognise", "shown_in"]
