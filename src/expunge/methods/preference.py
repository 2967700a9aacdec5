"""Refusals, other answers and negative preferences."""

from __future__ import annotations

from expunge.methods.method import Method, weighted
from expunge.objectives import DPO, NLL, NPO, SimNPO


def idk_sft(retain_weight: float = 1.0, tolerance: float = 0.5) -> Method:
    r"""IDK fine-tuning: learn to refuse what is to be forgotten.

    Minimise $L_{IDK} + \alpha L_R$.

    $L_{IDK}$ is the NLL of refusals after the forget prompts (data set `idk`). TOFU calls it
    preference optimisation.

    Args:
        retain_weight: α, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Maini et al. (2024), arXiv 2401.06121, section 4.
    """
    return weighted("idk-sft", NLL("idk"), NLL("retain"), (1.0, retain_weight), tolerance)


def dpo(beta: float = 0.1, retain_weight: float = 1.0, tolerance: float = 0.5) -> Method:
    r"""IDK preference: refusals preferred over the responses to be forgotten.

    Minimise $-\frac{2}{\beta} \log\sigma(\beta (r(y_{IDK}) - r(y))) + \alpha L_R$.

    $r(y) = \log\pi(y|x) - \log\pi_{ref}(y|x)$; $y_{IDK}$ is a refusal to the same prompt (data set `idk`).

    Args:
        beta: Inverse temperature β, positive.
        retain_weight: α, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Rafailov et al. (2023), arXiv 2305.18290, equation 7; Zhang et al. (2024), arXiv 2404.05868 (DPO+RT).
    """
    return weighted("dpo", DPO("idk", beta=beta), NLL("retain"), (1.0, retain_weight), tolerance)


def alt_po(beta: float = 0.1, retain_weight: float = 1.0, tolerance: float = 0.5) -> Method:
    r"""AltPO: other answers, made up by the model, preferred over those to be forgotten.

    Minimise $-\frac{2}{\beta} \log\sigma(\beta (r(y_{alt}) - r(y))) + \alpha L_R$.

    $r(y) = \log\pi(y|x) - \log\pi_{ref}(y|x)$; $y_{alt}$ is another plausible answer to the same prompt,
    made up by the model itself (data set `alternate`): forgetting without refusing.

    Args:
        beta: Inverse temperature β, positive; 0.05 to 0.5 in the authors' search.
        retain_weight: α, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Mekala et al. (2024), arXiv 2409.13474, section 3.
    """
    return weighted("alt-po", DPO("alternate", beta=beta), NLL("retain"), (1.0, retain_weight), tolerance)


def npo(beta: float = 0.1, retain_weight: float = 1.0, tolerance: float = 0.5) -> Method:
    r"""Negative preference: forget responses made less likely than under the reference.

    Minimise $-\frac{2}{\beta} \log\sigma(-\beta\, r(y)) + \alpha L_R$.

    $r(y) = \log\pi(y|x) - \log\pi_{ref}(y|x)$. This is NPO+RT, with the retain NLL: the strongest of
    the paper's three variants (alone, with KL, with NLL).

    Args:
        beta: Inverse temperature β, positive.
        retain_weight: α, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Zhang et al. (2024), arXiv 2404.05868, equation 3 and section 5.
    """
    return weighted("npo", NPO(beta=beta), NLL("retain"), (1.0, retain_weight), tolerance)


def simnpo(
    beta: float = 2.5, gamma: float = 0.0, forget_weight: float = 0.1375, tolerance: float = 0.5
) -> Method:
    r"""Simple NPO: negative preference without a reference, normalised by length.

    Minimise $-\lambda \frac{2}{\beta} \log\sigma(-\beta \log\pi(y|x)/|y| - \gamma) + L_R$.

    No reference model. Defaults as in the authors' repository for TOFU forget05; for forget10 they
    take β = 4.5 and λ = 0.125.

    Args:
        beta: Inverse temperature β, positive.
        gamma: Margin γ.
        forget_weight: λ, non-negative.
        tolerance: Retain loss above the start that ends the run, nats per token; infinity never does.

    Reference:
        Fan et al. (2024), arXiv 2410.07163, section 5.
    """
    return weighted("simnpo", SimNPO(beta=beta, gamma=gamma), NLL("retain"), (forget_weight, 1.0), tolerance)
