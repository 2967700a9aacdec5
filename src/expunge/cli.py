"""The command line: verbs, each a call into `expunge.api`. Nothing imports this module."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter
from rich.console import Console
from rich.table import Table

from expunge import inputs, terminal
from expunge.errors import UsageError

EXAMPLES = """
Examples:

    expunge demo
    expunge run --forget forget.jsonl --retain retain.jsonl --holdout unseen.jsonl --output out
    expunge run --model ./my-model --forget f.csv --retain r.csv --output out --set learning_rate=1e-5
    expunge evaluate records --model out/model --forget f.csv --holdout h.csv --output check
    expunge compare records --methods ngdiff,npo --seeds 0,1 --forget f.csv --retain r.csv --output study
"""

app = App(
    name="expunge",
    help="Remove chosen knowledge from a causal language model, keep the rest, and prove both.",
    help_epilogue=EXAMPLES,
    help_format="plaintext",
    version_flags=["--version"],
)

_look = Group("Output", sort_key=9)

Quiet = Annotated[bool, Parameter(help="Print nothing but errors.", negative=(), group=_look)]
Json = Annotated[
    bool, Parameter(name="--json", help="Print one JSON object instead of a table.", negative=(), group=_look)
]
Model = Annotated[str, Parameter(help="Local folder, Hub id, or smollm2-135m (the embedded default).")]
Output = Annotated[
    Path, Parameter(help="Folder for model/, record.json and report.html; must be new or empty.")
]
Resume = Annotated[bool, Parameter(help="Continue the interrupted run in --output.", negative=())]
Overwrite = Annotated[bool, Parameter(help="Replace the earlier run in --output.", negative=())]
Settings = Annotated[
    list[str] | None,
    Parameter(
        name="--set", help="A setting as KEY=VALUE; may be repeated.", negative=(), consume_multiple=False
    ),
]
PromptField = Annotated[str | None, Parameter(help="Name of the prompt in the data, if not a usual one.")]
ResponseField = Annotated[str | None, Parameter(help="Name of the response in the data, if not a usual one.")]
Seed = Annotated[int | None, Parameter(help="Seed of every random choice. Default: 0.")]
Template = Annotated[
    Literal["auto", "chat", "none"] | None,
    Parameter(help="chat: the tokenizer's template; none: plain text; auto (default): chat if there is one."),
]


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
    model: Model = "smollm2-135m",
    method: Annotated[str | None, Parameter(help="See expunge list methods. Default: ngdiff.")] = None,
    control: Annotated[
        str | None, Parameter(help="A model that never saw the forget records, measured as well.")
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
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Remove records from a model, keep the rest, and measure both."""
    from expunge import api

    settings = {"method": "ngdiff"} | inputs.settings(
        set_, config, seed=seed, template=template, method=method
    )
    result = api.unlearn(
        model,
        forget=forget,
        retain=retain,
        holdout=holdout,
        **settings,
        control=control,
        output=output,
        resume=resume,
        overwrite=overwrite,
        prompt_field=prompt_field,
        response_field=response_field,
        reporter=terminal.reporter(quiet or json_),
    )
    terminal.finish(result, quiet=quiet, as_json=json_)


@app.command
def evaluate(
    benchmark: Annotated[
        str, Parameter(help="records (your own sets), or a name from expunge list benchmarks.")
    ],
    *,
    output: Annotated[
        Path | None, Parameter(help="Folder for record.json and report.html; must be new or empty.")
    ] = None,
    model: Model = "smollm2-135m",
    data: Annotated[str | None, Parameter(help="Folder with a named benchmark's files.")] = None,
    option: Annotated[
        list[str] | None,
        Parameter(
            help="An option of a named benchmark as KEY=VALUE; may be repeated.",
            negative=(),
            consume_multiple=False,
        ),
    ] = None,
    forget: Annotated[str | None, Parameter(help="Records that should be forgotten.")] = None,
    retain: Annotated[str | None, Parameter(help="Records that should be kept.")] = None,
    holdout: Annotated[
        str | None, Parameter(help="Records of the same kind, never seen by the model.")
    ] = None,
    original: Annotated[str | None, Parameter(help="The model before unlearning, measured as well.")] = None,
    reference: Annotated[
        str | None, Parameter(help="A model that never saw the forget records, to compare with.")
    ] = None,
    cache: Annotated[
        Path | None, Parameter(help="Folder that keeps what models said, for the next evaluation.")
    ] = None,
    logs: Annotated[
        Path | None, Parameter(help="tofu: a log of the authors or of OpenUnlearning, in place of --model.")
    ] = None,
    reference_logs: Annotated[Path | None, Parameter(help="tofu: the log of the retain model.")] = None,
    generations: Annotated[
        Path | None, Parameter(help="lume: the official script's folder, in place of --model.")
    ] = None,
    template: Template = None,
    prompt_field: PromptField = None,
    response_field: ResponseField = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Measure what a model says about records, your own or a benchmark's; or read what others measured."""
    from expunge import api

    if logs or generations or reference_logs:
        _read_results(
            benchmark, logs, generations, reference=reference_logs, output=output, seed=seed or 0,
            overwrite=overwrite, quiet=quiet, as_json=json_,
        )  # fmt: skip
        return
    if output is None:
        raise UsageError("evaluate needs a folder to write to. Give --output DIR.")
    options = inputs.pairs(option, "--option", "forget=forget05")
    if benchmark != "records" and template is not None:
        options["template"] = template
    result = api.evaluate(
        model,
        benchmark=benchmark,
        data=data,
        options=options,
        forget=forget,
        retain=retain,
        holdout=holdout,
        original=original,
        reference=reference,
        **inputs.settings(None, None, seed=seed, template=template if benchmark == "records" else None),
        output=output,
        overwrite=overwrite,
        cache=cache,
        prompt_field=prompt_field,
        response_field=response_field,
        reporter=terminal.reporter(quiet or json_),
    )
    terminal.finish(result, quiet=quiet, as_json=json_)


@app.command
def compare(
    benchmark: Annotated[
        Literal["records"], Parameter(help="records: your own forget, retain and holdout sets.")
    ],
    *,
    methods: Annotated[str, Parameter(help="Names from expunge list methods, with commas between.")],
    output: Annotated[Path, Parameter(help="Folder for one folder per trial and a page of all.")],
    forget: Annotated[str | None, Parameter(help="Records to remove.")] = None,
    retain: Annotated[str | None, Parameter(help="Records to keep.")] = None,
    holdout: Annotated[
        str | None, Parameter(help="Records of the same kind, never seen by the model.")
    ] = None,
    model: Model = "smollm2-135m",
    seeds: Annotated[str, Parameter(help="Seeds, with commas between.")] = "0",
    grid: Annotated[
        list[str] | None,
        Parameter(
            help="KEY=V1,V2: try these values; METHOD:KEY=V1,V2: with that method. May be repeated.",
            negative=(),
            consume_multiple=False,
        ),
    ] = None,
    forget_metric: Annotated[
        str | None, Parameter(help="SPLIT/METRIC to forget by. Default for records: forget/leak.")
    ] = None,
    utility_metric: Annotated[
        str | None, Parameter(help="SPLIT/METRIC to keep. Default for records: retain/leak (exact answers).")
    ] = None,
    keep_models: Annotated[bool, Parameter(help="Keep every trial's model.", negative=())] = False,
    config: Annotated[Path | None, Parameter(help="YAML file of settings; --set wins over it.")] = None,
    template: Template = None,
    prompt_field: PromptField = None,
    response_field: ResponseField = None,
    set_: Settings = None,
    resume: Annotated[
        bool, Parameter(help="Continue the comparison in --output, or add trials to it.", negative=())
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Run several methods on the same records, and weigh forgetting against utility.

    Methods × seeds × --grid, one after another, each in a folder of its own; then one table and one page.
    """
    from expunge.comparison import compare as run_comparison

    found = run_comparison(
        model,
        benchmark=benchmark,
        methods=inputs.listed(methods),
        seeds=[inputs.whole(seed, "--seeds") for seed in inputs.listed(seeds)],
        grid=inputs.grid(grid),
        forget=forget,
        retain=retain,
        holdout=holdout,
        forget_metric=forget_metric,
        utility_metric=utility_metric,
        keep_models=keep_models,
        **inputs.given(set_, config, template=template),
        output=output,
        resume=resume,
        overwrite=overwrite,
        prompt_field=prompt_field,
        response_field=response_field,
        reporter=terminal.reporter(quiet or json_),
    )
    terminal.compared(found, output, quiet=quiet, as_json=json_)


@app.command
def report(
    folders: Annotated[list[Path], Parameter(help="Output folders of earlier runs.")],
    /,
    *,
    output: Annotated[
        Path, Parameter(help="The page about several folders; one folder keeps its report.html.")
    ] = Path("leaderboard.html"),
    series: Annotated[
        Literal["size", "request"] | None,
        Parameter(help="Draw several runs as curves: by size of the forget set, or as successive requests."),
    ] = None,
) -> None:
    """Render report.html again from record.json; of several folders, also one page that compares them."""
    from expunge.benchmarks.series import series as in_order
    from expunge.record import read_record
    from expunge.report import write_report
    from expunge.report.leaderboard import write_leaderboard

    folders = [
        folder.parent if folder.name in ("record.json", "comparison.json") else folder for folder in folders
    ]
    if len(folders) == 1 and (folders[0] / "comparison.json").is_file():
        from expunge.comparison import refresh

        refresh(folders[0])
        print(folders[0] / "report.html")
    elif len(folders) > 1:
        drawn = in_order(folders, series) if series else None
        print(write_leaderboard(folders, output, series=drawn))
    elif series:
        raise UsageError("--series must have several folders; got one. Name the folders of all runs.")
    else:
        print(write_report(read_record(folders[0]), folders[0]))


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["methods", "weightings", "benchmarks", "metrics"] | None, Parameter(help="One kind only.")
    ] = None,
    /,
) -> None:
    """List what can be chosen, with a line on each."""
    from expunge.catalogue import catalogue

    table = Table(box=None, show_header=False, pad_edge=False)
    for kind, entries in catalogue().items():
        if what in (None, kind):
            table.add_row(f"[bold]{kind}[/bold]", "")
            for name, line in entries.items():
                table.add_row(f"  {name}", line)
    Console(highlight=False).print(table)


def main() -> None:
    """Entry point: exit status 0 done, 1 our defect, 2 the user's input or environment, 130 interrupted."""
    sys.exit(terminal.guarded(lambda: app(exit_on_error=False, print_error=False)))


def _read_results(
    benchmark: str, logs: Path | None, generations: Path | None, *, quiet: bool, as_json: bool, **options: Any
) -> None:
    """What other code measured, as our record and table."""
    from expunge.foreign import read_results

    fitting = {"tofu": logs, "lume": generations}.get(benchmark)
    if fitting is None or (logs and generations):
        raise UsageError("--logs belongs to tofu and --generations to lume. Give the one that fits.")
    terminal.reporter(silent=True)
    terminal.show(
        read_results(benchmark, fitting, **options), options["output"], quiet=quiet, as_json=as_json
    )
