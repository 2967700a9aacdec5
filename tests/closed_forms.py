"""Losses written out by hand with `math` and loops: what the objectives are held against.

Independent of torch and of the package. `z` are the logits of one position, `y` its target, `ref` the
logits of the reference there, and `frozen` the logits in the factors that no gradient flows through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Logits = Sequence[float]
Form = Callable[[Logits, int, Logits, Logits], float]


def probs(z: Logits) -> list[float]:
    total = sum(math.exp(x) for x in z)
    return [math.exp(x) / total for x in z]


def nll(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
    return -math.log(probs(z)[y])


def uce(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
    return -math.log(1 - probs(z)[y])


def uce_half(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
    return -math.log(1 - probs(z)[y] / 2)


def inverted_hinge(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
    p = probs(z)
    return 1 + p[y] - max(p[v] for v in range(len(z)) if v != y)


def undial(gamma: float) -> Form:
    def form(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
        teacher = probs([x - gamma if v == y else x for v, x in enumerate(ref)])
        return -sum(q * math.log(p) for q, p in zip(teacher, probs(z), strict=True))

    return form


def wga(beta: float) -> Form:
    def form(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
        return probs(frozen)[y] ** beta * math.log(probs(z)[y])

    return form


def satimp(saturation: float, importance: float) -> Form:
    def form(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
        p = probs(frozen)[y]
        return p**saturation * (1 - p) ** importance * math.log(probs(z)[y])

    return form


def ce_u(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
    rest = sum(math.exp(x) for v, x in enumerate(frozen) if v != y)
    p = probs(z)
    return -sum(math.exp(x) / rest * math.log(p[v]) for v, x in enumerate(frozen) if v != y)


def logit_margin(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
    return (max(z) - sum(z) / len(z)) ** 2


def to_uniform(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
    return sum(p * math.log(p * len(z)) for p in probs(z))


def from_uniform(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
    return sum(math.log(1 / len(z) / p) / len(z) for p in probs(z))


def kl(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
    return sum(q * math.log(q / p) for q, p in zip(probs(ref), probs(z), strict=True))


def reverse_kl(z: Logits, y: int, ref: Logits, frozen: Logits) -> float:
    return sum(p * math.log(p / q) for q, p in zip(probs(ref), probs(z), strict=True))


def log_likelihood(rows: Sequence[tuple[Logits, int]]) -> float:
    """Of one response: the sum over its positions."""
    return sum(math.log(probs(z)[y]) for z, y in rows)


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def npo(ratio: float, beta: float) -> float:
    """`ratio` is log π(y|x) − log π_ref(y|x)."""
    return 2 / beta * math.log(1 + math.exp(ratio) ** beta)


def simnpo(log_prob: float, length: int, beta: float, gamma: float) -> float:
    return -2 / beta * log_sigmoid(-beta * log_prob / length - gamma)


def dpo(preferred_ratio: float, ratio: float, beta: float) -> float:
    return -2 / beta * log_sigmoid(beta * (preferred_ratio - ratio))
