"""Objectives: scalar losses on one data source, always minimised.

An objective sees next-token logits at label positions, and what it asked for besides (`Needs`). It
knows nothing of gradients, weights or data files. One idea per file.
"""

from expunge.objectives.likelihood import NLL, Ascent
from expunge.objectives.objective import Needs, Objective
from expunge.objectives.tokens import Reference, TokenLogits
from expunge.objectives.unlikelihood import UCE

__all__ = ["NLL", "UCE", "Ascent", "Needs", "Objective", "Reference", "TokenLogits"]
