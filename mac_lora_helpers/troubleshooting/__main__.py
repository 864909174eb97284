"""``python -m mac_lora_helpers.troubleshooting`` prints the page."""

from mac_lora_helpers.troubleshooting.page import page

print(page(), end="")
