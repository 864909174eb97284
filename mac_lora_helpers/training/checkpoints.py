"""``SFTTrainer`` with checkpoints that are whole or not there. Importing this module loads torch.

transformers rotates checkpoints before it says that one was saved, so the writing itself is taken over: into a folder beside
the place, sealed, renamed; the older ones go only afterwards.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from trl import SFTTrainer

from mac_lora_helpers.errors import CheckFailed, UserError
from mac_lora_helpers.files import is_disk_full
from mac_lora_helpers.training import processes, resume
from mac_lora_helpers.training.recipe import quiet
from mac_lora_helpers.training.saving import write_adapter

_MPS_RANDOM = "mps_rng_state.pt"


class WholeCheckpoints(SFTTrainer):
    """The part of the trainer that writes and reads checkpoints; ``folder`` is where they lie, ``identity`` what they are sealed with."""

    folder: Path
    identity: dict[str, Any]

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the library's own files: the log, the peak, the path."""
        raise NotImplementedError

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        if processes.any_of(resume.read_seal(self.folder / name) is not None):
            return
        staging = self.folder / f".saving-{name}"  # the same for every process; the first one writes, each adds its random state
        real, self.args.output_dir, problem = self.args.output_dir, str(staging), None
        try:
            (staging / name).mkdir(parents=True, exist_ok=True)
            with quiet():
                super()._save_checkpoint(model, trial)
        except Exception as error:
            problem = unsaved(error, name, self.folder)
        finally:
            self.args.output_dir = real
        self._put_in_place(staging, name, problem)

    def _put_in_place(self, staging: Path, name: str, problem: Exception | None) -> None:
        """When every process has written its part, and only if all could."""
        failed = processes.any_of(problem is not None)
        if processes.is_main():
            try:
                if not failed:
                    self._seal(staging / name)
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                    os.replace(staging / name, self.folder / name)
            except Exception as error:
                problem = unsaved(error, name, self.folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        processes.raise_together(problem, f"checkpoints/{name}")
        for old in resume.checkpoints(self.folder)[self.args.save_total_limit :] if processes.is_main() else ():
            shutil.rmtree(old, ignore_errors=True)

    def _seal(self, folder: Path) -> None:
        if self.args.device.type == "mps":
            torch.save(torch.mps.get_rng_state(), folder / _MPS_RANDOM)
        self.curve.write(folder)
        resume.seal(folder, self.state.global_step, self.identity, self.progress())

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Only the adapter: the pickled arguments would hold this machine's paths, the tokenizer is the model's."""
        if not processes.is_main():
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_adapter(self.model, folder, self.config.model_id)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None per checkpoint; notebook 05 writes the card."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint and (Path(checkpoint) / _MPS_RANDOM).is_file():
            torch.mps.set_rng_state(torch.load(Path(checkpoint) / _MPS_RANDOM, weights_only=True))


def unsaved(error: Exception, name: str, folder: Path) -> Exception:
    """A readable error for a write that failed; other errors stay as they are."""
    if isinstance(error, UserError):
        return error
    free = shutil.disk_usage(folder).free
    if is_disk_full(error) or free < 2**20:
        return CheckFailed(
            f"{name} cannot be written: the disk is full ({free // 1000} kB are free)",
            where="checkpoints/",
            fix="make room and run again: it goes on from the last whole checkpoint; save_total_limit=1 keeps fewer",
        )
    return error
