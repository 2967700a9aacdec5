"""Verbs that change a model: `demo`, `finetune`, `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from expunge import inputs, terminal
from expunge.cli._app import (
    Json,
    Model,
    Output,
    Overwrite,
    PromptField,
    Quiet,
    Redact,
    ResponseField,
    Resume,
    Seed,
    Settings,
    Template,
    TrustRemoteCode,
    app,
)


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
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Watch it work: teach a model a group of people, make it forget some, and prove it.

    Generates fictitious people, fine-tunes the model until it knows them, erases the forget group,
    and writes a page with the evidence. Needs no data and no network.
    """
    from expunge.demo import run_demo

    result = run_demo(
        output,
        model=model,
        seed=seed,
        control=control,
        overwrite=overwrite,
        reporter=terminal.reporter(quiet or json_),
    )
    terminal.finish(result, quiet=quiet, as_json=json_)


@app.command
def finetune(
    *,
    data: Annotated[
        list[str], Parameter(help="Records to learn: JSONL, JSON, CSV, Parquet or a Hub id; may be repeated.")
    ],
    output: Output,
    model: Model = "smollm2-135m",
    template: Template = None,
    prompt_field: PromptField = None,
    response_field: ResponseField = None,
    seed: Seed = None,
    set_: Settings = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    redact: Redact = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Teach a model records, until it knows them or the step limit is reached."""
    from expunge import api

    settings = inputs.settings(set_, None, seed=seed, template=template)
    result = api.finetune(
        model,
        data=data,
        **settings,
        output=output,
        resume=resume,
        overwrite=overwrite,
        redact=redact,
        trust_remote_code=trust_remote_code,
        prompt_field=prompt_field,
        response_field=response_field,
        reporter=terminal.reporter(quiet or json_),
    )
    terminal.finish(result, quiet=quiet, as_json=json_)


@app.command
def run(
    *,
    forget: Annotated[str, Parameter(help="Records to remove: JSONL, JSON, CSV, Parquet or a Hub id.")],
    output: Output,
    retain: Annotated[str | None, Parameter(help="Records to keep.")] = None,
    holdout: Annotated[
        str | None, Parameter(help="Records of the same kind, never seen by the model: the control.")
    ] = None,
    model: Annotated[
        str | None, Parameter(help="Local folder, Hub id, or smollm2-135m (the embedded default).")
    ] = None,
    method: Annotated[str | None, Parameter(help="See expunge list methods. Default: ngdiff.")] = None,
    control: Annotated[
        str | None, Parameter(help="A model that never saw the forget records, measured as well.")
    ] = None,
    after: Annotated[
        Path | None, Parameter(help="An earlier run to continue: what it removed stays removed.")
    ] = None,
    forgotten: Annotated[
        list[str] | None,
        Parameter(
            help="--after: an earlier forget set that has moved; once per earlier request, in their order.",
            negative=(),
            consume_multiple=False,
        ),
    ] = None,
    original: Annotated[
        str | None, Parameter(help="--after: the model before the first request, if it has moved.")
    ] = None,
    neighbours: Annotated[
        Path | None, Parameter(help="Folder of expunge neighbours: what is easily lost is kept with care.")
    ] = None,
    config: Annotated[
        Path | None, Parameter(help="YAML file of settings; --set and --method win over it.")
    ] = None,
    template: Template = None,
    prompt_field: PromptField = None,
    response_field: ResponseField = None,
    seed: Seed = None,
    set_: Settings = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    redact: Redact = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Remove records from a model, keep the rest, and measure both."""
    from expunge import api

    settings = {"method": "ngdiff"} | inputs.settings(
        set_, config, seed=seed, template=template, method=method
    )
    result = api.unlearn(
        model or (None if after else "smollm2-135m"),
        forget=forget,
        retain=retain,
        holdout=holdout,
        **settings,
        control=control,
        after=after,
        forgotten=forgotten or (),
        original=original,
        neighbours=neighbours,
        output=output,
        resume=resume,
        overwrite=overwrite,
        redact=redact,
        trust_remote_code=trust_remote_code,
        prompt_field=prompt_field,
        response_field=response_field,
        reporter=terminal.reporter(quiet or json_),
    )
    terminal.finish(result, quiet=quiet, as_json=json_)
