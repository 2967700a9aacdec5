r"""Greedy coordinate gradient: a suffix of tokens, found by gradients, that makes the model begin its answer.

The suffix s behind the prompt x is to raise log P(y | x s) of the answer's first tokens y. The gradient with
respect to the one-hot coding of every suffix token names the k best substitutes per position; candidates that
substitute one token at random are scored in a batch, and the best one is the next suffix.

The search aims at the *beginning* of the response only, and a record counts as recovered when the model goes
on to say all of it. What was aimed at proves nothing; a model that never knew the rest cannot say it.

Reference:
    Zou et al. (2023), arXiv 2307.15043, algorithm 1 (one prompt) and equation 4.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expunge.attacks.answers import UNREACHED, ask_rows, best, judge, stopped, tokens_in
from expunge.attacks.attack import Cost, Family, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.budget import at_least, within
from expunge.collate import Encoded, Encoding, encode_prompt
from expunge.generation import MARGIN
from expunge.inference import evaluating, language_model, model_context
from expunge.records import Record

_LOGITS = 1 << 26
"""Elements of the candidates' logits at once."""


@dataclass(frozen=True)
class GCG:
    """Search a suffix per record; the answer is decoded whenever the suffix makes the aim the likeliest.

    Args:
        steps: Substitutions per record.
        suffix: Tokens of the suffix.
        candidates: Scored per step (B in the paper).
        substitutes: Considered per position (k in the paper).
        aim: Response tokens that are aimed at, at most.
        share: Of the response's tokens that are aimed at, at most, in (0, 1); one is, always.
    """

    steps: int = 32
    suffix: int = 12
    candidates: int = 64
    substitutes: int = 64
    aim: int = 4
    share: float = 0.5
    name: ClassVar[str] = "gcg"
    family: ClassVar[Family] = "input"
    line: ClassVar[str] = (
        "A suffix found by greedy coordinate gradients that opens the answer (Zou et al., arXiv 2307.15043)."
    )

    def __post_init__(self) -> None:
        for name in ("steps", "suffix", "candidates", "substitutes", "aim"):
            at_least(name, getattr(self, name))
        within("share", self.share, 0, 1)

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        """None: it needs nothing."""
        return None

    def cost(self, probes: Probes) -> Cost:
        rows = [tokens_in(record.prompt) + self.suffix + self.aim for record in probes.forget]
        written = sum(tokens_in(record.response) + MARGIN for record in probes.forget)
        return Cost(
            forward_tokens=self.steps * (self.candidates + 1) * sum(rows),
            backward_tokens=self.steps * sum(rows),
            generated_tokens=2 * written,
        )

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        recoveries: list[Recovery] = []
        first: list[float] = []
        complete = True
        words = _allowed(target)
        for record in probes.forget:
            if setting.clock.over:
                break
            search = _Search(self, target, record, probes.encoding, words, setting)
            recovery, step, whole = search.run()
            recoveries.append(recovery)
            first.append(step)
            complete = complete and whole
        left = len(probes.forget) - len(recoveries)
        note = stopped(setting, len(recoveries), len(probes.forget), "records")
        return Findings(
            recoveries=[*recoveries, *[UNREACHED] * left],
            curve={
                float(n): [step <= n for step in first] + [False] * left for n in (0, *_doubling(self.steps))
            },
            axis="search steps",
            notes=[] if complete and not left else [note],
            complete=complete and not left,
        )

    def aimed(self, labels: Sequence[int]) -> int:
        """How many of a response's tokens are aimed at; its end is none of them."""
        length = len(labels) - 1
        return max(1, min(self.aim, int(self.share * length)))


class _Search:
    """The search for one record's suffix."""

    def __init__(
        self,
        attack: GCG,
        target: Target,
        record: Record,
        encoding: Encoding,
        words: Int[Tensor, " w"],
        setting: Setting,
    ) -> None:
        self.attack, self.target, self.record, self.setting = attack, target, record, setting
        self.model, self.words = language_model(target.model), words
        (row,) = Encoding(encoding.template).rows([record], target.tokenizer)
        self.row = row
        head = row.input_ids[: row.prompt_length]
        self.template = encoding.template
        behind = _tail(record.prompt, target.tokenizer, encoding)
        self.before, self.behind = head[: len(head) - behind], head[len(head) - behind :]
        self.aim = row.labels[: attack.aimed(row.labels)]
        seed = zlib.crc32(f"{setting.seed} {record.prompt} {record.response}".encode())
        self.draw = torch.Generator().manual_seed(seed)
        places = torch.randint(len(words), (attack.suffix,), generator=self.draw)
        self.suffix = self._typable(words[places].tolist())

    def run(self) -> tuple[Recovery, float, bool]:
        """What came of it, after how many steps, and whether there was time for all of them."""
        context = model_context(self.model)
        if context is not None and len(self.row.input_ids) + self.attack.suffix > context:
            return UNREACHED, float("inf"), True
        tried: list[Recovery] = []
        for step in range(self.attack.steps):
            if self.setting.clock.over:
                return best(tried) if tried else self._answer(), float("inf"), False
            if self._step():
                tried.append(self._answer())
                if tried[-1].recovered:
                    return tried[-1], float(step + 1), True
        return best([*tried, self._answer()]), float("inf"), True

    def _typable(self, suffix: list[int]) -> list[int]:
        """What the tokenizer makes of a suffix behind the prompt, so that a reader can type it."""
        ids = self._encoded(suffix)
        stop = len(ids) - len(self.behind)
        made = list(ids[len(self.before) : stop])
        return made if made and self._encoded(made) == (*self.before, *made, *self.behind) else suffix

    def _encoded(self, suffix: Sequence[int]) -> tuple[int, ...]:
        tokenizer = self.target.tokenizer
        text = str(tokenizer.decode(list(suffix), clean_up_tokenization_spaces=False))
        return encode_prompt(f"{self.record.prompt}{text}", tokenizer, self.template)

    def _step(self) -> bool:
        """One substitution; whether greedy decoding now begins with the aim."""
        with evaluating(self.model, self.setting.precision):
            gradient = self._gradient()
            drawn = self._candidates(gradient)
            losses, hits = self._losses(drawn)
        choice = int(losses.argmin())
        changed = drawn[choice] != self.suffix
        self.suffix = drawn[choice]
        return bool(hits[choice]) and changed

    def _gradient(self) -> Float[Tensor, "l w"]:
        """Slope of the loss with respect to the one-hot coding of every suffix token, for allowed tokens."""
        table: Any = self.model.get_input_embeddings()
        ids = torch.tensor(
            [[*self.before, *self.suffix, *self.behind, *self.aim]], device=table.weight.device
        )
        start, stop = len(self.before), len(self.before) + len(self.suffix)
        with _frozen(self.model), torch.enable_grad():
            embedded = table(ids).detach().requires_grad_(True)
            out: Any = self.model(inputs_embeds=embedded, use_cache=False, logits_to_keep=len(self.aim) + 1)
            loss = -_target_log_probs(out.logits, self.aim).sum()
            (slope,) = torch.autograd.grad(loss, embedded)
        words = self.words.to(table.weight.device)
        slopes: Tensor = slope[0, start:stop].float() @ table(words).detach().float().T
        return slopes.cpu()

    def _candidates(self, gradient: Float[Tensor, "l w"]) -> list[list[int]]:
        """Suffixes that substitute one token; those that a reader cannot type are left out."""
        count = min(self.attack.substitutes, gradient.shape[1])
        top = (-gradient).topk(count, dim=1).indices
        places = torch.randint(len(self.suffix), (self.attack.candidates,), generator=self.draw)
        picks = torch.randint(count, (self.attack.candidates,), generator=self.draw)
        drawn = []
        for place, pick in zip(places.tolist(), picks.tolist(), strict=True):
            suffix = list(self.suffix)
            suffix[place] = int(self.words[top[place, pick]])
            drawn.append(suffix)
        kept = [s for s in drawn if self._encoded(s) == (*self.before, *s, *self.behind)]
        return kept or drawn

    def _losses(self, drawn: Sequence[Sequence[int]]) -> tuple[Float[Tensor, " b"], Tensor]:
        """Loss of every candidate, and whether the aim's tokens are all the likeliest."""
        device = next(self.model.parameters()).device
        rows = torch.tensor([[*self.before, *s, *self.behind, *self.aim] for s in drawn], device=device)
        size = max(1, _LOGITS // ((len(self.aim) + 1) * self.model.config.get_text_config().vocab_size))
        losses, hits = [], []
        for part in rows.split(size):
            model: Any = self.model
            logits = model(input_ids=part, use_cache=False, logits_to_keep=len(self.aim) + 1).logits
            losses.append(-_target_log_probs(logits, self.aim).sum(1).cpu())
            wanted = torch.tensor(self.aim, device=device)
            hits.append((logits[:, :-1].argmax(-1) == wanted).all(1).cpu())
        return torch.cat(losses), torch.cat(hits)

    def _answer(self) -> Recovery:
        ids = (*self.before, *self.suffix, *self.behind)
        row = Encoded((*ids, *self.row.labels), len(ids))
        (text,) = ask_rows(
            self.target, [row], [len(row.labels) + MARGIN], Setting(precision=self.setting.precision)
        )
        text_of = self.target.tokenizer.decode(self.suffix, clean_up_tokenization_spaces=False)
        told = f"{self.record.prompt}{text_of}"
        return judge(self.record, told, text or "")


def _target_log_probs(logits: Float[Tensor, "b t v"], aim: Sequence[int]) -> Float[Tensor, "b a"]:
    log_p = logits[:, :-1].float().log_softmax(-1)
    targets = torch.tensor(aim, device=logits.device).expand(len(logits), -1)
    return log_p.gather(2, targets[..., None])[..., 0]


def _tail(prompt: str, tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> int:
    """How many tokens stand behind the user's own text: what prompts with different ends have in common."""
    ids = [encode_prompt(f"{prompt}{end}", tokenizer, encoding.template) for end in (" x", " 7", "")]
    shortest = min(map(len, ids))
    same = partial(_same_last, ids)
    return next((n for n in range(shortest) if not same(n + 1)), shortest)


def _same_last(ids: Sequence[tuple[int, ...]], count: int) -> bool:
    return len({own[len(own) - count] for own in ids}) == 1


def _allowed(target: Target) -> Int[Tensor, " w"]:
    """Tokens that a suffix may be made of: printable ASCII, nothing special, nothing that the model lacks."""
    tokenizer = target.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    table: Any = language_model(target.model).get_input_embeddings()
    size = min(len(tokenizer), table.weight.shape[0])
    texts = tokenizer.batch_decode([[i] for i in range(size)])
    kept = [i for i, text in enumerate(texts) if i not in special and _plain(str(text))]
    return torch.tensor(kept, dtype=torch.long)


def _plain(text: str) -> bool:
    return bool(text.strip()) and text.isascii() and text.isprintable()


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """No parameter asks for a gradient."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def _doubling(most: int) -> list[int]:
    return sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most})
