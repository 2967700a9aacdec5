"""A submission to SemEval-2025 Task 4: one function, one hour, the best checkpoint always on disk.

The challenge calls `unlearn` with four paths and evaluates what stands in the second one when the function
returns or is killed after an hour. This file needs the package `expunge`; name it in the submission form.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

__all__ = ["unlearn"]


def unlearn(
    model_path: str | Path,
    output_path: str | Path,
    forget_dir: str | Path,
    retain_dir: str | Path,
    *,
    limit: float = 3480.0,
    method: str = "ngdiff",
    **settings: Any,
) -> None:
    """Unlearn the forget set within a time limit.

    The untouched model is written first, then every better state that a look at the records finds, so that
    `output_path` holds a whole model at every moment. The run ends when the records are forgotten within the
    retain budget, or in time for the last state to be judged and written.

    Args:
        model_path: Model and tokenizer.
        output_path: Folder for the unlearned model and its tokenizer.
        forget_dir: Folder with `forget.jsonl` or `forget.parquet`: fields `input` and `output`.
        retain_dir: The same for `retain`.
        limit: Wall seconds from the call, by default two minutes less than the challenge allows.
        method: See `expunge list methods`.
        **settings: Fields of `UnlearningArguments` and arguments of the method.

    Raises:
        UsageError: Data, model or settings cannot be used.
    """
    end = time.monotonic() + limit

    from transformers import PreTrainedModel
    from transformers.utils import logging

    from expunge.deadline import Deadline
    from expunge.errors import UsageError
    from expunge.models import load_model, load_tokenizer
    from expunge.records import check_disjoint, read_records
    from expunge.run_options import RunOptions
    from expunge.settings import arguments, resolve_method
    from expunge.snapshots import Snapshots
    from expunge.unlearner import Unlearner

    logging.disable_progress_bar()
    if limit <= 0:
        raise UsageError(f"`limit` must be a positive number of seconds; got {limit}.")
    usual = {"seed": 0, "template": "none", "max_steps": 100_000}
    recipe, rest = resolve_method(method, usual | settings)
    args = arguments(rest, RunOptions(), method)
    forget, retain = read_records(forget_dir, name="forget"), read_records(retain_dir, name="retain")
    check_disjoint(forget, retain)
    tokenizer, model = load_tokenizer(model_path), load_model(model_path)
    if not isinstance(model, PreTrainedModel):
        raise UsageError(f"A submission needs a whole model; {model_path} is an adapter. Merge it first.")
    snapshots = Snapshots(Path(output_path))
    started = time.monotonic()
    if args.should_save:
        snapshots.write(model, tokenizer)
    writing = time.monotonic() - started
    model.to(args.device)  # type: ignore[arg-type]
    unlearner = Unlearner(model, args, recipe, tokenizer, forget, retain)
    deadline = Deadline(unlearner, lambda: snapshots.write(model, tokenizer), end, writing)
    unlearner.add_callback(deadline)
    unlearner.train()
    deadline.finish()
