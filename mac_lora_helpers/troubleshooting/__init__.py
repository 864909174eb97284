"""Known failures: recognised where they happen, answered with cause and next step, the original error kept.

One table (``FAILURES``) feeds the answers in notebooks and on the command line, and ``docs/troubleshooting.md``
(``python -m mac_lora_helpers.troubleshooting > docs/troubleshooting.md``). Imports nothing heavy and nothing of ours.
"""

from mac_lora_helpers.troubleshooting.failure import Failure, Sign
from mac_lora_helpers.troubleshooting.notebook import answer_in_notebook
from mac_lora_helpers.troubleshooting.recognise import FAILURES, explain, recognise, shown_in

__all__ = ["FAILURES", "Failure", "Sign", "answer_in_notebook", "explain", "recognise", "shown_in"]
