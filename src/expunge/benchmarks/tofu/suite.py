"""TOFU as a benchmark: which rows a model is asked about, and what its tables mean.

Follows OpenUnlearning where it and the authors' first code differ: the tokenizer's own chat template, up to
200 new tokens, all rows. `prompt`, `template` and `rows` give the authors' setting (docs/metrics/tofu.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import cast, get_args

from transformers import PreTrainedTokenizerBase

from expunge import membership
from expunge.benchmarks.benchmark import Measured
from expunge.benchmarks.tofu.data import Set, check_forget, cut, read_holdout, read_question_set
from expunge.benchmarks.tofu.metrics import measured
from expunge.benchmarks.tofu.questions import OPTIONS, SETS, Loss, Question, Scores
from expunge.collate import Encoded, Template, encode
from expunge.errors import UsageError
from expunge.metrics import rouge_l_recall
from expunge.records import Record, Records
from expunge.scoring import TokenScores
from expunge.tables import Part, Table, Tables

MIN_K = 0.4
"""Share of tokens that min-k and min-k++ look at, as OpenUnlearning sets it for TOFU."""


@dataclass(frozen=True)
class Tofu:
    """TOFU for one forget set.

    Attributes:
        questions: "forget", "retain", "real_authors", "world_facts" -> records and alternative answers.
        holdout: Records that no model was trained on; None: no membership attacks, no privleak.
        prompt: How a question is put; `{question}` stands for it.
        template: As in `collate.encode`.
        new_tokens: Greedy tokens per answer, at most.
        gradients: Measure gradient norms (a backward pass per forget and holdout row).
        name: "tofu".
    """

    questions: Mapping[str, Set]
    holdout: Records | None = None
    prompt: str = "{question}"
    template: Template = "auto"
    new_tokens: int = 200
    gradients: bool = True
    name: str = "tofu"

    @property
    def sets(self) -> Mapping[str, Records]:
        """What was read: the four question sets, and holdout."""
        read = {name: of.records for name, of in self.questions.items()}
        return read if self.holdout is None else read | {"holdout": self.holdout}

    def parts(self, tokenizer: PreTrainedTokenizerBase, context: int | None) -> dict[str, Part]:
        """Rows per set: answers, paraphrases ("forget/paraphrased"), wrong ones ("forget/perturbed")."""

        def rows(records: Sequence[Record], name: str) -> list[Encoded]:
            return encode(self._asked(records), tokenizer, template=self.template, context=context, name=name)

        parts = {}
        for name, of in self.questions.items():
            attacked = name == "forget" and self.holdout is not None
            parts[name] = Part(
                rows(of.records, name),
                new_tokens=self.new_tokens,
                moments=attacked,
                gradients=attacked and self.gradients,
            )
            if name not in OPTIONS:
                parts[f"{name}/paraphrased"] = Part(rows(of.paraphrased, f"{name}, paraphrased answer"))
            wrong = list(chain.from_iterable(of.perturbed))
            parts[f"{name}/perturbed"] = Part(rows(wrong, f"{name}, perturbed answers"))
        if self.holdout is not None:
            parts["holdout"] = Part(rows(self.holdout, "holdout"), moments=True, gradients=self.gradients)
        return parts

    def measure(self, tables: Tables, reference: Tables | None, seed: int) -> Measured:
        """All metrics; without a reference no forget quality, no privleak and no reference attack."""
        return measured(*self.scores(tables, reference), seed)

    def scores(self, tables: Tables, reference: Tables | None) -> tuple[Scores, Scores | None]:
        """What the metrics need to know of the model and of the reference.

        Raises:
            UsageError: The tables of one of them are not of these questions.
        """
        self._check(tables, "the model")
        if reference is None:
            return self._scores(tables, None), None
        self._check(reference, "the reference")
        return self._scores(tables, reference), self._scores(reference, None)

    def _asked(self, records: Sequence[Record]) -> Sequence[Record]:
        asked = tuple(
            Record(self.prompt.replace("{question}", record.prompt), record.response) for record in records
        )
        return replace(records, rows=asked) if isinstance(records, Records) else asked

    def _check(self, tables: Tables, whose: str) -> None:
        for name, rows in self._sizes():
            found = len(tables[name].scores) if name in tables else 0
            if found != rows:
                raise UsageError(
                    f"The results of {whose} must be of the same questions: {rows} of {name}; got "
                    f"{found}. Evaluate both models with the same data and options."
                )

    def _sizes(self) -> Iterator[tuple[str, int]]:
        """Rows of each part."""
        for name, of in self.questions.items():
            yield name, len(of.records)
            yield f"{name}/perturbed", sum(map(len, of.perturbed))
            if name not in OPTIONS:
                yield f"{name}/paraphrased", len(of.paraphrased)
        if self.holdout is not None:
            yield "holdout", len(self.holdout)

    def _scores(self, tables: Tables, reference: Tables | None) -> Scores:
        answers = [membership.without_end(scores) for scores in tables["forget"].scores]
        return Scores(
            questions={name: list(_questions(name, of, tables)) for name, of in self.questions.items()},
            extraction_strength=[extraction_strength(scores) for scores in answers],
            exact_memorization=[float(scores.matches.mean()) for scores in answers],
            attacks=self._attacks(tables, reference),
        )

    def _attacks(
        self, tables: Tables, reference: Tables | None
    ) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
        if self.holdout is None:
            return {}
        forget, holdout = (
            _attack(tables[name], None if reference is None else reference[name], self.sets[name])
            for name in ("forget", "holdout")
        )
        return {name: (forget[name], holdout[name]) for name in forget}


def load(
    data: Path | str,
    *,
    forget: str = "forget10",
    template: str = "auto",
    prompt: str = "{question}",
    rows: int | None = None,
    new_tokens: int = 200,
    gradients: bool = True,
) -> Tofu:
    r"""TOFU for one forget set, with holdout where the folder has it.

    Args:
        data: Folder with `forget10_perturbed.jsonl` and its siblings (each also as .jsonl.gz), or a Hub id.
        forget: "forget01", "forget05" or "forget10".
        template: "auto" is the tokenizer's chat template if it has one; "chat" insists on it; "none".
        prompt: How a question is put, e.g. "Question: {question}\nAnswer:" with template "none".
        rows: Use only the first so many rows of every set; the authors took 300.
        new_tokens: Greedy tokens per answer, at most.
        gradients: Run the gradient norm attack, too.

    Raises:
        UsageError: A set is missing or malformed, or an option is out of range.
    """
    _check_options(template, prompt, rows, new_tokens)
    names = {"forget": f"{check_forget(forget)}_perturbed"} | {name: f"{name}_perturbed" for name in SETS[1:]}
    holdout = read_holdout(data, forget)
    return Tofu(
        questions={role: read_question_set(data, name, role, rows) for role, name in names.items()},
        holdout=None if holdout is None else cut(holdout, rows),
        prompt=prompt,
        template=cast(Template, template),
        new_tokens=new_tokens,
        gradients=gradients,
    )


def extraction_strength(scores: TokenScores) -> float:
    r"""Share of the response, from its end, that is reproduced once the rest is given.

    $1 - k / t$ with the smallest $k$ such that every token from the k-th on is the likeliest one (teacher
    forcing); 0 if the last token is not.

    Args:
        scores: Of the response, without the end-of-sequence token.

    Reference:
        Carlini et al. (2021), arXiv 2012.07805; Wang et al. (2024), arXiv 2406.09179, section 3.
    """
    backwards = scores.matches[::-1]
    run = len(backwards) if backwards.all() else int(backwards.argmin())
    return run / len(backwards)


def _check_options(template: str, prompt: str, rows: int | None, new_tokens: int) -> None:
    if template not in get_args(Template):
        raise UsageError(f"template must be one of {', '.join(get_args(Template))}; got {template!r}.")
    if "{question}" not in prompt:
        raise UsageError(f"prompt must hold {{question}}, where the question goes; got {prompt!r}.")
    for name, value in (("rows", rows), ("new_tokens", new_tokens)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1; got {value}.")


def _questions(name: str, of: Set, tables: Tables) -> Iterator[Question]:
    table = tables[name]
    truths = table.scores if name in OPTIONS else tables[f"{name}/paraphrased"].scores
    wrong = iter(tables[f"{name}/perturbed"].scores)
    columns = zip(of.records, of.perturbed, table.scores, truths, table.generations, strict=True)
    for record, perturbed, answer, truth, generation in columns:
        yield Question(
            prompt=record.prompt,
            response=record.response,
            answer=_loss(answer),
            paraphrase=_loss(truth),
            perturbed=tuple(_loss(next(wrong)) for _ in perturbed),
            generation=generation.text,
            rouge_l=rouge_l_recall(generation.text, record.response),
        )


def _loss(scores: TokenScores) -> Loss:
    return Loss(scores.nll, len(scores.log_probs))


def _attack(table: Table, reference: Table | None, records: Sequence[Record]) -> dict[str, list[float]]:
    """Scores of the attacks that the tables allow.

    Loss, zlib and reference see the end of sequence, min-k and min-k++ do not (as in OpenUnlearning).
    """
    bare = [membership.without_end(scores) for scores in table.scores]
    found = {
        "loss": [membership.loss(scores) for scores in table.scores],
        "zlib": [membership.zlib_ratio(s, r.response) for s, r in zip(table.scores, records, strict=True)],
        "min_k": [membership.min_k(scores, MIN_K) for scores in bare],
        "min_k_plus_plus": [membership.min_k_plus_plus(scores, MIN_K) for scores in bare],
    }
    if table.gradient_norms:
        found["gradient_norm"] = [membership.gradient_norm(norm) for norm in table.gradient_norms]
    if reference is not None:
        pairs = zip(table.scores, reference.scores, strict=True)
        found["reference"] = [membership.reference(*pair) for pair in pairs]
    return found
