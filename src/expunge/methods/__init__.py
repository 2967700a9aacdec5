"""Methods: named choices of objectives, weighting, step size and retain budget.

A recipe is a function that returns a `Method`; its body is the paper's equation. Nothing here
trains. `METHODS` maps names to recipes for the command line.

Recipes may read data sets derived from the forget records: `idk` (the same prompts with refusals) and
`alternate` (the same prompts with other answers).
"""

from collections.abc import Callable

from expunge.methods.difference import (
    fine_tune,
    grad_ascent,
    grad_diff,
    kl_min,
    loss_norm,
    ngdiff,
    ngdiff_gen,
    sugd,
)
from expunge.methods.method import Method, guard
from expunge.methods.multi_objective import blur, mollm, pdu
from expunge.methods.preference import alt_po, dpo, idk_sft, npo, simnpo
from expunge.methods.representation import rmu
from expunge.methods.token_losses import ce_u, ihl, me, satimp, undial, wga, whp
from expunge.methods.weight_space import task_vector, ties_merge

METHODS: dict[str, Callable[..., Method]] = {
    "ngdiff": ngdiff,
    "ngdiff-gen": ngdiff_gen,
    "grad-diff": grad_diff,
    "grad-ascent": grad_ascent,
    "kl-min": kl_min,
    "loss-norm": loss_norm,
    "mollm": mollm,
    "blur": blur,
    "pdu": pdu,
    "sugd": sugd,
    "npo": npo,
    "simnpo": simnpo,
    "dpo": dpo,
    "alt-po": alt_po,
    "idk-sft": idk_sft,
    "wga": wga,
    "satimp": satimp,
    "ihl": ihl,
    "me": me,
    "undial": undial,
    "ce-u": ce_u,
    "rmu": rmu,
    "whp": whp,
    "task-vector": task_vector,
    "ties-merge": ties_merge,
}
"""Recipes by the name that the field writes; the first is the default."""

__all__ = [
    "METHODS",
    "Method",
    "alt_po",
    "blur",
    "ce_u",
    "dpo",
    "fine_tune",
    "grad_ascent",
    "grad_diff",
    "guard",
    "idk_sft",
    "ihl",
    "kl_min",
    "loss_norm",
    "me",
    "mollm",
    "ngdiff",
    "ngdiff_gen",
    "npo",
    "pdu",
    "rmu",
    "satimp",
    "simnpo",
    "sugd",
    "task_vector",
    "ties_merge",
    "undial",
    "wga",
    "whp",
]
