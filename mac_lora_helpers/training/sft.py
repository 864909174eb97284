"""TRL's ``SFTTrainer`` with whole checkpoints, guards and this project's log. Importing this module loads torch.

The numbers are TRL's: nothing here touches the batches, the loss, the gradients or the optimizer.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput
from trl import SFTTrainer

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, UserError
from mac_lora_helpers.files import is_disk_full
from mac_lora_helpers.training import guards, processes, resume
from mac_lora_helpers.training.log import RunLog
from mac_lora_helpers.training.memory import PeakMeter, library_bytes
from mac_lora_helpers.training.recipe import first_line, quiet
from mac_lora_helpers.training.saving import write_adapter

_MPS_RANDOM = "mps_rng_state.pt"


class TrainingInterrupted(UserError):
    """Ctrl-C or a signal: a checkpoint was written, running again goes on from it."""


class LoraTrainer(SFTTrainer):
    """``SFTTrainer`` for one run directory.

    Args:
        config: the resolved parameters.
        identity: what its checkpoints are sealed with (``resume.identity``).
        run_log: collects the log.
        explain_memory: gives the advice for an out-of-memory error.
        others: ``SFTTrainer``'s own.
    """

    def __init__(self, *others: Any, config: Config, identity: dict[str, Any], run_log: RunLog, explain_memory: Any, **more: Any) -> None:
        with quiet():
            super().__init__(*others, **more)
        self.config, self.identity, self.run_log, self.explain_memory = config, identity, run_log, explain_memory
        self.folder = Path(self.args.output_dir)
        base = self.model.get_base_model()
        on_cpu = self.args.device.type == "cpu"
        self.meter = PeakMeter(self.args.device.type, getattr(base, "memory_baseline", 0) + library_bytes() if on_cpu else 0)
        self.memory_guard = guards.MemoryGuard()
        self.stop_request: UserError | None = None
        self.stopping = False
        self.peak_before = 0
        self.resumed_from = 0
        self.last = {"loss": float("nan"), "grad_norm": float("nan"), "learning_rate": 0.0}
        self._parts: list[torch.Tensor] = []
        self.add_callback(_Steps(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Rows of like length meet in a batch; order and groups are drawn anew each epoch from the seed."""
        return self.order

    # One optimizer step

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's step; the loss and the token counts are kept on the device until the optimizer step."""
        labelled = inputs["labels"][:, 1:] != -100
        counts = (inputs["attention_mask"][labelled.any(dim=1)].sum(), labelled.sum())  # without the rows of batches.dealt_out
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._parts.append(torch.stack([loss.detach().float(), *(count.float() for count in counts)]))
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called after the backward passes and before the optimizer: the last moment the adapter is known to be good."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        loss, tokens, supervised = processes.total(torch.stack(self._parts).cpu().double().sum(dim=0)).tolist()
        loss, self._parts = loss / processes.count(), []
        self.last = {"loss": loss, "grad_norm": float(norm), "learning_rate": self._get_learning_rate()}
        self._refuse_bad_step(loss, float(norm), supervised)
        self.run_log.tokens += int(tokens)
        self.run_log.supervised += int(supervised)
        return norm

    def _refuse_bad_step(self, loss: float, norm: float, supervised: float) -> None:
        step, config = self.state.global_step + 1, self.config
        bad = guards.not_finite(loss, norm) or ("" if supervised else "its batches have no token to learn from")
        if not bad:
            return
        kept = self._keep_last_good(step - 1)
        raise self._stopped(step, f"stopped at step {step}: {bad}. {kept}", config)

    def _keep_last_good(self, step: int) -> str:
        if step == 0:
            return "No step was good, so there is no adapter to keep."
        if processes.is_main():
            target = self.folder / resume.LAST_GOOD
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".saving-") as temporary:
                write_adapter(self.model, Path(temporary) / "adapter", self.config.model_id)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(Path(temporary) / "adapter", target)
        processes.wait()
        return f"The adapter of step {step} is kept in checkpoints/{resume.LAST_GOOD}."

    def _stopped(self, step: int, what: str, config: Config) -> guards.TrainingStopped:
        self._note("stopped", step=step, reason=what)
        dtype = str(self.model.get_base_model().dtype).removeprefix("torch.")
        fix = guards.unstable_advice(config.learning_rate, config.max_seq_length, dtype)
        return guards.TrainingStopped(what, where=f"step {step} of {self.state.max_steps}", fix=fix)

    def _note(self, status: str, **more: Any) -> None:
        if processes.is_main():
            resume.write_state(self.folder, status, **more)

    def after_step(self, state: Any, control: Any) -> None:
        """Logs the step; asks for a checkpoint and a stop when a guard or a signal wants one."""
        step, done = state.global_step, state.global_step >= state.max_steps
        self.run_log.step(step, done, epoch=state.epoch, memory_bytes=self.meter.now(), **self.last)
        if self.loss_guard.explodes(self.last["loss"]):
            limit = self.loss_guard.limit
            what = f"stopped at step {step}: the loss explodes ({self.last['loss']:.3g}, three steps above {limit:.3g})"
            raise self._stopped(step, f"{what}. {self._newest_before(step - guards.EXPLODING_STEPS)}", self.config)
        if done:
            return
        problem = self.memory_guard.problem()
        if problem and self.stop_request is None:
            fix = f"close other applications, or {self.explain_memory(self)}; running again goes on from the checkpoint"
            self.stop_request = guards.TrainingStopped(f"stopped at step {step}: {problem}", where="this machine's memory", fix=fix)
        if processes.any_of(self.stop_request is not None):
            self.stopping = control.should_save = True
            elsewhere = f"stopped at step {step}: another of the processes asked for it"
            self.stop_request = self.stop_request or TrainingInterrupted(elsewhere, fix="its own message says why; run again to go on")

    def _newest_before(self, step: int) -> str:
        for path in resume.checkpoints(self.folder):
            if int(path.name[11:]) <= step:
                return f"The adapter of step {path.name[11:]} is kept in checkpoints/{path.name}."
        return "No checkpoint is older than that; save_steps decides how often one is written."

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """TRL's checkpoint, written beside its place, sealed and renamed; older ones go only afterwards."""
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
            problem = _unsaved(error, name, self.folder)
        finally:
            self.args.output_dir = real
        self._put_in_place(staging, name, problem)

    def _put_in_place(self, staging: Path, name: str, problem: Exception | None) -> None:
        """When every process has written its part, and only if all could."""
        failed = processes.any_of(problem is not None)
        if processes.is_main():
            try:
                if not failed:
                    self._finish_staging(staging / name)
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                    os.replace(staging / name, self.folder / name)
            except Exception as error:
                problem = _unsaved(error, name, self.folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        processes.raise_together(problem, f"checkpoints/{name}")
        for old in resume.checkpoints(self.folder)[self.args.save_total_limit :] if processes.is_main() else ():
            shutil.rmtree(old, ignore_errors=True)

    def _finish_staging(self, folder: Path) -> None:
        if self.args.device.type == "mps":
            torch.save(torch.mps.get_rng_state(), folder / _MPS_RANDOM)
        progress = {**self.run_log.progress(), "peak_memory_bytes": max(self.meter.peak, self.peak_before)}
        resume.seal(folder, self.state.global_step, self.identity, progress)

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

    # The whole training

    def train(self, resume_from_checkpoint: str | None = None, **more: Any) -> TrainOutput:
        """Trains; with a checkpoint (``training.last_checkpoint``) from there, otherwise from the start.

        Raises:
            TrainingStopped: a guard stopped it, or memory ran out. TrainingInterrupted: Ctrl-C or SIGTERM.
            CheckFailed: the disk is full. RunDirBusy: another process writes to the run directory.
        """
        alone = RunDir(self.folder.parent).writing("training") if processes.is_main() else contextlib.nullcontext()
        with alone:
            return self._train(resume_from_checkpoint, **more)

    def _train(self, resume_from_checkpoint: str | None, **more: Any) -> TrainOutput:
        sealed = self._begin(resume_from_checkpoint)
        try:
            with self._watching(), quiet():
                if sealed and sealed["step"] >= self._steps_wanted():
                    return self._take_over(resume_from_checkpoint, sealed)
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **more)
        except Exception as error:
            raise self._explained(error) from (None if isinstance(error, UserError) else error)
        finally:
            self.meter.stop()
            with contextlib.suppress(OSError):
                self.run_log.write()
            if self.run_log.tracker is not None:
                self.run_log.tracker.finish()

    def _begin(self, checkpoint: str | None) -> dict[str, Any] | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        processes.wait()  # for the first process's lock on the run directory
        sealed = resume.read_seal(Path(checkpoint)) if checkpoint else None
        if checkpoint and sealed is None:
            raise CheckFailed(
                "this checkpoint is incomplete or damaged", where=Path(checkpoint).name, fix="take training.last_checkpoint(run, config)"
            )
        processes.wait()  # all have read the seal
        if processes.is_main():
            resume.sweep(self.folder) if sealed else resume.clear(self.folder)
        progress = sealed["progress"] if sealed else {}
        self.run_log.begin(progress)
        self.loss_guard = self._new_loss_guard()
        self.peak_before, self.resumed_from = progress.get("peak_memory_bytes", 0), sealed["step"] if sealed else 0
        self.stop_request, self.stopping, self._parts = None, False, []
        self._note("running")
        self.meter.start()
        return sealed

    def _new_loss_guard(self) -> guards.LossGuard:
        vocabulary = self.model.config.get_text_config().vocab_size
        return guards.LossGuard(self.run_log.losses, self.config.effective_batch_size, vocabulary)

    def _steps_wanted(self) -> int:
        return self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]

    def _take_over(self, checkpoint: str, sealed: dict[str, Any]) -> TrainOutput:
        """The checkpoint is the training's last step: nothing is left to do but to load it."""
        self._load_from_checkpoint(checkpoint)
        self.state = type(self.state).load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        losses = sealed["progress"]["losses"]
        return TrainOutput(self.state.global_step, sum(losses) / max(len(losses), 1), {})

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the training after the current step, with a checkpoint; a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, _: Any) -> None:
            if processes.count() == 1:  # of several, each gets the terminal's signal and the launcher's copy of it
                signal.signal(number, before[number] if callable(before[number]) else signal.SIG_DFL)
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            print(f"{name}: the current step is finished and saved, then the training stops (again: at once).")
            self.stop_request = TrainingInterrupted(
                f"the training was interrupted ({name})", where=f"step {self.state.global_step + 1}", fix="run again: it goes on from there"
            )

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _explained(self, error: Exception) -> Exception:
        if guards.is_out_of_memory(error):
            self._let_go(error)
            self._note("stopped", step=self.state.global_step + 1, reason="out of memory")
            return guards.TrainingStopped(
                f"memory ran out in step {self.state.global_step + 1} ({first_line(error)[:200]})",
                where=f"{self.args.device.type}, max_seq_length={self.config.max_seq_length}",
                fix=self.explain_memory(self),
            )
        return _unsaved(error, "the log or a checkpoint", self.folder) if is_disk_full(error) else error

    def _let_go(self, error: Exception) -> None:
        """Frees what the failed step still holds, so that the advice can be worked out and the process lives on."""
        traceback.clear_frames(error.__traceback__)
        self.model.zero_grad(set_to_none=True)
        self._parts = []
        gc.collect()
        clear_device_cache()


class _Steps(TrainerCallback):
    """Hands the trainer's own events to it: an epoch's begin, each optimizer step's end, the checkpoint that a stop asked for."""

    def __init__(self, trainer: LoraTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """accelerate 1.15 does not pass the epoch on to a sampler of several processes when it skips batches, as in resuming."""
        self.trainer.order.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.after_step(state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.stopping:
            self.trainer._note("interrupted", step=state.global_step)
            raise self.trainer.stop_request


def _unsaved(error: Exception, name: str, folder: Path) -> Exception:
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
