"""LUME, the benchmark of SemEval-2025 Task 4: novels, people's data and real biographies to be forgotten.

Prompts go to the model as they stand, without a chat template; answers are greedy, of 256 tokens at most.
What the numbers are stands in `lume_scores`; files of the official script are for `lume_files`.

Reference:
    Ramakrishna et al. (2025), LUME, arXiv 2502.15097; SemEval-2025 Task 4, arXiv 2504.02883.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from expunge.benchmarks import mmlu as mmlu_benchmark
from expunge.benchmarks.benchmark import Measured
from expunge.benchmarks.lume_scores import (
    AGGREGATES,
    COMPONENTS,
    METRICS,
    SPLITS,
    TASKS,
    Evidence,
    Item,
    clean,
    kind,
    measured,
)
from expunge.benchmarks.mmlu import Mmlu
from expunge.collate import Encoded, encode
from expunge.errors import UsageError
from expunge.records import Records, read_records
from expunge.tables import Part, Tables

__all__ = ["AGGREGATES", "COMPONENTS", "METRICS", "SPLITS", "Lume", "evidence", "load", "training_sets"]

FOLDS = ("validation", "train", "all")
DOCUMENTS = ("member", "nonmember")
NEW_TOKENS = 256

HOW_TO_GET = (
    "Get it from the Hub (data set llmunlearningsemeval2025organization/semeval25-unlearning-dataset-public) "
    "or from github.com/amazon-science/lume-llm-unlearning, whose two files are fold=all."
)


@dataclass(frozen=True)
class Lume:
    """One fold of LUME.

    Attributes:
        rows: "forget" and "retain" -> rows, with `id` and `task` among their metadata.
        documents: "member" and "nonmember" -> documents of the membership attack; empty where there are none.
        mmlu: Questions to ask as well, or an accuracy measured elsewhere.
        notes: What a reader must know of the choice of rows.
    """

    rows: Mapping[str, Records]
    documents: Mapping[str, Records] = field(default_factory=dict)
    mmlu: Mmlu | float | None = None
    notes: tuple[str, ...] = ()
    name: str = "lume"

    @property
    def sets(self) -> Mapping[str, Records]:
        """Everything that was read."""
        questions = self.mmlu.sets if isinstance(self.mmlu, Mmlu) else {}
        return {**self.rows, **self.documents, **questions}

    def parts(self, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Mapping[str, Part]:
        """Rows to continue and to score; rows as the official script scores them; documents; questions.

        An answer that the model knows by heart need not be decoded: rows are also scored as prompt, space,
        answer and end, and what teacher forcing reproduces is what greedy decoding gives.

        Raises:
            UsageError: The tokenizer has no end-of-sequence token, or a row exceeds the model's context.
        """
        parts = {}
        for split, records in self.rows.items():
            natural = encode(records, tokenizer, template="none", context=context)
            parts[split] = Part(natural, new_tokens=NEW_TOKENS)
            parts[f"{split}_nll"] = Part(_as_scored_officially(records, natural, tokenizer))
        for name, documents in self.documents.items():
            parts[name] = Part(_document_rows(documents, tokenizer, context))
        if isinstance(self.mmlu, Mmlu):
            parts.update(self.mmlu.parts(tokenizer, context))
        return parts

    def measure(self, tables: Tables, reference: Tables | None, seed: int) -> Measured:
        """All components and aggregates; LUME compares with no reference model."""
        return measured(evidence(self, tables), seed)


def evidence(benchmark: Lume, tables: Tables) -> Evidence:
    """What a model's tables say about each row.

    Args:
        benchmark: Whose parts the tables are of.
        tables: Of one model.
    """
    questions = benchmark.mmlu
    return Evidence(
        items={split: _items(records, tables, split) for split, records in benchmark.rows.items()},
        members=_losses(tables, "member"),
        nonmembers=_losses(tables, "nonmember"),
        mmlu=mmlu_benchmark.correct(questions, tables) if isinstance(questions, Mmlu) else questions,
        notes=(*benchmark.notes, *(questions.notes if isinstance(questions, Mmlu) else ())),
    )


def load(
    data: Path,
    *,
    fold: str = "validation",
    mmlu: str | Path | None = None,
    shots: int | str = 5,
    mmlu_rows: int | str | None = None,
    rows: int | str | None = None,
    seed: int | str = 0,
) -> Lume:
    """Read a fold of LUME from a folder.

    Args:
        data: The Hub data set as a folder; or a folder with `<fold>/{forget,retain}.jsonl` and
            `mia/{member,nonmember}.jsonl`; or one with `forget.jsonl` and `retain.jsonl` (fold `all`).
        fold: "validation", "train", or "all".
        mmlu: Folder of MMLU questions (see `mmlu.load`), or a `metrics.json` of an MMLU run made elsewhere,
            whose `average_acc` is taken. Default: `mmlu/` within `data`, if there is one.
        shots: Worked examples before each MMLU question.
        mmlu_rows: MMLU questions to draw; None: all.
        rows: Rows to draw per split, task and kind; None: all.
        seed: Of both draws.

    Raises:
        UsageError: The folder, the fold or a row is not as it must be.
    """
    if fold not in FOLDS:
        near = difflib.get_close_matches(str(fold), FOLDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Choose one of them."
        raise UsageError(f"LUME's fold must be one of {', '.join(FOLDS)}; got {fold!r}. {hint}")
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise UsageError(f"LUME must be a folder; there is no folder {folder}. {HOW_TO_GET}")
    chosen = {split: _checked(read_records(_find(folder, fold, split), name=split)) for split in SPLITS}
    notes: tuple[str, ...] = ()
    if rows is not None:
        count = mmlu_benchmark.whole("rows", rows, least=1)
        drawn = mmlu_benchmark.whole("seed", seed)
        chosen = {split: _draw(records, count, drawn) for split, records in chosen.items()}
        notes = (f"A sample: at most {count} rows per split, task and kind (seed {drawn}).",)
    return Lume(chosen, _documents(folder, fold), _mmlu(folder, mmlu, shots, mmlu_rows, seed), notes)


def training_sets(data: Path, *, fold: str = "validation", **options: Any) -> dict[str, Records]:
    """The sets that an unlearning run trains with: the rows that `load` reads, and unseen ones as holdout.

    Args:
        data: As for `load`.
        fold: "validation" or "train"; holdout is the other one's forget rows, where the folder has them.
        **options: As for `load`.

    Raises:
        UsageError: As `load`.
    """
    sets = dict(load(data, fold=fold, **options).rows)
    other = {"train": "validation", "validation": "train"}.get(fold)
    if other is None or not _has(Path(data).expanduser(), other):
        return sets
    unseen = load(data, fold=other, **options).rows["forget"]
    return sets | {"holdout": dataclasses.replace(unseen, name="holdout")}


# --- files


def _has(folder: Path, fold: str) -> bool:
    try:
        return all(_find(folder, fold, split).is_file() for split in SPLITS)
    except UsageError:
        return False


def _find(folder: Path, fold: str, split: str) -> Path:
    """The one file of a split in any of the published layouts."""
    plain = (f"{split}.jsonl", f"{split}.parquet", f"data/{split}.jsonl", f"data/{split}.parquet")
    hub = (f"{split}_{fold}-*.parquet", f"data/{split}_{fold}-*.parquet")
    patterns = plain if fold == "all" else (f"{fold}/{split}.jsonl", f"{fold}/{split}.parquet", *hub)
    for pattern in patterns:
        files = sorted(folder.glob(pattern))
        if len(files) > 1:
            raise UsageError(
                f"LUME's {fold} {split} rows must be one file; {folder} holds {len(files)} named {pattern}. "
                "Join them."
            )
        if files:
            return files[0]
    if fold != "all" and any((folder / name).exists() for name in plain):
        fix = "For that file choose fold=all; or name the folder that holds train/ and validation/."
        raise UsageError(f"LUME's {fold} {split} rows are not in {folder}, which holds {split} rows. {fix}")
    raise UsageError(
        f"LUME's {fold} {split} rows must be in {folder} as {' or '.join(patterns)}. {HOW_TO_GET}"
    )


def _documents(folder: Path, fold: str) -> dict[str, Records]:
    """Documents of the membership attack: of this fold, else of the data set; all or none."""
    for place in (f"mia_data/{fold}", f"{fold}/mia", "mia", "mia_data"):
        files = {name: folder / place / f"{name}.jsonl" for name in DOCUMENTS}
        present = [name for name, file in files.items() if file.exists()]
        if len(present) == 1:
            raise UsageError(
                f"LUME's membership documents must be member.jsonl and nonmember.jsonl; {folder / place} has "
                f"only {present[0]}.jsonl. {HOW_TO_GET}"
            )
        if present:
            return {
                name: read_records(file, name=name, prompt_field="id", response_field="document")
                for name, file in files.items()
            }
    return {}


def _mmlu(folder: Path, source: str | Path | None, shots: Any, rows: Any, seed: Any) -> Mmlu | float | None:
    if source is None and (folder / "mmlu").is_dir():
        source = folder / "mmlu"
    if source is None:
        return None
    path = Path(source).expanduser()
    if path.suffix == ".json":
        return mmlu_benchmark.reported(path)
    return mmlu_benchmark.load(path, shots=shots, rows=rows, seed=seed)


def _checked(records: Records) -> Records:
    """Refuse rows that the scores cannot place."""
    for index, record in enumerate(records):
        row_id, task = str(record.metadata.get("id", "")), record.metadata.get("task")
        if kind(row_id) and task in TASKS:
            continue
        rule = f"a row must have an id that ends in sc or qa and a digit, and a task of {', '.join(TASKS)}"
        found = f"found id {row_id!r}, task {task!r}"
        raise UsageError(f"{records.source}, {records.number(index)}: {rule}; {found}. Is this LUME?")
    repeated = [
        key for key, count in Counter(str(row.metadata["id"]) for row in records).items() if count > 1
    ]
    if repeated:
        raise UsageError(f"{records.source}: ids must differ; {repeated[0]!r} stands twice. Remove one row.")
    return records


def _draw(records: Records, count: int, seed: int) -> Records:
    """At most `count` rows per task and kind, in their old order."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, record in enumerate(records):
        key = (str(record.metadata["task"]), kind(str(record.metadata["id"])))
        groups.setdefault(key, []).append(index)
    rng = np.random.default_rng(seed)
    kept = sorted(
        int(index) for _, members in sorted(groups.items()) for index in rng.permutation(members)[:count]
    )
    numbers = tuple(records.numbers[i] for i in kept) if records.numbers else ()
    return dataclasses.replace(records, rows=tuple(records[i] for i in kept), numbers=numbers)


# --- tokens


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]


def _as_scored_officially(
    records: Records, natural: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase
) -> list[Encoded]:
    """Input and output tokenized together with nothing between and no end; labels after the input's length.

    Where that leaves no label, the natural row stands in (the official script has no number there).
    """
    heads = _ids([record.prompt for record in records], tokenizer)
    whole = _ids([record.prompt + record.response for record in records], tokenizer)
    return [
        Encoded(ids, len(head)) if len(ids) > len(head) else row
        for head, ids, row in zip(heads, whole, natural, strict=True)
    ]


def _document_rows(
    documents: Records, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> list[Encoded]:
    """Whole documents; every token but the first is a label."""
    rows = []
    for index, ids in enumerate(_ids([record.response for record in documents], tokenizer)):
        if len(ids) < 2 or (context is not None and len(ids) > context):
            rule = f"a document must have 2 to {context or 'any number of'} tokens, the model's context"
            raise UsageError(
                f"{documents.source}, {documents.number(index)}: {rule}; found {len(ids)}. "
                "Choose a model with a longer context, or drop the document."
            )
        rows.append(Encoded(ids, 1))
    return rows


# --- tables


def _items(records: Records, tables: Tables, split: str) -> list[Item]:
    table = tables[split]
    return [
        Item(
            id=str(record.metadata["id"]),
            task=str(record.metadata["task"]),
            prompt=record.prompt,
            response=record.response,
            generation=clean(generation.text),
            nll=score.nll,
        )
        for record, generation, score in zip(records, table.generations, table.scores, strict=True)
    ]


def _losses(tables: Tables, name: str) -> list[float]:
    return [score.nll for score in tables[name].scores] if name in tables else []
