"""The logit lens: each layer's residual stream, read as if it were the last one's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from expunge import intervals
from expunge.attacks.activations.stream import depth, final_norm, response_states
from expunge.attacks.answers import UNREACHED, stopped, tokens_in
from expunge.attacks.attack import Cost, Family, Findings, Probes, Recovery, Setting, Target
from expunge.collate import Encoded
from expunge.inference import evaluating
from expunge.logits import output_embedding
from expunge.record import Metric


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What the lens sees of one response.

    Attributes:
        ranks: Of each response token at each layer, 0 the likeliest, [layers, t].
        probabilities: Of the same, [layers, t].
    """

    ranks: Int[Tensor, "l t"]
    probabilities: Float[Tensor, "l t"]


@dataclass(frozen=True)
class LogitLens:
    """Each layer's stream through the final norm and the output embedding, under teacher forcing.

    A record is recovered if at some layer every response token (the one that ends it does not count) is the
    likeliest one, given those before it; its score is the greatest share of such tokens at one layer. A bias
    of the output embedding is left out as well as kept: it says nothing about a record.

    Args:
        batch: Records between two looks at the clock, at least 1.

    Reference:
        nostalgebraist (2020), Interpreting GPT: the logit lens; Patil et al. (2023), arXiv 2309.17410 (as an
        attack on removed facts).
    """

    batch: int = 16
    name: ClassVar[str] = "logit-lens"
    family: ClassVar[Family] = "activations"
    line: ClassVar[str] = (
        "Every layer read through the final norm and the output embedding, response given token by token; "
        "arXiv 2309.17410."
    )

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"`batch` must be at least 1; got {self.batch}. A batch needs a record.")

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return None

    def cost(self, probes: Probes) -> Cost:
        read = sum(tokens_in(record.prompt) + tokens_in(record.response) for record in probes.forget)
        return Cost(forward_tokens=read)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        rows = probes.encoding.rows(probes.forget, target.tokenizer)
        read: list[Reading] = []
        for start in range(0, len(rows), self.batch):
            if setting.clock.over:
                break
            read += readings(target, rows[start : start + self.batch], setting)
        count = depth(target.model) + 1
        missing = len(rows) - len(read)
        found = [_recovery(one, record.prompt) for one, record in zip(read, probes.forget, strict=False)]
        notes = (stopped(setting, len(read), len(rows), "records"),) if missing else ()
        return Findings(
            [*found, *[UNREACHED] * missing],
            curve={
                float(k): [*(_seen(one, k) for one in read), *[False] * missing] for k in range(1, count + 1)
            },
            axis="layers read, from the last",
            values=_values(read, setting.seed) if read else {},
            notes=notes,
            complete=not missing,
        )


def readings(target: Target, rows: Sequence[Encoded], setting: Setting) -> list[Reading]:
    """Ranks and probabilities of all response tokens but the one that ends a response, at all layers."""
    layers = range(depth(target.model) + 1)
    norm = final_norm(target.model)
    states = response_states(target.model, rows, layers, setting.precision)
    with evaluating(target.model, "fp32") as device:
        return [
            _read(norm, output_embedding(target.model), one.to(device), row.labels)
            for one, row in zip(states, rows, strict=True)
        ]


def _read(
    norm: Callable[[Tensor], Tensor], head: nn.Module, states: Tensor, labels: tuple[int, ...]
) -> Reading:
    """Layer by layer, so that no more than one layer's logits exist; the better of with and without bias."""
    length = max(1, len(labels) - 1)
    tokens = torch.tensor(labels[:length], device=states.device)[:, None]
    layers = [_best(_logits(head, norm(layer)), tokens) for layer in states[:, :length]]
    ranks, probabilities = zip(*layers, strict=True)
    return Reading(torch.stack(ranks).cpu(), torch.stack(probabilities).cpu())


def _best(several: Sequence[Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens' lowest ranks and highest probabilities over several logits, [t, v] each."""
    ranks = [(logits > logits.gather(1, tokens)).sum(1) for logits in several]
    p = [logits.log_softmax(-1).gather(1, tokens)[:, 0].exp() for logits in several]
    return torch.stack(ranks).amin(0), torch.stack(p).amax(0)


def _logits(head: nn.Module, hidden: Tensor) -> list[Tensor]:
    said = [head(hidden).float()]
    if isinstance(head, nn.Linear) and head.bias is not None:
        said.append(functional.linear(hidden, head.weight).float())
    return said


def _recovery(reading: Reading, prompt: str) -> Recovery:
    share = (reading.ranks == 0).float().mean(1)
    layer = int(share.argmax())
    told = f"{prompt} [layer {layer} read, the response given token by token]"
    return Recovery(float(share[layer]), bool(share[layer] == 1), told, tries=len(share))


def _seen(reading: Reading, layers: int) -> bool:
    return bool((reading.ranks[-layers:] == 0).all(1).any())


def _values(read: Sequence[Reading], seed: int) -> dict[str, Metric]:
    """Per layer: probability of the response's tokens, and the mean of 1 / rank (1 the likeliest)."""
    values = {}
    for layer in range(len(read[0].ranks)):
        p = [float(one.probabilities[layer].mean()) for one in read]
        ranks = [float((1 / (one.ranks[layer] + 1.0)).mean()) for one in read]
        values[f"token probability, layer {layer}"] = intervals.share(p, seed=seed)
        values[f"reciprocal rank, layer {layer}"] = intervals.share(ranks, seed=seed)
    return values
