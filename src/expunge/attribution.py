r"""Integrated gradients of an answer's log-probability with respect to the tokens it is read from.

With $F(e) = \sum_t \log p(y_t \mid e_{<t})$ on input embeddings $e$ and a baseline $e'$,
$A_i = (e_i - e'_i) \cdot \int_0^1 \partial F / \partial e_i \, (e' + \alpha (e - e')) \, d\alpha$, so that
$\sum_i A_i = F(e) - F(e')$ (completeness). The integral is a Gauss-Legendre sum in $u = \alpha^{1/3}$:
normalised networks change fastest near the baseline, where all positions are alike; nodes are dense there.

Reference:
    Sundararajan et al. (2017), arXiv 1703.01365, equations 1 and 3, proposition 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.collate import Encoded

STEPS = 32

AT_ONCE = 8
"""Interpolations in one forward pass."""


def attributions(
    model: nn.Module, rows: Sequence[Encoded], *, baseline: int, steps: int = STEPS
) -> list[npt.NDArray[np.float64]]:
    """Attribution of every token of every row to the log-probability of its response.

    One row at a time, its interpolations in batches; in the weights' precision, dropout off. No parameter
    receives a gradient.

    Args:
        model: A causal language model, wrapped or not.
        rows: Encoded records.
        baseline: Token whose embedding stands at every position of the baseline.
        steps: Nodes of the quadrature, at least 1.

    Returns:
        One array per row, over prompt and response tokens [t], in nats. The last token's is 0.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1; got {steps}.")
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    training, needed = inner.training, [(p, p.requires_grad) for p in inner.parameters()]
    inner.eval()
    inner.requires_grad_(False)
    try:
        return [_attribute(inner, row, baseline, steps) for row in rows]
    finally:
        inner.train(training)
        for parameter, need in needed:
            parameter.requires_grad_(need)


def answer_log_probability(
    model: PreTrainedModel, embeddings: Float[Tensor, "s t d"], row: Encoded
) -> Float[Tensor, " s"]:
    """Log P(response | what stands before), for several versions of the input embeddings, in nats."""
    embeddings = embeddings[:, :-1]
    head: Any = model
    logits: Tensor = head(inputs_embeds=embeddings, use_cache=False, logits_to_keep=len(row.labels)).logits
    wide = logits.dtype == torch.float64
    log_probs = (logits if wide else logits.float())[:, -len(row.labels) :].log_softmax(-1)
    targets = torch.tensor(row.labels, device=logits.device).expand(len(embeddings), -1)
    return log_probs.gather(2, targets[..., None])[..., 0].sum(1)


def _quadrature(steps: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Nodes and weights of an integral over [0, 1]: Gauss-Legendre in u with α = u³."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    u = (nodes + 1) / 2
    return u**3, 3 * u**2 * weights / 2


def _attribute(model: PreTrainedModel, row: Encoded, baseline: int, steps: int) -> npt.NDArray[np.float64]:
    table: Any = model.get_input_embeddings()
    device = table.weight.device
    nodes, weights = _quadrature(steps)
    with torch.enable_grad():
        end = table(torch.tensor(row.input_ids, device=device)).detach()
        start = table(torch.full((len(row.input_ids),), baseline, device=device)).detach()
        slope = torch.zeros_like(end)
        for first in range(0, steps, AT_ONCE):
            chosen = slice(first, first + AT_ONCE)
            alpha = torch.tensor(nodes[chosen], dtype=end.dtype, device=device)[:, None, None]
            share = torch.tensor(weights[chosen], dtype=end.dtype, device=device)[:, None, None]
            path = (start + alpha * (end - start)).requires_grad_(True)
            (gradient,) = torch.autograd.grad(answer_log_probability(model, path, row).sum(), path)
            slope += (share * gradient).sum(0)
    found: npt.NDArray[np.float64] = (slope * (end - start)).sum(-1).double().cpu().numpy()
    return found
