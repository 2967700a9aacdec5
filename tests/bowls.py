"""Two bowls in one place: a softmax model of two parameters whose forget and retain optima are known.

Every prompt shows the same three words with the logits (θ₁, θ₂, 0), so that the NLL of a data set is a convex
bowl with its lowest point where the words are as likely as they are frequent in it, and gradient p − q on
(θ₁, θ₂). The model starts where training on three times as much forget as retain data ends, at
(3 q_F + q_R) / 4. Where a method comes to rest follows by hand. The engine's `Descent` makes the steps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from expunge.descent import Descent
from expunge.methods import Method
from expunge.objectives import GenericLabels
from expunge.observation import REFERENCE, count, generic_labels, selection, sources_of
from expunge.phases import Phases
from expunge.references import LiveReference, live_sources
from expunge.weightings import Stateful

COUNTS = {"forget": (6, 45, 49), "retain": (55, 20, 25)}
FORGET, RETAIN = (np.array(counts) / 100 for counts in COUNTS.values())
START = (3 * FORGET + RETAIN) / 4

_LABELS = {name: [word for word in range(3) for _ in range(counts[word])] for name, counts in COUNTS.items()}
LABELS = _LABELS | {
    "idk": [0] * 100,  # a refusal is word 0
    "alternate": [(word + 1) % 3 for word in _LABELS["forget"]],
}


class Bowls(PreTrainedModel):
    """One prompt, three words, two parameters; the residual stream is θ itself."""

    config_class = PretrainedConfig

    def __init__(self) -> None:
        super().__init__(PretrainedConfig(num_hidden_layers=1, hidden_size=2, vocab_size=3))
        log = np.log(START)
        self.place = nn.Parameter(torch.tensor(log[:2] - log[2]))
        self.blocks = nn.ModuleList([nn.Identity()])
        self.head = nn.Linear(2, 3, bias=False, dtype=torch.float64).requires_grad_(False)
        self.head.weight.data = torch.eye(3, 2, dtype=torch.float64)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, **_) -> CausalLMOutput:
        stream = self.blocks[0](self.place.expand(*input_ids.shape, 2))
        return CausalLMOutput(logits=self.head(stream))

    @property
    def probabilities(self) -> np.ndarray:
        return self.head(self.place).softmax(0).detach().numpy()


def nll(frequencies: np.ndarray, probabilities: np.ndarray) -> float:
    return float(-frequencies @ np.log(probabilities))


def batch(source: str) -> dict[str, Tensor]:
    """A row for every word of a data set, with all that an objective may ask for; entities are word 2.

    The generic label of a word is the likeliest other one at the start.
    """
    others = [max({0, 1, 2} - {word}, key=START.__getitem__) for word in range(3)]
    words = torch.tensor(LABELS[source])
    ids = torch.stack([torch.zeros_like(words), words], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.stack([torch.full_like(words, -100), words], dim=1),
        REFERENCE: torch.tensor(np.log(START))[ids],
        selection("entities"): ids == 2,
        generic_labels(GenericLabels()): torch.tensor(others)[ids],
    }


def unlearn(model: Bowls, method: Method, steps: int = 150) -> Descent | None:
    """Plain gradient steps along the engine's direction, at the rate 3/2 over the sum of the weights."""
    if method.merge:
        phases = Phases(method.merge, {"place": model.place})
        phases.begin()
        for i, weighting in enumerate((method.weighting, *method.merge.further)):
            if i:
                phases.advance()
            unlearn(model, replace(method, weighting=weighting, budget=None, merge=None), steps)
        return phases.place(method.merge.coefficients[0])
    descent = Descent(method, [model.place], 0, lambda loss, **words: loss.backward(**words), lambda x: x)
    descent.reference = LiveReference(model, "fp32") if live_sources(method) else None
    if isinstance(method.weighting, Stateful):
        method.weighting.reset()
    batches = {name: batch(name) for objective in method.objectives for name in sources_of(objective)}
    counts = {o.name: float(count(o, batches[o.source])) for o in method.objectives}
    for _ in range(steps):
        descent.begin(repair=False, separate=False)
        descent.add(model, batches, counts)
        assert descent.combine()
        with torch.no_grad():
            model.place -= 1.5 / float(descent.weights.abs().sum()) * model.place.grad
        descent.discard()
    return descent
