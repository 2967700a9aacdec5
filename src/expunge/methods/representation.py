"""Recipes on the residual stream."""

from __future__ import annotations

from expunge.methods.method import Method, weighted
from expunge.objectives import ActivationMatching, Steering


def rmu(
    layer: int = 8,
    coefficient: float = 6.5,
    retain_weight: float = 1200.0,
    direction_seed: int = 0,
    tolerance: float = 0.5,
) -> Method:
    r"""RMU: forget activations steered to a random direction, retain activations held.

    Minimise $\lVert h_F - c\,u \rVert^2/d + \alpha \lVert h_R - h^{ref}_R \rVert^2/d$ at one layer.

    The stream of forget responses is steered to a fixed random direction u, that of retain responses is
    held. Defaults are the paper's for Zephyr-7B, whose layer 7 is counted from 0: 8 blocks. There the
    MLP outputs of layers 5 to 7 alone are trained, as by `train_only=layers\.[5-7]\.mlp\.down_proj`;
    here, whatever parameters the run trains.

    Args:
        layer: Blocks after which the stream is read; negative from the end.
        coefficient: Length c of the aim, positive.
        retain_weight: α, non-negative.
        direction_seed: Of the direction, which is the same whatever the run's seed is.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Li et al. (2024), arXiv 2403.03218, section 4.
    """
    forget = Steering(layer, coefficient=coefficient, seed=direction_seed)
    return weighted("rmu", forget, ActivationMatching(layer), (1.0, retain_weight), tolerance)
