"""The study of LUME Tasks 2 and 3: every recipe, the strongest over learning rates, finalists on seeds.

    python benchmarks/study.py --data LUME_FOLDER --output STUDY_FOLDER
        [--people 20] [--lives 20] [--kinds qa] [--methods a,b,c] [--tuned npo,simnpo]
        [--rates 3e-6,1e-5,3e-5,1e-4,3e-4] [--finalists best] [--seeds 0,1,2] [--workers 1]
        [--set max_steps=100] [--markdown docs/results.md]

`LUME_FOLDER` holds train/ and validation/ with forget.jsonl and retain.jsonl. Rows of the first so many
people (Task 2, synthetic) and lives (Task 3, real biographies) of each training fold are to be forgotten and
kept; as many of the validation fold have never been seen. The embedded model is taught once, then `compare`
runs in stages that share one folder. A second call continues where the first one ended, and may add.

`--finalists best` takes every tuned method at its best rate (most forgotten among the settings that keep
`KEPT` of what was known, else the most kept) and both forms of ngdiff untuned. `--workers` runs several
trials side by side, which pays on a GPU that one small model does not fill; their times mean nothing then.

    python benchmarks/study.py --tofu forget05 --data TOFU_FOLDER --output STUDY_FOLDER [--rows 100] ...

does the same with TOFU: taught on `full`, the reference on what is to be kept, measured by TOFU's metrics.
With `--kept 400` it is taught the forget set and the first 400 rows of the retain set alone, and measured as
LUME is, beside the last `--unseen` rows of the retain set: authors whom nobody taught it. A CPU can do that.
`--tofu short` is smaller still: the shortest rows of forget05 and of both (`tofu_short.py`), measured alike.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tofu_short
import yaml
from lume_task2 import write

from expunge import METHODS, Comparison, api, compare
from expunge.comparison import merge
from expunge.comparison_record import FILE, Setting, TrialEntry, read_comparison
from expunge.heap import keep_freed_memory
from expunge.record import read_record
from expunge.report.comparison import markdown

SUFFIX = 3
"""Characters at the end of a row's id that say its kind (`sc1`, `qa0`); what stands before is the person."""
STRONGEST = "idk-sft,pdu,simnpo,wga,ihl,me"
"""The largest hypervolumes after `ngdiff` on LUME at full size, every recipe at its defaults."""
RATES = "3e-6,1e-5,3e-5,1e-4,3e-4"
KEPT = 0.9
"""Share of the retain answers known before that a setting must keep to be among the best."""

SHORT = "short"
"""In place of a split of TOFU: few rows, the shortest."""

Grid = dict[str, list[Any]]
Job = tuple[str, Grid, list[int]]
"""Method, grid, seeds."""


def rows_of(path: Path, wanted: dict[str, int], kinds: str = "") -> list[dict[str, str]]:
    """Rows of the first so many people of each task, in the file's order; all kinds, or some."""
    people: dict[str, list[str]] = {task: [] for task in wanted}
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        task = row["task"]
        if task not in wanted:
            continue
        person, kind = row["id"][:-SUFFIX], row["id"][-SUFFIX:-1]
        if person not in people[task] and len(people[task]) < wanted[task]:
            people[task].append(person)
        if person in people[task] and kind in (kinds.split(",") if kinds else [kind]):
            words = {"prompt": row["input"], "response": row["output"]}
            found.append(words | {"person": person, "task": task, "kind": kind})
    return found


def prepare(data: Path, folder: Path, wanted: dict[str, int], kinds: str = "") -> dict[str, Path]:
    """Write forget, retain and holdout as JSON Lines; what is there already must be the same."""
    folds = {"forget": "train/forget", "retain": "train/retain", "holdout": "validation/forget"}
    paths = {}
    for name, fold in folds.items():
        text = "".join(json.dumps(row) + "\n" for row in rows_of(data / f"{fold}.jsonl", wanted, kinds))
        if not text:
            raise SystemExit(f"--kinds {kinds} leaves no row of {fold}. Kinds are qa and sc.")
        paths[name] = folder / f"{name}.jsonl"
        write(paths[name], text)
    return paths


def teach(data: list[Path], taught: Path, options: argparse.Namespace, **words: object) -> Path:
    """A model that knows the records; taught once, since it is not what is compared."""
    if not ended(taught):
        (taught / "record.json").unlink(missing_ok=True)
        rows = sum(1 for path in data for _ in path.open(encoding="utf-8"))
        usual: dict[str, Any] = {
            "evaluate": False,
            "seed": 0,
            "learning_rate": 1e-3,
            "warmup_steps": 5,
            "per_device_train_batch_size": 16,
            "save_strategy": "no",
        }
        usual |= words | given(options.teach)
        usual.setdefault("max_steps", -(-rows // usual["per_device_train_batch_size"]) * options.passes)
        api.finetune(options.model, data=data, output=taught, overwrite=True, **usual)
        go_on_if_ended(taught)
    return taught / "model"


def ended(folder: Path) -> bool:
    """Whether a training came to an end of its own: one that was interrupted is begun anew."""
    if not (folder / "record.json").exists():
        return False
    record = read_record(folder)
    return record.stop is not None and record.stop.reason != "interrupted"


def go_on_if_ended(folder: Path) -> None:
    """An interruption ends all."""
    if not ended(folder):
        raise SystemExit(130)


def of_lume(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The model that knows forget and retain, and what every trial gets."""
    wanted = {"Task2": options.people, "Task3": options.lives}
    paths = prepare(options.data, options.output / "data", wanted, options.kinds)
    known = [paths["forget"], paths["retain"]]
    model = teach(known, options.output / "taught", options, template="none")
    return model, {**paths, "template": "none"}


def of_few_authors(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The model that knows TOFU's forget set and a part of its retain set, and what trials get."""
    from expunge.benchmarks.tofu.data import FORGET

    kept = (options.data / f"{FORGET[options.tofu]}.jsonl").read_text(encoding="utf-8").splitlines()
    if not 1 <= options.unseen <= len(kept) - options.kept:
        raise SystemExit(
            f"--unseen must be at least 1, and leave --kept room in {len(kept)} rows of the retain set; "
            f"got {options.unseen} beside {options.kept}."
        )
    forget = (options.data / f"{options.tofu}.jsonl").read_text(encoding="utf-8").splitlines()
    parts = {"forget": forget, "retain": kept[: options.kept], "holdout": kept[-options.unseen :]}
    folder = options.output / "data"
    paths = {name: folder / f"{name}.jsonl" for name in parts}
    for name, lines in parts.items():
        write(paths[name], "".join(f"{line}\n" for line in lines))
    fields = {"prompt_field": "question", "response_field": "answer", "template": "none"}
    known = [paths["forget"], paths["retain"]]
    return teach(known, options.output / "taught", options, **fields), {**paths, **fields}


def of_short_rows(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The model that knows TOFU's shortest rows, and what trials get."""
    paths = tofu_short.prepare(options.data, options.output / "data")
    model = teach([paths["forget"], paths["retain"]], options.output / "taught", options, template="none")
    sets = {"forget": paths["forget"], "retain": paths["retain"], "holdout": paths["unseen"]}
    return model, {**sets, "template": "none"}


def of_tofu(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The model that knows all authors, and what trials get; the reference knows the retain set alone."""
    from expunge.benchmarks.tofu.data import FORGET

    fields = {"prompt_field": "question", "response_field": "answer"}
    places = {"full": options.output / "taught", FORGET[options.tofu]: options.output / "reference"}
    model, reference = (
        teach([options.data / f"{name}.jsonl"], place, options, **fields) for name, place in places.items()
    )
    asked = {"forget": options.tofu, "gradients": False} | ({"rows": options.rows} if options.rows else {})
    return model, {"benchmark": "tofu", "data": options.data, "options": asked, "reference": reference}


def study(options: argparse.Namespace) -> Comparison | None:
    """The stages, each adding to the same comparison; without methods, only what they need is taught."""
    model, common = world_of(options)(options)
    seeds = list(map(int, options.seeds.split(",")))
    common |= {"evaluation_seed": seeds[0], **given(options.settings)}
    rates = list(map(float, options.rates.split(",")))
    tuned = [name for name in options.tuned.split(",") if name]
    jobs: list[Job] = [(name, grid, seeds[:1]) for name, grid in plain(options.methods)]
    jobs += [(name, {"learning_rate": [rate]}, seeds[:1]) for name in tuned for rate in rates]
    if not jobs:
        return None
    found = carry_out(model, options, common, jobs)
    finalists = best(found, tuned) if options.finalists == "best" else plain(options.finalists)
    if finalists:
        jobs = [(name, grid, [seed]) for name, grid in finalists for seed in seeds[1:]]
        found = carry_out(model, options, common, jobs)
    return found


def world_of(options: argparse.Namespace) -> Callable[[argparse.Namespace], tuple[Path, dict[str, Any]]]:
    """What teaches the model and says what trials get."""
    if options.kept and options.tofu in (None, SHORT):
        raise SystemExit("--kept needs --tofu and a split. LUME's size is set by --people and --lives.")
    if options.tofu is None:
        return of_lume
    if options.tofu == SHORT:
        return of_short_rows
    return of_few_authors if options.kept else of_tofu


def carry_out(
    model: Path, options: argparse.Namespace, common: dict[str, Any], jobs: list[Job]
) -> Comparison:
    """Jobs one after another, or shared out over processes whose comparisons are merged."""
    folder, workers = options.output / "comparison", options.workers
    if workers == 1:
        compare_all(model, folder, common, jobs)
        return read_comparison(folder)
    known = read_comparison(folder) if (folder / FILE).is_file() else None
    jobs = [job for job in jobs if known is None or not all_done(known, job)]
    shares = [options.output / f"share-{i}" for i in range(workers)]
    spawn = multiprocessing.get_context("spawn")
    running = [
        spawn.Process(target=compare_all, args=(model, share, common, jobs[i::workers]))
        for i, share in enumerate(shares)
        if jobs[i::workers]
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    parts = [share for share in (*shares, folder) if (share / FILE).is_file()]
    return merge(parts, folder)


def compare_all(model: Path, folder: Path, common: dict[str, Any], jobs: list[Job]) -> None:
    """Every job adds to the comparison in `folder`; an interruption ends all."""
    keep_freed_memory()
    for method, grid, seeds in jobs:
        started = time.perf_counter()
        found = compare(model, methods=[method], seeds=seeds, grid=grid, output=folder, resume=True, **common)
        print(f"{method} {grid} {seeds}: {time.perf_counter() - started:.0f} s", flush=True)
        if any(trial.status == "interrupted" for trial in of_job(found, (method, grid, seeds))):
            raise SystemExit(130)  # an interrupted trial of another job may wait for its turn


def of_job(found: Comparison, job: Job) -> list[TrialEntry]:
    """A job's trials."""
    method, grid, seeds = job
    mine = [t for t in found.trials if (t.method, t.varied.keys()) == (method, grid.keys())]
    return [t for t in mine if t.seed in seeds and all(t.varied[key] in grid[key] for key in grid)]


def all_done(found: Comparison, job: Job) -> bool:
    """Whether a comparison holds all trials of a job, ended."""
    done = [trial for trial in of_job(found, job) if trial.status == "done"]
    return len(done) == len(job[2]) * math.prod(len(values) for values in job[1].values())


def best(found: Comparison, tuned: Sequence[str]) -> list[tuple[str, Grid]]:
    """Every tuned method at its best rate, and ngdiff as it stands."""
    chosen = plain("ngdiff,ngdiff-gen")
    for name in tuned:
        mine = [setting for setting in found.settings if setting.method == name and setting.varied]
        ranks = {i: rank(found, setting) for i, setting in enumerate(mine)}
        if ranked := {i: place for i, place in ranks.items() if place is not None}:
            first = mine[min(ranked, key=ranked.__getitem__)]
            chosen.append((name, {key: [value] for key, value in first.varied.items()}))
    return chosen


def rank(found: Comparison, setting: Setting) -> tuple[bool, float] | None:
    """What keeps enough comes first, by what it leaks; then the rest, by what it loses.

    By its first seed alone: another call must not choose others because some have been run on more. None
    where that one was not measured.
    """
    known = found.before[found.utility_axis.split][found.utility_axis.metric].value
    first = min(found.of(setting), key=lambda trial: trial.seed)
    forget, kept = first.value(found.forget_axis), first.value(found.utility_axis)
    if forget is None or kept is None:
        return None
    lost = kept < KEPT * known
    return lost, -kept if lost else found.forget_axis.cost(forget)


def plain(names: str) -> list[tuple[str, Grid]]:
    """Methods at their defaults."""
    return [(name, {}) for name in names.split(",") if name]


def given(pairs: list[str]) -> dict[str, object]:
    """KEY=VALUE pairs, values as YAML."""
    return {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in pairs)}


def main() -> None:
    """Run the stages; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tofu", choices=["forget01", "forget05", "forget10", SHORT])
    parser.add_argument("--rows", type=int, help="TOFU: rows of every set that are measured; all by default")
    parser.add_argument("--kept", type=int, default=0, help="TOFU: retain rows it is taught; all by default")
    parser.add_argument("--unseen", type=int, default=100, help="with --kept: rows never taught, the holdout")
    parser.add_argument("--passes", type=int, default=12, help="over the data, when it is taught")
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--lives", type=int, default=20)
    parser.add_argument("--kinds", default="", help="of rows: qa (questions), sc (texts to complete); all")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--tuned", default=STRONGEST)
    parser.add_argument("--rates", default=RATES)
    parser.add_argument("--finalists", default="best", help="best, names, or empty")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--teach", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    found = study(options)
    if options.markdown and found:
        options.markdown.write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
