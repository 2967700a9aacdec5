"""Unlearning harmful answers, in the form of PKU-SafeRLHF (arXiv 2406.15513).

To be forgotten are harmful answers, to be kept is how the model follows instructions. What the model then
says to harmful prompts goes before a judge; whether it still writes fluently is measured on both sets, as a
model that writes nonsense does no harm either. Fluency and diversity after Yao et al. (arXiv 2310.10683):
perplexity of the answers under another model, and the share of distinct n-grams.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from transformers import PreTrainedTokenizerBase

from expunge.benchmarks.benchmark import Answer, Measured
from expunge.benchmarks.judges import Judge, Rule, judged, load_judge, verdict
from expunge.collate import Template, encode
from expunge.errors import UsageError
from expunge.intervals import aggregate, mean, share
from expunge.metrics import rouge_l_recall
from expunge.record import Metric
from expunge.records import Record, Records, read_records
from expunge.sources import open_source
from expunge.tables import Part, Tables

METRICS: Mapping[str, str] = {
    "harmful_rate": "Share of harmful prompts whose answer the judge finds harmful.",
    "refusal_rate": "Share of answers that the rule takes for a refusal; on instructions: refused too much.",
    "perplexity": "Perplexity of the answers under a reference language model, per token.",
    "distinct_1": "Share of an answer's words that differ from each other, averaged over answers.",
    "distinct_2": "The same of its pairs of words.",
    "distinct_3": "The same of its triples of words.",
}
"""Metric -> one line."""

HUB = "PKU-Alignment/PKU-SafeRLHF"
_FLAGS = tuple((f"response_{i}", f"is_response_{i}_safe") for i in (0, 1))
_QA = (("response", "is_safe"),)


@runtime_checkable
class Fluency(Protocol):
    """A language model that reads answers."""

    name: str

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> Sequence[tuple[float, int]]:
        """Of each answer after its prompt: NLL in nats, and tokens; an empty answer has 0 of both."""
        ...


class ReferenceModel:
    """Fluency under a causal language model that had no part in the unlearning, loaded when first used.

    Args:
        source: As `models.load_model` takes it.
        template: As in `collate.encode`.
    """

    def __init__(self, source: str, template: Template = "auto") -> None:
        self.name, self.template = source, template

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> Sequence[tuple[float, int]]:
        from expunge.inference import model_context
        from expunge.models import load_model, load_tokenizer
        from expunge.scoring import score

        tokenizer, model = load_tokenizer(self.name), load_model(self.name)
        said = [i for i, answer in enumerate(answers) if answer.strip()]
        rows = encode(
            [Record(prompts[i], answers[i]) for i in said],
            tokenizer,
            template=self.template,
            max_length=model_context(model),
            name="answers",
        )
        found = [(0.0, 0)] * len(answers)
        for i, scores in zip(said, score(model, rows, pad_id=tokenizer.pad_token_id or 0), strict=True):
            found[i] = (float(-scores.log_probs.sum()), len(scores.log_probs))
        return found


def load(
    data: Path,
    *,
    retain: str | None = None,
    judge: str | Judge = "rule",
    harmful_label: str | None = None,
    fluency: str | Fluency | None = None,
    rows: int | None = None,
    new_tokens: int = 128,
) -> Safety:
    """Read harmful prompts and normal instructions.

    Args:
        data: A file, a folder or a Hub id with rows in PKU-SafeRLHF's form; the test split where there are
            several.
        retain: Normal instruction data, as `records.read_records` takes it (fields instruction and output are
            known, too). By default `retain.*` beside the harmful data, if that is a folder that has it.
        judge: A judge or its name: see `judges.load_judge`.
        harmful_label: Of a classifier as judge.
        fluency: A reader of answers, or the language model to read them with; None: no perplexity.
        rows: Take only so many prompts of each set.
        new_tokens: Greedy tokens per answer, at least 1.

    Raises:
        UsageError: The data are missing or malformed, hold no harmful answer, or there is no such judge.
        ValueError: An option is out of range.
    """
    for name, value in (("rows", rows), ("new_tokens", new_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}.")
    source = Path(data)
    sets = {"harmful": _one_per_prompt(pairs(source, safe=False, split="test"))}
    kept = _retain(source, retain)
    if kept is not None:
        sets["instructions"] = kept
    cut = {
        name: replace(found, rows=found.rows[:rows], numbers=found.numbers[:rows])
        for name, found in sets.items()
    }
    return Safety(
        cut,
        judge=load_judge(judge, harmful_label) if isinstance(judge, str) else judge,
        fluency=ReferenceModel(fluency) if isinstance(fluency, str) else fluency,
        new_tokens=new_tokens,
    )


def pairs(data: str | Path, *, safe: bool, split: str = "train", name: str = "forget") -> Records:
    """Question/answer pairs of one kind: the harmful ones to forget, the safe ones to learn from.

    Both forms of the data are read: two responses with a flag each (`prompt`, `response_0`, `response_1`,
    `is_response_0_safe`, `is_response_1_safe`), and one (`prompt`, `response`, `is_safe`). Other fields, such
    as the categories of harm, become metadata.

    Args:
        data: A .jsonl, .json or .parquet file, a folder, or a Hub id.
        safe: Which pairs.
        split: Of a Hub data set, or of a folder with several files.
        name: Role of the set.

    Raises:
        UsageError: The source or a row is malformed, or there is no such pair.
    """
    raw = open_source(_existing(data), split, split)
    found, numbers = [], []
    for number, row in raw.rows:
        place = f"{raw.label}, {raw.unit} {number}"
        rest = {key: value for key, value in _mapping(row, place).items() if not _known(key)}
        for response, flag in _flags(row, place):
            if _flag(row, flag, place) is safe:
                found.append({**rest, "prompt": row["prompt"], "response": row[response]})
                numbers.append(number)
    if not found:
        kind = "safe" if safe else "harmful"
        raise UsageError(f"{raw.label} must hold at least one {kind} answer; it holds none. Check its flags.")
    records = read_records(found, name=name)
    return replace(
        records, source=raw.label, unit=raw.unit, numbers=tuple(numbers), sha256=raw.sha256 or records.sha256
    )


@dataclass
class Safety:
    """Harmful prompts and normal instructions, a judge, and perhaps a reader of the answers."""

    sets: Mapping[str, Records]
    judge: Judge
    fluency: Fluency | None = None
    new_tokens: int = 128
    template: Template = "auto"
    name: str = "safety"

    def parts(self, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Mapping[str, Part]:
        """Every prompt is answered, and its known response scored, as far as the context goes."""
        return {
            name: Part(
                encode(records, tokenizer, template=self.template, max_length=context, name=name),
                new_tokens=self.new_tokens,
            )
            for name, records in self.sets.items()
        }

    def measure(self, tables: Tables, reference: Tables | None, seed: int) -> Measured:
        """Harm, refusals and fluency of the answers; none of them is relative to a reference."""
        splits, answers = {}, {}
        for name, records in self.sets.items():
            said = [generation.text for generation in tables[name].generations]
            prompts = [record.prompt for record in records]
            nll = [scores.nll for scores in tables[name].scores]
            metrics: dict[str, Metric] = {}
            leaked: Sequence[bool | None] = [None] * len(said)
            if name == "harmful":
                leaked = judged(self.judge, prompts, said)
                metrics["harmful_rate"] = share([float(harm or False) for harm in leaked], seed=seed)
            metrics["refusal_rate"] = share([float(verdict(text) == "refused") for text in said], seed=seed)
            if name == "instructions":
                metrics |= _recall(said, records, seed)
            splits[name] = metrics | {"nll": mean(nll, seed=seed)} | self._fluency(prompts, said, seed)
            rows = zip(records, said, nll, leaked, strict=True)
            answers[name] = [Answer(r.prompt, r.response, text, loss, harm) for r, text, loss, harm in rows]
        return Measured(splits, answers, self._notes())

    def _fluency(self, prompts: Sequence[str], said: Sequence[str], seed: int) -> dict[str, Metric]:
        found = {}
        if self.fluency is not None:
            read = self.fluency(prompts, said)
            if any(tokens for _, tokens in read):
                found["perplexity"] = perplexity(read, seed)
        for n in (1, 2, 3):
            values = [distinct(text, n) for text in said]
            long = [value for value in values if not math.isnan(value)]
            if long:
                found[f"distinct_{n}"] = share(long, seed=seed)
        return found

    def _notes(self) -> list[str]:
        notes = [f"harmful_rate: as judged by {self.judge.name}."]
        if isinstance(self.judge, Rule):
            notes.append(
                "The rule never looks at what an answer says: read the answers, or use a classifier."
            )
        if self.fluency is None:
            notes.append("perplexity: no reference language model given.")
        if "instructions" not in self.sets:
            notes.append("refusal_rate on instructions: no normal instruction data given.")
        return notes


def distinct(text: str, n: int) -> float:
    """Share of distinct word n-grams among all of a text; NaN where it has none.

    Within each answer, so that the value does not fall with the number of answers as that of all answers
    pooled does (Li et al. 2016, arXiv 1510.03055).
    """
    words = re.findall(r"\w+", text.casefold())
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else math.nan


def perplexity(read: Sequence[tuple[float, int]], seed: int = 0) -> Metric:
    """exp(total NLL / total tokens) over answers, drawn again answer by answer for the interval.

    Args:
        read: Of each answer: negative log-likelihood in nats, and tokens; those without tokens do not count.
        seed: Of the intervals.
    """
    counted = [(nll, float(tokens)) for nll, tokens in read if tokens]
    samples = {"nll": [nll for nll, _ in counted], "tokens": [tokens for _, tokens in counted]}
    return aggregate(
        lambda drawn: float(np.exp(drawn["nll"].sum() / drawn["tokens"].sum())),
        samples,
        seed,
        sets={"nll": "answers", "tokens": "answers"},
    )


def _recall(said: Sequence[str], records: Records, seed: int) -> dict[str, Metric]:
    values = [rouge_l_recall(text, record.response) for text, record in zip(said, records, strict=True)]
    known = [value for value in values if not math.isnan(value)]
    return {"rouge_l_recall": share(known, seed=seed)} if known else {}


# --- reading


def _existing(data: str | Path) -> str | Path:
    path = Path(data)
    if path.exists() or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?", path.as_posix()):
        return data if path.exists() else path.as_posix()
    raise UsageError(
        f"The data of safety must exist; there is no {data}. Get it from the Hub with --data {HUB}."
    )


def _retain(data: Path, retain: str | None) -> Records | None:
    beside = sorted(data.glob("retain.*")) if data.is_dir() else []
    source: str | Path | None = retain or next(iter(beside), None)
    if source is None:
        return None
    raw = open_source(source, "instructions", "train")
    numbered = list(raw.rows)
    rows = [_instruction(row) for _, row in numbered]
    records = read_records(rows, name="instructions")
    return replace(
        records,
        source=raw.label,
        unit=raw.unit,
        numbers=tuple(number for number, _ in numbered),
        sha256=raw.sha256 or records.sha256,
    )


def _instruction(row: object) -> object:
    """A row of instruction data as prompt and response, its input (if any) below the instruction."""
    if not isinstance(row, Mapping) or "instruction" not in row or "output" not in row:
        return row
    rest = {key: value for key, value in row.items() if key not in ("instruction", "input", "output")}
    given = row.get("input") or ""
    return rest | {
        "prompt": f"{row['instruction']}\n\n{given}" if given else row["instruction"],
        "response": row["output"],
    }


def _mapping(row: object, place: str) -> Mapping[str, object]:
    if isinstance(row, Mapping) and isinstance(row.get("prompt"), str):
        return row
    raise UsageError(f"{place}: a row must be an object with the text field 'prompt'. Mend or drop it.")


def _flags(row: Mapping[str, object], place: str) -> Sequence[tuple[str, str]]:
    for form in (_FLAGS, _QA):
        if all(name in row for pair in form for name in pair):
            return form
    raise UsageError(
        f"{place}: a row must have the fields {', '.join(name for pair in _FLAGS for name in pair)}, or "
        f"{' and '.join(_QA[0])}; found {', '.join(map(str, row))}. Is it PKU-SafeRLHF?"
    )


def _flag(row: Mapping[str, object], name: str, place: str) -> bool:
    value = row[name]
    if not isinstance(value, bool):
        raise UsageError(
            f"{place}: field {name!r} must be true or false; found {value!r}. Mend or drop the row."
        )
    return value


def _known(key: str) -> bool:
    return key == "prompt" or any(key in pair for pair in (*_FLAGS, *_QA))


def _one_per_prompt(records: Records) -> Records:
    """The first harmful answer to every prompt: a prompt is answered once, however many answers are known."""
    first: dict[str, int] = {}
    for index, record in enumerate(records):
        first.setdefault(record.prompt, index)
    chosen = list(first.values())
    return replace(
        records,
        rows=tuple(records.rows[i] for i in chosen),
        numbers=tuple(records.numbers[i] for i in chosen) if records.numbers else (),
    )
