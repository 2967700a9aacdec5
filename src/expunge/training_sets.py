"""The data sets of a training: given or made for it, as records and as rows, and what is drawn of them.

Knows a method, settings and data; the model is looked at while sets are made, and not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge import material
from expunge.arguments import UnlearningArguments
from expunge.batching import Draws, Facts, Rows, RowStream, Sources, drawn
from expunge.collate import Encoded, Encoding, collate
from expunge.companions import in_order, join_rows, joined
from expunge.derived import is_derived, is_forget
from expunge.forget_check import CheckSettings, ForgetCheck, forget_check, sample
from expunge.inference import model_context
from expunge.methods import Method
from expunge.observation import Batch
from expunge.records import Record, Records, read_records

PROBE_BATCH = 8

RecordSource = Records | Iterable[Record | Mapping[str, Any]]


def read_given(given: Mapping[str, RecordSource | None]) -> dict[str, Records]:
    """Data set -> records, of those that are given.

    Raises:
        UsageError: Records cannot be used.
    """
    return {
        name: data if isinstance(data, Records) else read_records(data, name=name)
        for name, data in given.items()
        if data is not None
    }


@dataclass(frozen=True)
class TrainingSets:
    """What a training reads.

    Attributes:
        method: Says which sets.
        args: Settings.
        records: Data set -> records.
        encoded: Data set -> rows; those of companions stand behind their host's own.
        own: Data set -> rows of its own.
        notes: What a reader of the record must know of sets that were made.
        context: Of the model, in tokens; None: unknown.
    """

    method: Method
    args: UnlearningArguments
    records: dict[str, Records]
    encoded: dict[str, list[Encoded]]
    own: dict[str, int]
    notes: list[str]
    context: int | None

    @classmethod
    def complete(
        cls,
        records: Mapping[str, Records],
        method: Method,
        args: UnlearningArguments,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
    ) -> TrainingSets:
        """The given sets and those that are made of them, as rows.

        Args:
            records: Data set -> records that are given.
            method: Says what it reads.
            args: Settings.
            model: As it is at the start.
            tokenizer: Its tokenizer.

        Raises:
            ValueError: A data set is missing, or a derived one does not fit the forget set.
            UsageError: A data set could not be made, or does not fit the model.
        """
        made = material.complete(joined(records), method, args, material.means_of(model, tokenizer, args))
        whole = dict(records) | {name: found.records for name, found in made.items()}
        context = model_context(model)
        rows: dict[str, list[Encoded]] = {}
        for name, found in whole.items():
            # a derived response that exceeds the context is cut; a record of the user's is refused
            longest = args.max_length or (context if is_derived(name) else None)
            encoding = Encoding(args.template, longest)
            rows[name] = encoding.rows(found, tokenizer, context=context, name=name)
        encoded, own = join_rows(rows)
        notes = [note for found in made.values() for note in found.notes]
        return cls(method, args, whole, encoded, own, notes, context)

    def dataset(self, facts: Mapping[str, Facts] | None = None) -> Sources:
        """Rows that the method reads, with what is known of their tokens."""
        return Sources({name: self.encoded[name] for name in self.method.sources}, facts)

    def draws(self, processes: int) -> Draws:
        """Micro-batches of all data sets at once, for the whole run of so many processes."""
        length = self.args.max_steps * self.args.gradient_accumulation_steps * processes
        return Draws(self._streams, length)

    @cached_property
    def _streams(self) -> dict[str, RowStream | Rows]:
        return material.streams(self.method, self.encoded, self.args, self.own)

    def drawn(self, batch: int, remaining: Sequence[int]) -> list[tuple[str, int]]:
        """Forget rows of a micro-batch, as (data set, row) pairs, drawn from some of them alone.

        With the same rows of sets that are derived from them, and the companions' rows that come anyhow.

        Args:
            batch: Number of the micro-batch in the whole run.
            remaining: Forget rows to draw from, at least one: in turn.
        """
        forget, size = self.own["forget"], self.args.per_device_train_batch_size
        turn = in_order(len(remaining), min(size, len(remaining)))(batch)
        pairs = []
        for name, stream in self._streams.items():
            if is_forget(name):
                companions = (row for row in drawn(stream)(batch) if row >= forget)
                pairs += [(name, row) for row in (*(remaining[i] for i in turn), *companions)]
        return pairs

    def unread(self, processes: int) -> list[str]:
        """A sentence on forget records that a schedule does not come to within the run, if there are any."""
        schedule, args = self.method.schedule, self.args
        if schedule is None:
            return []
        rows, size = self.own["forget"], args.per_device_train_batch_size
        per_step = args.gradient_accumulation_steps * processes
        missed = schedule.unread(rows, size, args.max_steps * per_step)
        if not missed:
            return []
        whole = -(-schedule.steps(rows, size) // per_step)
        return [
            f"{missed} of {rows} forget records are never trained on: {self.method.name} takes them chunk by "
            f"chunk, and max_steps={args.max_steps} ends in its first round. A whole one takes "
            f"max_steps={whole}."
        ]

    def check(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> ForgetCheck | None:
        """The look at the forget records; None where the method reads none, or nothing compares with them."""
        if not self.method.forgets:
            return None
        args = self.args
        encoding = Encoding(args.template, args.max_length or self.context)
        return forget_check(
            model,
            tokenizer,
            self.records["forget"],
            self.encoded.get("holdout"),
            CheckSettings(args.check_rows, args.seed, encoding, args.precision),
            retain=self.records.get("retain", ()),
            earlier=self.records.get("forgotten"),
        )

    def probe(self, pad_id: int) -> list[Batch]:
        """Retain rows that budget and step-size rule read, in batches, where the model is; perhaps none."""
        rule, budget = self.method.step_size, self.method.budget
        count = max(budget.rows if budget else 0, (rule.rows or 0) if rule else 0)
        if not count or "retain" not in self.encoded:
            return []
        rows = sample(self.encoded["retain"][: self.own["retain"]], count, self.args.seed)
        rows = sorted(rows, key=lambda row: len(row.input_ids))
        batches = [collate(rows[i : i + PROBE_BATCH], pad_id) for i in range(0, len(rows), PROBE_BATCH)]
        return [{name: t.to(self.args.device) for name, t in batch.items()} for batch in batches]
