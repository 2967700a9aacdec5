"""Objectives: scalar losses on one data source, always minimised.

An objective sees next-token logits at label positions, and what it asked for besides (`Needs`). It
knows nothing of gradients, weights or data files. One idea per file.

To forget: `Ascent(NLL)`, `WGA`, `SatImp`, `UCE`, `InvertedHinge`, `CEU`, `UNDIAL`, `MaxEntropy`,
`LogitMargin`, `NPO`, `SimNPO`, `DPO`, `Replacement`, `Steering`. To retain: `NLL`, `KL`,
`ActivationMatching`. Either, on chosen tokens: `Selected`.
"""

from expunge.objectives.activations import ActivationMatching, Steering
from expunge.objectives.ceu import CEU
from expunge.objectives.divergence import KL
from expunge.objectives.dpo import DPO
from expunge.objectives.entropy import MaxEntropy
from expunge.objectives.hinge import InvertedHinge
from expunge.objectives.likelihood import NLL, Ascent
from expunge.objectives.logit_margin import LogitMargin
from expunge.objectives.npo import NPO
from expunge.objectives.objective import GenericLabels, Needs, Objective
from expunge.objectives.replacement import Replacement
from expunge.objectives.reweighted import WGA, SatImp
from expunge.objectives.selected import Selected
from expunge.objectives.simnpo import SimNPO
from expunge.objectives.tokens import Reference, TokenLogits
from expunge.objectives.uce import UCE
from expunge.objectives.undial import UNDIAL

__all__ = [
    "CEU",
    "DPO",
    "KL",
    "NLL",
    "NPO",
    "UCE",
    "UNDIAL",
    "WGA",
    "ActivationMatching",
    "Ascent",
    "GenericLabels",
    "InvertedHinge",
    "LogitMargin",
    "MaxEntropy",
    "Needs",
    "Objective",
    "Reference",
    "Replacement",
    "SatImp",
    "Selected",
    "SimNPO",
    "Steering",
    "TokenLogits",
]
