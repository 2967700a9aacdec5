"""Refusal-direction ablation: what tells forget from retain prompts inside the model is projected out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from expunge.attacks.activations.stream import Change, changed, depth, prompt_states
from expunge.attacks.answers import (
    Question,
    ask,
    asking_cost,
    best,
    curve_of,
    stopped,
    tokens_in,
)
from expunge.attacks.attack import Cost, Family, Findings, Probes, Recovery, Setting, Target


@dataclass(frozen=True)
class RefusalAblation:
    r"""Projects a direction out of the stream at every layer and position, then asks the training prompt.

    The direction is $\hat r_l$, the normalised difference between the mean stream at the end of forget
    prompts and that of retain prompts, in the attacked model itself. If the model learned to recognise what
    it must not say, that difference carries the refusal. Several layers' directions are tried, at even
    distances, each as $x \leftarrow x - \hat r \hat r^\top x$ behind every block and before the first.

    Args:
        directions: How many layers' directions are tried, at least 1; as many as there are layers at most.

    Reference:
        Arditi et al. (2024), arXiv 2406.11717, section 2.3 (difference in means) and equation 4 (ablation).
    """

    directions: int = 6
    name: ClassVar[str] = "refusal-ablation"
    family: ClassVar[Family] = "activations"

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise ValueError(f"`directions` must be at least 1; got {self.directions}. Try one.")

    @property
    def line(self) -> str:
        return (
            "The direction between forget and retain prompts, projected out at every layer "
            f"({self.directions} layers' directions tried); arXiv 2406.11717."
        )

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        if not probes.retain:
            return "It compares forget prompts with retain prompts; there are none. Give --retain."
        return None

    def cost(self, probes: Probes) -> Cost:
        asked = asking_cost(probes, [[record.prompt] * self.directions for record in probes.forget])
        read = sum(tokens_in(record.prompt) for record in (*probes.forget, *probes.retain))
        return dataclasses.replace(asked, forward_tokens=asked.forward_tokens + read)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        layers = self._layers(depth(target.model))
        tried: list[list[Recovery]] = [[] for _ in probes.forget]
        for layer, direction in zip(layers, self._directions(target, probes, setting, layers), strict=True):
            if setting.clock.over:
                break
            for found, one in zip(tried, self._ask(target, probes, setting, layer, direction), strict=True):
                found.extend([] if one is None else [one])
        done, wanted = sum(map(len, tried)), len(tried) * len(layers)
        return Findings(
            [best(found) for found in tried],
            curve=curve_of(tried),
            axis="directions tried",
            notes=() if done == wanted else (stopped(setting, done, wanted, "answers"),),
            complete=done == wanted,
        )

    def _layers(self, count: int) -> list[int]:
        """At even distances, the last one among them."""
        chosen = min(self.directions, count)
        return [round(count * (i + 1) / chosen) for i in range(chosen)]

    def _directions(
        self, target: Target, probes: Probes, setting: Setting, layers: Sequence[int]
    ) -> Float[Tensor, "l d"]:
        means = [
            prompt_states(
                target.model, probes.encoding.rows(records, target.tokenizer), layers, setting.precision
            ).mean(1)
            for records in (probes.forget, probes.retain)
        ]
        difference = means[0] - means[1]
        return functional.normalize(difference, dim=1)

    def _ask(
        self, target: Target, probes: Probes, setting: Setting, layer: int, direction: Tensor
    ) -> list[Recovery | None]:
        ablate = _projected_out(direction)
        questions = [Question(record, record.prompt) for record in probes.forget]
        with changed(target.model, dict.fromkeys(range(depth(target.model) + 1), ablate)):
            found = ask(target, questions, probes.encoding, setting)
        told = f"[layer {layer}'s direction projected out]"
        return [one and dataclasses.replace(one, input=f"{one.input} {told}") for one in found]


def _projected_out(direction: Float[Tensor, " d"]) -> Change:
    def change(stream: Tensor) -> Tensor:
        unit = direction.to(stream)
        return stream - (stream @ unit)[..., None] * unit

    return change
