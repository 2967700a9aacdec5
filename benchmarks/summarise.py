"""Numbers of finished runs in one JSON file, without any record's text.

python benchmarks/summarise.py --output benchmarks/results/demo.json RUN_FOLDER...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pydantic_core import to_json

from expunge.record import read_record
from expunge.summary import summary


def main() -> None:
    """Read every record; write what was measured, where, and how long it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    runs = []
    for folder in options.folders:
        record = read_record(folder)
        numbers = summary(record, None) | {
            "name": folder.name,
            "seed": record.seed,
            "configuration": record.configuration,
            "environment": record.environment.model_dump(),
            "rows": {name: data.rows for name, data in record.data.items()},
            "checks": [check.model_dump() for check in record.checks],
            "repair_steps": sum(step.repair for step in record.history),
        }
        runs.append(json.loads(to_json(numbers, inf_nan_mode="null")))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
