"""Prompts as embeddings, and what follows them: where a language model becomes a `predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from expunge.attacks.answers import judge
from expunge.attacks.attack import Recovery, Target
from expunge.attacks.decoding import decode, embedding_of, end_tokens, forward, left_padded
from expunge.collate import IGNORED, Encoded, Encoding
from expunge.generation import MARGIN
from expunge.inference import model_context
from expunge.records import Record


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """A batch of prompts and the responses that they are to get.

    Attributes:
        model: Who is asked.
        embeds: Of the prompts, padded on the left with zeros, [b, p, d], fp32.
        mask: 1 on real positions, [b, p].
        labels: Response tokens and the one that ends them, padded on the right with -100, [b, t].
    """

    model: nn.Module
    embeds: Float[Tensor, "b p d"]
    mask: Int[Tensor, "b p"]
    labels: Int[Tensor, "b t"]

    def logits(self, embeds: Float[Tensor, "b q d"], extra: int = 0) -> Float[Tensor, "b t v"]:
        """What the model says at each response position, given everything before it.

        Args:
            embeds: In place of the prompts' own.
            extra: So many of their positions stand before the prompts.
        """
        answers = embedding_of(self.model)(self.labels.clamp_min(0))
        mask = torch.cat([self.before(extra), (self.labels != IGNORED).long()], dim=1)
        whole = torch.cat([embeds, answers], dim=1)
        length, wanted = whole.shape[1], self.labels.shape[1] + 1
        out = forward(self.model, mask, length, inputs_embeds=whole, use_cache=False, logits_to_keep=wanted)
        said: Tensor = out.logits[:, -wanted:-1].float()
        return said

    def before(self, extra: int) -> Int[Tensor, "b q"]:
        """The mask of prompts with so many positions put in front; the padding stays in front of those."""
        return torch.cat([self.mask, self.mask.new_ones(len(self.mask), extra)], dim=1)

    def prefixed(self, prefix: Float[Tensor, "b k d"]) -> Float[Tensor, "b q d"]:
        """The prompts behind a prefix each."""
        gaps = (1 - self.mask).sum(1)
        return torch.stack(
            [
                torch.cat([one[:gap], front, one[gap:]])
                for one, front, gap in zip(self.embeds, prefix, gaps.tolist(), strict=True)
            ]
        )


def prompts_of(model: nn.Module, rows: Sequence[Encoded], device: torch.device) -> Prompts:
    """Rows as a batch of prompts and labels."""
    ids, mask = left_padded(rows, device)
    labels = torch.full((len(rows), max(len(row.labels) for row in rows)), IGNORED)
    for i, row in enumerate(rows):
        labels[i, : len(row.labels)] = torch.tensor(row.labels)
    with torch.no_grad():
        embeds = embedding_of(model)(ids).float() * mask[..., None]
    return Prompts(model, embeds, mask, labels.to(device))


def rows_of(target: Target, records: Sequence[Record], encoding: Encoding, extra: int = 0) -> list[Encoded]:
    """Encoded records, cut where the model's context, less `extra` positions, ends.

    Raises:
        UsageError: Nothing of a response would be left.
    """
    context = model_context(target.model)
    limits = [encoding.max_length, None if context is None else context - extra]
    cut = replace(encoding, max_length=min((limit for limit in limits if limit is not None), default=None))
    return cut.rows(records, target.tokenizer)


def answers(
    target: Target,
    records: Sequence[Record],
    rows: Sequence[Encoded],
    embeds: Float[Tensor, "b q d"],
    mask: Int[Tensor, "b q"],
    encoding: Encoding,
) -> list[Recovery]:
    """Greedy answers to prompts that are embeddings, judged."""
    context = model_context(target.model)
    budgets = [len(row.labels) + MARGIN for row in rows]
    if context is not None:
        budgets = [min(budget, max(1, context - embeds.shape[1])) for budget in budgets]
    ends = end_tokens(target.model, target.tokenizer, encoding.template)
    said = decode(target.model, embeds, mask, budgets, ends)
    texts = [str(target.tokenizer.decode(list(one), skip_special_tokens=True)).strip() for one in said]
    return [judge(record, record.prompt, text) for record, text in zip(records, texts, strict=True)]
