"""Recipes with a forget loss of their own on every token of the response."""

from __future__ import annotations

from expunge.methods.method import Method, weighted
from expunge.objectives import CEU, NLL, UNDIAL, WGA, InvertedHinge, MaxEntropy, Replacement, SatImp, Selected
from expunge.weightings import Constant


def wga(
    beta: float = 1.0, forget_weight: float = 1.0, retain_weight: float = 1.0, tolerance: float = 0.5
) -> Method:
    r"""Weighted gradient ascent: tokens count by how well they are still known.

    Minimise $\gamma\, p^\beta \log p + \alpha L_R$, the weight $p^\beta$ held fixed.

    Args:
        beta: Exponent β of the weight, non-negative; 0 is gradient difference.
        forget_weight: γ, non-negative.
        retain_weight: α, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Wang et al. (2025), arXiv 2502.19301, section 5.
    """
    return weighted("wga", WGA(beta=beta), NLL("retain"), (forget_weight, retain_weight), tolerance)


def satimp(
    saturation: float = 5.0,
    importance: float = 1.0,
    forget_weight: float = 1.0,
    retain_weight: float = 0.1,
    tolerance: float = 0.5,
) -> Method:
    r"""SatImp: ascent that leaves forgotten tokens alone, and those that are certain.

    Minimise $\gamma\, p^{\beta_1} (1 - p)^{\beta_2} \log p + \alpha L_R$, the weights held fixed.

    Args:
        saturation: β₁, non-negative.
        importance: β₂, non-negative.
        forget_weight: γ, non-negative.
        retain_weight: α, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Yang et al. (2025), arXiv 2505.11953, section 5; γ and α as in the authors' settings (`coeff` of
        config/forget_sat.yaml).
    """
    forget = SatImp(saturation=saturation, importance=importance)
    return weighted("satimp", forget, NLL("retain"), (forget_weight, retain_weight), tolerance)


def ihl(retain_weight: float = 1.0, tolerance: float = 0.5) -> Method:
    r"""Inverted hinge: the forget token below the next best one.

    Minimise $1 + p(y) - \max_{v \ne y} p(v) + \alpha L_R$.

    The objective of LoKU; its Fisher-weighted start of the LoRA adapter is a matter of the adapter,
    not of the objective, and is not part of this recipe.

    Args:
        retain_weight: α, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Cha et al. (2024), arXiv 2408.06621, section 3.
    """
    return weighted("ihl", InvertedHinge(), NLL("retain"), (1.0, retain_weight), tolerance)


def me(
    forget_weight: float = 0.1, from_uniform: bool = False, retain_weight: float = 1.0, tolerance: float = 0.5
) -> Method:
    r"""Maximum entropy: uniform predictions on forget responses.

    Minimise $\gamma\, KL(p \,\|\, U) + \alpha L_R$ with U the uniform distribution: ME+GD.

    Args:
        forget_weight: γ, non-negative.
        from_uniform: $KL(U \,\|\, p)$ instead, as in the authors' code; it also acts where p is one-hot.
        retain_weight: α, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Yuan et al. (2024), arXiv 2410.08109, section 4.
    """
    forget = MaxEntropy(from_uniform=from_uniform)
    return weighted("me", forget, NLL("retain"), (forget_weight, retain_weight), tolerance)


def undial(gamma: float = 10.0) -> Method:
    r"""UNDIAL: distillation from the reference with the forget token's logit lowered.

    Minimise $H(\mathrm{softmax}(z_{ref} - \gamma e_y),\, p)$ on the forget set.

    The aim is fixed, so nothing diverges; as in the paper there is no retain term, and retain records
    are not read.

    Args:
        gamma: Strength γ in logits, positive; 3 to 30 in the authors' search.

    Reference:
        Dong et al. (2024), arXiv 2402.10052, section 3.
    """
    return Method("undial", (UNDIAL(gamma=gamma),), Constant((1.0,)))


def ce_u(skip: int = 1) -> Method:
    r"""CE-U: distillation from the model itself without the forget token.

    Minimise $H(q, p)$ on the forget set, q being p without the target and without gradient.

    As in the paper there is neither a reference nor a retain term, and retain records are not read.

    Args:
        skip: Response tokens left alone at the start of a row, non-negative.

    Reference:
        Yang (2025), arXiv 2503.01224.
    """
    return Method("ce-u", (CEU(skip=skip),), Constant((1.0,)))


def whp(selector: str = "", reinforced: str = "", alpha: float | None = None) -> Method:
    r"""Who's Harry Potter: generic tokens in the place of telling ones.

    Minimise $-\log p(y')$ on the forget set, y' being the best token of
    $v_{ref} - \alpha\, \mathrm{ReLU}(v_{reinforced} - v_{ref})$.

    The reinforced model is one that `expunge finetune` has taught the forget set once more. Without it y' is
    the reference's best guess other than the token itself, on the telling tokens alone; see `Replacement`.
    The authors' exchange of names (anchored terms) is left out. Retain records are not read.

    Args:
        selector: Name of the rule that chooses the tokens that count; empty is `all` with a reinforced
            model, and `entities` without.
        reinforced: Folder or name of the reinforced model; empty does without.
        alpha: α, positive, 5 by default; only with a reinforced model. A token that it raises by one nat
            falls by α.

    Reference:
        Eldan and Russinovich (2023), arXiv 2310.02238, equation 1 and section 2.
    """
    if alpha is not None and not reinforced:
        raise ValueError(f"`alpha` must be left out without `reinforced`; got {alpha}. Name that model, too.")
    generic = Replacement(reinforced=reinforced, alpha=5.0 if alpha is None else alpha)
    chosen = selector or ("all" if reinforced else "entities")
    return Method("whp", (Selected(generic, chosen),), Constant((1.0,)))
