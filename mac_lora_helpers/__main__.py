"""``python -m mac_lora_helpers`` is the same as ``mac-lora``."""

import sys

from mac_lora_helpers.suite.cli import main

if __name__ == "__main__":
    sys.exit(main())
