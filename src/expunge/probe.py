"""Measuring the retain loss without disturbing the run.

Full precision whatever the training precision, dropout off, no gradient, no random number drawn;
parameters and optimizer state are bit-identical afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.inference import evaluating
from expunge.logits import label_positions
from expunge.objectives import TokenLogits
from expunge.observation import Batch, token_logits
from expunge.shards import shares
from expunge.step_sizes import Line


def row_losses(model: nn.Module, batches: Sequence[Batch]) -> Float[Tensor, " r"]:
    """Mean NLL of every row (nats per label token, float64, on the CPU), in the order given."""
    with evaluating(model, "fp32"):
        return torch.cat([_row_means(token_logits(model, batch), len(batch["labels"])) for batch in batches])


def row_tokens(batches: Sequence[Batch]) -> Float[Tensor, " r"]:
    """Label tokens of every row."""
    return torch.cat([label_positions(batch["labels"]).sum(1).cpu().double() for batch in batches])


def measure_line(
    parameters: Sequence[Tensor],
    before: Sequence[Tensor],
    zero: Float[Tensor, " r"],
    losses: Callable[[], Float[Tensor, " r"]],
    tokens: Float[Tensor, " r"],
) -> Line:
    """Losses at k = −1, 0, +1 on one and the same rows, just after the optimizer's step.

    The optimizer has moved once, so its state is what it would be without the measurement; the
    reflected point is reached by arithmetic, and the parameters are put back bit for bit.

    Args:
        parameters: At θ − ηu.
        before: Copies of the parameters (of sharded ones: of this rank's shares) at θ.
        zero: Losses at θ.
        losses: Measures the rows at the current parameters.
        tokens: Label tokens of each row.
    """
    plus = losses()
    present = shares(parameters)
    after = [own.clone() for own in present]
    try:
        with torch.no_grad():
            for own, old, new in zip(present, before, after, strict=True):
                own.copy_(old + (old - new))
        minus = losses()
    finally:
        with torch.no_grad():
            torch._foreach_copy_(present, after)
    return Line(minus=minus, zero=zero, plus=plus, tokens=tokens)


def rescale_step(parameters: Sequence[Tensor], before: Sequence[Tensor], factor: float) -> None:
    """Move from θ − ηu to θ − factor·ηu: what the optimizer would have done at factor·η."""
    if factor != 1.0:
        with torch.no_grad():
            for own, old in zip(shares(parameters), before, strict=True):
                own.copy_(old + (own - old) * factor)


def _row_means(tokens: TokenLogits, rows: int) -> Float[Tensor, " r"]:
    nll, owners = -tokens.target_log_probs.cpu().double(), tokens.rows.cpu()
    sums = torch.zeros(rows, dtype=torch.float64).index_add_(0, owners, nll)
    return sums / torch.bincount(owners, minlength=rows).clamp(min=1)
