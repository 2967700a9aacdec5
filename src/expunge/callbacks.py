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

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = [next(iter(step.losses.values())) for step in self.unlearner.history[-self.steps :]]
        if len(last) == self.steps and sum(last) / len(last) < self.target:
            sentence = f"The mean loss of one pass over the data fell below {self.target:g}."
            self.unlearner.monitor.end(state.global_step, "learned", sentence)
            control.should_training_stop = True
