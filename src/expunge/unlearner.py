"""`Unlearner`: a Trainer whose optimizer step gets its gradient from several objectives.

The only change w.r.t. `Trainer` is how one step's gradient is made; checkpoints, schedules, loggers,
mixed precision and distribution stay the Trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from expunge import checkpoints, ranks
from expunge.adapters import merge_adapter, prepare_trainable
from expunge.arguments import UnlearningArguments
from expunge.batching import BySource, Draws, Sources
from expunge.collate import Encoded, Encoding, collate
from expunge.companions import join_rows, joined
from expunge.derived import is_derived, is_forget
from expunge.descent import Descent
from expunge.events import StepEvents, forget_updates, scale_learning_rate
from expunge.facts import Ranks, TokenFacts, compute_facts
from expunge.forget_check import CheckSettings, ForgetCheck, forget_check, sample
from expunge.inference import model_context
from expunge.interrupt import Interrupt
from expunge.launch import check_launch
from expunge.material import check_demands, complete, fingerprint, means_of, streams
from expunge.methods import Method
from expunge.monitor import Monitor
from expunge.observation import Batch, count
from expunge.record import Step, Stop
from expunge.records import Record, Records, read_records
from expunge.references import LiveReference, live_sources
from expunge.selectors import Responses
from expunge.sharding import fsdp_wanted, shard_on_cpu
from expunge.shards import fill, shares, skeleton
from expunge.updates import sign_update
from expunge.whole_checkpoints import WholeCheckpoints

PROBE_BATCH = 8

RecordSource = Records | Iterable[Record | Mapping[str, Any]]


class Unlearner(WholeCheckpoints):
    """Trains a causal language model by a `Method`.

    The only change w.r.t. `Trainer` is `training_step`: it computes one gradient per objective (or
    one fused gradient, where the weights do not depend on gradients) and combines them once per
    optimizer step. Events of the step loop drive a `Monitor` that measures and decides. A method with a
    `merge` trains as often as that says, each time from the start, and ends with the merged model.

    Args:
        model: A causal language model with fp32 weights, as it is at the start: it is the reference too.
            To resume, give it as it was then; the checkpoint brings the weights.
        args: Settings; `output_dir` takes checkpoints.
        method: See `expunge.methods`.
        processing_class: The model's tokenizer.
        forget_dataset: Records to forget; needed when the method reads them.
        retain_dataset: Records to keep; needed when the method reads them.
        holdout_dataset: Records of the same kind that the model has never seen: with them a run stops
            when forget records look like these. Without, other records' responses are the control.
        derived_datasets: Sets derived from the forget set, row for row, that exist already; those that the
            method reads besides are made (see `expunge.derived`). Companions of a set too, under their names
            (see `expunge.companions`); derived sets then have rows for `forget` and, behind them, for
            `forgotten`.
        callbacks: As for `Trainer`; but the optimizer's step may be taken in `on_pre_optimizer_step`, a
            part of the parameters at a time, and `.grad` is None after it. Hooks on the optimizer's own
            step prevent that.

    Raises:
        ValueError: A data set that the method reads is missing; weights are not fp32; fp16 compute is
            asked for; an objective needs what the model cannot give; a checkpoint belongs to another run.
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
        derived_datasets: Mapping[str, RecordSource] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        given = {"forget": forget_dataset, "retain": retain_dataset, "holdout": holdout_dataset}
        given |= derived_datasets or {}
        records = {name: _records(name, data) for name, data in given.items() if data is not None}
        model = prepare_trainable(model, args)
        _check_precision(model)
        check_demands(method, model, args)
        self.method = method
        self.context = model_context(model)
        self.tokenizer: PreTrainedTokenizerBase = processing_class
        made = complete(joined(records), method, args, means_of(model, processing_class, args))
        self.records = records | {name: found.records for name, found in made.items()}
        self.notes = [note for found in made.values() for note in found.notes]
        encoded = {name: self._encode(name, rows, args) for name, rows in self.records.items()}
        self.encoded, self.own = join_rows(encoded)
        self.pad_id = int(processing_class.pad_token_id or 0)
        self._skeleton = skeleton(model) if fsdp_wanted(args) else None
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
        self.facts: TokenFacts | None = None
        self.monitor = Monitor(
            model=model,
            method=method,
            probe=self._probe(),
            check=self._check() if any(map(is_forget, method.sources)) else None,
            check_every=args.check_every,
            fingerprint=fingerprint(args, method, self.encoded, self.accelerator.num_processes, model),
            gather=self._gather,
            agree=self._agree,
        )
        self.remove_callback(PrinterCallback)
        self.descent = Descent(
            method,
            self.monitor.parameters,
            self.pad_id,
            self.accelerator.backward,
            self._mean_over_ranks,
            share=self.accelerator.num_processes == 1,
            hardening=args.hardening,
            keep=args.gradient_buffers,
        )
        self.descent.carries = args.refresh_every > 1
        self.interrupt = Interrupt()
        self._line = False
        self.add_callback(StepEvents(self))

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

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer's; FSDP is not dropped where there are CPUs only."""
        super().create_accelerator_and_postprocess()
        check_launch(self.accelerator, self.args)
        self.is_fsdp_enabled = shard_on_cpu(self.accelerator, self.args)

    # -- data ------------------------------------------------------------------------------------

    def _encode(self, name: str, records: Records, args: UnlearningArguments) -> list[Encoded]:
        """A derived response that exceeds the context is cut; a record of the user's is refused."""
        longest = args.max_length or (self.context if is_derived(name) else None)
        encoding = Encoding(args.template, longest)
        return encoding.rows(records, self.tokenizer, context=self.context, name=name)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of all data sets at once, for the whole run."""
        args = self.args
        length = args.max_steps * args.gradient_accumulation_steps * self.accelerator.num_processes
        loader = DataLoader(
            Sources(
                {name: self.encoded[name] for name in self.method.sources},
                self.facts.values if self.facts else None,
            ),
            batch_sampler=Draws(streams(self.method, self.encoded, args, self.own), length),
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
            self.records.get("forgotten"),
        )

    def _probe(self) -> list[Batch]:
        rule, budget = self.method.step_size, self.method.budget
        count = max(budget.rows if budget else 0, (rule.rows or 0) if rule else 0)
        if not count or "retain" not in self.encoded:
            return []
        rows = sample(self.encoded["retain"][: self.own["retain"]], count, self.args.seed)
        rows = sorted(rows, key=lambda row: len(row.input_ids))
        batches = [collate(rows[i : i + PROBE_BATCH], self.pad_id) for i in range(0, len(rows), PROBE_BATCH)]
        return [self._to_device(batch) for batch in batches]

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.args.device) for name, tensor in batch.items()}

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the first Ctrl-C or SIGTERM ends it after the step, with a checkpoint."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoints.newest(Path(str(self.args.output_dir)))
        checkpoint = str(resume_from_checkpoint) if resume_from_checkpoint else None
        with self.interrupt:
            self._consult_reference(checkpoint)
            return super().train(checkpoint, *args, **kwargs)

    def _consult_reference(self, checkpoint: str | None) -> None:
        """Before the weights move: what objectives must know of the model as it is now, once a run."""
        if self.facts is None and checkpoint:
            self.facts = TokenFacts.load(Path(checkpoint), self.encoded)
        if self.facts is None:
            means = Responses([], self.tokenizer, self.trained, self.pad_id, self.args.precision)
            own = Ranks(self.accelerator.process_index, self.accelerator.num_processes, self._join_lists)
            self.facts = compute_facts(self.method, self.encoded, means, own)
        if live_sources(self.method) and self.descent.reference is None:
            self.descent.reference = LiveReference(self.trained, self.args.precision)
        if self.monitor.phases and not self.monitor.phases.start:
            self.monitor.phases.begin(self.descent.reference.start if self.descent.reference else None)

    def delivered(self) -> nn.Module:
        """The model to save and to measure: with an adapter of this run merged in, if settings say so.

        A sharded one is gathered, on every rank's host; all ranks must ask. Where that is too large for them,
        `save_model` gathers on the first rank alone.
        """
        if self._skeleton is not None and ranks.sharded(self.trained):
            self.trained = fill(self._skeleton, self.trained)
        if self.args.lora_rank and self.args.lora_merge:
            return merge_adapter(self.trained)
        return self.trained

    def release(self) -> None:
        """Free what only training needs (optimizer state, gradients, last good state); the model stays."""
        self.trained.zero_grad()
        self.descent.begin(repair=False, separate=False)
        self.descent.reference = None
        self.monitor.good.forget()
        self.monitor.phases = None
        self.optimizer = self.lr_scheduler = None
        self.accelerator.unwrap_model(self.trained, keep_fp32_wrapper=False)
        self.trained.eval()
        self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.accelerator.free_memory()

    def begin_training(self) -> None:
        """Event of the step loop: the model is wrapped and, under FSDP, its parameters are others now."""
        self.descent.parameters = self.monitor.parameters
        self.monitor.begin()

    # -- the gradient of one optimizer step ------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """As the Trainer's, with the tokens or rows of the step counted per objective (mean over ranks)."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        names = [objective.name for objective in self.method.objectives]
        counts = [sum(count(o, batch[o.source]) for batch in batches) for o in self.method.objectives]
        # gradients are averaged over ranks: dividing by the mean count makes that a mean over all tokens
        means = self._mean_over_ranks(torch.tensor(counts, dtype=torch.float64))
        return batches, dict(zip(names, means.tolist(), strict=True))

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
        if self.descent.separate:
            self._reduce_now(model)
        with self.accelerator.autocast():
            share = self.descent.add(model, batches, num_items_in_batch)
            if self.accelerator.sync_gradients:
                self.descent.harden(model)
        if self.accelerator.sync_gradients:
            self._combine()
        return torch.tensor(share, device=self.args.device)

    def _combine(self) -> None:
        """Make the step's gradient, or none where the run has diverged."""
        step = self.state.global_step
        if not self.descent.combine():
            self.monitor.diverged(step)
        elif sentence := self.monitor.exploded(self.descent.losses):
            self.descent.discard()
            self.monitor.diverged(step, sentence)

    def _reduce_now(self, model: nn.Module) -> None:
        """Where gradients do not wait in `.grad`, every micro-batch's are reduced over ranks, not the last's.

        FSDP2 would otherwise let whole gradients pile up, those of all objectives in one.
        """
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(True)
        elif isinstance(model, DistributedDataParallel) and self.args.gradient_buffers != "fp32":
            model.require_backward_grad_sync = True  # the Trainer's `no_sync` puts its own value back

    def begin_step(self) -> None:
        """Event of the step loop: before the first micro-batch."""
        every, step = self.args.diagnose_every, self.state.global_step
        diagnose = every > 0 and step % every == 0 and not self.monitor.weighting.needs_gramian
        carry = step % self.args.refresh_every > 0
        self.descent.weighting = self.monitor.weighting
        self.descent.begin(repair=self.monitor.state.repairing, separate=diagnose, carry=carry)
        if (rule := self.args.zeroth) is not None and rule.due(step):
            self.descent.estimate(rule, seed=(self.args.seed << 32) + step)
            if not carry:
                self.descent.carried.clear()  # the refresh falls to the next plain step

    def before_optimizer(self) -> None:
        """Event of the step loop: the gradient is ready, the parameters have not moved."""
        step = self.state.global_step
        self._line = self.monitor.line_due(step, self.rate) and self.stop is None
        if self._line:
            retain = [batches["retain"] for batches in self.descent.batches]
            self.monitor.begin_line(step, retain)
        if self.stop is not None:
            return
        if self._line or self.args.update == "sign":
            self.descent.remember()
        else:
            inner = getattr(self.optimizer, "optimizer", self.optimizer)
            self.descent.follow(inner, clipped=self.args.max_grad_norm > 0)

    def after_optimizer(self) -> None:
        """Event of the step loop: the optimizer has moved the parameters."""
        if self.stop is not None:  # there was no gradient
            return
        step, rate = self.state.global_step, self.rate
        if self.args.update == "sign" and rate > 0:
            sign_update(shares(self.monitor.parameters), self.descent.before, rate)
        entry = self.descent.entry(step + 1, rate, clipped=self.args.max_grad_norm > 0)
        if self._line:
            start = time.perf_counter()
            factor = self.monitor.search(step, rate, self.descent.before)
            scale_learning_rate(self.optimizer, self.lr_scheduler, factor)
            seconds = entry.seconds + time.perf_counter() - start
            entry = entry.model_copy(update={"learning_rate": rate * factor, "seconds": seconds})
        self.history.append(entry)
        self.descent.before = []

    def end_phase(self) -> None:
        """Event of the step loop: where another training of a merged method follows, go back to the start."""
        phases = self.monitor.phases
        if phases is None or self.stop or not phases.ended(self.state.global_step, self.args.max_steps):
            return
        phases.advance()
        self.descent.carried.clear()
        forget_updates(self.optimizer)
        self.lr_scheduler = None
        self.create_scheduler(self.args.max_steps)
        self.callback_handler.lr_scheduler = self.lr_scheduler

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As the Trainer's, over one training of a merged method."""
        phases = self.monitor.phases
        steps = phases.length(num_training_steps) if phases else num_training_steps
        return super().create_scheduler(steps, optimizer)

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

    def _join_lists(self, items: list[Any]) -> list[Any]:
        """Lists of all ranks, one after the other."""
        joined: list[Any] = gather_object(items)
        return joined

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's, with the numbers of the last step added."""
        if "loss" in logs and self.history:
            last = self.history[-1]
            for field in ("losses", "weights", "gradient_norms", "cosines", "update_cosines"):
                logs |= {f"{field}/{name}": value for name, value in getattr(last, field).items()}
            logs["tokens_per_second"] = last.tokens / max(last.seconds, 1e-9)
        super().log(logs, start_time)

    # -- checkpoints -----------------------------------------------------------------------------

    def save_beside(self, folder: Path) -> None:
        """Beside the Trainer's files: what was measured and decided, the last good state, the reference's."""
        first = self.args.should_save
        if first or ranks.sharded(self.trained):
            self.monitor.state.carried = self.descent.carried
            self.monitor.save(folder)
        if first and self.facts is not None:
            self.facts.save(folder)

    def return_to_checkpoint(self) -> None:
        """Event of the step loop: at the end, where the run diverged and keeps no state in memory."""
        stop = self.stop
        if stop is None or not self.monitor.astray:
            return
        # the checkpoint of the step itself, if there is one, holds what has just been found to be lost
        checkpoint = checkpoints.newest(Path(str(self.args.output_dir)), before=stop.step)
        if checkpoint and self.monitor.owns(checkpoint):
            self._load_from_checkpoint(str(checkpoint))
            self.monitor.returned(checkpoints.step_of(checkpoint), "the last checkpoint")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.monitor.load(Path(checkpoint))
            self.descent.carried = dict(self.monitor.state.carried)


def _records(name: str, data: RecordSource) -> Records:
    return data if isinstance(data, Records) else read_records(data, name=name)


def _check_precision(model: nn.Module) -> None:
    kinds = {str(p.dtype) for p in model.parameters() if p.requires_grad}
    if kinds - {"torch.float32", "torch.float64"}:
        raise ValueError(
            "`model` must have fp32 trainable weights (a small step on a bf16 weight is lost); "
            f"got {sorted(kinds)}. Load it with dtype=torch.float32; compute is bf16 where `bf16=True`."
        )
