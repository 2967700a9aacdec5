"""One rank of two that share the passes, started by `test_distributed.py` through torch.distributed.run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from conftest import build_model, build_tokenizer
from expunge.tables import Part, examine, work
from naive import sharpen, varied_rows


def found(cache: Path | None, wrap: bool = False) -> dict[str, Any]:
    """Tables as plain values, and what was done here to get them."""
    tokenizer = build_tokenizer()
    rows = varied_rows(tokenizer)
    parts = {
        "scored": Part(rows[:9], moments=True),
        "answered": Part(rows[4:], new_tokens=6, gradients=True),
    }
    model = sharpen(build_model(seed=3))
    forwards, progress = [0], [0]
    model.register_forward_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    wrapped = DistributedDataParallel(model) if wrap else model
    tables = examine(
        wrapped,
        tokenizer,
        parts,
        batch_tokens=80,
        cache=cache,
        progress=lambda rows: progress.__setitem__(0, progress[0] + rows),
    )
    return {
        "log_probs": [s.log_probs.tolist() for table in tables.values() for s in table.scores],
        "deviations": [s.deviations.tolist() for s in tables["scored"].scores if s.deviations is not None],
        "texts": [g.text for g in tables["answered"].generations],
        "norms": tables["answered"].gradient_norms,
        "forwards": forwards[0],
        "progress": progress[0] - work(parts),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    results = {
        "shared": found(None),
        "wrapped": found(None, wrap=True),
        "fresh": found(folder / "cache"),
        "kept": found(folder / "cache"),
    }
    (folder / f"scoring-{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()
