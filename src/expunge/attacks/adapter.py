"""An adapter that is delivered beside its base can be taken off; and merging it in rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from expunge.attacks.attack import Cost, Family, Findings, Probes, Setting, Target
from expunge.attacks.restored import has_adapter, restored, whole
from expunge.attacks.sweep import Tally, answers, sweep_cost


@dataclass(frozen=True)
class Adapter:
    """Ask with the adapter off, and with it merged into the weights.

    A model without an adapter is asked as it is, so that models of both kinds stand side by side.
    """

    name: ClassVar[str] = "adapter"
    family: ClassVar[Family] = "weights"
    line: ClassVar[str] = "The adapter taken off, and merged in."

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return None

    def cost(self, probes: Probes) -> Cost:
        return sweep_cost(probes, 2)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        tally, count = Tally(probes, "state of the adapter"), len(probes.forget)
        if not has_adapter(target.model):
            tally.add(0.0, "no adapter", answers(target, probes, setting))
            note = "The model has no adapter: it was asked as it is."
            return _plain(tally.findings(setting, count, [note]))
        with whole(target.model):
            tally.add(1.0, "adapter merged", answers(target, probes, setting))
        with restored(target.model), cast(Any, target.model).disable_adapter():
            tally.add(2.0, "adapter off", answers(target, probes, setting))
        return _plain(tally.findings(setting, 2 * count))


def _plain(findings: Findings) -> Findings:
    """There is no budget to draw a curve over."""
    return Findings(findings.recoveries, notes=findings.notes, complete=findings.complete)
