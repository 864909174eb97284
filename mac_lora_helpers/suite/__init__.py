"""papermill over the notebooks, and the command line ``mac-lora``."""
