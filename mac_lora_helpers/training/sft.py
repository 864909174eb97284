"""TRL's ``SFTTrainer`` for one run directory. Importing this module loads torch.

The numbers are TRL's: the rows of a step, the loss, the gradients and the optimizer are what the plain recipe has. Around it:
rows of a step go through the model together where the token budget allows, guards, whole checkpoints, the log, and the
validation curve.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import shutil
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import TrainOutput

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.config import Config
from mac_lora_helpers.errors import CheckFailed, UserError
from mac_lora_helpers.files import is_disk_full
from mac_lora_helpers.training import batches, fast, guards, interrupt, memory, processes, resume, saving
from mac_lora_helpers.training.checkpoints import WholeCheckpoints, unsaved
from mac_lora_helpers.training.curve import Curve
from mac_lora_helpers.training.forecast import Forecast, forecast_for, turn_down
from mac_lora_helpers.training.log import RunLog
from mac_lora_helpers.training.recipe import first_line, quiet, settle_threads, total_steps, with_start


class LoraTrainer(WholeCheckpoints):
    """``SFTTrainer`` over the tokens of notebook 02, with guards, whole checkpoints, a validation curve and this project's log.

    Args:
        config: the resolved parameters. run: the run directory, with the data's manifest.
        on_log: called at the start and after each step with the log's rows and the newest figures; ``ui.LiveLoss`` draws them.
        others: ``SFTTrainer``'s own, by name: ``model args train_dataset eval_dataset processing_class peft_config``.

    Raises:
        CheckFailed: rows that cannot be trained on as they stand, or another length or device than asked for.
        MissingArtifact: no tokens or no manifest.
    """

    def __init__(self, *, args: Any, train_dataset: Any, config: Config, run: RunDir, on_log: Any = None, **others: Any) -> None:
        known = _checked(args, others["model"], train_dataset, config)
        self.identity, self.folder = resume.identity(run, config), run.path("checkpoints")
        self.config, self.run, self.tokens = config, run, {"train": train_dataset, "valid": others.get("eval_dataset")}
        if config.start_adapter:
            others |= {"model": with_start(others["model"], run, config), "peft_config": None}
        if config.use_dora:
            print("use_dora: 05 exports the merged model and its GGUF files; a LoRA GGUF and an MLX adapter cannot hold DoRA")
        self.batch_tokens = config.max_seq_length * args.per_device_train_batch_size
        self.forecast = self._forecast(others["model"], args.device.type, config)
        args = _whole_steps(args, self.folder, f"{run.root.resolve().name}-{self.identity['config_hash'][:8]}")
        self._settle_checkpointing(args)
        lengths, rows = batches.lengths_of(train_dataset), args.per_device_train_batch_size
        # The order is that of the whole step, whatever number of processes shares it.
        self.passes = batches.plan_passes(lengths, rows * processes.count(), self.batch_tokens, config.seed)
        dealt = batches.dealt_out(train_dataset, rows, processes.count())
        self.order = batches.Order(self.passes, config.seed, len(dealt))
        collator = batches.WatchedCollator(others["processing_class"].pad_token_id, known)
        steps = total_steps(config, len(train_dataset))
        trained = int(lengths.mean() * steps * config.effective_batch_size)
        self.curve = Curve(config, self.tokens["valid"], steps, trained, rows, self.batch_tokens)
        with quiet():
            super().__init__(args=args, train_dataset=dealt, data_collator=collator, **others)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Steps(self))
        self.run_log = RunLog(run, config.logging_steps, on_log, quietly=not processes.is_main())
        self._measure_memory()
        self.stop_request: UserError | None = None
        self.stopping, self.peak_before, self.resumed_from = False, 0, 0
        self.last = {"loss": float("nan"), "grad_norm": float("nan"), "learning_rate": 0.0}
        self._parts: list[torch.Tensor] = []
        self.fast = self._take_fast_path(steps)

    # What was decided before the first step

    def _forecast(self, model: Any, device: str, config: Config) -> Forecast:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return forecast_for(config, base, batches.lengths_of(self.tokens["train"]), device)

    def _settle_checkpointing(self, args: Any) -> None:
        """With ``gradient_checkpointing`` auto: on if the training would not fit without."""
        if self.config.gradient_checkpointing != "auto":
            return
        args.activation_checkpointing = args.gradient_checkpointing = self.forecast.gradient_checkpointing
        print(f"gradient checkpointing {'on' if args.gradient_checkpointing else 'off'}: {self.forecast.checkpointing_reason}")

    def _measure_memory(self) -> None:
        base, device = self.model.get_base_model(), self.args.device.type
        settle_threads(base.num_parameters(), device)
        before = getattr(base, "memory_baseline", memory.BASELINE.get(device, 0)) if device == "cpu" else 0
        self.meter, self.memory_guard = memory.PeakMeter(device, before), guards.MemoryGuard()

    def _take_fast_path(self, steps: int) -> fast.Choice:
        """The choice of an earlier part of this training, else a new one. It is said aloud, or "off" would look like a slow machine."""
        kept = resume.read_choice(self.folder, self.identity) if self.config.resume == "auto" else None
        choice = fast.take(self, self.config.fast_path, steps, kept)
        memory.settle()  # what the comparison left behind
        if processes.is_main():
            resume.write_choice(self.folder, self.identity, choice.sealed())
        if self.config.fast_path == "off":
            return choice
        print(f"fast path {'on' if choice.applied else 'off'}: {choice.reason}")
        if not choice.applied and self.forecast.path == "fast":
            self._expect_plain()
        return choice

    def _expect_plain(self) -> None:
        """The fast path was refused: the plain path needs more memory, so its own forecast decides on checkpointing."""
        was_on = self.args.gradient_checkpointing
        self.forecast = self._forecast(self.model, self.args.device.type, self.config.model_copy(update={"fast_path": "off"}))
        self._settle_checkpointing(self.args)
        if self.args.gradient_checkpointing and not was_on:
            self.model.enable_input_require_grads()  # what TRL does where it knows at the start

    # One optimizer step

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Rows in the order that fills the passes; drawn anew each epoch from the seed."""
        return self.order

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's step for every pass; losses and token counts stay on the device until the optimizer step."""
        parts = self._deal(inputs)
        self.current_gradient_accumulation_steps = len(parts)  # what TRL divides an auxiliary loss by
        loss = torch.zeros((), device=self.args.device)
        for number, part in enumerate(parts, start=1):
            alone = contextlib.nullcontext() if number == len(parts) else self.accelerator.no_sync(model)
            with alone:
                loss = loss + super().training_step(model, part, num_items_in_batch)
        labelled = inputs["labels"][:, 1:] != -100
        counts = (inputs["attention_mask"][labelled.any(dim=1)].sum(), labelled.sum())  # without the rows of batches.dealt_out
        self._parts.append(torch.stack([loss.float(), *(count.float() for count in counts)]))
        return loss

    def _deal(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a step as passes, each as long as its longest row; on MPS as its bucket, for few shapes."""
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        passes = self.passes.split(lengths)
        passes = self.passes.split(lengths, processes.most(len(passes)))  # TRL's step waits for the others
        parts = []
        for rows in passes:
            width = lengths[rows[0]]
            if self.args.device.type == "mps":
                width = int(self.passes.buckets[self.passes.bucket(width)])
            parts.append({name: self._cut(name, values[rows], width) for name, values in inputs.items()})
        return parts

    def _cut(self, name: str, values: torch.Tensor, width: int) -> torch.Tensor:
        filler = {"labels": batches.IGNORED, "input_ids": self.processing_class.pad_token_id}.get(name, 0)
        missing = max(width - values.shape[1], 0)
        return torch.nn.functional.pad(values, (0, missing), value=filler)[:, :width].contiguous()

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
        step = self.state.global_step + 1
        bad = guards.not_finite(loss, norm) or ("" if supervised else "its batches have no token to learn from")
        if bad:
            raise self._stopped(step, f"stopped at step {step}: {bad}. {self._keep_last_good(step - 1)}")

    def _keep_last_good(self, step: int) -> str:
        if step == 0:
            return "No step was good, so there is no adapter to keep."
        if processes.is_main():
            target = self.folder / resume.LAST_GOOD
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".saving-") as temporary:
                saving.write_adapter(self.model, Path(temporary) / "adapter", self.config.model_id)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(Path(temporary) / "adapter", target)
        processes.wait()
        return f"The adapter of step {step} is kept in checkpoints/{resume.LAST_GOOD}."

    def _stopped(self, step: int, what: str) -> guards.TrainingStopped:
        self._note("stopped", step=step, reason=what)
        dtype = str(self.model.get_base_model().dtype).removeprefix("torch.")
        fix = guards.unstable_advice(self.config.learning_rate, self.config.max_seq_length, dtype)
        return guards.TrainingStopped(what, where=f"step {step} of {self.state.max_steps}", fix=fix)

    def _note(self, status: str, **more: Any) -> None:
        if processes.is_main():
            resume.write_state(self.folder, status, **more)

    def after_step(self, state: Any, control: Any) -> None:
        """Logs the step; asks for a measurement, or for a checkpoint and a stop when a guard or a signal wants one."""
        step, done = state.global_step, state.global_step >= state.max_steps
        measured = bool(self.curve.rows) and (done or step % self.curve.every == 0)
        self.run_log.step(step, done or measured, epoch=state.epoch, memory_bytes=self.meter.now(), **self.last)
        if self.loss_guard.explodes(self.last["loss"]):
            limit = self.loss_guard.limit
            what = f"stopped at step {step}: the loss explodes ({self.last['loss']:.3g}, three steps above {limit:.3g})"
            raise self._stopped(step, f"{what}. {self._newest_before(step - guards.EXPLODING_STEPS)}")
        control.should_evaluate = measured
        if done:
            return
        problem = self.memory_guard.problem()
        if problem and self.stop_request is None:
            fix = f"close other applications, or {turn_down(self.config, self)}; running again goes on from the checkpoint"
            self.stop_request = guards.TrainingStopped(f"stopped at step {step}: {problem}", where="this machine's memory", fix=fix)
        if processes.any_of(self.stop_request is not None):
            self.stopping = control.should_save = True
            elsewhere = f"stopped at step {step}: another of the processes asked for it"
            self.stop_request = self.stop_request or interrupt.TrainingInterrupted(
                elsewhere, fix="its own message says why; run again to go on"
            )

    def _newest_before(self, step: int) -> str:
        for path in resume.checkpoints(self.folder):
            if int(path.name[11:]) <= step:
                return f"The adapter of step {path.name[11:]} is kept in checkpoints/{path.name}."
        return "No checkpoint is older than that; save_steps decides how often one is written."

    # The validation curve

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The loss per supervised token on the validation rows: transformers' own is a mean of batches' means."""
        begin = time.perf_counter()
        loss = self.curve.measure(self)
        self.run_log.validated(loss, time.perf_counter() - begin)
        self.curve.note(self.run_log.rows, self.model)
        metrics = {"eval_loss": loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.curve.exhausted(self.run_log.rows):
            self.control.should_training_stop = self.control.should_save = True
        return metrics

    # The whole training

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps of this training besides the library's own files."""
        return {**self.run_log.progress(), "peak_memory_bytes": max(self.meter.peak, self.peak_before)}

    def train(self, resume_from_checkpoint: str | None = None, **more: Any) -> TrainOutput:
        """Trains; with a checkpoint (``training.last_checkpoint``) from there, otherwise from the start.

        Raises:
            TrainingStopped: a guard stopped it, or memory ran out. TrainingInterrupted: Ctrl-C or SIGTERM.
            CheckFailed: the disk is full. RunDirBusy: another process writes to the run directory.
        """
        processes.wait()  # every process has looked at the checkpoints before the first one changes them
        alone = self.run.writing("training") if processes.is_main() else contextlib.nullcontext()
        with alone:
            return self._train(resume_from_checkpoint, **more)

    def _train(self, resume_from_checkpoint: str | None, **more: Any) -> TrainOutput:
        sealed = self._begin(resume_from_checkpoint)
        try:
            with interrupt.watching(self._ask_to_stop), quiet():
                over = sealed and (sealed["step"] >= self.run_log.steps or self.curve.exhausted(self.run_log.rows))
                result = self._take_over(resume_from_checkpoint, sealed) if over else self._go_on(resume_from_checkpoint, more)
                self.curve.restore(self.run_log.rows, self.model)
                return result
        except Exception as error:
            raise self._explained(error) from (None if isinstance(error, UserError) else error)
        finally:
            self.meter.stop()
            with contextlib.suppress(OSError):
                self.run_log.end()

    def _go_on(self, checkpoint: str | None, more: dict[str, Any]) -> TrainOutput:
        return super().train(resume_from_checkpoint=checkpoint, **more)

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
        self.run_log.begin(progress, self.set_initial_training_values(self.args, self.get_train_dataloader())[-1])
        self.curve.best = {}
        if sealed:
            self.curve.read(Path(checkpoint))
        vocabulary = self.model.config.get_text_config().vocab_size
        self.loss_guard = guards.LossGuard(self.run_log.losses, self.config.effective_batch_size, vocabulary)
        self.peak_before, self.resumed_from = progress.get("peak_memory_bytes", 0), sealed["step"] if sealed else 0
        self.stop_request, self.stopping, self._parts = None, False, []
        self._note("running")
        self.meter.start()
        return sealed

    def _take_over(self, checkpoint: str, sealed: dict[str, Any]) -> TrainOutput:
        """The checkpoint is the training's last step: nothing is left to do but to load it."""
        self._load_from_checkpoint(checkpoint)
        self.state = type(self.state).load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        losses = sealed["progress"]["losses"]
        return TrainOutput(self.state.global_step, sum(losses) / max(len(losses), 1), {})

    def _ask_to_stop(self, name: str) -> None:
        self.stop_request = interrupt.TrainingInterrupted(
            f"the training was interrupted ({name})", where=f"step {self.state.global_step + 1}", fix="run again: it goes on from there"
        )

    def _explained(self, error: Exception) -> Exception:
        if guards.is_out_of_memory(error):
            self._let_go(error)
            self._note("stopped", step=self.state.global_step + 1, reason="out of memory")
            return guards.TrainingStopped(
                f"memory ran out in step {self.state.global_step + 1} ({first_line(error)[:200]})",
                where=f"{self.args.device.type}, max_seq_length={self.config.max_seq_length}",
                fix=turn_down(self.config, self),
            )
        return unsaved(error, "the log or a checkpoint", self.folder) if is_disk_full(error) else error

    def _let_go(self, error: Exception) -> None:
        """Frees what the failed step still holds, so that the advice can be worked out and the process lives on."""
        traceback.clear_frames(error.__traceback__)
        self.model.zero_grad(set_to_none=True)
        self._parts = []
        gc.collect()
        clear_device_cache()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Without a folder: ``adapter/`` and ``train_config.json`` of the run directory."""
        if output_dir or _internal_call:
            super().save_model(output_dir, _internal_call)
        elif processes.is_main():
            saving.save_adapter(self, self.run, self.config)


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


def _checked(args: Any, model: Any, rows: Any, config: Config) -> set[bytes]:
    """Digests of rows that can be trained on, with arguments that are this run's."""
    if args.max_length != config.max_seq_length:
        raise CheckFailed(f"the trainer would use max_length={args.max_length}, not max_seq_length={config.max_seq_length}")
    if args.device.type != model.device.type:
        raise CheckFailed(f"the trainer would use {args.device.type}, not {model.device.type}", where="parameter device")
    return batches.check_rows(rows, config)


def _whole_steps(args: Any, folder: Path, name: str) -> Any:
    """A copy for this run directory, whose batches are the rows of a step: ``training_step`` deals them out to passes."""
    args = copy.copy(args)
    args.output_dir = str(folder)
    args.per_device_train_batch_size *= args.gradient_accumulation_steps
    args.per_device_train_batch_size //= processes.count()
    args.gradient_accumulation_steps, args.run_name = 1, name
    args._n_gpu = min(args.n_gpu, 1)  # one process, one GPU: transformers would split batches over all it sees (DataParallel)
    return args
