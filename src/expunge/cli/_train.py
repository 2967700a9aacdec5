"""Verbs that change a model: `demo`, `finetune`, `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from expunge.cli._app import app
from expunge.cli._flags import Look, Model, Outcome, Output, Overwrite, Resume, Training, flags


@app.command
def demo(
    *,
    output: Output = Path("expunge-demo"),
    model: Model = "smollm2-135m",
    seed: Annotated[int, Parameter(help="Seed of every random choice.")] = 0,
    control: Annotated[
        bool, Parameter(help="Also train a model that never saw the forget group.", negative=())
    ] = False,
    overwrite: Overwrite = False,
    look: Look = Look(),
) -> None:
    """Watch it work: teach a model a group of people, make it forget some, and prove it.

    Generates fictitious people, fine-tunes the model until it knows them, erases the forget group,
    and writes a page with the evidence. Needs no data and no network.
    """
    from expunge.demo import run_demo

    look.finish(
        run_demo(
            output, model=model, seed=seed, control=control, overwrite=overwrite, reporter=look.reporter()
        )
    )


@app.command
def finetune(
    *,
    data: Annotated[
        list[str], Parameter(help="Records to learn: JSONL, JSON, CSV, Parquet or a Hub id; may be repeated.")
    ],
    output: Output,
    model: Model = "smollm2-135m",
    training: Training = Training(),
    resume: Resume = False,
    outcome: Outcome = Outcome(),
    look: Look = Look(),
) -> None:
    """Teach a model records, until it knows them or the step limit is reached."""
    from expunge import api

    result = api.finetune(
        model,
        data=data,
        output=output,
        **{"seed": 0} | training.given(),
        **training.fields,
        resume=resume,
        **vars(outcome),
        reporter=look.reporter(),
    )
    look.finish(result)


@flags
class Task:
    """What a run removes and keeps, from which model, and where the outcome goes."""

    forget: Annotated[str, Parameter(help="Records to remove: JSONL, JSON, CSV, Parquet or a Hub id.")]
    output: Output
    retain: Annotated[str | None, Parameter(help="Records to keep.")] = None
    holdout: Annotated[
        str | None, Parameter(help="Records of the same kind, never seen by the model: the control.")
    ] = None
    model: Annotated[
        str | None, Parameter(help="Local folder, Hub id, or smollm2-135m (the embedded default).")
    ] = None


@flags
class Earlier:
    """Earlier work that a run builds on."""

    after: Annotated[
        Path | None, Parameter(help="An earlier run to continue: what it removed stays removed.")
    ] = None
    forgotten: Annotated[
        list[str] | None,
        Parameter(
            help="--after: an earlier forget set that has moved; once per earlier request, in their order.",
            negative=(),
            consume_multiple=False,
        ),
    ] = None
    original: Annotated[
        str | None, Parameter(help="--after: the model before the first request, if it has moved.")
    ] = None
    neighbours: Annotated[
        Path | None, Parameter(help="Folder of expunge neighbours: what is easily lost is kept with care.")
    ] = None


@app.command
def run(
    *,
    task: Task,
    method: Annotated[str | None, Parameter(help="See expunge list methods. Default: ngdiff.")] = None,
    control: Annotated[
        str | None, Parameter(help="A model that never saw the forget records, measured as well.")
    ] = None,
    earlier: Earlier = Earlier(),
    config: Annotated[
        Path | None, Parameter(help="YAML file of settings; --set and --method win over it.")
    ] = None,
    training: Training = Training(),
    resume: Resume = False,
    outcome: Outcome = Outcome(),
    look: Look = Look(),
) -> None:
    """Remove records from a model, keep the rest, and measure both."""
    from expunge import api

    model = task.model or (None if earlier.after else "smollm2-135m")
    usual: dict[str, Any] = {"method": "ngdiff", "seed": 0}
    result = api.unlearn(
        **vars(task) | {"model": model},
        **usual | training.given(config, method=method),
        **training.fields,
        control=control,
        **vars(earlier) | {"forgotten": earlier.forgotten or ()},
        resume=resume,
        **vars(outcome),
        reporter=look.reporter(),
    )
    look.finish(result)
