"""``mac-lora train``: notebook 03's cells without a notebook; also what a launcher starts in each of several processes."""

from __future__ import annotations

import sys

from mac_lora_helpers.artifacts import NOTEBOOKS, RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import UserError
from mac_lora_helpers.redaction import portable


def train(config: Config) -> int:
    """Trains on the run directory's tokens and leaves all that notebook 03 leaves.

    Returns:
        The exit code. In a process that is not the first a failure is one line: the first one tells the whole.

    Raises:
        UserError: see ``training.run_training``; in the first process only.
    """
    from mac_lora_helpers import training
    from mac_lora_helpers.suite.summary import summary
    from mac_lora_helpers.training import processes

    run, count = RunDir(config.out_dir), processes.count()
    if processes.is_main():
        print("training in one process" if count == 1 else f"training in {count} processes", flush=True)
    try:
        metrics = training.run_training(run, config)
    except UserError as error:
        if processes.is_main():
            raise
        print(f"mac-lora, process {processes.index()}: {portable(str(error)).splitlines()[0]}", file=sys.stderr)
        return error.exit_code
    if metrics is not None:
        print("\n".join(summary(run, [NOTEBOOKS[2]])))
    return 0
