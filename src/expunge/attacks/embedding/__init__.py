"""Perturbations of any differentiable input, and language-model attacks made of them, one idea per file.

Every attack takes `predict` (inputs [b, ...] -> logits), most a `loss_fn` (logits, labels -> [b]), and has
`.perturb(x, y)`. They know nothing of language models; `perturbed_prompt` and `soft_prompt` do.
"""

from expunge.attacks.embedding.balls import L1, L2, Ball, LInf
from expunge.attacks.embedding.box import Box
from expunge.attacks.embedding.carlini_wagner import CarliniWagner
from expunge.attacks.embedding.constant_search import Search
from expunge.attacks.embedding.ddn import DDN
from expunge.attacks.embedding.deepfool import DeepFool
from expunge.attacks.embedding.elastic_net import ElasticNet
from expunge.attacks.embedding.estimators import NES, SPSA, Backward, Estimator
from expunge.attacks.embedding.losses import LossFn, Predict, cross_entropy, margin
from expunge.attacks.embedding.nattack import NAttack
from expunge.attacks.embedding.projected_gradient import ProjectedGradient, Walk
from expunge.attacks.embedding.recipes import fgm, fgsm, momentum, nes, pgd, spsa

__all__ = [
    "DDN",
    "L1",
    "L2",
    "NES",
    "SPSA",
    "Backward",
    "Ball",
    "Box",
    "CarliniWagner",
    "DeepFool",
    "ElasticNet",
    "Estimator",
    "LInf",
    "LossFn",
    "NAttack",
    "Predict",
    "ProjectedGradient",
    "Search",
    "Walk",
    "cross_entropy",
    "fgm",
    "fgsm",
    "margin",
    "momentum",
    "nes",
    "pgd",
    "spsa",
]
