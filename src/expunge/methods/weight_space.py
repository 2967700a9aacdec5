"""Recipes whose model is made by arithmetic on what training changed."""

from __future__ import annotations

from expunge.merging import TIES, Merge, Sum
from expunge.methods.method import Method, guard
from expunge.objectives import KL, NLL, NPO
from expunge.weightings import Constant

GRID = tuple(round(-0.05 * step, 2) for step in range(20, 0, -1))
"""Coefficients from -1 to -0.05."""


def task_vector(alpha: float | None = None, tolerance: float = 0.05) -> Method:
    r"""Task vector negation: learn the forget records even better, then step back beyond the start.

    $\theta = \theta_0 - \alpha (\theta_F - \theta_0)$, with $\theta_F$ fine-tuned from $\theta_0$ on the
    forget set by its NLL. With LoRA the sign of the adapter's change is turned.

    α is the largest of 1, 0.95, …, 0.05 at which the retain loss of the *merged* model has risen by at
    most `tolerance`; where there is none, the model stays as it was. The authors choose it on held-out data,
    asking that 95 % of the accuracy on a control task stays; 0.05 nats are 5 % of a token's probability.

    Args:
        alpha: α, positive, taken whatever it costs and without retain records; None chooses it.
        tolerance: Retain loss that may be lost, nats per token, positive.

    Reference:
        Ilharco et al. (2022), arXiv 2212.04089, section 3.
    """
    if alpha is not None and not alpha > 0:
        raise ValueError(f"`alpha` must be positive; got {alpha}. Leave it out to have it chosen.")
    merge = Merge(Sum(), GRID if alpha is None else (-alpha,))
    budget = guard(tolerance) if alpha is None else None
    return Method("task-vector", (NLL("forget"),), Constant((1.0,)), budget=budget, merge=merge)


def ties_merge(density: float = 0.8, beta: float = 0.1, tolerance: float = 0.5) -> Method:
    r"""TIES merge: two models trained to forget too much and too little, merged where they agree.

    Minimise $\alpha L_{NPO} + \beta' L_R + \gamma\, KL(p_{ref} \,\|\, p)$, once with
    $(\alpha, \beta', \gamma) = (0.4, 0.4, 0.2)$ and once, from the same start, with $(0.3, 0.3, 0.4)$; then
    $\theta = \theta_0 + \mathrm{TIES}(\theta_1 - \theta_0, \theta_2 - \theta_0)$.

    Each training takes half of the step limit. The authors train LoRA (rank 32, alpha 32, η = 1e-4, five
    passes each), the first with 4 rows a step, the second with 8; here both take as many. The weights are
    those of their table; their script gives the second to the divergence and the third to the retain NLL.

    Args:
        density: Share of entries that trimming keeps, in (0, 1].
        beta: Inverse temperature of NPO, positive.
        tolerance: Retain loss of the merged model above the start at which it is given up, nats per token;
            infinity never does.

    Reference:
        Xu et al. (2025), arXiv 2503.21088 (ZJUKLAB, second of SemEval-2025 task 4), section 3 and table 3.
    """
    merge = Merge(TIES(density), (1.0,), further=(Constant((0.3, 0.3, 0.4)),))
    objectives = (NPO(beta=beta), NLL("retain"), KL())
    return Method("ties-merge", objectives, Constant((0.4, 0.4, 0.2)), budget=guard(tolerance), merge=merge)
