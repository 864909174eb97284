"""Which base model was it? See ``model``."""

from mac_lora_helpers.model import base_weights, check_base

__all__ = ["base_weights", "check_base"]
