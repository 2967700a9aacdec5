r"""MMLU from local rows: four options, and the one that the model finds likeliest as a completion.

Two variants, each with any number of worked examples ("shots") of the same subject before the question:

* `letter`: subject line, examples and question with its options A to D; the option whose *letter* is the
  likeliest next token. Prompt and tokens are those of Open Instruct's MMLU script, which SemEval-2025 Task 4
  names without the number of shots (the script's default is 5). As there, examples are dropped one by one
  until the prompt has 2,048 tokens at most.
* `text`: examples and question without options; the option whose *text* has the highest log-probability per
  character.

Accuracy is over all questions (as in Open Instruct), not over subjects.

Reference:
    Hendrycks et al. (2021), arXiv 2009.03300.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from expunge import intervals
from expunge.benchmarks.benchmark import Answer, Measured
from expunge.collate import Encoded
from expunge.errors import UsageError
from expunge.records import Record, Records
from expunge.sources import open_source, shown
from expunge.tables import Part, Tables

Variant = Literal["letter", "text"]

METRICS: Mapping[str, str] = {
    "mmlu": "MMLU accuracy: share of questions whose right option the model finds likeliest.",
    "mmlu_subjects": "The same, averaged over subjects.",
}

LETTERS = "ABCD"
LONGEST = 2048
"""Prompt tokens at most; worked examples are dropped until the prompt fits."""

HOW_TO_GET = "Get it from the Hub (data set cais/mmlu), or as test.jsonl and dev.jsonl with those fields."


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        subject: Of 57, words joined by underscores.
        text: The question.
        choices: Four options.
        answer: Which is right, from 0.
    """

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Mmlu:
    """Questions, and the worked examples of their subjects.

    Attributes:
        records: The questions as records, for the record of the run.
        questions: The same, in the same order.
        examples: Subject -> worked examples; as many as there are shots.
        variant: What is compared, the options' letters or their texts.
        total: Questions that the set holds, of which these are a sample or all.
        seed: Of the sample.
    """

    records: Records
    questions: tuple[Question, ...]
    examples: Mapping[str, tuple[Question, ...]]
    variant: Variant = "letter"
    shots: int = 0
    total: int = 0
    seed: int = 0
    name: str = "mmlu"

    @property
    def sets(self) -> Mapping[str, Records]:
        """What was read."""
        return {"mmlu": self.records}

    @property
    def notes(self) -> tuple[str, ...]:
        """The variant in words."""
        count = len(self.questions)
        sample = f"{count:,} of {self.total:,} questions drawn with seed {self.seed}"
        which = f"all {count:,} questions" if count == self.total else sample
        return (f"MMLU: {self.shots}-shot, likeliest option by {self.variant}, {which}.",)

    def parts(self, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Mapping[str, Part]:
        """Four rows per question: the prompt with each option as its completion.

        Raises:
            UsageError: A question does not fit, or the tokenizer cannot tell the options' letters apart.
        """
        room = LONGEST if context is None else min(LONGEST, context - 1)
        encoded = _letter_rows if self.variant == "letter" else _text_rows
        return {"mmlu": Part(encoded(self, tokenizer, room))}

    def measure(self, tables: Tables, reference: Tables | None, seed: int) -> Measured:
        """Accuracy; no reference model is needed."""
        flags = [float(right) for right in correct(self, tables)]
        by_subject: dict[str, list[float]] = {}
        for question, flag in zip(self.questions, flags, strict=True):
            by_subject.setdefault(question.subject, []).append(flag)
        metrics = {
            "mmlu": intervals.share(flags, seed=seed),
            "mmlu_subjects": intervals.aggregate(_mean_of_means, by_subject, seed),
        }
        return Measured({"all": metrics}, {"mmlu": _answers(self, tables)}, self.notes)


def load(
    data: Path,
    *,
    shots: int | str = 5,
    variant: str = "letter",
    rows: int | str | None = None,
    seed: int | str = 0,
) -> Mmlu:
    """Read MMLU from a folder.

    Args:
        data: Folder with the test questions as `test.jsonl` (also .gz, .json or .parquet; the Hub's
            `all/test-*.parquet`) and, for shots, the examples as `dev` likewise. Fields: `subject`,
            `question`, `choices` (four), `answer` (0 to 3).
        shots: Worked examples before each question, 0 to 5.
        variant: "letter" or "text".
        rows: Questions to draw at random from all; None: all.
        seed: Of the draw.

    Raises:
        UsageError: The folder or a row is not as it must be, or an option is out of range.
    """
    if variant not in get_args(Variant):
        raise UsageError(f"MMLU's variant must be one of {', '.join(get_args(Variant))}; got {variant!r}.")
    count, drawn = whole("shots", shots), whole("seed", seed)
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise UsageError(f"MMLU must be a folder; there is no folder {folder}. {HOW_TO_GET}")
    questions, records = _read(folder, "test")
    wanted = len(questions) if rows is None else min(whole("rows", rows, least=1), len(questions))
    kept = sorted(np.random.default_rng(drawn).permutation(len(questions))[:wanted].tolist())
    examples: dict[str, tuple[Question, ...]] = {}
    if count:
        for example in _read(folder, "dev")[0]:
            examples[example.subject] = (*examples.get(example.subject, ()), example)[:count]
    for subject in {questions[i].subject for i in kept} if count else ():
        if len(examples.get(subject, ())) < count:
            found = len(examples.get(subject, ()))
            raise UsageError(
                f"MMLU with {count} shots needs as many examples of {subject}; {folder} has {found}. "
                f"Choose shots={found}."
            )
    return Mmlu(
        replace(
            records, rows=tuple(records[i] for i in kept), numbers=tuple(records.numbers[i] for i in kept)
        ),
        tuple(questions[i] for i in kept),
        examples,
        "letter" if variant == "letter" else "text",
        count,
        len(questions),
        drawn,
    )


def correct(benchmark: Mmlu, tables: Tables) -> list[bool]:
    """Whether each question was answered rightly.

    Args:
        benchmark: Whose parts the tables are of.
        tables: Of one model.
    """
    chosen = _chosen(benchmark, tables)
    return [choice == question.answer for choice, question in zip(chosen, benchmark.questions, strict=True)]


def reported(path: Path) -> float:
    """`average_acc` of a `metrics.json` that an MMLU run elsewhere has written (Open Instruct's form).

    Raises:
        UsageError: The file is missing or has no such number within [0, 1].
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["average_acc"]
    except OSError as error:
        raise UsageError(f"MMLU's metrics must be a readable file; {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        found = value if isinstance(value, int | float) else shown(value)
        raise UsageError(
            f"{path} must be a JSON object with average_acc, a number from 0 to 1; it has "
            f"{found}. Name the metrics.json of an MMLU run."
        )
    return float(value)


def whole(name: str, value: Any, least: int = 0) -> int:
    """A whole number that a user may have written as text.

    Raises:
        UsageError: It is none, or below `least`.
    """
    try:
        number = int(str(value))
    except ValueError:
        number = least - 1
    if number < least:
        raise UsageError(f"{name} must be a whole number of at least {least}; got {value!r}.")
    return number


# --- reading


def _read(folder: Path, split: str) -> tuple[list[Question], Records]:
    patterns = [
        f"{split}.jsonl",
        f"{split}.jsonl.gz",
        f"{split}.json",
        f"{split}.json.gz",
        f"{split}.parquet",
    ]
    hub = [f"{split}-*.parquet", f"all/{split}-*.parquet"]
    files = [file for pattern in (*patterns, *hub) for file in sorted(folder.glob(pattern))]
    if not files:
        raise UsageError(f"MMLU must have its {split} questions in {folder} as {split}.jsonl. {HOW_TO_GET}")
    source = open_source(files[0], f"MMLU {split}", split)
    numbered = [
        (number, _question(row, f"{source.label}, {source.unit} {number}")) for number, row in source.rows
    ]
    if not numbered:
        raise UsageError(
            f"MMLU's {split} questions must be at least one; {files[0]} holds none. {HOW_TO_GET}"
        )
    questions = [question for _, question in numbered]
    records = Records(
        name="mmlu",
        rows=tuple(Record(q.text, q.choices[q.answer], {"subject": q.subject}) for q in questions),
        source=source.label,
        sha256=source.sha256,
        duplicates=0,
        fields={"prompt": "question", "response": "choices[answer]"},
        unit=source.unit,
        numbers=tuple(number for number, _ in numbered),
    )
    return questions, records


def _question(row: Any, place: str) -> Question:
    fields = row if isinstance(row, Mapping) else {}
    subject, text, answer = fields.get("subject"), fields.get("question"), fields.get("answer")
    choices = fields.get("choices")
    texts = isinstance(choices, list) and len(choices) == 4 and all(isinstance(c, str) for c in choices)
    right = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer <= 3
    if not (isinstance(subject, str) and isinstance(text, str) and texts and right):
        rule = "a row must have subject, question, choices (four texts) and answer (0 to 3)"
        raise UsageError(f"{place}: {rule}; found {shown(row)}. {HOW_TO_GET}")
    assert isinstance(choices, list)
    assert isinstance(answer, int)
    return Question(subject, text, tuple(choices), answer)


# --- prompts


def _letter_block(question: Question, *, solved: bool) -> str:
    options = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=True))
    return f"{question.text}{options}\nAnswer:" + (f" {LETTERS[question.answer]}\n\n" if solved else "")


def _text_block(question: Question, *, solved: bool) -> str:
    return f"{question.text}\nAnswer:" + (f" {question.choices[question.answer]}\n\n" if solved else "")


def _prompt(benchmark: Mmlu, question: Question, shots: int) -> str:
    """The subject's line (two spaces before its name, as in the original code), examples, question."""
    block = _letter_block if benchmark.variant == "letter" else _text_block
    subject = question.subject.replace("_", " ")
    examples = benchmark.examples.get(question.subject, ())[:shots]
    head = f"The following are multiple choice questions (with answers) about  {subject}.\n\n"
    if benchmark.variant == "text":
        head = f"The following are questions (with answers) about {subject}.\n\n"
    return head + "".join(block(example, solved=True) for example in examples) + block(question, solved=False)


def _fitting(
    benchmark: Mmlu, question: Question, tokenizer: PreTrainedTokenizerBase, room: int, needed: int
) -> tuple[str, tuple[int, ...]]:
    """The prompt with as many examples as fit, and its tokens."""
    for shots in range(benchmark.shots, -1, -1):
        prompt = _prompt(benchmark, question, shots)
        ids = _tokens(prompt, tokenizer)
        if len(ids) + needed <= room:
            return prompt, ids
    raise UsageError(
        f"An MMLU question must fit {room} tokens; one of {question.subject} has {len(ids) + needed}. "
        "Choose a model with a longer context."
    )


def _letter_rows(benchmark: Mmlu, tokenizer: PreTrainedTokenizerBase, room: int) -> list[Encoded]:
    ends = [_tokens(f" {letter}", tokenizer)[-1] for letter in LETTERS]
    if len(set(ends)) < len(ends):
        raise UsageError(
            "The tokenizer must give A, B, C and D a token each; it does not. Choose MMLU's variant text."
        )
    rows = []
    for question in benchmark.questions:
        _, ids = _fitting(benchmark, question, tokenizer, room, 0)
        rows += [Encoded((*ids, end), len(ids)) for end in ends]
    return rows


def _text_rows(benchmark: Mmlu, tokenizer: PreTrainedTokenizerBase, room: int) -> list[Encoded]:
    rows = []
    for question in benchmark.questions:
        bodies = [_tokens(f" {choice}", tokenizer) for choice in question.choices]
        _, ids = _fitting(benchmark, question, tokenizer, room, max(map(len, bodies)))
        rows += [Encoded((*ids, *body), len(ids)) for body in bodies]
    return rows


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Without special tokens, as Open Instruct encodes prompts and options."""
    encoded: Any = tokenizer(text, add_special_tokens=False, verbose=False)
    return tuple(encoded["input_ids"])


# --- tables


def _chosen(benchmark: Mmlu, tables: Tables) -> list[int]:
    """The likeliest option of each question; the first of equals."""
    totals = [float(score.log_probs.sum()) for score in tables["mmlu"].scores]
    values = np.array(totals).reshape(len(benchmark.questions), 4)
    if benchmark.variant == "text":
        values /= [[max(1, len(choice)) for choice in question.choices] for question in benchmark.questions]
    values = np.where(np.isnan(values), -math.inf, values)
    return [int(choice) for choice in values.argmax(1)]


def _answers(benchmark: Mmlu, tables: Tables) -> list[Answer]:
    return [
        Answer(question.text, question.choices[question.answer], question.choices[choice])
        for question, choice in zip(benchmark.questions, _chosen(benchmark, tables), strict=True)
    ]


def _mean_of_means(drawn: Mapping[str, Any]) -> float:
    return float(np.mean([values.mean() for values in drawn.values()]))
