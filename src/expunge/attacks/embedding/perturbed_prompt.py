"""A perturbation of the prompt's embeddings, within a norm, that makes a model give the true response."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from expunge.attacks.answers import best, tokens_in
from expunge.attacks.attack import Clock, Cost, Family, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.embedding import never_seen
from expunge.attacks.embedding.balls import L1, L2, Ball, LInf, Masked, along
from expunge.attacks.embedding.carlini_wagner import CarliniWagner
from expunge.attacks.embedding.constant_search import Search
from expunge.attacks.embedding.ddn import DDN
from expunge.attacks.embedding.deepfool import DeepFool
from expunge.attacks.embedding.elastic_net import ElasticNet
from expunge.attacks.embedding.estimators import NES, SPSA, Estimator
from expunge.attacks.embedding.losses import Predict, cross_entropy, margin
from expunge.attacks.embedding.nattack import NAttack
from expunge.attacks.embedding.never_seen import Found
from expunge.attacks.embedding.projected_gradient import ProjectedGradient, Walk
from expunge.attacks.embedding.prompts import answers, prompts_of
from expunge.attacks.embedding.recipes import fgm, fgsm, momentum
from expunge.attacks.embedding.watched import Watched
from expunge.attacks.frozen import frozen
from expunge.collate import Encoded, Encoding
from expunge.generation import MARGIN
from expunge.records import Record

Way = Literal[
    "fgsm", "fgm", "pgd-linf", "pgd-l2", "pgd-l1", "momentum", "nes", "spsa", "nattack", "deepfool", "ddn",
    "carlini-wagner", "elastic-net",
]  # fmt: skip

_NORMS: dict[str, Any] = {"fgsm": LInf, "pgd-linf": LInf, "momentum": LInf, "pgd-l1": L1}
"""Norms other than L2."""

_MINIMAL = ("deepfool", "ddn", "carlini-wagner", "elastic-net")
"""Ways that look for the smallest perturbation, so that one attempt gives the whole curve."""

_ROUNDS = 4
"""Of the search for a constant."""

_DRAWS = 32
"""Values per step of the ways that see values alone: nes, spsa, nattack."""


@dataclass(frozen=True)
class PerturbedPrompt:
    """Perturbs each prompt's embeddings towards the true response, then decodes greedily.

    nes, spsa and nattack see values of the loss alone, as whoever can send embeddings but gets no gradient;
    deepfool takes "all of the response is said" for the class to reach.

    Norms are relative: 1 is the norm of the prompt's own embeddings. At a norm near 1 little of the prompt is
    left, and any response may be had: see the curve, the control, and the targets never seen.

    Args:
        way: Which attack of the family.
        radius: Largest relative norm, positive.
        levels: Points of the curve, up to the radius; ways that need a radius are run once for each.
        steps: Gradient steps of a run (of each round, where a constant is searched); 1 for fgsm and fgm.

    Reference:
        Schwinn et al. (2024), arXiv 2402.09063: embedding-space attacks on unlearned models.
    """

    way: Way = "ddn"
    radius: float = 0.5
    levels: int = 5
    steps: int = 50
    family: ClassVar[Family] = "embedding"

    def __post_init__(self) -> None:
        if self.way not in get_args(Way):
            raise ValueError(f"`way` must be one of {', '.join(get_args(Way))}; got {self.way!r}.")
        if not (self.radius > 0 and math.isfinite(self.radius)):
            raise ValueError(f"`radius` must be positive and finite; got {self.radius}. 1 is the prompt.")
        for name, value in (("levels", self.levels), ("steps", self.steps)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}. None of them is no attack.")

    @property
    def name(self) -> str:
        return f"embedding-{self.way}"

    @property
    def line(self) -> str:
        return (
            f"The prompt's embeddings, perturbed by {self.way} to give the response "
            f"(relative norm up to {self.radius:g}); arXiv 2402.09063."
        )

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return never_seen.obstacle(probes)

    def cost(self, probes: Probes) -> Cost:
        """Twice that of the records: their targets never seen are attacked too."""
        passes = self._passes()
        runs = 1 if self.way in _MINIMAL else self.levels
        blind = self.way in ("nes", "spsa", "nattack")
        once = sum(tokens_in(record.prompt) + tokens_in(record.response) for record in probes.forget)
        written = sum(tokens_in(record.response) + MARGIN for record in probes.forget)
        backward = 0 if blind else 2 * once * passes * runs
        return Cost(2 * once * (passes + 1) * runs, backward, 2 * written * runs)

    def _passes(self) -> int:
        """Forward passes of a run, at most."""
        if self.way in ("fgsm", "fgm"):
            return 1
        rounds = {"carlini-wagner": _ROUNDS, "elastic-net": 2 * _ROUNDS, "nattack": _DRAWS}
        values_alone = {"nes": _DRAWS + 1, "spsa": _DRAWS + 1}
        return self.steps * (rounds | values_alone).get(self.way, 1)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        def attempt(records: Sequence[Record], rows: Sequence[Encoded]) -> list[Found]:
            with frozen(target.model, setting.precision) as device:
                batch = _Batch(target, probes.encoding, device, setting.clock)
                return self._attempt(records, rows, batch)

        own, controls = never_seen.attack_both(target, probes, setting, attempt)
        axis = "norm of the perturbation, relative to the prompt embeddings'"
        return never_seen.findings(own, controls, self._radii(), axis, setting)

    def _radii(self) -> list[float]:
        return [self.radius * (i + 1) / self.levels for i in range(self.levels)]

    def _attempt(self, records: Sequence[Record], rows: Sequence[Encoded], batch: _Batch) -> list[Found]:
        """Every radius in turn, for those that are not recovered yet, as long as there is time."""
        tried: list[list[Recovery]] = [[] for _ in records]
        spent = [math.inf] * len(records)
        radii = [self.radius] if self.way in _MINIMAL else self._radii()
        for number, radius in enumerate(radii, 1):
            left = [i for i, norm in enumerate(spent) if math.isinf(norm)]
            some = [records[i] for i in left], [rows[i] for i in left]
            found, whole = self._once(*some, radius, batch)
            for i, (recovery, norm) in zip(left, found, strict=True):
                tried[i].append(recovery)
                spent[i] = norm if recovery.recovered else math.inf
            whole = whole and number == len(radii)
            if not any(map(math.isinf, spent)) or batch.clock.over:
                break
        return [
            Found(best(found), norm, whole=whole or math.isfinite(norm))
            for found, norm in zip(tried, spent, strict=True)
        ]

    def _once(
        self, records: Sequence[Record], rows: Sequence[Encoded], radius: float, batch: _Batch
    ) -> tuple[list[tuple[Recovery, float]], bool]:
        """A recovery per record with its norm, and whether the search came to its end."""
        prompts = prompts_of(batch.target.model, rows, batch.device)
        ball = Masked(_NORMS.get(self.way, L2)(radius), prompts.mask[..., None])
        scale = along(ball.norm(prompts.embeds), prompts.embeds)
        start = prompts.embeds / scale

        def predict(x: Tensor) -> Tensor:
            return prompts.logits(x * scale)

        watched = Watched(predict, start, prompts.labels, ball, batch.clock)
        found, whole = watched.found(lambda asked: self._perturbed(asked, start, prompts.labels, ball))
        found = start + ball.project(found - start)
        lengths = ball.norm(found - start).tolist()
        said = answers(batch.target, records, rows, found * scale, prompts.mask, batch.encoding)
        told = [
            (_told(recovery, self.way, length), length)
            for recovery, length in zip(said, lengths, strict=True)
        ]
        return told, whole

    def _perturbed(self, predict: Predict, start: Tensor, labels: Tensor, ball: Ball) -> Tensor:
        """The prompts' embeddings after the attack, which may lie beyond the ball."""
        if self.way == "deepfool":
            wanted = torch.ones(len(start), dtype=torch.long, device=start.device)
            return DeepFool(_Said(predict, labels), steps=self.steps, targeted=True).perturb(start, wanted)
        moved: Tensor = self._made(predict, ball, start[0].numel()).perturb(start, labels)
        return moved

    def _made(self, predict: Predict, ball: Ball, coordinates: int) -> Any:
        """The attack itself, at most as far as a relative norm."""
        radius = ball.radius
        if self.way in ("fgsm", "fgm"):
            return {"fgsm": fgsm, "fgm": fgm}[self.way](predict, margin, radius, targeted=True)
        if self.way == "ddn":
            return DDN(predict, steps=self.steps, scale=radius / 8, targeted=True)
        search = Search(0.1, _ROUNDS, self.steps)
        if self.way == "carlini-wagner":
            size = radius / (10 * math.sqrt(coordinates))
            return CarliniWagner(predict, search=search, size=size, targeted=True)
        if self.way == "elastic-net":
            return ElasticNet(predict, beta=1e-3, search=search, size=0.01, targeted=True)
        if self.way in ("nes", "spsa", "nattack"):
            return self._blind(predict, ball, coordinates)
        if self.way == "momentum":
            return momentum(predict, margin, ball, steps=self.steps, targeted=True)
        walk = Walk(self.steps, 2.5 * radius / self.steps)
        return ProjectedGradient(predict, margin, ball, walk, targeted=True)

    def _blind(self, predict: Predict, ball: Ball, coordinates: int) -> Any:
        """From values alone; a draw is a tenth of the radius long (nattack: a quarter)."""
        if self.way == "nattack":
            sigma = ball.radius / (4 * math.sqrt(coordinates))
            rate = 2.5 * ball.radius / self.steps * sigma * math.sqrt(_DRAWS / coordinates)
            walk = Walk(self.steps, rate)
            return NAttack(
                predict, cross_entropy, ball=ball, walk=walk, population=_DRAWS, sigma=sigma, targeted=True
            )
        length, pairs = ball.radius / (10 * math.sqrt(coordinates)), _DRAWS // 2
        estimator: Estimator = NES(pairs, length) if self.way == "nes" else SPSA(pairs, length)
        walk = Walk(self.steps, 2.5 * ball.radius / self.steps)
        return ProjectedGradient(predict, cross_entropy, ball, walk, estimator, targeted=True)


@dataclass(frozen=True, slots=True)
class _Said:
    """The decision whether a response is said: logits [b, 2] whose second is the larger where it is."""

    predict: Predict
    labels: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        missing = margin(self.predict(x), self.labels)
        return torch.stack([missing, -missing], dim=1) / 2


@dataclass(frozen=True, slots=True)
class _Batch:
    """What surrounds a batch of targets."""

    target: Target
    encoding: Encoding
    device: torch.device
    clock: Clock


def _told(recovery: Recovery, way: str, length: float) -> Recovery:
    told = f"{recovery.input} (embeddings perturbed by {way}, relative norm {length:.3g})"
    return dataclasses.replace(recovery, input=told)
