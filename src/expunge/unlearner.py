"""`Unlearner`: a Trainer whose optimizer step gets its gradient from several objectives.

The only change w.r.t. `Trainer` is how one step's gradient is made; checkpoints, schedules, loggers,
mixed precision and distribution stay the Trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from expunge import checkpoints, ranks
from expunge.adapters import merge_adapter, prepare_trainable
from expunge.arguments import UnlearningArguments
from expunge.batching import BySource
from expunge.descent import Descent
from expunge.events import StepEvents, forget_updates, scale_learning_rate
from expunge.facts import Ranks, TokenFacts, compute_facts
from expunge.interrupt import Interrupt
from expunge.material import check_demands, hardening_of, identity, left_out, norm_wanted
from expunge.methods import Method
from expunge.monitor import Monitor
from expunge.observation import count
from expunge.own_parts import check_parts, code_of
from expunge.peers import Peers, reduce_every_pass
from expunge.record import Step, Stop
from expunge.references import LiveReference, live_sources
from expunge.selectors import Responses
from expunge.sharding import fsdp_wanted, shard_on_cpu
from expunge.shards import fill, shares, skeleton
from expunge.training_sets import RecordSource, TrainingSets, read_given
from expunge.updates import sign_update
from expunge.whole_checkpoints import WholeCheckpoints


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

    Attributes:
        cache: Folder where what the reference says is kept for other runs on the same model and records
            (see `expunge.table_cache`); set it before training.

    Raises:
        ValueError: A data set that the method reads is missing; weights are not fp32; fp16 compute is
            asked for; an objective needs what the model cannot give; a part of the method does not keep what
            its interface promises; a checkpoint belongs to another run.
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
        check_parts(method)
        given = {"forget": forget_dataset, "retain": retain_dataset, "holdout": holdout_dataset}
        records = read_given(given | dict(derived_datasets or {}))
        self.norm = norm_wanted(method, args, model)
        model = prepare_trainable(model, args)
        _check_precision(model)
        check_demands(method, model, args)
        self.method = method
        self.tokenizer: PreTrainedTokenizerBase = processing_class
        self.sets = TrainingSets.complete(records, method, args, model, processing_class)
        self.records, self.encoded = self.sets.records, self.sets.encoded
        self.notes = [*self.sets.notes, *left_out(method, args)]
        self.pad_id = int(processing_class.pad_token_id or 0)
        self._skeleton = skeleton(model) if fsdp_wanted(args) else None
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=self.sets.dataset(),
            data_collator=BySource(self.pad_id),
            callbacks=callbacks,
        )
        self.args: UnlearningArguments
        self.model_accepts_loss_kwargs = False
        self.trained = model
        self.facts: TokenFacts | None = None
        self.cache: Path | None = None
        self.peers = Peers(self.accelerator, self.args.device)
        self.notes += self.sets.unread(self.accelerator.num_processes)
        self.monitor = self._make_monitor()
        self.remove_callback(PrinterCallback)
        self.descent = self._make_descent()
        self.interrupt = Interrupt()
        self._line = False
        self.add_callback(StepEvents(self))

    def _make_monitor(self) -> Monitor:
        args, processes = self.args, self.accelerator.num_processes
        return Monitor(
            model=self.trained,
            method=self.method,
            probe=self.sets.probe(self.pad_id),
            check=self.sets.check(self.trained, self.tokenizer),
            check_every=args.check_every,
            identity=identity(args, self.method, self.encoded, processes, self.trained),
            gather=self.peers.gather,
            agree=self.peers.agree,
            code=code_of(self.method),
        )

    def _make_descent(self) -> Descent:
        descent = Descent(
            self.method,
            self.monitor.parameters,
            self.pad_id,
            self.accelerator.backward,
            self.peers.mean,
            share=self.accelerator.num_processes == 1,
            hardening=hardening_of(self.method, self.args, self.norm),
            keep=self.args.gradient_buffers,
        )
        descent.carries = self.args.refresh_every > 1
        return descent

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
        self.is_fsdp_enabled = shard_on_cpu(self.accelerator, self.args)

    # -- data ------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of all data sets at once, for the whole run."""
        args = self.args
        loader = DataLoader(
            self.sets.dataset(self.facts.values if self.facts else None),
            batch_sampler=self.sets.draws(self.accelerator.num_processes),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        self.accelerator.even_batches = (
            False  # every rank gets as many batches; their sizes may differ by a row
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

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
            own = Ranks(self.accelerator.process_index, self.accelerator.num_processes, self.peers.join)
            self.facts = compute_facts(self.method, self.encoded, means, own, self.cache)
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
        if remaining := self.monitor.remaining:  # decided after these were fetched
            batches = [batch | self._narrowed(i, remaining) for i, batch in enumerate(batches)]
        names = [objective.name for objective in self.method.objectives]
        counts = [sum(count(o, batch[o.source]) for batch in batches) for o in self.method.objectives]
        # gradients are averaged over ranks: dividing by the mean count makes that a mean over all tokens
        means = self.peers.mean(torch.tensor(counts, dtype=torch.float64))
        return batches, dict(zip(names, means.tolist(), strict=True))

    def _narrowed(self, position: int, remaining: Sequence[int]) -> dict[str, Any]:
        """Forget rows, from some alone, for the step's micro-batch at a position, and what is paired."""
        steps, accelerator = self.args.gradient_accumulation_steps, self.accelerator
        first = (self.state.global_step * steps + position) * accelerator.num_processes
        pairs = self.sets.drawn(first + accelerator.process_index, remaining)
        rows = self.sets.dataset(self.facts.values if self.facts else None)
        return BySource(self.pad_id)([rows[pair] for pair in pairs])

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
            reduce_every_pass(model, self.args.gradient_buffers)
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

    def begin_step(self) -> None:
        """Event of the step loop: before the first micro-batch."""
        every, step = self.args.diagnose_every, self.state.global_step
        diagnose = every > 0 and step % every == 0 and not self.monitor.weighting.needs_gramian
        if self.monitor.redrawn(step):
            self.descent.carried.clear()  # weights of other rows
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

    def interrupted_anywhere(self) -> bool:
        """Whether any rank was asked to stop."""
        return self.peers.any(self.interrupt.requested)

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


def _check_precision(model: nn.Module) -> None:
    kinds = {str(p.dtype) for p in model.parameters() if p.requires_grad}
    if kinds - {"torch.float32", "torch.float64"}:
        raise ValueError(
            "`model` must have fp32 trainable weights (a small step on a bf16 weight is lost); "
            f"got {sorted(kinds)}. Load it with dtype=torch.float32; compute is bf16 where `bf16=True`."
        )
