"""Trains in forked children and kills them with SIGKILL at random moments until one lives to the end.

Arguments: a resolved config (JSON), the training rows (JSON), how many children to kill.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]


def train(config, rows):
    from training_rows import OneRun, dataset, trained_by_cells

    from mac_lora_helpers import training

    run = OneRun(config.out_dir)
    trainer = trained_by_cells(run, config, {name: dataset(split) for name, split in rows.items()})["trainer"]
    trainer.train(resume_from_checkpoint=training.last_checkpoint(run, config))
    trainer.save_model()
    training.examine(trainer)


def child(config, rows):
    pid = os.fork()
    if pid == 0:
        try:
            train(config, rows)
            sys.stdout.flush()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
    return pid


def moments(config, kills):
    """Waits until the log shows a random step, then a random fraction of a step; spread over the training."""
    source = random.Random(int(os.environ.get("KILL_SEED", "0")))
    steps = sorted(source.randint(0, config.max_steps) for _ in range(kills))
    return [(step, source.uniform(0, 0.08)) for step in steps]


def killed(config, rows, log, step, wait):
    """Whether a training was killed near this step; a busy machine may let it end first."""
    log.unlink(missing_ok=True)
    pid = child(config, rows)
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if step == 0 or (log.exists() and len(log.read_text().splitlines()) >= step):
            time.sleep(wait)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            return os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        time.sleep(0.002)
    return False


def main():
    import mac_lora_helpers.training.log as log_module
    import mac_lora_helpers.training.sft  # noqa: F401  (loaded once, before the forks)
    from mac_lora_helpers.config import resolve

    config = resolve(json.loads(Path(sys.argv[1]).read_text()), env={})
    rows, kills = json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3])
    folder, before = Path(config.out_dir), Path(config.out_dir).with_suffix(".before")
    log_module.WRITE_EVERY = 0.0
    for step, wait in moments(config, kills):
        shutil.copytree(folder, before)
        while not killed(config, rows, folder / "train_log.jsonl", step, wait):
            shutil.rmtree(folder)
            shutil.copytree(before, folder)  # as if the training that ended had not been
            step, wait = max(step - 1, 0), 0
        print(f"killed near step {step}", flush=True)
        shutil.rmtree(before)
    _, status = os.waitpid(child(config, rows), 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
