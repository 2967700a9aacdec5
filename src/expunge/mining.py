"""Which retained records a model takes for a record to forget: near in its hidden states, interchangeable.

Knows records and the one scored pass; writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge.collate import Encoded, Encoding, batches_by_tokens, collate
from expunge.inference import Precision, evaluating, language_model
from expunge.records import Record
from expunge.scoring import score

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reader:
    """A model and how records are put to it.

    Attributes:
        model: A causal language model, wrapped or not.
        tokenizer: Its tokenizer.
        encoding: How records become rows; rows that exceed its length are cut.
        precision: Of forward passes.
        batch_tokens: Tokens per batch, padding included.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    encoding: Encoding
    precision: Precision = "fp32"
    batch_tokens: int = 4096

    def rows(self, records: Sequence[Record]) -> list[Encoded]:
        """The records as token ids."""
        return self.encoding.rows(records, self.tokenizer)

    def log_likelihoods(self, records: Sequence[Record]) -> Array:
        """Mean log-probability per token of each response after its prompt, in nats, [n]."""
        found = score(
            self.model,
            self.rows(records),
            pad_id=int(self.tokenizer.pad_token_id or 0),
            precision=self.precision,
            batch_tokens=self.batch_tokens,
        )
        return np.array([-scores.nll for scores in found])

    def embeddings(self, records: Sequence[Record]) -> Float[np.ndarray, "n d"]:
        """Last hidden states, averaged over all tokens of prompt and response, [n, d]."""
        rows = self.rows(records)
        pooled: dict[int, Array] = {}
        inner = language_model(self.model).base_model
        order = batches_by_tokens([len(row.input_ids) for row in rows], self.batch_tokens)
        with evaluating(self.model, self.precision) as device:
            for batch in order:
                inputs = collate([rows[i] for i in batch], int(self.tokenizer.pad_token_id or 0))
                mask = inputs["attention_mask"].to(device)
                states = inner(input_ids=inputs["input_ids"].to(device), attention_mask=mask)
                weights = mask[..., None].float()
                means = (states.last_hidden_state.float() * weights).sum(1) / weights.sum(1)
                pooled |= dict(zip(batch, means.cpu().double().numpy(), strict=True))
        return np.stack([pooled[i] for i in range(len(rows))])


@dataclass(frozen=True, slots=True)
class Pair:
    """A record to forget and a retained one that the model may take for it.

    Attributes:
        forget: Its row number.
        retain: The other's.
        similarity: Cosine of their embeddings, centred over both sets.
        confusion: How much less likely each response is after the other's prompt than after its own, the mean
            of both ways in nats per token: near 0 interchangeable, far below 0 told apart.
        nearness: Sum of both in standard deviations over all candidate pairs: comparable between pairs.
    """

    forget: int
    retain: int
    similarity: float
    confusion: float
    nearness: float


def mine(reader: Reader, forget: Sequence[Record], retain: Sequence[Record], k: int, pool: int) -> list[Pair]:
    """For each forget record the `k` retained records that the model confuses it with most.

    Embeddings choose `pool` candidates per record, since likelihoods of all pairs would take as many passes
    as there are pairs; likelihoods are asked for these only.

    Args:
        reader: The model before unlearning.
        forget: Records to forget.
        retain: Records to keep, at least `k`.
        k: Neighbours per record, at least 1.
        pool: Candidates per record, at least `k`.

    Returns:
        Nearest first.
    """
    similarity = _cosines(reader.embeddings([*forget, *retain]), len(forget))
    count = min(pool, len(retain))
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    where = [(i, int(j)) for i in range(len(forget)) for j in nearest[i]]
    alike = np.array([similarity[i, j] for i, j in where])
    confused = _confusion(reader, forget, retain, where)
    score_of = _standardised(alike) + _standardised(confused)
    pairs = [
        Pair(i, j, float(a), float(c), float(s))
        for (i, j), a, c, s in zip(where, alike, confused, score_of, strict=True)
    ]
    pairs.sort(key=lambda pair: -pair.nearness)
    taken = dict.fromkeys(range(len(forget)), 0)
    kept = []
    for pair in pairs:
        if taken[pair.forget] < k:
            taken[pair.forget] += 1
            kept.append(pair)
    return kept


def _cosines(embeddings: Array, forget: int) -> Float[np.ndarray, "f r"]:
    """Of every forget row with every retain row, after the mean over all rows is taken off."""
    centred = embeddings - embeddings.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    cosines: Array = unit[:forget] @ unit[forget:].T
    return cosines


def _confusion(
    reader: Reader, forget: Sequence[Record], retain: Sequence[Record], where: Sequence[tuple[int, int]]
) -> Float[np.ndarray, " p"]:
    there = [Record(forget[i].prompt, retain[j].response) for i, j in where]
    back = [Record(retain[j].prompt, forget[i].response) for i, j in where]
    needed = sorted({j for _, j in where})
    found = reader.log_likelihoods([*there, *back, *forget, *(retain[j] for j in needed)])
    swapped, swapped_back, own, own_retain = np.split(found, np.cumsum([len(there), len(back), len(forget)]))
    kept = dict(zip(needed, own_retain, strict=True))
    ways = (
        swapped - np.array([kept[j] for _, j in where]),
        swapped_back - np.array([own[i] for i, _ in where]),
    )
    mean: Array = (ways[0] + ways[1]) / 2
    return mean


def _standardised(values: Array) -> Array:
    spread = float(values.std())
    centred: Array = values - values.mean()
    return centred / spread if spread > 0 else centred
