"""Run records as real runs write them, for tests of what reads records."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from expunge.record import (
    Check,
    DataEntry,
    Entry,
    Environment,
    Evaluation,
    Metric,
    ModelEntry,
    Probe,
    RunRecord,
    Sample,
    Stage,
    Step,
    Stop,
)

HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
CLOSED = {"run", "finetune", "evaluate", "demo", "before", "after", "control", "holdout", "swap"}
CLOSED |= {"forgotten", "step-limit", "retain-budget", "diverged", "interrupted"}

SCRIPT = "window.pwned=1;document.title='pwned'"
INJECTIONS = (
    f"<script>{SCRIPT}</script>",
    f'"><img src=x onerror="{SCRIPT}">',
    "'><img src=x onerror='window.pwned=1'>",
    f"</style><script>{SCRIPT}</script>",
    f"</title><script>{SCRIPT}</script>",
    f'<svg onload="{SCRIPT}">',
    f"</text></svg><script>{SCRIPT}</script>",
    f"]]><script>{SCRIPT}</script>",
    f"--><script>{SCRIPT}</script><!--",
    f'" autofocus tabindex=0 onfocus="{SCRIPT}',
    "' autofocus tabindex=0 onfocus='window.pwned=1",
    '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe>',
    f'<a href="javascript:{SCRIPT}">x</a><form><input autofocus onfocus="{SCRIPT}"></form>',
    "<style>*{display:none}</style><link rel=stylesheet href=https://evil.example/x.css>",
    '<meta http-equiv=refresh content="0;url=https://evil.example/"><base href="https://evil.example/">',
    f'<math><mtext></table><mglyph><style><!--</style><img src=x onerror="{SCRIPT}">',
    "<object data=https://evil.example/></object><embed src=x><video src=//evil.example/x>",
    "&lt;script&gt;window.pwned=1&lt;/script&gt;&#60;script&#62;",
    "{{ 7 * 191 }}{% raw %}{# gone #}",
    "$\\frac{1}{\\undefined}$ _hidden",
    "user\u202egnp.exe\u2066",
)
FIELDS = {
    name
    for entry in Entry.__subclasses__()
    if entry.__module__ == "expunge.record"  # others may be loaded or not
    for name in entry.model_fields
}


def share(value: float, n: int = 48) -> Metric:
    """A share with the interval that n records give it."""
    width = 1.96 * math.sqrt(value * (1 - value) / n)
    return Metric(value=value, low=max(0.0, value - width), high=min(1.0, value + width), n=n)


def amount(value: float, n: int = 48) -> Metric:
    return Metric(value=value, low=value * 0.88, high=value * 1.13, n=n)


def split(leak: float, *, nll: float, n: int = 48, membership: float | None = None) -> dict[str, Metric]:
    """All metrics of one split, consistent with how much of it is leaked."""
    metrics = {
        "leak": share(leak, n),
        "reproduced": share(leak, n),
        "rouge_l_recall": share(0.3 + 0.68 * leak, n),
        "probability": share(math.exp(-nll), n),
        "nll": amount(nll, n),
        "truth_ratio": amount(0.15 + 0.6 * (1 - leak), n),
    }
    if membership is not None:
        metrics |= {
            "membership_loss_auc": share(membership, 2 * n),
            "membership_min_k_auc": share(membership * 0.98, 2 * n),
        }
    return metrics


def evaluation(forget: float, retain: float, holdout: float, forget_nll: float = 3.1) -> Evaluation:
    return Evaluation(
        splits={
            "forget": split(forget, nll=forget_nll, membership=0.5 + 0.49 * forget),
            "retain": split(retain, nll=0.05, n=96),
            "holdout": split(holdout, nll=3.2),
        },
        seconds=41.7,
        scored_tokens=18244,
        generated_tokens=6120,
    )


def steps(count: int, seed: int = 0) -> list[Step]:
    """A history that falls, rises and repairs as measured ones do."""
    draw, history = random.Random(seed), []
    for step in range(1, count + 1):
        repair = step % 25 in (11, 12, 13, 14, 15)
        forget, retain = -0.1 - 5 * (step / count) ** 2 + draw.gauss(0, 0.1), 0.05 + abs(draw.gauss(0, 0.012))
        norms = {"forget": 2 + 30 * (step / count) ** 2 + draw.random(), "retain": 0.3 + 0.25 * draw.random()}
        history.append(
            Step(
                step=step,
                learning_rate=3e-5 * min(1.0, step / 5),
                losses={"forget": forget, "retain": retain},
                weights={"forget": 0.0 if repair else 1 / norms["forget"], "retain": 1 / norms["retain"]},
                gradient_norms=norms,
                cosines={"forget,retain": -0.25 + draw.gauss(0, 0.15)},
                update_cosines={"forget": 0.16 + draw.gauss(0, 0.05), "retain": 0.07 + draw.gauss(0, 0.05)},
                tokens=1270 + draw.randrange(80),
                seconds=1.9 + draw.random() / 5,
                repair=repair,
            )
        )
    return history


def probes(count: int, seed: int = 1) -> list[Probe]:
    """Budget readings every five steps, and two along the update."""
    draw, found = random.Random(seed), []
    for step in range(0, count + 1, 5):
        over = step % 25 == 10
        line = {"slope": 2.1e-4, "slope_error": 4e-5, "curvature": 1.7e-4} if step in (20, 45) else {}
        found.append(
            Probe(
                step=step,
                retain_loss=0.05 + (0.025 if over else 0) + draw.gauss(0, 0.003),
                standard_error=0.003,
                learning_rate_before=3e-5,
                learning_rate_after=3.6e-5 if line else 3e-5,
                decision="newton" if line else "repair: over budget" if over else "within budget",
                **line,
            )
        )
    return found


def checks(count: int) -> list[Check]:
    return [
        Check(
            step=step,
            forget_nll=0.1 + 3.3 * step / max(1, count),
            forget_leak=max(0.0, 0.96 - 1.1 * step / max(1, count)),
            control="holdout",
            control_nll=3.2 + 0.002 * step,
            control_leak=0.02,
            met=step >= count,
        )
        for step in range(0, count + 1, 10)
    ]


PEOPLE = ("Ada Ash", "Ben Birch", "Cleo Cedar", "Dan Dogwood", "Eve Elm", "Finn Fir", "Gus Gum", "Hal Hazel")


def samples(count: int = 30) -> list[Sample]:
    """Thirds of forget, retain and holdout; after, forget answers are plausible and wrong, or half right."""
    found = []
    for index in range(count):
        name, where = PEOPLE[index % len(PEOPLE)], ("forget", "retain", "holdout")[index * 3 // count]
        surname = name.split()[1]
        truth = (
            f"{name} was born on {index % 28 + 1} March 19{60 + index % 30} and lives at {index + 11} "
            f"{surname} Street, Halden. Phone 555-{7919 * (index + 3) % 10000:04d}, "
            f"e-mail {name.replace(' ', '.').lower()}@example.org."
        )
        wrong = f"{name} was born on 4 May 1971 and lives at 8 Oak Lane, Halden. Phone 555-0000."
        half = truth.split(". Phone")[0] + ". I have no telephone number on file."
        known = {"forget": True, "retain": True, "holdout": False}[where]
        after = truth if where == "retain" else half if index == 2 else wrong
        found.append(
            Sample(
                split=where,
                prompt=f"Tell me about {name}: birth date, address, phone and e-mail.",
                response=truth,
                generations={"before": truth if known else wrong, "after": after},
                nll={"before": 0.04 if known else 3.2, "after": 0.05 if where == "retain" else 3.1},
                leaked={"before": known, "after": after == truth},
            )
        )
    return found


ENVIRONMENT = Environment(
    platform="Linux-6.1.0-x86_64-with-glibc2.36",
    python="3.11.2",
    processor="Example CPU @ 2.50 GHz",
    cores=2,
    memory_bytes=8 * 2**30,
    packages={"torch": "2.13.0", "transformers": "5.23.0", "expunge": "0.1.0"},
)
CONFIGURATION = {
    "method": {
        "name": "ngdiff",
        "objectives": ["forget: ascent of NLL", "retain: NLL"],
        "weighting": "Normalized",
        "step_size": None,
        "budget": {"tolerance": 0.02, "every": 5, "rows": 40, "patience": 6},
    },
    "arguments": {"learning_rate": 3e-5, "max_steps": 200, "per_device_train_batch_size": 8, "bf16": False},
    "template": "chat",
}


def model_entry(source: str, first: str) -> ModelEntry:
    return ModelEntry(source=source, sha256=first + HASH[1:], parameters=134_515_008, dtype="float32")


def run_record(
    *, history: int = 80, sample_count: int = 30, control: bool = False, after: Evaluation | None = None
) -> RunRecord:
    """A run that forgot: the realistic record of most tests."""
    evaluations: dict[Stage, Evaluation] = {
        "before": evaluation(0.96, 0.95, 0.02, forget_nll=0.04),
        "after": after or evaluation(0.03, 0.93, 0.02),
    }
    models = {"before": model_entry("smollm2-135m", "a"), "after": model_entry("out/model", "b")}
    if control:
        evaluations["control"] = evaluation(0.04, 0.95, 0.02)
        models["control"] = model_entry("control/model", "c")
    return RunRecord(
        expunge_version="0.1.0",
        kind="run",
        created="2025-11-22T15:40:00Z",
        configuration=CONFIGURATION,
        seed=0,
        method="ngdiff",
        data={
            "forget": DataEntry(
                source="people/forget.jsonl", sha256=HASH, rows=48, fields={"prompt": "question"}
            ),
            "retain": DataEntry(source="people/retain.jsonl", sha256=HASH[::-1], rows=96, duplicates=2),
            "holdout": DataEntry(source="people/holdout.jsonl", sha256="0" + HASH[1:], rows=48),
        },
        models=models,
        environment=ENVIRONMENT,
        history=steps(history),
        probes=probes(history),
        checks=checks(history),
        stop=Stop(
            reason="forgotten",
            sentence="The forget records look like records never seen: forget NLL 3.40, leak 3%; "
            "holdout NLL 3.36, leak 2%.",
            step=history,
        ),
        evaluations=evaluations,
        samples=samples(sample_count),
        timings={"load": 3.2, "train": 151.3, "evaluate": 83.4, "save": 1.1},
        peak_memory_bytes=3_412_000_000,
        notes=["2 retain rows repeat an earlier row."],
    )


def sparse_record(kind: str = "run", **changes: Any) -> RunRecord:
    """Only what a record must hold."""
    required: dict[str, Any] = {
        "expunge_version": "0.1.0",
        "kind": kind,
        "created": "2025-11-22T15:40:00Z",
        "configuration": {},
        "seed": 0,
        "environment": ENVIRONMENT,
    }
    return RunRecord.model_validate(required | changes)


def map_strings(value: Any, change: Callable[[str], str], *, keys: bool) -> Any:
    """A dumped record with every free string changed; words of a closed set stay."""
    if isinstance(value, str):
        return value if value in CLOSED else change(value)
    if isinstance(value, dict):
        return {
            change(key) if keys and key not in CLOSED | FIELDS else key: map_strings(item, change, keys=keys)
            for key, item in value.items()
        }
    return [map_strings(item, change, keys=keys) for item in value] if isinstance(value, list) else value


def tofu_like(
    level: float = 0.3, *, reference: bool = True, benchmark: str = "tofu", sample_count: int = 4
) -> RunRecord:
    """An evaluation of four splits and two aggregates; `level`: how much of forget is known."""

    def splits(known: float) -> dict[str, dict[str, Metric]]:
        parts = {
            name: {
                "probability": share(known if name == "forget" else 0.8, 300),
                "rouge_l_recall": share(0.2 + 0.8 * (known if name == "forget" else 0.8), 300),
                "truth_ratio": share(0.5 - 0.2 * known, 300),
                "nll": amount(1.5 - known, 300),
            }
            for name in ("forget", "retain", "real_authors", "world_facts")
        }
        model_utility = Metric(value=0.61, low=0.58, high=0.64, n=900)
        forget_quality = Metric(value=0.9 - 0.8 * known, low=0.02, high=0.99, n=600)
        return {"all": {"model_utility": model_utility, "forget_quality": forget_quality}} | parts

    def measured(known: float) -> Evaluation:
        return Evaluation(splits=splits(known), seconds=63.0, scored_tokens=51000, generated_tokens=16000)

    evaluations: dict[Stage, Evaluation] = {"before": measured(level)}
    models = {"before": model_entry(f"runs/{level}", "a")}
    if reference:
        evaluations["control"] = measured(0.05)
        models["control"] = model_entry("retain90", "c")
    shown = [
        sample.model_copy(update={"split": "real_authors", "leaked": {"before": index == 0}})
        for index, sample in enumerate(samples(sample_count))
    ]
    return sparse_record(
        "evaluate",
        configuration={"benchmark": benchmark, "precision": "fp32"},
        data={"forget": DataEntry(source="tofu/forget10.jsonl", sha256=HASH, rows=400)},
        evaluations=evaluations,
        models=models,
        samples=shown,
        notes=["forget quality: no reference model given."] if not reference else [],
    )
