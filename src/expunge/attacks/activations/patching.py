"""Activation patching: the original's residual stream at the prompt's end, put into the unlearned model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.attacks.activations.stream import Change, changed, depth
from expunge.attacks.answers import UNREACHED, best, judge, stopped, tokens_in
from expunge.attacks.attack import Cost, Family, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.decoding import decode, embedding_of, end_tokens
from expunge.collate import Encoded
from expunge.errors import UsageError
from expunge.generation import MARGIN
from expunge.hidden import residual_stream
from expunge.inference import evaluating, model_context
from expunge.records import Record

_NOTE = (
    "What the original thinks at the end of the prompt is carried over: read recovery beside that of the "
    "control, which gets the same."
)
_UNSTATED_LAYERS = 12
"""What the estimate of the cost takes for the number of layers."""


@dataclass(frozen=True)
class ActivationPatching:
    """At one layer after another, the last prompt positions get the original's stream; then decoded.

    If the answer comes back, the layers above still know how to say it, and only what feeds them was changed.
    Answers are decoded on, unpatched, from the patched prompt. The last layer is left out: there the original
    itself would speak.

    Args:
        positions: Of the prompt, counted from its end, that are overwritten; at least 1.
        every: Only every so manyth layer is tried, from the first; at least 1.

    Reference:
        Meng et al. (2022), arXiv 2202.05262, section 2.1; Hong et al. (2024), arXiv 2406.11614 (for unlearned
        models).
    """

    positions: int = 4
    every: int = 1
    name: ClassVar[str] = "activation-patching"
    family: ClassVar[Family] = "activations"
    borrows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in (("positions", self.positions), ("every", self.every)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}. None of them is no attack.")

    @property
    def line(self) -> str:
        return (
            f"The original's stream at the prompt's last {self.positions} positions, put in at each layer in "
            "turn; arXiv 2406.11614."
        )

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        if setting.original is None:
            return "It takes activations from the original model. Give --original."
        return None

    def cost(self, probes: Probes) -> Cost:
        layers = -(-_UNSTATED_LAYERS // self.every)
        read = sum(tokens_in(record.prompt) for record in probes.forget)
        written = sum(tokens_in(record.response) + MARGIN for record in probes.forget)
        return Cost((layers + 1) * read, 0, layers * written)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        original = setting.original
        if original is None:
            raise ValueError("`setting` must hold the original model; got none. Give it.")
        layers = self._layers(target, original)
        rows = probes.encoding.rows(probes.forget, target.tokenizer)
        tried: list[list[Recovery]] = []
        for row, record in zip(rows, probes.forget, strict=True):
            if setting.clock.over:
                break
            carried = self._carried(original, row, layers, setting)
            tried.append(self._answers(target, record, row, carried, probes, setting))
        missing = len(rows) - len(tried)
        late = (stopped(setting, len(tried), len(rows), "records"),) if missing else ()
        return Findings(
            [*map(best, tried), *[UNREACHED] * missing],
            curve={
                float(layer): [
                    *(any(one.recovered for one in found[: i + 1]) for found in tried),
                    *[False] * missing,
                ]
                for i, layer in enumerate(layers)
            },
            axis="layers tried, up to this one",
            notes=(_NOTE, *late),
            complete=not missing,
        )

    def _layers(self, target: Target, original: Target) -> list[int]:
        count, theirs = depth(target.model), depth(original.model)
        if count != theirs:
            raise UsageError(
                f"The original must have as many blocks as the {target.role} model, {count}; "
                f"it has {theirs}. Name the model that was unlearned."
            )
        return list(range(1, count, self.every)) or [0]

    def _carried(
        self, original: Target, row: Encoded, layers: Sequence[int], setting: Setting
    ) -> dict[int, Tensor]:
        """The original's stream at the prompt's last positions, [k, d] per layer."""
        with evaluating(original.model, setting.precision) as device:
            ids = torch.tensor([row.input_ids[: row.prompt_length]], device=device)
            wanted = torch.zeros_like(ids, dtype=torch.bool)
            wanted[:, -self.positions :] = True
            with residual_stream(original.model, tuple(layers), wanted) as caught:
                original.model(input_ids=ids, use_cache=False)
        return caught

    def _answers(
        self,
        target: Target,
        record: Record,
        row: Encoded,
        carried: dict[int, Tensor],
        probes: Probes,
        setting: Setting,
    ) -> list[Recovery]:
        """One answer per layer, all decoded in one batch in which row i is patched at layer i."""
        ends = end_tokens(target.model, target.tokenizer, probes.encoding.template)
        context, length = model_context(target.model), len(row.labels) + MARGIN
        budget = length if context is None else max(1, min(length, context - row.prompt_length))
        changes = {layer: _overwrite(i, states) for i, (layer, states) in enumerate(carried.items())}
        with evaluating(target.model, setting.precision) as device, changed(target.model, changes):
            embeds, mask = _copies(target.model, row, len(carried), device)
            said = decode(target.model, embeds, mask, [budget] * len(carried), ends)
        texts = [str(target.tokenizer.decode(list(one), skip_special_tokens=True)).strip() for one in said]
        return [
            dataclasses.replace(
                judge(record, record.prompt, text),
                input=f"{record.prompt} [the original's activations at layer {layer}]",
            )
            for layer, text in zip(carried, texts, strict=True)
        ]


def _copies(model: nn.Module, row: Encoded, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([row.input_ids[: row.prompt_length]], device=device).expand(count, -1)
    return embedding_of(model)(ids), torch.ones_like(ids)


def _overwrite(row: int, states: Tensor) -> Change:
    """Puts states at the end of one row of the first pass; later passes stay as they are."""
    pending = [True]

    def change(stream: Tensor) -> Tensor:
        if not pending:
            return stream
        pending.clear()
        patched = stream.clone()
        patched[row, -len(states) :] = states.to(stream)
        return patched

    return change
