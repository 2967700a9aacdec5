"""Small listeners to a training run."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from expunge.progress import Advance
from expunge.unlearner import Unlearner


class Ticker(TrainerCallback):
    """Moves a progress bar.

    Args:
        unlearner: Its history is read.
        advance: Is told of every step.
    """

    def __init__(self, unlearner: Unlearner, advance: Advance) -> None:
        self.unlearner, self.advance = unlearner, advance

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.unlearner.history:  # the run ended before its first step
            return
        last = self.unlearner.history[-1]
        words = "  ".join(f"{name} {value:.2f}" for name, value in last.losses.items())
        self.advance(state.global_step, words + ("  repair" if last.repair else ""))


class StopWhenLearned(TrainerCallback):
    """Ends fine-tuning once the mean loss of one pass over the data is below a target.

    Args:
        unlearner: With a method of one objective.
        target: Nats per token.
    """

    def __init__(self, unlearner: Unlearner, target: float) -> None:
        self.unlearner, self.target = unlearner, target
        rows = len(unlearner.records["retain"])
        self.steps = -(
            -rows // (unlearner.args.train_batch_size * unlearner.args.gradient_accumulation_steps)
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._judge(state.global_step)  # a checkpoint may be of the step that was the last

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.unlearner.stop is None and self._judge(state.global_step):
            control.should_training_stop = True
            control.should_save = False  # the end is not to be resumed

    def _judge(self, step: int) -> bool:
        """Whether one pass's mean loss is below the target; if so, the run ends."""
        last = [next(iter(step.losses.values())) for step in self.unlearner.history[-self.steps :]]
        learned = len(last) == self.steps and sum(last) / len(last) < self.target
        if learned:
            sentence = f"The mean loss of one pass over the data fell below {self.target:g}."
            self.unlearner.monitor.end(step, "learned", sentence)
        return learned
