"""Gradient ascent against what keeps: the oldest recipes, NGDiff among them."""

from __future__ import annotations

import math

from expunge.methods.method import Method, guard, weighted
from expunge.objectives import KL, NLL, UCE, Ascent
from expunge.schedules import Chunks
from expunge.step_sizes import GeN
from expunge.stopping import RetainBudget
from expunge.weightings import Constant, LossNormalized, Normalized


def grad_ascent() -> Method:
    r"""Gradient ascent on the forget set alone: minimise $-L_F$.

    The oldest baseline. It never stops by itself and destroys the model when run on; nothing here
    protects what should be kept.

    Reference:
        Jang et al. (2022), arXiv 2210.01504, equation 1.
    """
    return Method("grad-ascent", (Ascent(NLL("forget")),), Constant((1.0,)))


def grad_diff(retain_weight: float = 1.0, tolerance: float = 0.5) -> Method:
    r"""Gradient difference: ascent on forget and descent on retain, with constant weights.

    Minimise $-L_F + \alpha L_R$.

    Args:
        retain_weight: α, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Liu et al. (2022), arXiv 2203.12817; Maini et al. (2024), arXiv 2401.06121, section 4.
    """
    if retain_weight < 0:
        raise ValueError(f"`retain_weight` must be non-negative; got {retain_weight}.")
    return weighted("grad-diff", Ascent(NLL("forget")), NLL("retain"), (1.0, retain_weight), tolerance)


def kl_min(retain_weight: float = 1.0, reverse: bool = False, tolerance: float = 0.5) -> Method:
    r"""KL minimisation: ascent on forget, divergence from the reference on retain.

    Minimise $-L_F + \alpha\, KL(p_{ref} \,\|\, p)$.

    The divergence is over response tokens of retain records; published code averages it over prompt
    and padding too.

    Args:
        retain_weight: α, non-negative.
        reverse: $KL(p \,\|\, p_{ref})$ instead.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Maini et al. (2024), arXiv 2401.06121, section 4.
    """
    return weighted("kl-min", Ascent(NLL("forget")), KL(reverse=reverse), (1.0, retain_weight), tolerance)


def loss_norm(tolerance: float = 0.5) -> Method:
    r"""Loss-normalised difference: ascent on forget and descent on retain, each divided by its loss.

    Minimise $-L_F / |L_F| + L_R / |L_R|$, the denominators held fixed.

    The baseline that NGDiff's paper sets against normalising gradients.

    Args:
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        arXiv 2410.22086, section 3.
    """
    objectives = (Ascent(NLL("forget")), NLL("retain"))
    return Method("loss-norm", objectives, LossNormalized(), budget=guard(tolerance))


def ngdiff(tolerance: float = 0.02, every: int = 5, rows: int = 40, leaks_first: bool = True) -> Method:
    r"""Normalised gradient difference of unlearning cross-entropy under a retain budget: the default.

    $d = \nabla L_R/\lVert \nabla L_R \rVert + \nabla L_{UCE}/\lVert \nabla L_{UCE} \rVert$. Every `every`
    steps the retain loss of `rows` fixed rows is measured in fp32; while it stands more than `tolerance`
    above its value at the start, steps repair (retain only) instead of forgetting.

    It departs from the paper (kept as `ngdiff_gen`) in four ways. Where the paper ascends the forget NLL,
    whose gradient vanishes on tokens known by heart and never fades on forgotten ones, this descends the
    unlearning cross-entropy, which does the opposite: a run ends with forget records as unlikely as
    records never seen, not far beyond. The budget bounds the damage, not a Newton step on a retain loss
    that is at its noise. The forget gradient is taken where a move of the weights by 2.4e-5 of their norm
    (0.05 in SmolLM2-135M) undoes forgetting fastest, so that less of it comes back; `sharpness=0` leaves it
    out. And once the forget records are on average as unlikely as records never seen, those that are
    reproduced all the same are drawn alone (`Method.leaks_first` says when): a direction of fixed length
    would push the others ever further.

    Args:
        tolerance: Retain loss that may be lost, nats per token, positive.
        every: Optimizer steps between measurements, at least 1.
        rows: Retain rows measured, at least 2.
        leaks_first: Whether records that are still reproduced are drawn alone near the end.

    Reference:
        arXiv 2410.22086, section 3 (the direction); arXiv 2412.20412, section 3 (the forget loss);
        arXiv 2502.05374, arXiv 2010.01412 (sharpness).
    """
    return Method(
        "ngdiff",
        (UCE("forget"), NLL("retain")),
        Normalized(),
        budget=RetainBudget(tolerance=tolerance, every=every, rows=rows),
        relative_sharpness=2.4e-5,
        leaks_first=leaks_first,
    )


def ngdiff_gen(every: int = 10, tolerance: float = 0.5, clip: float = 2.0) -> Method:
    r"""NGDiff as published, within bounds: the normalised difference under the GeN learning rate.

    $d = \nabla L_R/\lVert \nabla L_R \rVert - \nabla L_F/\lVert \nabla L_F \rVert$ with both NLLs, and
    $\eta^* = \eta\, a / b$, the minimum of the parabola through the retain losses at $\theta$ and
    $\theta \mp \eta u$.

    Four things are added to the paper's rule. η changes by no more than the factor `clip` at a measurement.
    Where the parabola has no minimum ahead, η shrinks ($a \le 0$) or grows ($b \le 0$) by that factor. A
    gradient no longer than 1e-6 of the longest counts as zero (`Normalized`). A guard ends the run that has
    lost `tolerance`.

    Args:
        every: Optimizer steps between measurements of η.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.
        clip: Largest factor by which η grows or shrinks at a measurement, finite, at least 1; a large one
            leaves $\eta^*$ as it is found, and goes as far where there is no minimum.

    Reference:
        arXiv 2410.22086, algorithm 1; arXiv 2407.02772.
    """
    if not 1 <= clip < math.inf:
        raise ValueError(f"`clip` must be at least 1 and finite; got {clip}.")
    objectives = (Ascent(NLL("forget")), NLL("retain"))
    rule = GeN(every=every, clip=(1 / clip, clip))
    return Method("ngdiff-gen", objectives, Normalized(), step_size=rule, budget=guard(tolerance))


def sugd(
    chunk: int = 32, ratio: int = 7, passes: int = 7, retain_weight: float = 0.5, tolerance: float = 0.5
) -> Method:
    r"""Sequential unlearning: gradient difference on chunks of forget rows joined with cyclic retain rows.

    Minimise $(-\sum_F \ell + \alpha \sum_R \ell) / (\lvert F \rvert + \lvert R \rvert)$ over a chunk's
    rows. The authors train the last 8 blocks (`train_last=8`) or LoRA (rank 16, alpha 64) at η = 1e-5, one
    row at a time; here ℓ is a mean over tokens, theirs one over rows. They begin every chunk with a new
    optimizer and schedule; here one of each runs through all of them. They end after the last chunk; here
    `max_steps` ends the run: where it is less than a round over all chunks the last ones are never trained
    on (a note says how many records), where it is more the first chunk comes again.

    Args:
        chunk: Forget rows in a chunk.
        ratio: Retain rows per forget row.
        passes: Passes over a chunk before the next.
        retain_weight: α, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Premptis et al. (2025), arXiv 2503.02443 (AILS-NTUA, first of SemEval-2025 task 4).
    """
    weights = (1 / (1 + ratio), retain_weight * ratio / (1 + ratio))
    objectives = (Ascent(NLL("forget")), NLL("retain"))
    chunks = Chunks(chunk, ratio, passes)
    return Method("sugd", objectives, Constant(weights), budget=guard(tolerance), schedule=chunks)


def fine_tune() -> Method:
    """Ordinary supervised fine-tuning: minimise the NLL of what is to be learned."""
    return Method("fine-tune", (NLL("retain"),), Constant((1.0,)))
