"""What is said of one record: its text against the response, its log-probabilities.

Pure functions: no model, no tokenizer, no file. Means over records and their intervals: `intervals`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from rouge_score.rouge_scorer import RougeScorer
from scipy.special import expit

Array = npt.NDArray[np.float64]

_QUOTES = "\"'`“”„‟‘’‚‛«»‹›"


def normalise(text: str) -> str:
    """What two answers must share to be the same answer.

    Unicode NFKC, case folded, runs of white space as one space, without quotation marks at either end or full
    stops at the end. Text that consists of nothing else keeps them.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    plain = " ".join(folded.split())
    core = plain.lstrip(_QUOTES + " ").rstrip(_QUOTES + " .")
    return core or plain


def exact_match(generation: str, response: str) -> bool:
    """Verbatim leak: the generation is the response, after `normalise`."""
    return normalise(generation) == normalise(response)


def rouge_l_recall(generation: str, response: str) -> float:
    """Length of the longest common subsequence of words over the words of the response, with Porter stemming.

    As TOFU, MUSE and LUME compute it, by the `rouge-score` package. Its words are runs of a-z and 0-9: a
    response without any (another script) has no recall, and gives NaN.

    Reference:
        Lin (2004), ROUGE, section 3.
    """
    if not re.search("[a-z0-9]", response.lower()):
        return math.nan
    return float(_rouge().score(response, generation)["rougeL"].recall)


def truth_ratio(nll: float, swapped: Sequence[float]) -> float:
    r"""How likely others' responses are beside the true one: near 0 true far likelier, 0.5 indifferent.

    TOFU's ratio (arXiv 2401.06121, equation 1) is $R = P_{swap} / P_{true}$ of length-normalised
    probabilities $P(a|q)^{1/|a|}$; over several wrong answers their geometric mean is taken, as in the
    authors' aggregation script (the equation prints an arithmetic one). Here the wrong answers are responses
    of other records. The unbounded $R$ is mapped to $R / (1 + R)$, which equals $\sigma(nll -
    mean(swapped))$, so that a mean over records is not ruled by its largest term.

    Args:
        nll: Mean negative log-likelihood per token of the true response.
        swapped: The same for each swapped response under the same prompt, at least one.

    Raises:
        ValueError: No swapped response.
    """
    if len(swapped) == 0:
        raise ValueError("`swapped` must hold at least one value; got none.")
    return float(expit(nll - np.mean(swapped)))


def min_k(log_probs: Sequence[float] | Array, fraction: float = 0.2) -> float:
    """Min-K% Prob: mean log-probability of the least likely tokens; higher for text that was trained on.

    Args:
        log_probs: Of the response's tokens, [t], at least one.
        fraction: Of the tokens that count, in (0, 1]; rounded down to whole tokens, but never to none.

    Raises:
        ValueError: `fraction` is out of range or there is no token.

    Reference:
        Shi et al. (2023), arXiv 2310.16789, equation 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` must be in (0, 1]; got {fraction}.")
    if len(log_probs) == 0:
        raise ValueError("`log_probs` must hold at least one token; got none.")
    count = max(1, int(fraction * len(log_probs)))
    return float(np.sort(np.asarray(log_probs, dtype=np.float64))[:count].mean())


@cache
def _rouge() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)
