"""Linear probes: what a classifier trained on retained records reads out of a layer about forgotten ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import RidgeClassifier

from expunge import intervals
from expunge.attacks.activations.stream import depth, response_states, shown
from expunge.attacks.answers import tokens_in
from expunge.attacks.attack import Cost, Family, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.budget import at_least
from expunge.collate import Encoded
from expunge.records import Record

Array = npt.NDArray[np.float32]

_HELD_OUT = 4
"""Every so manyth retain record chooses the layer and trains no probe."""

_PORTION = 32
"""Records between two looks at the clock."""


@dataclass(frozen=True)
class LinearProbe:
    """Per layer a ridge classifier from the stream to the next response token, trained on retain records.

    Tried on the forget records' first response token, which the model is about to say. The layer is chosen
    on retain records that trained no probe, so that no forget record has a say in it. A record is recovered
    if the probe of that layer names its first token; the score is 1 / rank of that token. Tokens that stand
    in no retain response cannot be named.

    Args:
        ridge: Penalty on the classifier's weights, positive, with the stream standardised.
        positions: Response tokens of the retain set that are read at most, at least 1: of more records than
            that a sample, of each the first tokens. They are kept for every layer.

    Reference:
        Alain & Bengio (2016), arXiv 1610.01644; Patil et al. (2023), arXiv 2309.17410.
    """

    ridge: float = 1.0
    positions: int = 4096
    name: ClassVar[str] = "linear-probe"
    family: ClassVar[Family] = "activations"
    line: ClassVar[str] = (
        "A linear classifier per layer, trained on retain records, names the first response token; "
        "arXiv 1610.01644."
    )

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise ValueError(f"`ridge` must be positive; got {self.ridge}. Features outnumber records.")
        at_least("positions", self.positions)

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        if len(probes.retain) >= 2 * _HELD_OUT:
            return None
        return (
            f"It trains on retain records and needs {2 * _HELD_OUT}; there are {len(probes.retain)}. "
            "Give more with --retain."
        )

    def cost(self, probes: Probes) -> Cost:
        records = [*probes.forget, *probes.retain, *probes.holdout]
        return Cost(sum(tokens_in(record.prompt) + tokens_in(record.response) for record in records))

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        layers = list(range(1, depth(target.model) + 1))
        retain = self._sample(probes.retain, setting.seed)
        sets = {
            "forget": probes.forget,
            "train": [one for i, one in enumerate(retain) if i % _HELD_OUT],
            "chosen on": retain[::_HELD_OUT],
            "holdout": probes.holdout,
        }
        deep = {"train": max(1, self.positions // len(sets["train"]))}
        read: dict[str, _Read] = {}
        for name, records in sets.items():
            found = _read(target, records, probes, setting, layers, deep.get(name, 1))
            if len(found.tokens) < len(records):
                return self._findings(probes, [], layers, setting)
            read[name] = found
        ranks: list[dict[str, list[float]]] = []
        for i in range(len(layers)):
            if setting.clock.over:
                break
            probe = _Probe(read["train"], i, self.ridge)
            ranks.append({name: probe.ranks(read[name], i) for name in sets if name != "train"})
        return self._findings(probes, ranks, layers, setting)

    def _sample(self, retain: Sequence[Record], seed: int) -> Sequence[Record]:
        """As many records as positions at most, in their order."""
        if len(retain) <= self.positions:
            return retain
        kept = np.random.default_rng(seed).permutation(len(retain))[: max(self.positions, 2 * _HELD_OUT)]
        return [retain[i] for i in sorted(kept.tolist())]

    def _findings(
        self,
        probes: Probes,
        ranks: Sequence[dict[str, list[float]]],
        layers: Sequence[int],
        setting: Setting,
    ) -> Findings:
        if not ranks:
            late = f"Stopped after {setting.clock.seconds:g} s, before the first probe was trained."
            return Findings(
                [Recovery(0.0, False, tries=0)] * len(probes.forget), notes=(late,), complete=False
            )
        chosen = int(np.argmax([np.mean([1 / r for r in one["chosen on"]]) for one in ranks]))
        told = f"[layer {layers[chosen]} read by a linear probe]"
        values = {
            f"first token named, {name}, layer {layer}": intervals.share(
                [float(rank == 1) for rank in one[name]], seed=setting.seed
            )
            for i in sorted({chosen, *shown(len(ranks))})
            for layer, one in [(layers[i], ranks[i])]
            for name in ("forget", "holdout")
            if one[name]
        }
        found = [
            Recovery(1 / rank, rank == 1, f"{record.prompt} {told}")
            for record, rank in zip(probes.forget, ranks[chosen]["forget"], strict=True)
        ]
        missing = sum(np.isinf(rank) for rank in ranks[chosen]["forget"])
        notes = [
            f"The layer was chosen on retain records. {missing} of {len(found)} first tokens stand in no "
            "retain response, so that no probe can name them."
        ]
        if len(ranks) < len(layers):
            notes.append(f"Stopped after {setting.clock.seconds:g} s: {len(ranks)} of {len(layers)} layers.")
        return Findings(found, values=values, notes=notes, complete=len(ranks) == len(layers))


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """Streams of some records, per record [layers, t, d], and the token that follows each, [t]."""

    states: list[Array]
    tokens: list[tuple[int, ...]]


class _Probe:
    """A ridge classifier of one layer."""

    def __init__(self, read: _Read, layer: int, ridge: float) -> None:
        x = np.concatenate([one[layer] for one in read.states])
        y = np.concatenate([np.asarray(tokens) for tokens in read.tokens])
        self._middle, self._spread = x.mean(0), x.std(0) + 1e-6
        self._fitted: Any = RidgeClassifier(alpha=ridge).fit(self._standard(x), y)

    def ranks(self, read: _Read, layer: int) -> list[float]:
        """Of each record's first token, 1 the first; infinity where the probe does not know the token."""
        if not read.tokens:
            return []
        scores = self._fitted.decision_function(
            self._standard(np.stack([one[layer, 0] for one in read.states]))
        )
        if scores.ndim == 1:
            scores = np.stack([-scores, scores], axis=1)
        places = {int(token): place for place, token in enumerate(self._fitted.classes_)}
        return [
            float(1 + (row > row[places[tokens[0]]]).sum()) if tokens[0] in places else float("inf")
            for row, tokens in zip(scores, read.tokens, strict=True)
        ]

    def _standard(self, x: Array) -> Array:
        return np.asarray((x - self._middle) / self._spread)


def _read(
    target: Target,
    records: Sequence[Record],
    probes: Probes,
    setting: Setting,
    layers: Sequence[int],
    deep: int,
) -> _Read:
    """The first `deep` response tokens of each record, in portions; fewer records where time runs out."""
    found = _Read([], [])
    for start in range(0, len(records), _PORTION):
        if setting.clock.over:
            break
        rows: list[Encoded] = probes.encoding.rows(records[start : start + _PORTION], target.tokenizer)
        states = response_states(target.model, rows, layers, setting.precision)
        found.states.extend(one[:, :deep].clone().numpy() for one in states)
        found.tokens.extend(row.labels[:deep] for row in rows)
    return found
