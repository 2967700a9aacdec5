"""The events of the Trainer's step loop, passed on to what acts on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from expunge.unlearner import Unlearner


class StepEvents(TrainerCallback):
    """Passes the Trainer's step events on."""

    def __init__(self, unlearner: Unlearner) -> None:
        self.unlearner = unlearner

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.unlearner.begin_training()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.unlearner.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.unlearner.before_optimizer()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.unlearner.after_optimizer()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        monitor = self.unlearner.monitor
        self.unlearner.end_phase()
        if monitor.after_step(state.global_step, self.unlearner.rate):
            control.should_training_stop = True
            control.should_save = False  # the end is not to be resumed
        elif self.unlearner.interrupted_anywhere():
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True
            monitor.interrupted(state.global_step, resumable=control.should_save)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.unlearner.monitor.finish(state.global_step, self.unlearner.rate, args.max_steps)
        self.unlearner.return_to_checkpoint()


def forget_updates(optimizer: Any) -> None:
    """An optimizer as if it had made no step: no moments, and η where a schedule begins."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["lr"] = group.pop("initial_lr", group["lr"])


def scale_learning_rate(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Multiply η in every parameter group, now and under the schedule to come."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
