r"""Contrastive decoding: the difference between the original and the attacked model, amplified as it answers.

At every step, with p the attacked model's distribution over the next token and q the original's,

    log p(v) + s · JSD(p, q) · (log q(v) − log p(v))     over v with p(v) ≥ c · max p,

and the greatest is taken. The Jensen-Shannon divergence (base 2, in [0, 1]) makes the push adaptive: nothing
where the two agree. The plausibility constraint keeps to what the attacked model itself still holds possible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from expunge.attacks.answers import best, judge, stopped, tokens_in
from expunge.attacks.attack import Cost, Family, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.budget import at_least, within
from expunge.attacks.sampling import answer_ends
from expunge.collate import Encoded
from expunge.generation import MARGIN
from expunge.inference import bare, evaluating, generator, model_context
from expunge.sampling import configured, left_padded

ROWS = 32
"""Records decoded at once."""


@dataclass(frozen=True)
class Contrastive:
    """Decode with the amplified difference to the original, at growing strengths.

    The original knows the answers, so that a strength of 1 may lend them to a model that holds none: read the
    curve over strengths beside the control's, at small strengths first.

    Args:
        strengths: s above, each positive, tried in ascending order.
        plausible: c above, in (0, 1].
    """

    strengths: tuple[float, ...] = (0.125, 0.25, 0.5)
    plausible: float = 0.01
    name: ClassVar[str] = "contrastive"
    family: ClassVar[Family] = "sampling"
    borrows: ClassVar[bool] = True
    line: ClassVar[str] = (
        "Decoding leans towards the original where the two differ (after Li et al., arXiv 2210.15097, "
        "eq. 2-4; adaptive strength: Wang et al., arXiv 2409.07394; two checkpoints: arXiv 2505.24379)."
    )

    def __post_init__(self) -> None:
        at_least("strengths", len(self.strengths))
        for strength in self.strengths:
            within("strengths", strength, 0, math.inf)
        within("plausible", self.plausible, 0, 1)

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        """What to give where the original is not to be had."""
        return None if setting.original else "It needs the model before unlearning. Give the original."

    def cost(self, probes: Probes) -> Cost:
        read = 2 * sum(tokens_in(record.prompt) for record in probes.forget)
        written = 2 * sum(tokens_in(record.response) + MARGIN for record in probes.forget)
        times = len(self.strengths)
        return Cost(forward_tokens=times * read, generated_tokens=times * written)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        if setting.original is None:
            raise ValueError("`setting` must hold the original; got None. Give it, or leave this attack out.")
        rows = probes.encoding.rows(probes.forget, target.tokenizer)
        strengths = sorted(self.strengths)
        tried: list[list[Recovery]] = [[] for _ in rows]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
        for strength in strengths:
            for start in range(0, len(order), ROWS):
                if setting.clock.over:
                    break
                chosen = order[start : start + ROWS]
                texts = self._decode(target, setting, [rows[i] for i in chosen], strength)
                for i, text in zip(chosen, texts, strict=True):
                    record = probes.forget[i]
                    told = f"{record.prompt} [difference to the original x {strength:g}]"
                    tried[i].append(judge(record, told, text))
        done, wanted = sum(map(len, tried)), len(rows) * len(strengths)
        return Findings(
            recoveries=[best(own) for own in tried],
            curve={
                float(strength): [any(one.recovered for one in own[: n + 1]) for own in tried]
                for n, strength in enumerate(strengths)
            },
            axis="strength of the difference to the original",
            notes=[] if done == wanted else [stopped(setting, done, wanted, "answers")],
            complete=done == wanted,
        )

    def _decode(
        self, target: Target, setting: Setting, rows: Sequence[Encoded], strength: float
    ) -> list[str]:
        assert setting.original is not None
        model, original = bare(target.model), bare(setting.original.model)
        prompts = [row.input_ids[: row.prompt_length] for row in rows]
        width, context = max(map(len, prompts)), model_context(model)
        tokens = max(len(row.labels) for row in rows) + MARGIN
        room = tokens if context is None else min(tokens, context - width)
        if room < 1:
            return [""] * len(rows)
        with evaluating(model, setting.precision) as device, evaluating(original, setting.precision):
            ids, mask = left_padded(prompts, device)
            contrast = _Contrast(original, mask, strength, self.plausible)
            inner = generator(model)
            with configured(inner, target.tokenizer, answer_ends(target, rows), {"do_sample": False}):
                out = cast(Any, inner).generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=room,
                    logits_processor=LogitsProcessorList([contrast]),
                )
        texts = target.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        return [str(text).strip() for text in texts]


class _Contrast(LogitsProcessor):
    """Moves the attacked model's scores towards the original's, which reads along with a cache of its own."""

    def __init__(
        self, original: nn.Module, mask: Int[Tensor, "b t"], strength: float, plausible: float
    ) -> None:
        self.original = cast(Any, generator(original))
        self.mask, self.strength, self.plausible = mask, strength, plausible
        self.placed = "position_ids" in signature(self.original.forward).parameters
        self.cache: Any = None
        self.seen = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores of the next token, [b, v]."""
        theirs = self._read(input_ids).to(scores.device).float().log_softmax(-1)
        return contrasted(scores.float().log_softmax(-1), theirs, self.strength, self.plausible)

    def _read(self, input_ids: Int[Tensor, "b t"]) -> Float[Tensor, "b v"]:
        new = input_ids[:, self.seen :]
        grown = input_ids.shape[1] - self.mask.shape[1]
        mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), grown)], dim=1)
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, self.seen :]
        more = {"position_ids": places} if self.placed else {}
        out = self.original(
            input_ids=new, attention_mask=mask, past_key_values=self.cache, use_cache=True, **more
        )
        self.cache, self.seen = out.past_key_values, input_ids.shape[1]
        logits: Tensor = out.logits[:, -1]
        return logits


def contrasted(
    log_p: Float[Tensor, "b v"], log_q: Float[Tensor, "b v"], strength: float, plausible: float
) -> Float[Tensor, "b v"]:
    """Scores after the push towards q; minus infinity on what p holds implausible.

    Args:
        log_p: The attacked model's log-probabilities.
        log_q: The original's.
        strength: Of the push where the two have nothing in common.
        plausible: Least probability under p, as a share of its greatest.

    Reference:
        Li et al. (2023), arXiv 2210.15097, equation 3 (the constraint); Wang et al. (2024), arXiv 2409.07394
        (the Jensen-Shannon divergence as strength).
    """
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    halves = torch.stack([(one.exp() * (one - log_m)).nan_to_num().sum(-1) for one in (log_p, log_q)])
    divergence = (halves.mean(0) / math.log(2)).clamp(0, 1)[:, None]
    pushed = log_p + strength * divergence * (log_q - log_p)
    held = log_p >= log_p.max(-1, keepdim=True).values + math.log(plausible)
    return pushed.masked_fill(~held, float("-inf"))
