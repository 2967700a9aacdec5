"""Published results to stand beside one's own: facts with their source, nothing computed here.

Only rows that were found in the named source. Of SemEval-2025 Task 4's 1B track no table was at hand when
this was written (the organisers' page still said "Upcoming"), so it has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TASK_PAGE: Final = (
    "https://llmunlearningsemeval2025.github.io (leaderboard of 3 February 2025); arXiv 2504.02883"
)


@dataclass(frozen=True, slots=True)
class Published:
    """One row of a published table.

    Attributes:
        name: Team or method, as the source writes it.
        final_score: Mean of the next three, as published.
        task_aggregate: See `lume_scores`.
        membership_score: Likewise.
        mmlu: MMLU accuracy.
        ranked: Whether it took part in the ranking, for which MMLU had to be 0.371 at least.
        baseline: Whether the organisers ran it as a baseline.
        source: Where the numbers stand.
    """

    name: str
    final_score: float
    task_aggregate: float
    membership_score: float
    mmlu: float
    ranked: bool = True
    baseline: bool = False
    source: str = TASK_PAGE


_LUME_7B: Final = (
    Published("AILS-NTUA", 0.706, 0.827, 0.847, 0.443),
    Published("ZJUKLAB", 0.487, 0.944, 0.048, 0.471),
    Published("ch******3@stu.ynu.edu.cn", 0.470, 0.834, 0.139, 0.436),
    Published("Mr. Snuffleupagus", 0.376, 0.387, 0.256, 0.485),
    Published("su******4@gmail.com", 0.326, 0.496, 0.0, 0.481),
    Published("hk**@georgetown.edu", 0.3082, 0.433, 0.0, 0.492),
    Published("GIL-IIMAS UNAM", 0.3080, 0.478, 0.0, 0.446),
    Published("Atyaephyra", 0.273, 0.348, 0.014, 0.456),
    Published("Lacuna Inc.", 0.251, 0.283, 0.0, 0.469),
    Published("APT", 0.169, 0.1, 0.021, 0.385),
    Published("h.s***********0@gmail.com", 0.165, 0.0, 0.0, 0.495),
    Published("JU-CSE-NLP'25", 0.165, 0.0, 0.0, 0.495),
    Published("Tsotsa", 0.1649, 0.0, 0.0, 0.495),
    Published("ma********8@gmail.com", 0.154, 0.0, 0.0, 0.463),
    Published("SHA256", 0.711, 0.964, 0.894, 0.275, ranked=False),
    Published("NeuroReset", 0.420, 0.152, 0.876, 0.232, ranked=False),
    Published("Cyber for AI", 0.409, 0.0, 0.999, 0.229, ranked=False),
    Published("MALTO", 0.402, 0.0, 0.965, 0.242, ranked=False),
    Published("Innovative_Team", 0.365, 0.0, 0.849, 0.247, ranked=False),
    Published("ay***********0@gmail.com", 0.356, 0.0, 0.84, 0.229, ranked=False),
    Published("Gradient Ascent", 0.394, 0.0, 0.912, 0.269, ranked=False, baseline=True),
    Published("Gradient Difference", 0.243, 0.0, 0.382, 0.348, ranked=False, baseline=True),
    Published("KL Minimization", 0.395, 0.0, 0.916, 0.269, ranked=False, baseline=True),
    Published("Negative Preference Optimization", 0.188, 0.021, 0.080, 0.463, ranked=False, baseline=True),
)

_TABLES: Final = {("lume", "7b"): _LUME_7B}


def published(benchmark: str, size: str = "7b") -> list[Published]:
    """Rows of the published table of a benchmark for models of one size; empty where none is known.

    Args:
        benchmark: As in `expunge evaluate`.
        size: As the source calls the track, in any case: "7B".

    Example:
        >>> published("lume", "7B")[0].name
        'AILS-NTUA'
    """
    return list(_TABLES.get((benchmark, size.lower()), ()))
