"""Recipes whose idea is how the gradients of several objectives are combined."""

from __future__ import annotations

from expunge.methods.method import Method, guard
from expunge.objectives import KL, NLL, NPO, UCE, LogitMargin
from expunge.weightings import BiLevel, DualAscent, DualSpaceMGDA


def mollm(half: bool = False, tolerance: float = 0.5) -> Method:
    r"""MOLLM: unlearning cross-entropy, divergence and NLL along a direction that descends all three.

    Minimise $(-\log(1 - p),\; KL(p_{ref} \,\|\, p),\; L_R)$.

    The first on forget, the others on retain, combined by MGDA in the dual space:
    $\langle d, g_i \rangle \ge 0$ for all three.

    Args:
        half: Unlearning cross-entropy as in the authors' code, $-\log(1 - p/2)$.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Pan et al. (2024), arXiv 2412.20412, section III.
    """
    objectives = (UCE(half=half), KL(), NLL("retain"))
    return Method("mollm", objectives, DualSpaceMGDA(), budget=guard(tolerance))


def blur(beta: float = 0.1, gamma: float = 1.0, tolerance: float = 0.5) -> Method:
    r"""BLUR-NPO: minimise the retain NLL as far as it leaves NPO alone.

    $d = g_R + (\gamma - \langle g_R, g_F \rangle / \lVert g_F \rVert^2)\, g_F$, with $g_F$ that of NPO:
    forgetting is the lower level and has priority, $\langle d, g_F \rangle = \gamma \lVert g_F \rVert^2$.

    Args:
        beta: Inverse temperature of NPO, positive.
        gamma: Pace γ of the lower level, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Reisizadeh et al. (2025), arXiv 2506.08164, algorithm 1.
    """
    objectives = (NPO(beta=beta), NLL("retain"))
    return Method("blur", objectives, BiLevel(lower=0, gamma=gamma), budget=guard(tolerance))


def pdu(
    bound: float = 0.3,
    retain_weight: float = 100.0,
    rate: float = 5.0,
    warmup: int = 0,
    tolerance: float = 0.5,
) -> Method:
    r"""PDU: flat logits on forget under a bound on the retain loss, by dual ascent.

    Minimise $(\max_v z_v - \bar z)^2$ on forget subject to $L_R \le \varepsilon$.

    The weight of the retain NLL is its dual variable,
    $\lambda \leftarrow \max(0, \lambda + \rho (L_R - \varepsilon))$ once per optimizer step. Defaults are
    the authors' for TOFU but for the warm-up, which they give in epochs. Choose ε somewhat above the retain
    loss before unlearning.

    Args:
        bound: ε, nats per token.
        retain_weight: λ at the start, non-negative; large, since the forget loss is a squared logit.
        rate: ρ, positive.
        warmup: Steps before the first move of λ; the authors wait for five epochs of the forget set.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Entesari et al. (2025), arXiv 2506.05314, algorithm 1.
    """
    ascent = DualAscent(weights=(1.0, retain_weight), bounds=(None, bound), rate=rate, warmup=warmup)
    return Method("pdu", (LogitMargin(), NLL("retain")), ascent, budget=guard(tolerance))
