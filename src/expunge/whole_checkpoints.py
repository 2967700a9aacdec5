"""A Trainer whose checkpoints are whole or absent.

The only change w.r.t. `Trainer` is where a checkpoint is written, and when it gets its name; what stands in
it besides the Trainer's own files is the subclass's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from expunge import checkpoints
from expunge.disk import writing


class WholeCheckpoints(Trainer):
    """Writes a checkpoint beside the others, lists its files, and names it at the end."""

    _staging = ""

    def save_beside(self, folder: Path) -> None:
        """Write what a resumed run must know; called on every rank.

        Args:
            folder: Of the checkpoint in the making; it may not exist yet.
        """
        raise NotImplementedError

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, first = Path(self._get_output_dir(trial)), self.args.should_save
        name = f"checkpoint-{self.state.global_step}"
        with writing("A checkpoint", folder):
            try:
                if first:
                    checkpoints.begin(folder)
                self.accelerator.wait_for_everyone()
                self._staging = checkpoints.STAGING
                self.save_beside(folder / self._staging / name)
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if first:
                    checkpoints.publish(folder, name, self.args.save_total_limit)
            except BaseException:
                checkpoints.abandon(folder)
                raise
            finally:
                self._staging = ""
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        """As the Trainer's; while a checkpoint is written, the place where that happens."""
        return str(Path(super()._get_output_dir(trial)) / self._staging)
