"""Verbs that measure: `evaluate`, `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from expunge import inputs, terminal
from expunge.cli._app import (
    Json,
    Model,
    Overwrite,
    PromptField,
    Quiet,
    Redact,
    ResponseField,
    Seed,
    Settings,
    Template,
    TrustRemoteCode,
    app,
)
from expunge.errors import UsageError

Data = Annotated[str | None, Parameter(help="Folder with a named benchmark's files.")]
Option = Annotated[
    list[str] | None,
    Parameter(
        help="An option of a named benchmark as KEY=VALUE; may be repeated.",
        negative=(),
        consume_multiple=False,
    ),
]


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
    data: Data = None,
    option: Option = None,
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
    redact: Redact = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Measure what a model says about records, your own or a benchmark's; or read what others measured."""
    from expunge import api

    if logs or generations or reference_logs:
        rows = _rows_of(benchmark, data, inputs.pairs(option, "--option", "fold=train"))
        _read_results(
            benchmark, logs, generations, reference=reference_logs, output=output, seed=seed or 0,
            overwrite=overwrite, rows=rows, quiet=quiet, as_json=json_,
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
        redact=redact,
        trust_remote_code=trust_remote_code,
        cache=cache,
        prompt_field=prompt_field,
        response_field=response_field,
        reporter=terminal.reporter(quiet or json_),
    )
    terminal.finish(result, quiet=quiet, as_json=json_)


@app.command
def compare(
    benchmark: Annotated[
        str, Parameter(help="records (your own forget, retain and holdout), tofu or lume (--data DIR).")
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
    data: Data = None,
    option: Option = None,
    reference: Annotated[
        str | None, Parameter(help="A model that never saw the forget records, measured with every trial.")
    ] = None,
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
        str | None,
        Parameter(
            help="SPLIT/METRIC to forget by. Default: forget/leak; tofu: all/forget_quality with a "
            "reference, else forget/rouge_l_recall; lume: forget/regurgitation."
        ),
    ] = None,
    utility_metric: Annotated[
        str | None,
        Parameter(
            help="SPLIT/METRIC to keep. Default: retain/leak (exact answers); tofu: all/model_utility; "
            "lume: retain/regurgitation."
        ),
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
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Run several methods on the same records, and weigh forgetting against utility.

    Methods × seeds × --grid, one after another, each in a folder of its own; then one table and one page.
    With tofu or lume, every trial trains on the benchmark's own sets and is measured by its metrics.
    """
    from expunge.comparison import compare as run_comparison

    found = run_comparison(
        model,
        benchmark=benchmark,
        data=data,
        options=inputs.pairs(option, "--option", "forget=forget05"),
        reference=reference,
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
        trust_remote_code=trust_remote_code,
        prompt_field=prompt_field,
        response_field=response_field,
        reporter=terminal.reporter(quiet or json_),
    )
    terminal.compared(found, output, quiet=quiet, as_json=json_)


def _rows_of(benchmark: str, data: str | None, options: dict[str, Any]) -> Any:
    """The rows that result files must be of, where they are named: LUME only, whose files name theirs."""
    if data is None and not options:
        return None
    if benchmark != "lume" or data is None:
        raise UsageError(
            "--data and --option go with --generations of lume, to see that the files are of these rows; "
            "logs hold their own questions. Leave them out."
        )
    from expunge.benchmarks import BENCHMARKS

    return BENCHMARKS["lume"](Path(data), **options)


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
