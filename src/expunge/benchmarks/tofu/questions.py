r"""What a model makes of one TOFU question, and the quantities per question that the metrics average.

Everything is computed from mean negative log-likelihoods per token, so that it does not matter whether they
come from a model or from a log. Ratios are kept as logarithms: a collapsed model overflows nothing.

Reference:
    Maini et al. (2024), TOFU: A Task of Fictitious Unlearning for LLMs, arXiv 2401.06121, section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import expit, logsumexp

Mean = Literal["geometric", "arithmetic"]

SETS = ("forget", "retain", "real_authors", "world_facts")
"""The four sets of questions. The last two are about the real world, in four options."""

OPTIONS = ("real_authors", "world_facts")
"""Sets whose probability is normalised over the options; the answer itself is the truth of their ratio."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean negative log-likelihood per token of one answer (nats), over `tokens` tokens if known."""

    nll: float
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One question, and what a model made of it.

    Attributes:
        prompt: The question, in whatever template it was put.
        response: The true answer.
        answer: Of the true answer; None if it was not scored.
        paraphrase: Of the truth in the truth ratio: the paraphrased answer, or with options the answer.
        perturbed: Of each wrong answer.
        generation: Greedy answer.
        rouge_l: ROUGE-L recall of the response in the generation.
    """

    prompt: str
    response: str
    answer: Loss | None = None
    paraphrase: Loss | None = None
    perturbed: tuple[Loss, ...] = ()
    generation: str | None = None
    rouge_l: float | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """What the metrics need to know of one model.

    Attributes:
        questions: Set -> its questions in the order of the data. A question is known by its place: two of
            the 4,000 are asked twice.
        extraction_strength: Per forget question; empty if not known.
        exact_memorization: Per forget question; empty if not known.
        attacks: Membership attack -> scores of forget and of holdout, higher for more familiar records.
    """

    questions: Mapping[str, Sequence[Question]]
    extraction_strength: Sequence[float] = ()
    exact_memorization: Sequence[float] = ()
    attacks: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)


def probability(question: Question) -> float | None:
    """P(answer | question)^(1/tokens), section 2.2; None if the answer was not scored."""
    return None if question.answer is None else min(math.exp(-question.answer.nll), 1.0)


def normalised_probability(question: Question) -> float | None:
    """Probability of the answer over that of all options, each per token.

    The paper's formula has probabilities of whole answers; the authors' code, which is followed, divides
    those per token.
    """
    if question.answer is None or not question.perturbed:
        return None
    nlls = np.array([question.answer.nll, *(wrong.nll for wrong in question.perturbed)])
    return min(float(np.exp(-nlls[0] - logsumexp(-nlls))), 1.0)


def log_ratio(question: Question, mean: Mean = "geometric") -> float | None:
    r"""Logarithm of the truth ratio $R$, section 2.2: wrong answers over the truth, per token.

    Args:
        question: With paraphrase and perturbed answers, else there is no ratio.
        mean: Over the wrong answers. "geometric" averages their losses, as `aggregate_eval_stat.py` of the
            authors does, "arithmetic" their probabilities, as equation 1 prints and their `utils.py` does.
    """
    if question.paraphrase is None or not question.perturbed:
        return None
    nlls = np.array([wrong.nll for wrong in question.perturbed])
    wrong = -nlls.mean() if mean == "geometric" else logsumexp(-nlls) - math.log(len(nlls))
    return float(question.paraphrase.nll + wrong)


def nearness(log_ratio: float) -> float:
    r"""$\min(R, 1/R)$: 1 where truth and falsehood are equally likely; what is averaged over forget."""
    return math.exp(-abs(log_ratio))


def trueness(log_ratio: float) -> float:
    r"""$\max(0, 1 - R)$: 1 where the truth is far likelier; what is averaged over the other sets."""
    return 0.0 - math.expm1(min(log_ratio, 0.0))


def truth_share(log_ratio: float) -> float:
    r"""$1 / (1 + R)$: the truth's share of truth and falsehood (OpenUnlearning, arXiv 2506.12618)."""
    return float(expit(-log_ratio))
