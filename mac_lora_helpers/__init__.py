"""Helpers behind the five notebooks: small LoRA fine-tuning jobs on Apple Silicon, checked end to end.

Importing this package loads no torch and no transformers; each room imports what it needs when it is used.
"""

__version__ = "0.1.0"
