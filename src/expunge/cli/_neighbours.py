"""The verb `neighbours`: what is easily lost with what is to be forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from expunge import inputs, terminal
from expunge.cli._app import (
    Json,
    Model,
    Overwrite,
    PromptField,
    Quiet,
    ResponseField,
    Seed,
    Template,
    TrustRemoteCode,
    app,
)


@app.command
def neighbours(
    *,
    forget: Annotated[str, Parameter(help="Records to remove.")],
    retain: Annotated[str, Parameter(help="Records to keep: the neighbours are among them.")],
    output: Annotated[Path, Parameter(help="Folder for what is found; must be new or empty.")],
    model: Model = "smollm2-135m",
    k: Annotated[int, Parameter(help="Neighbours per forget record.")] = 3,
    pool: Annotated[
        int | None, Parameter(help="Candidates per record, by embedding. Default: 4 k, at least 16.")
    ] = None,
    margin: Annotated[
        float, Parameter(help="Least preference for the right answer, before unlearning, nats per token.")
    ] = 0.2,
    probes: Annotated[float, Parameter(help="Share of the neighbours that are measured only.")] = 0.5,
    templates: Annotated[
        str, Parameter(help="Kinds of question, with commas between.")
    ] = "direct,choice,correction,aside,verify",
    generator: Annotated[
        str | None, Parameter(help="A model that writes questions besides the templates.")
    ] = None,
    template: Template = None,
    prompt_field: PromptField = None,
    response_field: ResponseField = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Find retained records that a model confuses with the forget records, and tell them apart.

    Writes questions that the model can answer: to train on, nearest first, and to measure what forgetting
    takes along. Give the folder to expunge run --neighbours.
    """
    from expunge.neighbours import find_neighbours

    record = find_neighbours(
        model,
        forget=forget,
        retain=retain,
        output_folder=output,
        k=k,
        pool=pool,
        margin=margin,
        probes=probes,
        templates=tuple(inputs.listed(templates)),
        generator=generator,
        template=template or "auto",
        prompt_field=prompt_field,
        response_field=response_field,
        seed=seed or 0,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        reporter=terminal.reporter(quiet or json_),
    )
    if json_:
        print(record.model_dump_json())
    elif not quiet:
        kept = ", ".join(f"{number} {name}" for name, number in record.kept.items())
        print(f"{record.pairs} neighbours. Questions kept: {kept}.")
        print(f"{record.curriculum} rows to train on, {record.probes} to measure: {output}")
