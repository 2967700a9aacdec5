"""The plain attack: the training prompt as it stands, answered greedily; the measure of every other one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expunge.attacks.answers import asking_cost, try_prompts
from expunge.attacks.attack import Cost, Family, Findings, Probes, Setting, Target


@dataclass(frozen=True)
class Prompt:
    """The training prompt, answered greedily: what a run's own evaluation asks."""

    name: ClassVar[str] = "prompt"
    family: ClassVar[Family] = "none"
    line: ClassVar[str] = "The training prompt as it stands, answered greedily."

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return None

    def cost(self, probes: Probes) -> Cost:
        return asking_cost(probes, [[record.prompt] for record in probes.forget])

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        return try_prompts(target, probes, setting, [[record.prompt] for record in probes.forget])
