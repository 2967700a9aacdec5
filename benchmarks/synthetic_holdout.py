"""Whether a synthetic holdout is as unlikely as records never seen, under models that know more or less.

    python benchmarks/synthetic_holdout.py --output benchmarks/results/synthetic_holdout.json
        --world NAME:DATA_FOLDER:MODEL_FOLDER[,MODEL_FOLDER ...] [--world ...] [--seeds 0,1,2]

A data folder holds forget.jsonl, retain.jsonl and holdout.jsonl, as `study.py`, `audit_table.py` and their
like leave them; a model folder is one of a run. Mean NLL per response token, in nats, of the forget records,
the holdout, and a synthetic holdout per seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from expunge.collate import Encoding
from expunge.environment import environment
from expunge.models import load_model, load_tokenizer
from expunge.record import write_atomically
from expunge.records import Record, read_records
from expunge.synthetic_holdout import synthetic_holdout
from expunge.tables import Part, examine

SETS = ("forget", "retain", "holdout")


def likelihoods(data: Path, place: Path, seeds: list[int], template: Any) -> dict[str, Any]:
    """One model's mean NLL of every set."""
    sets = {name: read_records(data / f"{name}.jsonl", name=name) for name in SETS}
    groups: dict[str, list[Record]] = {name: list(sets[name]) for name in ("forget", "holdout")}
    for seed in seeds:
        made = synthetic_holdout(sets["forget"], sets["forget"], sets["retain"], seed)
        groups[f"synthetic {seed}"] = [one for one in made if one]
    model, tokenizer = load_model(place).eval(), load_tokenizer(place)
    encoding = Encoding(template)
    parts = {name: Part(encoding.rows(rows, tokenizer, name=name)) for name, rows in groups.items()}
    tables = examine(model, tokenizer, parts, precision="bf16", batch_tokens=4096)
    means = {name: [score.nll for score in table.scores] for name, table in tables.items()}
    return {
        "model": place.parent.name if place.name == "model" else place.name,
        "nll": {name: round(sum(values) / len(values), 3) for name, values in means.items()},
        "rows": {name: len(rows) for name, rows in groups.items()},
    }


def main() -> None:
    """Score all models of all worlds; write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", action="append", required=True, metavar="NAME:DATA:MODEL[,MODEL]")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--template", choices=["auto", "chat", "none"], default="none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seeds = list(map(int, options.seeds.split(",")))
    worlds: dict[str, list[dict[str, Any]]] = {}
    for world in options.world:
        name, data, models = world.split(":")
        for place in models.split(","):
            found = likelihoods(Path(data), Path(place), seeds, options.template)
            worlds.setdefault(name, []).append(found)
            print(name, json.dumps(found), flush=True)
    result = {"benchmark": "synthetic holdout", "environment": environment().model_dump(), "worlds": worlds}
    write_atomically(options.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
