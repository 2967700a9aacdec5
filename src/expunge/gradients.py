"""How strongly each row pulls at the parameters: the norm of its own gradient, one row at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from expunge import ranks
from expunge.collate import Encoded, collate
from expunge.inference import Precision, Progress, bare, evaluating
from expunge.logits import label_positions, select_logits
from expunge.scoring import check_rows


def gradient_norms(
    model: nn.Module,
    rows: Sequence[Encoded],
    *,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> list[float]:
    r"""$\lVert \nabla_\theta \, NLL(row) \rVert_2$ over all parameters, frozen ones included.

    The NLL is the mean over the row's response tokens, in nats. Gradients that the parameters hold are put
    back. Where several processes run, each does its share and all get everything.

    Args:
        model: A causal language model, wrapped or not, on any device; not sharded.
        rows: In any order; the result has the same order.
        precision: Of forward and backward pass.
        progress: Called after each row with 1.

    Raises:
        ValueError: A row has no response token, or no token before it; the model is sharded.
    """
    check_rows(rows)
    if ranks.sharded(model):
        raise ValueError("`model` must not be sharded for per-row gradients; got a sharded one. Gather it.")
    model = bare(model)
    norms: dict[int, float] = {}
    with evaluating(model, precision) as device, _differentiable(model) as parameters:
        for i in ranks.own(range(len(rows)), model):
            norms[i] = _norm(model, rows[i], parameters, device)
            if progress is not None:
                progress(1)
    whole = ranks.together(norms, model)
    if progress is not None and len(norms) < len(whole):
        progress(len(whole) - len(norms))
    return [whole[i] for i in range(len(rows))]


def _norm(model: nn.Module, row: Encoded, parameters: Sequence[nn.Parameter], device: torch.device) -> float:
    batch = {key: value.to(device) for key, value in collate([row], 0).items()}
    positions = label_positions(batch["labels"])
    logits = select_logits(model, batch["input_ids"], batch["attention_mask"], positions)
    loss = nn.functional.cross_entropy(logits.float(), batch["labels"][:, 1:][positions[:, :-1]])
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    found = torch._foreach_norm([gradient for gradient in gradients if gradient is not None])
    return float(torch.stack(list(found)).double().norm())


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Gradients on, for every floating-point parameter; flags are put back at the end."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    frozen = [p for p in parameters if not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield parameters
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
