"""The worst case over attacks, record by record: what an attacker with all of them would have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from expunge.attacks.answers import best
from expunge.attacks.attack import Attack, Cost, Family, Findings, Probes, Recovery, Setting, Target


@dataclass(frozen=True)
class ChooseBest:
    """Every attack, and per record what came furthest.

    The same choice is made on every model, so that a control gets as many chances as the unlearned model.

    Args:
        attacks: At least one; those that cannot run are left out and named in the notes.
    """

    attacks: tuple[Attack, ...]
    name: ClassVar[str] = "choose-best"
    family: ClassVar[Family] = "none"
    line: ClassVar[str] = "Per record, the attack that came furthest."

    def __post_init__(self) -> None:
        if not self.attacks:
            raise ValueError("`attacks` must hold at least one attack; got none.")

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        why = [attack.obstacle(probes, setting) for attack in self.attacks]
        return next(iter(why)) if all(why) else None

    def cost(self, probes: Probes) -> Cost:
        costs = [attack.cost(probes) for attack in self.attacks]
        return Cost(
            sum(cost.forward_tokens for cost in costs),
            sum(cost.backward_tokens for cost in costs),
            sum(cost.generated_tokens for cost in costs),
        )

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        obstacles = {attack.name: attack.obstacle(probes, setting) for attack in self.attacks}
        able = [attack for attack in self.attacks if obstacles[attack.name] is None]
        found = worst_case({attack.name: attack.run(target, probes, setting) for attack in able})
        left_out = [f"{name} was left out: {why}" for name, why in obstacles.items() if why]
        return dataclasses.replace(found, notes=(*found.notes, *left_out))


def worst_case(findings: Mapping[str, Findings]) -> Findings:
    """Per record the recovery that came furthest, its input told with the attack's name.

    Args:
        findings: Attack -> what it found on one model, all about the same records.

    Raises:
        ValueError: There are none, or they are about different numbers of records.
    """
    counts = {len(found.recoveries) for found in findings.values()}
    if len(counts) != 1:
        raise ValueError(f"`findings` must be about the same records; got {sorted(counts)} of them.")
    per_record = [
        best([_named(name, found.recoveries[i]) for name, found in findings.items()])
        for i in range(counts.pop())
    ]
    return Findings(
        per_record,
        complete=all(found.complete for found in findings.values()),
        notes=tuple(note for found in findings.values() for note in found.notes),
    )


def winners(findings: Mapping[str, Findings], record: int) -> Sequence[str]:
    """The attacks that brought one record back."""
    return [name for name, found in findings.items() if found.recoveries[record].recovered]


def _named(name: str, recovery: Recovery) -> Recovery:
    return dataclasses.replace(recovery, input=f"{name}: {recovery.input}")
