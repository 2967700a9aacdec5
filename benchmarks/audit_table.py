"""Attacks on every recipe: who gives LUME Task 2 back under what, beside the taught model and the control.

    python benchmarks/audit_table.py --data LUME_FOLDER --work WORK_FOLDER
        --output benchmarks/results/audit_lume_task2.json [--people 10] [--seeds 0,1] [--steps 60]
        [--methods ngdiff,npo,simnpo,grad-diff,rmu] [--attacks prompt,...] [--probes 12] [--seconds 60]
        [--workers 2] [--set KEY=VALUE ...] [--set ATTACK:FIELD=VALUE ...] [--markdown TABLE.md]
    python benchmarks/audit_table.py ... --methods ngdiff,ngdiff+holdout,ngdiff+holdout+sharpness=0
    python benchmarks/audit_table.py --tofu --data TOFU_FOLDER --work WORK_FOLDER ...

`LUME_FOLDER` holds train/ and validation/ with forget.jsonl and retain.jsonl; rows of the first so many
people of each fold are forgotten, kept, never seen. The embedded model is taught all of them, and once more
the retain rows alone: the control. Seeds are those of unlearning; attacks have the first one, so that all
models meet the same. Every recipe has its own default learning rate, and may have settings of its own behind
pluses; `holdout` among these lets it stop by records never seen, which are no records of the audit.
`--tofu` takes the shortest rows of TOFU's forget05 and retain95 in place of LUME's (`tofu_short.py`).
`--workers` shares models out over processes of one thread each, which pays on few cores; seconds are of that
process.

After every attack the output is written anew, with what is known so far; a second call continues, and may add
methods, seeds and attacks: what an earlier call found stays in the table, so give it the same --probes,
--seconds and --precision. The work folder keeps models and findings, these with their text.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import tofu_short
import torch
from audit_results import CONTROL, ORIGINAL, Attacked, Unit, markdown, numbers
from lume_task2 import prepare, task2
from study import ended, given, go_on_if_ended, teach
from successive_requests import write

from expunge import api
from expunge.attacks import Attack, Probes, Setting, Target, make_attack
from expunge.auditing.running import Case, Session, announced, attack_all
from expunge.auditing.store import Store
from expunge.auditing.subjects import halved
from expunge.collate import Encoding
from expunge.heap import keep_freed_memory
from expunge.intervals import exact_share
from expunge.models import load_model, load_tokenizer
from expunge.record import read_record, write_atomically
from expunge.records import Record
from expunge.weights import weights_hash

METHODS = "ngdiff,npo,simnpo,grad-diff,rmu"
ATTACKS: dict[str, dict[str, Any]] = {
    "prompt": {},
    "templates": {"variants": 6},
    "paraphrases": {"variants": 4},
    "shifts": {"variants": 12},
    "prefix": {},
    "few-shot": {"rounds": 1},
    "multi-turn": {"dialogues": 1, "turns": 2},
    "jailbreak": {"variants": 6},
    "best-of-n": {"samples": 8, "temperatures": (1.0,)},
    "beam-search": {"beams": 4},
    "contrastive": {},
    "composed": {"rounds": 1},
    "perturbed": {"rounds": 2, "nodes": 8},
    "gcg": {"steps": 6, "candidates": 16, "substitutes": 32},
    "embedding-fgsm": {"levels": 1},
    "embedding-pgd-linf": {"levels": 1, "steps": 8},
    "embedding-pgd-l2": {"levels": 1, "steps": 8},
    "embedding-momentum": {"levels": 1, "steps": 8},
    "embedding-ddn": {"levels": 1, "steps": 8},
    "embedding-carlini-wagner": {"levels": 1, "steps": 8},
    "embedding-elastic-net": {"levels": 1, "steps": 8},
    "embedding-nes": {"levels": 1, "steps": 4},
    "soft-prompt": {"steps": 15},
    "soft-prompt-universal": {"steps": 30},
    "logit-lens": {},
    "linear-probe": {},
    "activation-patching": {"every": 3},
    "refusal-ablation": {"directions": 3},
    "relearn": {"rows": 16, "steps": (4, 8)},
    "relearn-lora": {"rows": 16, "steps": (4, 8)},
    "relearn-retain": {"rows": 16, "steps": (4, 8)},
    "relearn-unrelated": {"rows": 16, "steps": (4, 8)},
    "quantise": {"bits": (8, 4)},
    "prune": {"shares": (0.1, 0.3)},
    "noise": {"scales": (0.03, 0.1), "draws": 1},
    "interpolate": {"alphas": (0.2, 0.5)},
    "membership-loss": {},
    "membership-zlib": {},
    "membership-reference": {},
    "membership-min-k": {},
    "membership-min-k-plus-plus": {},
    "membership-gradient-norm": {},
    "membership-ensemble": {},
}
"""The members of every family, with budgets for two cores. A step of training costs about 5 s at 16 rows."""

# --- models


def taught(name: str, paths: Mapping[str, Path], options: argparse.Namespace) -> Path:
    """The model that knows all, or the control, which knows the retain rows alone."""
    known = [paths["forget"], paths["retain"]] if name == ORIGINAL else [paths["retain"]]
    return teach(known, options.work / name, options, template="none")


def unlearned(name: str, seed: int, paths: Mapping[str, Path], options: argparse.Namespace) -> Path:
    """The original after a recipe, which may have settings of its own."""
    folder = options.work / f"{name}-{seed}"
    method, *own = name.split("+")
    settings = given(options.settings) | given([pair for pair in own if pair != "holdout"])
    if not ended(folder):
        api.unlearn(
            options.work / ORIGINAL / "model",
            forget=paths["forget"],
            retain=paths["retain"],
            holdout=paths["unseen"] if "holdout" in own else None,
            method=method,
            template="none",
            seed=seed,
            evaluate=False,
            save_strategy="no",
            max_steps=options.steps,
            output=folder,
            overwrite=True,
            **{key: value for key, value in settings.items() if ":" not in key},
        )
    go_on_if_ended(folder)
    return folder / "model"


def training(folder: Path) -> dict[str, Any]:
    """How a model came to be."""
    record = read_record(folder)
    assert record.stop is not None
    return {
        "stop": record.stop.reason,
        "steps": record.stop.step,
        "learning_rate": record.configuration.get("learning_rate"),
        "seconds": round(record.timings.get("train", math.nan), 1),
    }


# --- attacks


def asked(paths: Mapping[str, Path], options: argparse.Namespace) -> Probes:
    """Questions, so many of each set (of retain twice as many), spread over people and kinds."""
    sets = {}
    for name in ("forget", "retain", "holdout"):
        rows = [json.loads(line) for line in paths[name].read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row["kind"] == "qa"]
        count = min(len(rows), options.probes * (2 if name == "retain" else 1))
        chosen = [rows[i * len(rows) // count] for i in range(count)]
        sets[name] = [Record(row["prompt"], row["response"], {"person": row["person"]}) for row in chosen]
    return Probes(sets["forget"], sets["retain"], sets["holdout"], Encoding("none"))


def attacks_of(options: argparse.Namespace) -> list[Attack]:
    """The attacks with their budgets."""
    own: dict[str, dict[str, Any]] = {}
    for key, value in given(options.settings).items():
        name, colon, field = key.partition(":")
        if colon:
            own.setdefault(name, {})[field] = value
    names = options.attacks.split(",")
    return [make_attack(name, ATTACKS.get(name, {}) | own.get(name, {})) for name in names]


def attack_model(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train a model where it is not there, attack it; the results are written after every attack."""
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    paths = data_of(options)
    place = unlearned(name, seed, paths, options) if name not in (ORIGINAL, CONTROL) else (
        taught(name, paths, options)
    )  # fmt: skip
    before = kept(name, seed, options)
    unit = Unit(model=name, seed=seed, training=training(place.parent), attacks=dict(before))
    if not place.is_dir():
        return keep(unit, options)
    tokenizer = load_tokenizer(place)
    original = Target("original", load_model(options.work / ORIGINAL / "model").eval(), tokenizer)
    column: Any = name if name in (ORIGINAL, CONTROL) else "unlearned"
    model = original.model if name == ORIGINAL else load_model(place).eval()
    probes = asked(paths, options)
    case = Case(column, Target(column, model, tokenizer), probes, weights_hash(model))
    unit.training["retain"] = utility(case, options)
    session = Session(
        Store(options.work / "attacks" / f"{name}-{seed}", options.seconds),
        seed=options.seeds[0],
        precision=options.precision,
        seconds=options.seconds,
        original=(original, weights_hash(original.model)),
    )
    for attack in attacks_of(options):
        started = time.process_time()
        entry, found = attack_all(attack, [halved(case)], session)
        busy = time.process_time() - started
        if attack.name in before and before[attack.name].entry.results == entry.results:
            busy = before[attack.name].busy  # it was recalled, not run
        unit.attacks[attack.name] = Attacked(entry=entry, findings=found.get(column), busy=busy)
        keep(unit, options)
        show(unit, attack, probes, options)
    return None


def utility(case: Case, options: argparse.Namespace) -> list[float]:
    """Share of the retain questions still answered, with its exact interval, and how many they are."""
    probes = Probes(case.probes.retain, encoding=case.probes.encoding)
    found = make_attack("prompt").run(case.target, probes, Setting(precision=options.precision))
    share = exact_share([one.recovered for one in found.recoveries])
    return [round(share.value, 4), round(share.low, 4), round(share.high, 4), share.n]


def show(unit: Unit, attack: Attack, probes: Probes, options: argparse.Namespace) -> None:
    """A line per attack."""
    entry, busy = unit.attacks[attack.name].entry, unit.attacks[attack.name].busy
    results = [f"{one.recovered.value:.0%} in {one.seconds:.0f} s" for one in entry.results.values()]
    told = results[0] if results else entry.why
    cost = announced(attack.cost(probes), options.seconds)
    print(f"{unit.model} {unit.seed} {attack.name}: {told} ({busy:.0f} s busy; {cost})", flush=True)


# --- what is kept


def kept(name: str, seed: int, options: argparse.Namespace) -> dict[str, Attacked]:
    """What an earlier call found on a model."""
    path = options.work / "units" / f"{name}-{seed}.json"
    return Unit.model_validate_json(path.read_text(encoding="utf-8")).attacks if path.exists() else {}


def keep(unit: Unit, options: argparse.Namespace) -> None:
    """Write one model's findings, and with them the results of all."""
    write_atomically(options.work / "units" / f"{unit.model}-{unit.seed}.json", unit.model_dump_json())
    collect(options)


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """All models so far as one file of numbers, without any record's text."""
    units = [
        Unit.model_validate_json(path.read_text(encoding="utf-8"))
        for path in (options.work / "units").glob("*.json")
    ]
    units.sort(key=lambda unit: (unit.model.split("+"), unit.seed))
    shown = ("tofu",) if options.tofu else ("people",)
    shown += ("probes", "steps", "seconds", "precision", "workers", "threads", "settings", "passes")
    settings = {key: getattr(options, key) for key in shown} | {"model": Path(options.model).name}
    name = f"{'TOFU' if options.tofu else 'LUME Task 2'}, audit"
    results = {"benchmark": name, "settings": settings} | numbers(units)
    write_atomically(options.output, json.dumps(results, indent=1) + "\n")
    return results


# --- running


def data_of(options: argparse.Namespace) -> dict[str, Path]:
    """Forget, retain and holdout, which are asked, and `unseen`: as many people again of holdout's fold."""
    folder = options.work / "data"
    names = ("forget", "retain", "holdout", "unseen")
    return {name: folder / f"{name}.jsonl" for name in names}


def lay_out(options: argparse.Namespace) -> None:
    """Write the sets; what is there already must be the same."""
    if options.tofu:
        tofu_short.prepare(options.data, options.work / "data")
        return
    prepare(options.data, options.work / "data", options.people)
    further = task2(options.data / "validation" / "forget.jsonl", 2 * options.people)
    asked_of = {json.loads(line)["person"] for line in (options.work / "data" / "holdout.jsonl").open()}
    write([row for row in further if row["person"] not in asked_of], data_of(options)["unseen"])


def carry_out(jobs: Sequence[Callable[[], Any]], workers: int) -> None:
    """Jobs, in this process or in as many as there are workers.

    One that fails stops no other, and is raised in the end; an interruption ends all.
    """
    if workers == 1:
        for job in jobs:
            job()
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, max_tasks_per_child=1) as pool:
        errors = []
        for done in as_completed([pool.submit(job) for job in jobs]):
            if isinstance(error := done.exception(), SystemExit):
                pool.shutdown(cancel_futures=True)
                raise error
            errors += [error] if error else []
    if errors:
        raise errors[0]


def main() -> None:
    """Teach, then unlearn and attack; write the table."""
    options = arguments()
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    options.threads = options.threads or max(1, (os.cpu_count() or 1) // options.workers)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the processes that are started
    lay_out(options)
    attacks_of(options)  # refused before anything is trained
    first = options.seeds[0]
    carry_out([partial(teach_alone, name, options) for name in (ORIGINAL, CONTROL)], options.workers)
    jobs = [partial(attack_model, name, first, options) for name in (ORIGINAL, CONTROL)]
    methods = [name for name in options.methods.split(",") if name]
    jobs += [partial(attack_model, name, seed, options) for seed in options.seeds for name in methods]
    carry_out(jobs, options.workers)
    table = markdown(collect(options))
    print(table)
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")


def teach_alone(name: str, options: argparse.Namespace) -> None:
    """Teach one of the two models that all others are measured by."""
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    taught(name, data_of(options), options)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="audit_lume_task2.json or audit_tofu.json in results")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--people", type=int, default=10)
    parser.add_argument("--tofu", action="store_true", help="DATA is TOFU's folder: its shortest rows")
    parser.add_argument("--passes", type=int, default=12, help="over the data, when it is taught")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=60, help="of unlearning, at most")
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--probes", type=int, default=12, help="forget records under attack")
    parser.add_argument("--seconds", type=float, default=60.0, help="that an attack may take on one model")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="per worker; all cores by default")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--teach", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    world = "tofu" if options.tofu else "lume_task2"
    options.output = options.output or Path(f"benchmarks/results/audit_{world}.json")
    return options


if __name__ == "__main__":
    main()
