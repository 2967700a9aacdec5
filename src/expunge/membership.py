r"""Membership attacks on one record: a score that is higher, the likelier the record was trained on.

Pure functions of what a scored pass gave; no model, no data set. Each is turned into an area under the ROC
curve of members against records never seen (`intervals.membership_auc`), where 0.5 means that the attack
cannot tell them apart. All six come from the literature as losses or norms, low for members; the sign is
turned here, so that one direction holds for all.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from expunge import metrics
from expunge.scoring import TokenScores

ATTACKS: Mapping[str, str] = {
    "loss": "Mean log-likelihood of the response's tokens.",
    "zlib": "The same, relative to how well the response's text compresses.",
    "reference": "The same, less what a model gives it that never saw the record.",
    "gradient_norm": "How little the record would still change the model.",
    "min_k": "Mean log-likelihood of the response's least likely tokens.",
    "min_k_plus_plus": "The same, standardised by what the model expects at each position.",
}
"""Attack -> one line."""

_LEAST_DEVIATION = 1e-3
"""Standard deviations below this, at positions where the model is certain, count as this."""


def without_end(scores: TokenScores) -> TokenScores:
    """Scores of the response alone, without the end-of-sequence token that closes it.

    Raises:
        ValueError: Nothing would be left.
    """
    if len(scores.log_probs) < 2:
        raise ValueError(f"`scores` must hold a token before the last; got {len(scores.log_probs)} tokens.")
    return replace(
        scores,
        log_probs=scores.log_probs[:-1],
        matches=scores.matches[:-1],
        means=None if scores.means is None else scores.means[:-1],
        deviations=None if scores.deviations is None else scores.deviations[:-1],
    )


def loss(scores: TokenScores) -> float:
    """Mean log-likelihood per token, in nats.

    Reference:
        Yeom et al. (2018), arXiv 1709.01604: the attack that thresholds the loss.
    """
    return -scores.nll


def zlib_ratio(scores: TokenScores, text: str) -> float:
    r"""Mean log-likelihood per token over the length of the compressed text, in nats per byte.

    $-NLL / |zlib(text)|$: text that is improbable for a model and yet compresses well was likely seen.

    Args:
        scores: Of the response.
        text: The response.

    Reference:
        Carlini et al. (2021), arXiv 2012.07805, section 5.2 ("zlib").
    """
    return -scores.nll / len(zlib.compress(text.encode("utf-8")))


def reference(scores: TokenScores, reference_scores: TokenScores) -> float:
    r"""How much likelier the record is than under a model that never saw it, in nats per token.

    Args:
        scores: Of the response under the attacked model.
        reference_scores: Of the same response under the reference model; its tokenizer may be another one.

    Reference:
        Carlini et al. (2021), arXiv 2012.07805, section 5.2; Mireshghallah et al. (2022), arXiv 2203.03929.
    """
    return reference_scores.nll - scores.nll


def gradient_norm(norm: float) -> float:
    r"""Minus the norm of the gradient that the record would train with, $-\lVert\nabla_\theta NLL\rVert_2$.

    The norm over all parameters at once. OpenUnlearning averages the norms of the parameter tensors instead,
    so that the values, and by a little the areas, differ from its.

    Args:
        norm: Euclidean norm of the gradient of the row's mean NLL.

    Reference:
        Wang et al. (2024), arXiv 2402.17012: gradient norm thresholding.
    """
    return -norm


def min_k(scores: TokenScores, fraction: float = 0.2) -> float:
    """Mean log-probability of the least likely tokens (`metrics.min_k`).

    Args:
        scores: Of the response.
        fraction: Of the tokens that count, in (0, 1].

    Reference:
        Shi et al. (2023), arXiv 2310.16789, equation 1.
    """
    return metrics.min_k(scores.log_probs, fraction)


def min_k_plus_plus(scores: TokenScores, fraction: float = 0.2) -> float:
    r"""Mean standardised log-probability of the tokens where it is lowest.

    $z_t = (\log p(x_t|x_{<t}) - \mu_t) / \sigma_t$, with $\mu_t$ and $\sigma_t$ the mean and the
    standard deviation of $\log p(\cdot|x_{<t})$ under $p(\cdot|x_{<t})$: is the token a mode of what the
    model expected?

    Args:
        scores: Of the response, with moments.
        fraction: Of the tokens that count, in (0, 1].

    Raises:
        ValueError: `scores` came without moments, or `fraction` is out of range.

    Reference:
        Zhang et al. (2024), arXiv 2404.02936.
    """
    if scores.means is None or scores.deviations is None:
        raise ValueError("`scores` must hold means and deviations; got none. Score with `moments=True`.")
    deviations = np.maximum(scores.deviations, _LEAST_DEVIATION)
    return metrics.min_k((scores.log_probs - scores.means) / deviations, fraction)


def privleak(auc: float, reference_auc: float) -> float:
    r"""How far the attack's success is from that on a model that never saw the records, in percent.

    $100 \cdot (\bar A - \bar A_{ref}) / \bar A_{ref}$ with $\bar A = 1 - A$: 0 is ideal, below 0 the records
    still look familiar (under-unlearned), above 0 they look less familiar than unseen ones (over-unlearned).
    MUSE's own area counts the forget set as the *non*-members' side, hence the complement.

    Args:
        auc: Area of the attack on the model, 1 when every forget record looks more familiar.
        reference_auc: The same on the retrained model; not 1.

    Raises:
        ValueError: `reference_auc` is 1: nothing can be relative to it.

    Reference:
        Shi et al. (2024), arXiv 2407.06460, section 3 (PrivLeak).
    """
    if reference_auc == 1:
        raise ValueError("`reference_auc` must be below 1; got 1. A reference that saw the records is none.")
    return 100 * (reference_auc - auc) / (1 - reference_auc)
