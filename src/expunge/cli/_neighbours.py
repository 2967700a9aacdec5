"""The verb `neighbours`: what is easily lost with what is to be forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from expunge import inputs
from expunge.cli._app import app
from expunge.cli._flags import Look, Model, Overwrite, Seeded, TrustRemoteCode, flags


@flags
class Search:
    """How neighbours are sought, and what is asked about them."""

    k: Annotated[int, Parameter(help="Neighbours per forget record.")] = 3
    pool: Annotated[
        int | None, Parameter(help="Candidates per record, by embedding. Default: 4 k, at least 16.")
    ] = None
    margin: Annotated[
        float, Parameter(help="Least preference for the right answer, before unlearning, nats per token.")
    ] = 0.2
    probes: Annotated[float, Parameter(help="Share of the neighbours that are measured only.")] = 0.5
    templates: Annotated[str, Parameter(help="Kinds of question, with commas between.")] = (
        "direct,choice,correction,aside,verify"
    )
    curriculum: Annotated[
        str | None, Parameter(help="Kinds that are trained on. Default: direct, and what is generated.")
    ] = None
    generator: Annotated[
        str | None, Parameter(help="A model that writes questions besides the templates.")
    ] = None

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """The lists among them, where given."""
        given = {"templates": self.templates, "curriculum": self.curriculum}
        return {name: tuple(inputs.listed(words)) for name, words in given.items() if words is not None}


@app.command
def neighbours(
    *,
    forget: Annotated[str, Parameter(help="Records to remove.")],
    retain: Annotated[str, Parameter(help="Records to keep: the neighbours are among them.")],
    output: Annotated[Path, Parameter(help="Folder for what is found; must be new or empty.")],
    model: Model = "smollm2-135m",
    search: Search = Search(),
    reading: Seeded = Seeded(),
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
    look: Look = Look(),
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
        **vars(search) | search.kinds,
        template=reading.template or "auto",
        seed=reading.seed or 0,
        **reading.fields,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        reporter=look.reporter(),
    )
    if look.json:
        print(record.model_dump_json())
    elif not look.quiet:
        kept = ", ".join(f"{number} {name}" for name, number in record.kept.items())
        print(f"{record.pairs} neighbours. Questions kept: {kept}.")
        print(f"{record.curriculum} rows to train on, {record.probes} to measure: {output}")
