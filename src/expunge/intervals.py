r"""Values over many records with a 95 % interval: means, shares, areas under a curve, any function of them.

Pure functions: no model, no tokenizer, no file.

Intervals are percentile bootstrap intervals (Efron & Tibshirani 1993, chapter 13): the records are drawn
again with replacement, `resamples` times, and the interval spans the 2.5th to the 97.5th percentile of the
resampled value. Records that belong together (those of one person) are correlated; with `groups` whole groups
are drawn instead, and the interval is the wider, honest one. It always holds the value itself, and depends on
the seed but not on the order of the records. Two caveats: with fewer than about ten independent units it is
somewhat too narrow, and with one unit it is a point.

Where every value of a share is 0, or every one is 1, resampling sees no spread and would give an interval of
zero width, however few the records. There the exact interval of Clopper and Pearson (1934) is given instead.
It counts records, also where there are groups: to count groups would take the records of one person for mere
copies, and so wide an interval makes "no different from the holdout" too easy to say. A function of several
samples (`aggregate`) has no such correction: where all of them are constant its interval is a point, and
the intervals of its components are the ones to read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from expunge.record import Metric

Array = npt.NDArray[np.float64]
Groups = Sequence[Hashable]

RESAMPLES = 2000
CONFIDENCE = 0.95

_BLOCK = 1 << 22
"""Resampled records held at once."""


def mean(
    values: Sequence[float], *, seed: int = 0, groups: Groups | None = None, resamples: int = RESAMPLES
) -> Metric:
    """Mean of an unbounded quantity (an NLL) over records, with its bootstrap interval.

    Args:
        values: One per record; a value that is not finite leaves no interval (NaN bounds).
        seed: Of the resampling.
        groups: What each record belongs to, if records are not independent.
        resamples: At least 1.

    Raises:
        ValueError: No value, `groups` of another length, or `resamples` below 1.
    """
    clusters = _clusters(values, groups)
    if not all(map(math.isfinite, values)):
        return Metric(value=sum(values) / len(values), low=math.nan, high=math.nan, n=len(values))
    sums = np.array([math.fsum(cluster) for cluster in clusters])
    sizes = np.array([len(cluster) for cluster in clusters], dtype=np.float64)

    def statistic(counts: Array) -> Array:
        return np.asarray((counts @ sums) / (counts @ sizes))

    value = math.fsum(values) / len(values)
    return _metric(value, _bootstrap(statistic, [len(clusters)], seed, resamples), len(values))


def share(
    values: Sequence[float], *, seed: int = 0, groups: Groups | None = None, resamples: int = RESAMPLES
) -> Metric:
    """Mean of a quantity between 0 and 1 (a flag, a recall, a probability) over records, with its interval.

    The bootstrap interval, or the exact one where all values are 0 or all are 1 (see the module's docstring).
    The latter bounds the chance of a value other than that one, and so the mean of anything within [0, 1].

    Args:
        values: One per record, each in [0, 1]; NaN leaves no interval (NaN bounds).
        seed: Of the resampling.
        groups: What each record belongs to, if records are not independent.
        resamples: At least 1.

    Raises:
        ValueError: No value, one out of range, `groups` of another length, or `resamples` below 1.
    """
    wrong = [value for value in values if value < 0 or value > 1]
    if wrong:
        raise ValueError(f"`values` must be in [0, 1]; got {wrong[0]}.")
    if len(values) > 0 and (all(v == 0 for v in values) or all(v == 1 for v in values)):
        _clusters(values, groups)  # checks the groups
        low, high = _exact(len(values) if values[0] else 0, len(values))
        return Metric(value=float(values[0]), low=low, high=high, n=len(values))
    return mean(values, seed=seed, groups=groups, resamples=resamples)


def exact_share(flags: Sequence[bool]) -> Metric:
    """Share of records with the exact interval of Clopper and Pearson (1934), whatever the share.

    Raises:
        ValueError: No flag.
    """
    if len(flags) == 0:
        raise ValueError("`flags` must hold at least one record; got none.")
    low, high = _exact(sum(flags), len(flags))
    return Metric(value=sum(flags) / len(flags), low=low, high=high, n=len(flags))


def membership_auc(
    members: Sequence[float],
    others: Sequence[float],
    *,
    seed: int = 0,
    member_groups: Groups | None = None,
    other_groups: Groups | None = None,
    resamples: int = RESAMPLES,
) -> Metric:
    """Area under the ROC curve of a membership attack: the chance that a member scores above a non-member.

    0.5: the attack cannot tell them apart; 1: it always can; below 0.5: members look *less* familiar than
    records never seen, a trace of unlearning of its own. Ties count half. Members and non-members are
    resampled independently; complete separation gets the exact interval for as many independent pairs as can
    be formed.

    Args:
        members: Scores of records that the model was trained on, higher for more familiar ones.
        others: Scores of records that it was not trained on.
        seed: Of the resampling.
        member_groups: What each member belongs to, if members are not independent.
        other_groups: The same for the others.
        resamples: At least 1.

    Returns:
        The area; n counts both groups. All NaN where a score is.

    Raises:
        ValueError: A group is empty, its `groups` have another length, or `resamples` is below 1.
    """
    ours, theirs = _clusters(members, member_groups), _clusters(others, other_groups)
    n = len(members) + len(others)
    if np.isnan([*members, *others]).any():
        return Metric(value=math.nan, low=math.nan, high=math.nan, n=n)
    statistic = _AUC(ours, theirs)
    sizes = [len(ours), len(theirs)]
    value = float(statistic(np.ones((1, sizes[0])), np.ones((1, sizes[1])))[0])
    if value in (0.0, 1.0):
        low, high = _exact(min(sizes) if value else 0, min(sizes))
        return Metric(value=value, low=low, high=high, n=n)
    return _metric(value, _bootstrap(statistic, sizes, seed, resamples), n)


def aggregate(
    statistic: Callable[[Mapping[str, Array]], float],
    samples: Mapping[str, Sequence[float]],
    seed: int = 0,
    *,
    sets: Mapping[str, str] | None = None,
    groups: Mapping[str, Groups] | None = None,
    resamples: int = RESAMPLES,
) -> Metric:
    """Any function of several samples, with a stratified bootstrap interval.

    Each sample is drawn again from itself, so that every component keeps its size; the function is applied to
    the drawn samples. Samples that are measurements of the same records (probability and ROUGE-L of one set)
    are drawn jointly, record by record, if `sets` says so: their correlation is then part of the interval.

    Args:
        statistic: From component -> values, [n] each, to a number; must not depend on the order of records.
        samples: Component -> one value per record, at least one each.
        seed: Of the resampling.
        sets: Component -> the set of records that it measures; None (or absent): a set of its own.
        groups: Set -> what each of its records belongs to; absent: its records are independent.
        resamples: At least 1.

    Returns:
        The value; n counts the records of all sets. NaN bounds where a resampled value is not finite.

    Raises:
        ValueError: A component is empty or of another length than its set or groups; `resamples` is below 1.

    Example:
        >>> samples = {"a": [1.0, 1.0], "b": [0.0, 0.0]}
        >>> aggregate(lambda drawn: float(drawn["a"].mean() - drawn["b"].mean()), samples)
        Metric(value=1.0, low=1.0, high=1.0, n=4)
    """
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1; got {resamples}.")
    strata = _strata(samples, sets or {}, groups or {})
    rng = np.random.default_rng(seed)
    value = float(statistic({name: row for stratum in strata for name, row in stratum.whole()}))
    n = sum(stratum.values.shape[1] for stratum in strata)
    drawn = np.array(
        [
            statistic({name: row for stratum in strata for name, row in stratum.draw(rng)})
            for _ in range(resamples)
        ]
    )
    if not np.isfinite([value, *drawn]).all():
        return Metric(value=value, low=math.nan, high=math.nan, n=n)
    return _metric(value, drawn, n)


class _AUC:
    """Wilcoxon's statistic of resampled clusters: others below each member, and half of its ties."""

    def __init__(self, members: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> None:
        scores, self.member_cluster = _flatten(members)
        sorted_others, other_cluster = _flatten(others)
        order = np.argsort(sorted_others, kind="stable")
        self.other_cluster = other_cluster[order]
        self.below = np.searchsorted(sorted_others[order], scores, side="left")
        self.up_to = np.searchsorted(sorted_others[order], scores, side="right")

    def __call__(self, member_counts: Array, other_counts: Array) -> Array:
        """Areas [r] from how often each cluster was drawn, [r, members] and [r, others]."""
        member_weights = member_counts[:, self.member_cluster]
        totals = np.cumsum(other_counts[:, self.other_cluster], axis=1)
        totals = np.concatenate([np.zeros((len(totals), 1)), totals], axis=1)
        wins = (totals[:, self.below] + totals[:, self.up_to]) / 2
        return np.asarray((member_weights * wins).sum(1) / (member_weights.sum(1) * totals[:, -1]))


# --- resampling


def _clusters(values: Sequence[float], groups: Groups | None) -> list[list[float]]:
    """Values by group, in an order that does not depend on theirs."""
    if len(values) == 0:
        raise ValueError("There must be at least one value to aggregate; got none.")
    if groups is not None and len(groups) != len(values):
        raise ValueError(
            f"`groups` must name the group of every value; got {len(groups)} for {len(values)} values."
        )
    members: dict[Hashable, list[float]] = {}
    for value, group in zip(values, range(len(values)) if groups is None else groups, strict=True):
        members.setdefault(group, []).append(float(value))
    return sorted(sorted(cluster) for cluster in members.values())


def _flatten(clusters: Sequence[Sequence[float]]) -> tuple[Array, npt.NDArray[np.intp]]:
    index = np.repeat(np.arange(len(clusters)), [len(cluster) for cluster in clusters])
    return np.fromiter(chain.from_iterable(clusters), dtype=np.float64), index


def _bootstrap(statistic: Callable[..., Array], sizes: Sequence[int], seed: int, resamples: int) -> Array:
    """Resampled values of a statistic of how often each unit of each sample was drawn, [resamples]."""
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1; got {resamples}.")
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // sum(sizes))
    values = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        values.append(statistic(*(_draw(rng, rows, size) for size in sizes)))
    return np.concatenate(values)


def _draw(rng: np.random.Generator, rows: int, size: int) -> Array:
    """How often each of `size` units comes up in `size` draws with replacement, [rows, size]."""
    drawn = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def _metric(value: float, resampled: Array, n: int) -> Metric:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Metric(value=value, low=min(float(low), value), high=max(float(high), value), n=n)


def _exact(successes: int, units: int) -> tuple[float, float]:
    interval = binomtest(successes, units).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


class _Stratum:
    """Measurements of one set of records, sorted so that a draw does not depend on their order."""

    def __init__(
        self, names: Sequence[str], samples: Sequence[Sequence[float]], groups: Groups | None
    ) -> None:
        members: dict[Hashable, list[tuple[float, ...]]] = {}
        columns = list(zip(*samples, strict=True))
        for column, group in zip(columns, range(len(columns)) if groups is None else groups, strict=True):
            members.setdefault(group, []).append(tuple(map(float, column)))
        clusters = sorted(sorted(cluster) for cluster in members.values())
        self.names = names
        self.values = np.array([column for cluster in clusters for column in cluster]).T
        ends = np.cumsum([len(cluster) for cluster in clusters])
        self.units = np.split(np.arange(len(columns)), ends[:-1])

    def whole(self) -> Iterator[tuple[str, Array]]:
        """Component and its values, [n]."""
        return zip(self.names, self.values, strict=True)

    def draw(self, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
        """Component and its values in one resample of the units, the same for all components."""
        chosen = rng.integers(len(self.units), size=len(self.units))
        columns = np.concatenate([self.units[i] for i in chosen])
        return zip(self.names, self.values[:, columns], strict=True)


def _strata(
    samples: Mapping[str, Sequence[float]], sets: Mapping[str, str], groups: Mapping[str, Groups]
) -> list[_Stratum]:
    components: dict[str, list[str]] = {}
    for name in samples:
        components.setdefault(sets.get(name, name), []).append(name)
    for of, names in components.items():
        sizes = {name: len(samples[name]) for name in names} | (
            {"its groups": len(groups[of])} if of in groups else {}
        )
        if min(sizes.values()) < 1 or len(set(sizes.values())) > 1:
            raise ValueError(
                f"Components of one set must have one value per record, and at least one; set {of!r} has "
                + ", ".join(f"{size} of {name}" for name, size in sizes.items())
                + "."
            )
    return [
        _Stratum(names, [samples[name] for name in names], groups.get(of)) for of, names in components.items()
    ]
