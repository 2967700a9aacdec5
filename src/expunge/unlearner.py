"""`Unlearner`: a Trainer whose optimizer step gets its gradient from several objectives.

The only change w.r.t. `Trainer` is how one step's gradient is made; checkpoints, schedules, loggers,
mixed precision and distribution stay the Trainer's.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from expunge.arguments import UnlearningArguments
from expunge.batching import BySource, Draws, RowStream, Sources
from expunge.collate import Encoded, Encoding, collate
from expunge.descent import Descent
from expunge.forget_check import CheckSettings, ForgetCheck, forget_check, sample
from expunge.inference import model_context
from expunge.interrupt import Interrupt
from expunge.methods import Method
from expunge.monitor import Monitor
from expunge.probe import Batch
from expunge.record import Step, Stop
from expunge.records import Record, Records, read_records

PROBE_BATCH = 8

RecordSource = Records | Iterable[Record | Mapping[str, Any]]


class Unlearner(Trainer):
    """Trains a causal language model by a `Method`.

    The only change w.r.t. `Trainer` is `training_step`: it computes one gradient per objective (or
    one fused gradient, where the weights do not depend on gradients) and combines them once per
    optimizer step. Events of the step loop drive a `Monitor` that measures and decides.

    Args:
        model: A causal language model with fp32 weights.
        args: Settings; `output_dir` takes checkpoints.
        method: See `expunge.methods`.
        processing_class: The model's tokenizer.
        forget_dataset: Records to forget; needed when the method reads them.
        retain_dataset: Records to keep; needed when the method reads them.
        holdout_dataset: Records of the same kind that the model has never seen: with them a run stops
            when forget records look like these. Without, other records' responses are the control.
        callbacks: As for `Trainer`.

    Raises:
        ValueError: A data set that the method reads is missing; weights are not fp32; fp16 compute is
            asked for; a checkpoint belongs to another run.
        UsageError: Records cannot be used (see `expunge.records`, `expunge.collate`).
    """

    def __init__(
        self,
        model: nn.Module,
        args: UnlearningArguments,
        method: Method,
        processing_class: PreTrainedTokenizerBase,
        forget_dataset: RecordSource | None = None,
        retain_dataset: RecordSource | None = None,
        holdout_dataset: RecordSource | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        _check_precision(model)
        given = {"forget": forget_dataset, "retain": retain_dataset, "holdout": holdout_dataset}
        self.records = {name: _records(name, data) for name, data in given.items() if data is not None}
        if missing := [source for source in method.sources if source not in self.records]:
            raise ValueError(
                f"method {method.name!r} reads {method.sources}; missing: `{missing[0]}_dataset`. "
                "Give it, or choose a method that does not read it."
            )
        self.method = method
        self.context = model_context(model)
        self.tokenizer: PreTrainedTokenizerBase = processing_class
        self.encoded = {name: self._encode(name, rows, args) for name, rows in self.records.items()}
        self.pad_id = int(processing_class.pad_token_id or 0)
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=Sources({name: self.encoded[name] for name in method.sources}),
            data_collator=BySource(self.pad_id),
            callbacks=callbacks,
        )
        self.args: UnlearningArguments
        self.model_accepts_loss_kwargs = False
        self.trained = model
        self.monitor = Monitor(
            model=model,
            method=method,
            probe=self._probe(),
            check=self._check() if "forget" in method.sources else None,
            check_every=args.check_every,
            fingerprint=self._fingerprint(),
            gather=self._gather,
            agree=self._agree,
        )
        self.remove_callback(PrinterCallback)
        self.descent = Descent(
            method, self.monitor.parameters, self.pad_id, self.accelerator.backward, self._mean_over_ranks
        )
        self.interrupt = Interrupt()
        self._line = False
        self.add_callback(_StepEvents(self))

    # -- results ---------------------------------------------------------------------------------

    @property
    def history(self) -> list[Step]:
        """One entry per optimizer step."""
        return self.monitor.state.steps

    @property
    def stop(self) -> Stop | None:
        """Why the run ended; None while it runs."""
        return self.monitor.state.stop

    @property
    def rate(self) -> float:
        """η of the next step (of the first parameter group)."""
        assert self.optimizer is not None
        return float(self.optimizer.param_groups[0]["lr"])

    # -- data ------------------------------------------------------------------------------------

    def _encode(self, name: str, records: Records, args: UnlearningArguments) -> list[Encoded]:
        return args.encoding.rows(records, self.tokenizer, context=self.context, name=name)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of all data sets at once, for the whole run."""
        args = self.args
        size = args.per_device_train_batch_size
        streams = {
            name: RowStream([len(r.input_ids) for r in self.encoded[name]], size, (args.seed, i))
            for i, name in enumerate(self.method.sources)
        }
        length = args.max_steps * args.gradient_accumulation_steps * self.accelerator.num_processes
        loader = DataLoader(
            Sources({name: self.encoded[name] for name in self.method.sources}),
            batch_sampler=Draws(streams, length),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        self.accelerator.even_batches = (
            False  # every rank gets as many batches; their sizes may differ by a row
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def _check(self) -> ForgetCheck | None:
        args = self.args
        return forget_check(
            self.trained,
            self.tokenizer,
            self.records["forget"],
            self.encoded.get("holdout"),
            CheckSettings(
                args.check_rows,
                args.seed,
                Encoding(args.template, args.max_length or self.context),
                args.precision,
            ),
        )

    def _probe(self) -> list[Batch]:
        rule, budget = self.method.step_size, self.method.budget
        count = max(budget.rows if budget else 0, (rule.rows or 0) if rule else 0)
        if not count or "retain" not in self.encoded:
            return []
        rows = sample(self.encoded["retain"], count, self.args.seed)
        rows = sorted(rows, key=lambda row: len(row.input_ids))
        batches = [collate(rows[i : i + PROBE_BATCH], self.pad_id) for i in range(0, len(rows), PROBE_BATCH)]
        return [self._to_device(batch) for batch in batches]

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.args.device) for name, tensor in batch.items()}

    def _fingerprint(self) -> str:
        a = self.args
        digest = hashlib.sha256(repr((self.method, self.accelerator.num_processes)).encode())
        where = ("output_dir", "run_name", "logging_dir", "save_steps", "save_strategy", "save_total_limit")
        plain: dict[str, Any] = a.to_dict()  # type: ignore[no-untyped-call]
        settings = {key: value for key, value in plain.items() if key not in where}
        digest.update(repr(sorted(settings.items(), key=lambda item: item[0])).encode())
        for name in sorted(self.encoded):
            digest.update(repr((name, self.encoded[name])).encode())
        return digest.hexdigest()[:16]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the first Ctrl-C or SIGTERM ends it after the step, with a checkpoint."""
        with self.interrupt:
            return super().train(*args, **kwargs)

    def release(self) -> None:
        """Free what only training needs (optimizer state, gradients, last good state); the model stays."""
        self.trained.zero_grad()
        self.descent.begin(repair=False, separate=False)
        self.monitor.good = None
        self.optimizer = self.lr_scheduler = None
        self.accelerator.unwrap_model(self.trained, keep_fp32_wrapper=False)
        self.trained.eval()
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.accelerator.free_memory()

    # -- the gradient of one optimizer step ------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """As the Trainer's, with the label tokens of the step counted per data set (mean over ranks)."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [
            sum(int((batch[name]["labels"][:, 1:] != -100).sum()) for batch in batches)
            for name in self.method.sources
        ]
        # gradients are averaged over ranks: dividing by the mean count makes that a mean over all tokens
        means = self._mean_over_ranks(torch.tensor(counts, dtype=torch.float64))
        return batches, dict(zip(self.method.sources, means.tolist(), strict=True))

    def training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of one micro-batch; on the last one, combine the gradients.

        Returns:
            The sum of the objectives' shares of this micro-batch, unweighted.
        """
        model.train()
        batches: dict[str, Any] = self._prepare_inputs(dict(inputs))
        if self.stop is not None:  # decided before this step: nothing may move
            return torch.zeros((), device=self.args.device)
        with self.accelerator.autocast():
            share = self.descent.add(model, batches, num_items_in_batch)
        if self.accelerator.sync_gradients and not self.descent.combine():
            self.monitor.diverged(self.state.global_step)
        return torch.tensor(share, device=self.args.device)

    def begin_step(self) -> None:
        """Event of the step loop: before the first micro-batch."""
        every = self.args.diagnose_every
        diagnose = every > 0 and self.state.global_step % every == 0
        self.descent.begin(repair=self.monitor.state.repairing, separate=diagnose)

    def before_optimizer(self) -> None:
        """Event of the step loop: the gradient is ready, the parameters have not moved."""
        step = self.state.global_step
        self._line = self.monitor.line_due(step, self.rate) and self.stop is None
        if self._line:
            retain = [batches["retain"] for batches in self.descent.batches]
            self.monitor.begin_line(step, retain)
        if (self.descent.separate or self._line) and self.stop is None:
            self.descent.remember()

    def after_optimizer(self) -> None:
        """Event of the step loop: the optimizer has moved the parameters."""
        if self.stop is not None:  # there was no gradient
            return
        step, rate = self.state.global_step, self.rate
        entry = self.descent.entry(step + 1, rate, clipped=self.args.max_grad_norm > 0)
        if self._line:
            start = time.perf_counter()
            factor = self.monitor.search(step, rate, self.descent.before)
            scale_learning_rate(self.optimizer, self.lr_scheduler, factor)
            seconds = entry.seconds + time.perf_counter() - start
            entry = entry.model_copy(update={"learning_rate": rate * factor, "seconds": seconds})
        self.history.append(entry)
        self.descent.before = []

    def _mean_over_ranks(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        reduced: Tensor = self.accelerator.reduce(values.to(self.args.device), reduction="mean")
        return reduced.cpu()

    def _agree(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        return broadcast_object_list([value])[0] if self.accelerator.num_processes > 1 else value

    def interrupted_anywhere(self) -> bool:
        """Whether any rank was asked to stop."""
        return any(gather_object([self.interrupt.requested]))

    def _gather(self, rows: Tensor) -> Tensor:
        """Rows of all ranks; ranks may hold different numbers of them."""
        if self.accelerator.num_processes == 1:
            return rows
        return torch.tensor(gather_object(rows.tolist()), dtype=rows.dtype)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's, with the numbers of the last step added."""
        if "loss" in logs and self.history:
            last = self.history[-1]
            for field in ("losses", "weights", "gradient_norms", "cosines", "update_cosines"):
                logs |= {f"{field}/{name}": value for name, value in getattr(last, field).items()}
            logs["tokens_per_second"] = last.tokens / max(last.seconds, 1e-9)
        super().log(logs, start_time)

    # -- checkpoints -----------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:  # first: the Trainer's own part ends by removing older checkpoints
            self.monitor.save(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.monitor.load(Path(checkpoint))


class _StepEvents(TrainerCallback):
    """Passes the Trainer's step events on."""

    def __init__(self, unlearner: Unlearner) -> None:
        self.unlearner = unlearner

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.unlearner.monitor.begin()

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


def scale_learning_rate(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Multiply η in every parameter group, now and under the schedule to come."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]


def _records(name: str, data: RecordSource) -> Records:
    return data if isinstance(data, Records) else read_records(data, name=name)


def _check_precision(model: nn.Module) -> None:
    kinds = {str(p.dtype) for p in model.parameters() if p.requires_grad}
    if kinds - {"torch.float32", "torch.float64"}:
        raise ValueError(
            "`model` must have fp32 trainable weights (a small step on a bf16 weight is lost); "
            f"got {sorted(kinds)}. Load it with dtype=torch.float32; compute is bf16 where `bf16=True`."
        )
