"""``mac-lora train``: notebook 03 alone and without a notebook; also what a launcher starts in each of several processes."""

from __future__ import annotations

import sys
from typing import Any

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

    run = RunDir(config.out_dir)
    try:
        metrics = training.run_training(run, config, on_log=_print_last)
    except UserError as error:
        if processes.is_main():
            raise
        print(f"mac-lora, process {processes.index()}: {portable(str(error)).splitlines()[0]}", file=sys.stderr)
        return error.exit_code
    if metrics is not None:
        _figure(run, metrics["steps"])
        print("\n".join(summary(run, [NOTEBOOKS[2]])))
    return 0


def _figure(run: RunDir, steps: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from mac_lora_helpers.ui.figures import loss_figure

    run.save_figure("loss_figure", loss_figure(run.read_lines("train_log"), steps))


def _print_last(rows: list[dict[str, Any]]) -> None:
    row = rows[-1]
    print(f"step {row['step']}: loss {row['loss']:.4f}, learning rate {row['learning_rate']:.2e}, {row['seconds']:.0f} s", flush=True)
