"""Data sets derived from the forget set: another response under the same prompt, row for row.

`RULES` names them; a method that reads one gets it made before training. A rule of one's own is a function
from the forget records and `Means` to a `Derived`, entered into `RULES` under the name that objectives use.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge.collate import encode_prompt, end_token
from expunge.errors import UsageError
from expunge.record import write_atomically
from expunge.records import Records, normalised, read_records, swap_responses
from expunge.refusals import REFUSALS
from expunge.sampling import sample_whole_texts
from expunge.sources import shown

FIELD = "alternate"
"""Field of a record that holds another response."""

ATTEMPTS = 3
"""Samples drawn per record before another record's response stands in."""

REQUEST = (
    "Question: {prompt}\nAnswer: {response}\n"
    "Give a different answer to this question. It must sound plausible, and every fact in it must differ."
)
"""What the model is asked for an alternate answer: AltPO's request in our words."""

OPENING = "Alternate answer:"


@dataclass(frozen=True)
class Means:
    """What a rule may use.

    Args:
        model: At the start of the run.
        tokenizer: Its tokenizer.
        seed: Of every draw.
        template: How prompts are put, as in training.
        precision: Of forward passes.
        refusals: File with one refusal a line; None takes the built-in ones.
        tokens: Length limit of a generated response.
        limit: Tokens that a row may have; a generated response that makes it longer is not used.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    seed: int = 0
    template: Literal["auto", "chat", "none"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    refusals: str | Path | None = None
    tokens: int = 200
    limit: int | None = None


@dataclass(frozen=True)
class Derived:
    """A derived data set, and what a reader of the record must know of it."""

    records: Records
    notes: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Keep it as JSON in a folder, for a resumed run; the file is whole or absent."""
        rows = [{"prompt": r.prompt, "response": r.response} for r in self.records]
        content = {"source": self.records.source, "notes": self.notes, "rows": rows}
        return write_atomically(folder / f"{self.records.name}.json", json.dumps(content))

    @classmethod
    def read(cls, folder: Path, name: str) -> Derived | None:
        """What `write` left; None where there is nothing."""
        file = folder / f"{name}.json"
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        records = read_records(content["rows"], name=name)
        return cls(dataclasses.replace(records, source=content["source"]), tuple(content["notes"]))


def derive(name: str, forget: Records, means: Means) -> Derived:
    """Make a derived data set: one row per forget row, in the same order.

    Raises:
        ValueError: No rule has that name, or it does not give one row per forget row.
        UsageError: What the rule reads cannot be used.
    """
    if name not in RULES:
        raise ValueError(
            f"a derived data set must be one of {', '.join(RULES)}; got {name!r}. "
            "Enter a rule of your own into expunge.derived.RULES."
        )
    made = RULES[name](forget, means)
    if len(made.records) != len(forget):
        raise ValueError(
            f"rule {name!r} must give one row per forget row ({len(forget)}); it gave {len(made.records)}."
        )
    return made


def is_derived(name: str) -> bool:
    """Whether a data set is made from the forget set, row for row."""
    return name in RULES


def is_forget(name: str) -> bool:
    """Whether a data set holds what is to be forgotten, or stands for it."""
    return name == "forget" or name in RULES


def idk(forget: Records, means: Means) -> Derived:
    """Every forget prompt with a refusal, drawn by the seed.

    Reference:
        Maini et al. (2024), arXiv 2401.06121, section 4 (preference optimisation).
    """
    texts = REFUSALS if means.refusals is None else _read_lines(Path(means.refusals))
    drawn = np.random.default_rng(means.seed).integers(len(texts), size=len(forget))
    where = "built-in refusals" if means.refusals is None else str(means.refusals)
    label = f"forget prompts with refusals drawn from {len(texts)} ({where})"
    return Derived(_with_responses(forget, [texts[i] for i in drawn], "idk", label))


def alternate(forget: Records, means: Means) -> Derived:
    """Every forget prompt with another answer: the record's field `alternate`, else one of the model's own.

    The model is shown question and answer, asked for another plausible one, and sampled at temperature 1.
    A sample that is empty or repeats the answer is drawn again, up to three times; then the likest other
    record's response stands in, and a note says so.

    Reference:
        Mekala et al. (2025), arXiv 2409.13474, section 3 (AltPO; the authors take up to five samples a
        question, here it is one).
    """
    given = [_given(forget, i) for i in range(len(forget))]
    missing = [i for i, text in enumerate(given) if text is None]
    sampled = _generate(forget, missing, means)
    failed = [i for i in missing if sampled[i] is None]
    swaps = swap_responses(forget, 1, means.seed) if failed else []
    if any(not swaps[i] for i in failed):
        raise UsageError(
            f"Alternate answers are needed for {forget.source}; the model gave none for "
            f"{forget.number(failed[0])}, and no other record has another response. "
            f"Give every record a field {FIELD!r}."
        )
    texts = [given[i] or sampled.get(i) or swaps[i][0] for i in range(len(forget))]
    notes = [f"{len(missing)} of {len(forget)} alternate answers were generated by the model itself."]
    notes += [f"{len(failed)} of them were unusable; another record's response stands in."] if failed else []
    label = f"forget prompts with alternate answers ({len(forget) - len(missing)} from field {FIELD!r})"
    return Derived(_with_responses(forget, texts, "alternate", label), tuple(notes) if missing else ())


RULES: dict[str, Callable[[Records, Means], Derived]] = {"idk": idk, "alternate": alternate}


def _with_responses(forget: Records, responses: Sequence[str], name: str, label: str) -> Records:
    rows = [{"prompt": r.prompt, "response": text} for r, text in zip(forget, responses, strict=True)]
    return dataclasses.replace(read_records(rows, name=name), source=label)


def _given(forget: Records, index: int) -> str | None:
    value = forget[index].metadata.get(FIELD)
    if value is None:
        return None
    place = f"{forget.source}, {forget.number(index)}"
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{place}: field {FIELD!r} must hold text; found {shown(value)}. Fill or drop it.")
    if normalised(value) == normalised(forget[index].response):
        raise UsageError(f"{place}: field {FIELD!r} must differ from the response; it repeats it. Change it.")
    return value


def _generate(forget: Records, wanted: Sequence[int], means: Means) -> dict[int, str | None]:
    """Row -> a usable sample, or None after all attempts."""
    found: dict[int, str | None] = dict.fromkeys(wanted)
    for attempt in range(ATTEMPTS):
        left = [i for i in wanted if found[i] is None]
        if not left:
            break
        texts = sample_whole_texts(
            means.model,
            means.tokenizer,
            [_request(forget[i].prompt, forget[i].response, means) for i in left],
            ends=turn_ends(means),
            tokens=means.tokens,
            seed=means.seed * ATTEMPTS + attempt,
            precision=means.precision,
        )
        for i, text in zip(left, texts, strict=True):
            answer = text.split("Question:")[0].strip()
            usable = answer and normalised(answer) != normalised(forget[i].response)
            found[i] = answer if usable and fits(forget[i].prompt, answer, means) else None
    return found


def _request(prompt: str, response: str, means: Means) -> tuple[int, ...]:
    text = REQUEST.format(prompt=prompt, response=response)
    if means.template == "none" or not means.tokenizer.chat_template:
        return encode_prompt(f"{text}\n{OPENING}", means.tokenizer, means.template)
    opening: list[int] = means.tokenizer(OPENING, add_special_tokens=False)["input_ids"]
    return (*encode_prompt(text, means.tokenizer, means.template), *opening)


def fits(prompt: str, response: str, means: Means) -> bool:
    """Whether a row with a generated response stays within the limit."""
    head = len(encode_prompt(prompt, means.tokenizer, means.template))
    body = len(means.tokenizer(f" {response}", add_special_tokens=False)["input_ids"])
    return means.limit is None or head + body + 1 <= means.limit


def turn_ends(means: Means) -> list[int]:
    """Ids that end a generated response."""
    ends = {end_token(means.tokenizer, means.template), means.tokenizer.eos_token_id}
    return sorted(int(end) for end in ends if end is not None)


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`refusals` must be a UTF-8 text file; {path}: {error}. Name another.") from None
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts:
        raise UsageError(f"`refusals` must hold one refusal a line; {path} holds none. Add some.")
    return texts
