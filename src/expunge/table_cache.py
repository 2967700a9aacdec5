"""Tables kept on disk under a hash of everything that decides them.

A file is a digest and the arrays behind it. One that is missing, cut short, changed, or of other shapes than
the rows ask for is made again, never trusted. It may hold what a model says about private records: the folder
is open to its owner only, and so is every file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge import ranks
from expunge.errors import UsageError
from expunge.generation import Generation
from expunge.inference import Precision, Progress, language_model
from expunge.scoring import TokenScores
from expunge.tables import Part, Table, Tables, work
from expunge.weights import weights_hash

_DECIDING = (
    "collate", "four_bits", "generation", "gradients", "inference", "logits", "prefixes", "ranks", "scoring",
    "table_cache", "tables",
)  # fmt: skip
"""Modules whose code decides what a table holds."""


def key(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    parts: Mapping[str, Part],
    precision: Precision,
    batch_tokens: tuple[int, int],
) -> str:
    """SHA-256 of weights, configuration, tokenizer, rows, what is asked about them, settings and code.

    Batch size and device are part of it: they move the last digits, and in bf16 now and then a word.
    """
    inner = language_model(model)
    generation = getattr(inner, "generation_config", None)
    facts = {
        "weights": weights_hash(inner),
        "configuration": inner.config.to_diff_dict(),
        "adapters": _adapter_facts(model),
        "attention": inner.config._attn_implementation,
        "ends": generation.eos_token_id if generation is not None else None,
        "tokenizer": _tokenizer_facts(tokenizer),
        "parts": {
            name: [part.scored, part.new_tokens, part.moments, part.gradients, _rows_hash(part)]
            for name, part in parts.items()
        },
        "precision": precision,
        "batch_tokens": batch_tokens,
        "device": next(model.parameters()).device.type,
        "code": _code_hash(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _adapter_facts(model: nn.Module) -> list[Any]:
    """What adapters do beyond their weights: their settings, which act, and whether they are switched off."""
    settings = getattr(model, "peft_config", None)
    if settings is None:
        return []
    layers = [module for module in model.modules() if "disable_adapters" in dir(type(module))]
    off = sorted({bool(module.disable_adapters) for module in layers})
    return [{name: found.to_dict() for name, found in settings.items()}, str(model.active_adapters), off]


def recall(
    folder: Path,
    key: str,
    parts: Mapping[str, Part],
    make: Callable[[], Tables],
    progress: Progress | None = None,
) -> Tables:
    """Tables kept under `key`, or made anew and kept.

    Where several processes run, the first one reads and writes, and all get the same.

    Args:
        folder: Created if missing, and closed to others.
        key: From `key`.
        parts: What the tables must answer.
        make: Makes them.
        progress: Told of all rows at once where nothing is to be made.

    Raises:
        UsageError: `folder` is not a folder of this user, or cannot be written to.
    """
    path = folder / f"{key}.tables"
    kept = ranks.decided(lambda: _read(_private(folder) / path.name, parts))
    if kept is not None:
        if progress is not None:
            progress(work(parts))
        return kept
    made = make()
    if ranks.first():
        _write(path, _pack(made))
    return made


def _private(folder: Path) -> Path:
    """The folder, open to its owner only."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            raise UsageError(
                f"--cache must be a folder of your own; {folder} is another user's. Choose another."
            )
        folder.chmod(0o700)
    except OSError as error:
        raise UsageError(
            f"--cache must be a folder that can be written to; {folder}: {error.strerror}. Choose another."
        ) from None
    return folder


def _write(path: Path, payload: bytes) -> None:
    """The file is whole or absent, and only its owner can read it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(hashlib.sha256(payload).digest() + payload)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(path: Path, parts: Mapping[str, Part]) -> Tables | None:
    """The tables if the file is whole and answers these parts, else None."""
    try:
        content = path.read_bytes()
        digest, payload = content[:32], content[32:]
        if hashlib.sha256(payload).digest() != digest:
            return None
        with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
            tables = _unpack(dict(arrays))
    except (OSError, ValueError, KeyError, EOFError):
        return None
    return tables if _answers(tables, parts) else None


def _answers(tables: Tables, parts: Mapping[str, Part]) -> bool:
    """Whether every row that was asked about has what was asked, in its own length."""
    if set(tables) != set(parts):
        return False
    for name, part in parts.items():
        table, count = tables[name], len(part.rows)
        scored = part.scored or part.moments
        sizes = (len(table.scores), len(table.generations), len(table.gradient_norms))
        if sizes != (count * scored, count * (part.new_tokens != 0), count * part.gradients):
            return False
        for row, scores in zip(part.rows, table.scores, strict=False):
            if len(scores.log_probs) != len(row.labels) or (scores.means is not None) != part.moments:
                return False
    return True


# --- what stands in a file


def _pack(tables: Tables) -> bytes:
    arrays: dict[str, Any] = {}
    for i, table in enumerate(tables.values()):
        arrays[f"{i}.lengths"] = [len(scores.log_probs) for scores in table.scores]
        arrays[f"{i}.log_probs"] = _joined(scores.log_probs for scores in table.scores)
        arrays[f"{i}.matches"] = _joined(scores.matches for scores in table.scores)
        arrays[f"{i}.means"] = _joined(s.means for s in table.scores if s.means is not None)
        arrays[f"{i}.deviations"] = _joined(s.deviations for s in table.scores if s.deviations is not None)
        arrays[f"{i}.gradient_norms"] = np.array(table.gradient_norms, dtype=np.float64)
        answers = [(generation.text, generation.tokens) for generation in table.generations]
        arrays[f"{i}.answers"] = _bytes(answers)
        arrays[f"{i}.cut"] = _bytes(list(table.cut.items()))
    arrays["facts"] = _bytes(
        [list(tables), tables.seconds, tables.scored_tokens, tables.generated_tokens, dict(tables.stages)]
    )
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _unpack(arrays: Mapping[str, Any]) -> Tables:
    names, seconds, scored, generated, stages = _value(arrays["facts"])
    parts = {name: _unpack_table(arrays, i) for i, name in enumerate(names)}
    return Tables(parts, seconds, scored, generated, stages)


def _unpack_table(arrays: Mapping[str, Any], i: int) -> Table:
    ends = np.cumsum(arrays[f"{i}.lengths"].astype(np.int64))
    columns = [
        _split(arrays[f"{i}.{name}"], ends) for name in ("log_probs", "matches", "means", "deviations")
    ]
    return Table(
        scores=[
            TokenScores(log_probs, matches.astype(np.bool_), means, deviations)
            for log_probs, matches, means, deviations in zip(*columns, strict=True)
        ],
        generations=[Generation(text, tuple(tokens)) for text, tokens in _value(arrays[f"{i}.answers"])],
        gradient_norms=arrays[f"{i}.gradient_norms"].tolist(),
        cut=dict(_value(arrays[f"{i}.cut"])),
    )


def _split(column: Any, ends: Any) -> Sequence[Any]:
    """One array per row; None for each where the column was not asked for."""
    if len(ends) == 0:
        return []
    return [None] * len(ends) if column.size == 0 else np.split(column, ends[:-1])


def _joined(columns: Iterable[Any]) -> Any:
    return np.concatenate([*columns, np.zeros(0)])


def _bytes(value: Any) -> Any:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def _value(array: Any) -> Any:
    return json.loads(array.tobytes())


# --- what decides


def _rows_hash(part: Part) -> str:
    digest = hashlib.sha256()
    for row in part.rows:
        digest.update(np.array([row.prompt_length, len(row.input_ids), *row.input_ids]).tobytes())
    return digest.hexdigest()


def _tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Pad and end tokens, the vocabulary with its special tokens, and how tokens become text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    how = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    added = sorted((i, str(token), token.special) for i, token in tokenizer.added_tokens_decoder.items())
    cleaned = tokenizer.clean_up_tokenization_spaces
    return [
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        added,
        cleaned,
        hashlib.sha256(how.encode()).hexdigest(),
    ]


@once
def _code_hash() -> str:
    here, digest = Path(__file__).parent, hashlib.sha256()
    digest.update(f"{torch.__version__} {transformers.__version__} {np.__version__}".encode())
    for module in _DECIDING:
        digest.update((here / f"{module}.py").read_bytes())
    return digest.hexdigest()
