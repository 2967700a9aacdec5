"""Filters around a finished model: on its prompts, on its answers, or on both; they change no weight.

A filter makes answers from what the model behind it says. Filters stack; each sees the one behind it as the
model. Knows text; knows no model and no token.
"""

from __future__ import annotations

import string
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

from expunge.attacks.answers import leaks
from expunge.metrics import normalise, rouge_l_recall
from expunge.refusals import REFUSALS

Ask = Callable[[Sequence[int], Sequence[str], int | None], list[str]]
"""Number of the prompt that each text stands for, texts, new tokens per answer (None: the asker's own
budget) -> answers."""

_CHARACTERS: Final = np.array(list(string.ascii_letters + string.digits + string.punctuation + " "))
_CHARACTERS_PER_TOKEN: Final = 2
_REWRITE: Final = "Rewrite this in other words, with the same meaning, and say nothing else: {prompt}"


@runtime_checkable
class Filter(Protocol):
    """Answers to prompts, made by asking what is behind."""

    def __call__(self, prompts: Sequence[str], ask: Ask) -> list[str]:
        """One answer per prompt."""
        ...


@dataclass(frozen=True)
class Stack:
    """Filters one behind the other, the first outermost; none lets everything through.

    Args:
        filters: Outermost first.
    """

    filters: tuple[Filter, ...]

    def __call__(self, prompts: Sequence[str], ask: Ask) -> list[str]:
        if not self.filters:
            return ask(range(len(prompts)), prompts, None)
        first = self.filters[0]
        inner = Stack(self.filters[1:])

        def behind(owners: Sequence[int], texts: Sequence[str], budget: int | None) -> list[str]:
            def own(which: Sequence[int], asked: Sequence[str], more: int | None) -> list[str]:
                return ask([owners[i] for i in which], asked, budget if more is None else more)

            return inner(texts, own)

        return _checked(first, first(prompts, behind), len(prompts))


@dataclass(frozen=True)
class Smoothing:
    """The answer that most randomly perturbed copies of a prompt get.

    Each copy has a share of its characters replaced at random. What an attacker has tuned to the last
    character breaks; a plain question survives. Of answers that are equally frequent the first is given. The
    same prompt gets the same copies, whatever it is asked beside.

    Args:
        copies: At least 1.
        share: Of the characters, in (0, 1); one at least.
        seed: Of the replacements.

    Reference:
        Robey et al. (2023), arXiv 2310.03684, algorithm 1 (swap perturbation), with the answer itself in
        place of a judge's verdict on it.
    """

    copies: int = 5
    share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"`copies` must be at least 1; got {self.copies}. Leave the filter out instead.")
        if not 0 < self.share < 1:
            raise ValueError(f"`share` must be in (0, 1); got {self.share}. Leave the filter out instead.")

    def __call__(self, prompts: Sequence[str], ask: Ask) -> list[str]:
        owners = [i for i in range(len(prompts)) for _ in range(self.copies)]
        texts = [self.perturbed(prompt, copy) for prompt in prompts for copy in range(self.copies)]
        said = ask(owners, texts, None)
        return [_majority(said[i : i + self.copies]) for i in range(0, len(said), self.copies)]

    def perturbed(self, prompt: str, copy: int) -> str:
        """One copy of a prompt."""
        if not prompt:
            return prompt
        draw = np.random.default_rng([self.seed, zlib.crc32(prompt.encode()), copy])
        letters = list(prompt)
        count = max(1, round(self.share * len(letters)))
        for place in draw.choice(len(letters), size=count, replace=False):
            letters[place] = str(draw.choice(_CHARACTERS))
        return "".join(letters)


@dataclass(frozen=True)
class Paraphrase:
    """The answer to a paraphrase of the prompt: wording that carries an attack is lost, meaning is kept.

    Args:
        rewrite: Paraphrases prompts; None asks the model itself. A prompt without a paraphrase stays.
        request: What the model is asked for one, with `{prompt}` in it.

    Reference:
        Jain et al. (2023), arXiv 2309.00614, section 4.2.
    """

    rewrite: Callable[[Sequence[str]], Sequence[str]] | None = None
    request: str = _REWRITE

    def __post_init__(self) -> None:
        if "{prompt}" not in self.request:
            raise ValueError(f"`request` must hold {{prompt}}, the text to rewrite; got {self.request!r}.")

    def __call__(self, prompts: Sequence[str], ask: Ask) -> list[str]:
        every = range(len(prompts))
        if self.rewrite is not None:
            rewritten = self.rewrite(prompts)
        else:
            longest = max(map(len, prompts), default=0)
            requests = [self.request.replace("{prompt}", prompt) for prompt in prompts]
            rewritten = ask(every, requests, 16 + longest // _CHARACTERS_PER_TOKEN)
        texts = [new.strip() or old for new, old in zip(rewritten, prompts, strict=True)]
        return ask(every, texts, None)


@dataclass(frozen=True)
class RefusePrompts:
    """Refuse prompts that resemble a protected one; all others pass.

    Resemblance is the share of a protected prompt's words that stand in the prompt asked.

    Args:
        protected: Prompts, at least one.
        resemblance: From which on a prompt is refused, in (0, 1].
    """

    protected: tuple[str, ...]
    resemblance: float = 0.8

    def __post_init__(self) -> None:
        _check(self.protected, "resemblance", self.resemblance)

    def __call__(self, prompts: Sequence[str], ask: Ask) -> list[str]:
        passed = [i for i, prompt in enumerate(prompts) if not self.refuses(prompt)]
        said = dict(zip(passed, ask(passed, [prompts[i] for i in passed], None), strict=True))
        return [said.get(i, _refusal(prompt)) for i, prompt in enumerate(prompts)]

    def refuses(self, prompt: str) -> bool:
        """Whether a prompt resembles a protected one."""
        words = set(_words(prompt))
        return any(
            sum(word in words for word in wanted) >= self.resemblance * len(wanted)
            for wanted in map(_words, self.protected)
        )


@dataclass(frozen=True)
class RefuseAnswers:
    """Refuse in place of answers that say a protected response, as a whole or in large part.

    Args:
        protected: Responses, at least one.
        recall: ROUGE-L recall of a protected response from which on an answer is refused, in (0, 1].
    """

    protected: tuple[str, ...]
    recall: float = 0.8

    def __post_init__(self) -> None:
        _check(self.protected, "recall", self.recall)

    def __call__(self, prompts: Sequence[str], ask: Ask) -> list[str]:
        said = ask(range(len(prompts)), prompts, None)
        return [
            _refusal(prompt) if self.refuses(answer) else answer
            for prompt, answer in zip(prompts, said, strict=True)
        ]

    def refuses(self, answer: str) -> bool:
        """Whether an answer says a protected response."""
        return any(
            leaks(answer, text) or rouge_l_recall(answer, text) >= self.recall for text in self.protected
        )


def _checked(one: Filter, said: Any, count: int) -> list[str]:
    """What a filter gave, if it is a text per prompt."""
    texts = list(said) if isinstance(said, Sequence) and not isinstance(said, str) else []
    if len(texts) == count and all(isinstance(text, str) for text in texts):
        return texts
    name = getattr(one, "__name__", type(one).__name__)
    got = f"{len(texts)} of them" if texts else type(said).__name__
    raise ValueError(f"filter {name} must give a list of one str per prompt ({count}); got {got}. Mend it.")


def _majority(answers: Sequence[str]) -> str:
    counts = Counter(map(normalise, answers))
    return max(answers, key=lambda answer: counts[normalise(answer)])


def _words(text: str) -> list[str]:
    return ["".join(filter(str.isalnum, word)) for word in normalise(text).split()]


def _refusal(prompt: str) -> str:
    """The same for the same prompt."""
    return REFUSALS[zlib.crc32(prompt.encode()) % len(REFUSALS)]


def _check(protected: Sequence[str], name: str, share: float) -> None:
    if not protected or not all(text.strip() for text in protected):
        raise ValueError("`protected` must hold at least one text, none of them empty. Give what to protect.")
    if not 0 < share <= 1:
        raise ValueError(f"`{name}` must be in (0, 1]; got {share}. 1 refuses what is said in full.")
