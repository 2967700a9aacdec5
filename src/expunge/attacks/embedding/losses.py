"""What an attack raises (untargeted) or lowers (targeted): one number per example, from outputs and labels.

Outputs are logits [b, c] with labels [b], or of a sequence [b, t, c] with labels [b, t], in which -100 marks
positions that do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from expunge.collate import IGNORED

Predict = Callable[[Tensor], Tensor]
"""Inputs [b, ...] -> outputs; differentiable where the attack uses gradients."""

LossFn = Callable[[Tensor, Tensor], Tensor]
"""Outputs and labels -> one loss per example, [b]."""

Objective = Callable[[Tensor], Tensor]
"""Inputs [b, ...] -> what the attack maximises, [b]."""


def cross_entropy(outputs: Float[Tensor, "b *t c"], y: Int[Tensor, " b *t"]) -> Float[Tensor, " b"]:
    """Negative log-likelihood of the labels, in nats; of a sequence, the mean over what counts."""
    each = functional.cross_entropy(outputs.movedim(-1, 1), y, reduction="none", ignore_index=IGNORED)
    if each.ndim == 1:
        return each
    counted = (y != IGNORED).flatten(1).sum(1).clamp_min(1)
    return each.flatten(1).sum(1) / counted


def margin(outputs: Float[Tensor, "b *t c"], y: Int[Tensor, " b *t"]) -> Float[Tensor, " b"]:
    r"""$\max_t \max_{v \ne y_t} z_{tv} - z_{t y_t}$: below 0 exactly where every label is the argmax.

    Above 0 the example is misclassified; of a sequence, at least one position is. This is the $f_6$ of
    Carlini & Wagner (2016), arXiv 1608.04644, section IV.B, without its floor.
    """
    labels = y.clamp_min(0)[..., None]
    own = outputs.gather(-1, labels)[..., 0]
    others = outputs.scatter(-1, labels, -math.inf).amax(-1)
    return (others - own).masked_fill(y == IGNORED, -math.inf).reshape(len(y), -1).amax(1)


def objective(predict: Predict, loss_fn: LossFn, y: Tensor, *, targeted: bool) -> Objective:
    """What an attack maximises: the loss of the true labels, or minus the loss of the wanted ones.

    Raises:
        ValueError: On use, where `loss_fn` does not give one loss per example.
    """
    sign = -1.0 if targeted else 1.0

    def value(x: Tensor) -> Tensor:
        losses = loss_fn(predict(x), y)
        if losses.shape != (len(x),):
            raise ValueError(
                "`loss_fn` must give one loss per example; "
                f"got shape {tuple(losses.shape)} for {len(x)} examples. Use reduction='none'."
            )
        return sign * losses

    return value


def check_examples(x: Tensor, y: Tensor) -> None:
    """Refuse inputs and labels that do not belong together (ValueError)."""
    if len(x) != len(y):
        raise ValueError(
            f"`y` must hold one label per example; got {len(y)} for {len(x)} examples. Match them."
        )
