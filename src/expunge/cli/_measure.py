"""Verbs that measure: `evaluate`, `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from expunge import inputs, terminal
from expunge.cli._app import app
from expunge.cli._flags import (
    Look,
    Model,
    Outcome,
    Overwrite,
    Reading,
    Seeded,
    Settings,
    TrustRemoteCode,
    flags,
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


@flags
class Measured:
    """Models that are measured, on a named benchmark or on records."""

    model: Model = "smollm2-135m"
    data: Data = None
    option: Option = None
    forget: Annotated[str | None, Parameter(help="Records that should be forgotten.")] = None
    retain: Annotated[str | None, Parameter(help="Records that should be kept.")] = None
    holdout: Annotated[str | None, Parameter(help="Records of the same kind, never seen by the model.")] = (
        None
    )
    original: Annotated[str | None, Parameter(help="The model before unlearning, measured as well.")] = None
    reference: Annotated[
        str | None, Parameter(help="A model that never saw the forget records, to compare with.")
    ] = None


@flags
class Foreign:
    """What other code measured."""

    logs: Annotated[
        Path | None, Parameter(help="tofu: a log of the authors or of OpenUnlearning, in place of --model.")
    ] = None
    reference_logs: Annotated[Path | None, Parameter(help="tofu: the log of the retain model.")] = None
    generations: Annotated[
        Path | None, Parameter(help="lume: the official script's folder, in place of --model.")
    ] = None


@app.command
def evaluate(
    benchmark: Annotated[
        str, Parameter(help="records (your own sets), or a name from expunge list benchmarks.")
    ],
    *,
    output: Annotated[
        Path | None, Parameter(help="Folder for record.json and report.html; must be new or empty.")
    ] = None,
    measured: Measured = Measured(),
    cache: Annotated[
        Path | None, Parameter(help="Folder that keeps what models said, for the next evaluation.")
    ] = None,
    foreign: Foreign = Foreign(),
    reading: Seeded = Seeded(),
    outcome: Outcome = Outcome(),
    look: Look = Look(),
) -> None:
    """Measure what a model says about records, your own or a benchmark's; or read what others measured."""
    from expunge import api

    if any(vars(foreign).values()):
        _check_unused(measured, cache, reading)
        found = _read_results(
            benchmark,
            foreign,
            output=output,
            seed=reading.seed or 0,
            overwrite=outcome.overwrite,
            redact=outcome.redact,
            rows=_rows_of(benchmark, measured),
        )
        terminal.show(found, output, **look.end)
        return
    if output is None:
        raise UsageError("evaluate needs a folder to write to. Give --output DIR.")
    words = _keywords(measured)
    reads = words if benchmark == "records" else words["options"]  # a named benchmark reads its own records
    if reading.template is not None:
        reads["template"] = reading.template
    result = api.evaluate(
        benchmark=benchmark,
        **words,
        seed=reading.seed or 0,
        output=output,
        **vars(outcome),
        cache=cache,
        **reading.fields,
        reporter=look.reporter(),
    )
    look.finish(result)


@flags
class Compared:
    """The model that all trials begin with, and what they remove and keep."""

    forget: Annotated[str | None, Parameter(help="Records to remove.")] = None
    retain: Annotated[str | None, Parameter(help="Records to keep.")] = None
    holdout: Annotated[str | None, Parameter(help="Records of the same kind, never seen by the model.")] = (
        None
    )
    model: Model = "smollm2-135m"
    data: Data = None
    option: Option = None
    reference: Annotated[
        str | None, Parameter(help="A model that never saw the forget records, measured with every trial.")
    ] = None


@flags
class Trials:
    """What is tried, and how it is weighed."""

    seeds: Annotated[str, Parameter(help="Seeds, with commas between.")] = "0"
    grid: Annotated[
        list[str] | None,
        Parameter(
            help="KEY=V1,V2: try these values; METHOD:KEY=V1,V2: with that method. May be repeated.",
            negative=(),
            consume_multiple=False,
        ),
    ] = None
    forget_metric: Annotated[
        str | None,
        Parameter(
            help="SPLIT/METRIC to forget by. Default: forget/leak; tofu: all/forget_quality with a "
            "reference, else forget/rouge_l_recall; lume: forget/regurgitation."
        ),
    ] = None
    utility_metric: Annotated[
        str | None,
        Parameter(
            help="SPLIT/METRIC to keep. Default: retain/leak (exact answers); tofu: all/model_utility; "
            "lume: retain/regurgitation."
        ),
    ] = None
    keep_models: Annotated[bool, Parameter(help="Keep every trial's model.", negative=())] = False

    def keywords(self) -> dict[str, Any]:
        """As `comparison.compare` takes them."""
        seeds = [inputs.whole(seed, "--seeds") for seed in inputs.listed(self.seeds)]
        return vars(self) | {"seeds": seeds, "grid": inputs.grid(self.grid)}


@flags
class Place:
    """What becomes of an earlier comparison, what trials may show, and whose code may run."""

    resume: Annotated[
        bool, Parameter(help="Continue the comparison in --output, or add trials to it.", negative=())
    ] = False
    overwrite: Overwrite = False
    redact: Annotated[
        bool, Parameter(help="Keep every record's text out of all trials' records and pages.", negative=())
    ] = False
    trust_remote_code: TrustRemoteCode = False


@app.command
def compare(
    benchmark: Annotated[
        str, Parameter(help="records (your own forget, retain and holdout), tofu or lume (--data DIR).")
    ],
    *,
    methods: Annotated[str, Parameter(help="Names from expunge list methods, with commas between.")],
    output: Annotated[Path, Parameter(help="Folder for one folder per trial and a page of all.")],
    compared: Compared = Compared(),
    trials: Trials = Trials(),
    config: Annotated[Path | None, Parameter(help="YAML file of settings; --set wins over it.")] = None,
    reading: Reading = Reading(),
    set_: Settings = None,
    place: Place = Place(),
    look: Look = Look(),
) -> None:
    """Run several methods on the same records, and weigh forgetting against utility.

    Methods × seeds × --grid, one after another, each in a folder of its own; then one table and one page.
    With tofu or lume, every trial trains on the benchmark's own sets and is measured by its metrics.
    """
    from expunge.comparison import compare as run_comparison

    found = run_comparison(
        benchmark=benchmark,
        methods=inputs.listed(methods),
        output=output,
        **_keywords(compared),
        **trials.keywords(),
        **inputs.given(set_, config, template=reading.template),
        **reading.fields,
        **vars(place),
        reporter=look.reporter(),
    )
    terminal.compared(found, output, **look.end)


def _keywords(subject: Measured | Compared) -> dict[str, Any]:
    """As the API takes them: --option as a mapping."""
    options = inputs.pairs(subject.option, "--option", "forget=forget05")
    return {name: value for name, value in vars(subject).items() if name != "option"} | {"options": options}


def _check_unused(measured: Measured, cache: Path | None, reading: Seeded) -> None:
    """Refuse what says how a model is measured where none is run."""
    fresh = Measured()
    given = [name for name in vars(measured) if getattr(measured, name) != getattr(fresh, name)]
    given += [name for name in ("template", *reading.fields) if getattr(reading, name) is not None]
    given += ["cache"] if cache is not None else []
    if wrong := [name for name in given if name not in ("data", "option")]:
        raise UsageError(
            f"--{wrong[0].replace('_', '-')} says how a model is measured; result files are read without "
            "one. Leave it out."
        )


def _rows_of(benchmark: str, measured: Measured) -> Any:
    """The rows that result files must be of, where they are named: LUME only, whose files name theirs."""
    options = inputs.pairs(measured.option, "--option", "fold=train")
    if measured.data is None and not options:
        return None
    if benchmark != "lume" or measured.data is None:
        raise UsageError(
            "--data and --option go with --generations of lume, to see that the files are of these rows; "
            "logs hold their own questions. Leave them out."
        )
    from expunge.benchmarks import BENCHMARKS

    return BENCHMARKS["lume"](Path(measured.data), **options)


def _read_results(benchmark: str, foreign: Foreign, **options: Any) -> Any:
    """What other code measured, as our record."""
    from expunge.foreign import read_results

    fitting = {"tofu": foreign.logs, "lume": foreign.generations}.get(benchmark)
    if fitting is None or (foreign.logs and foreign.generations):
        raise UsageError("--logs belongs to tofu and --generations to lume. Give the one that fits.")
    terminal.reporter(silent=True)
    return read_results(benchmark, fitting, reference=foreign.reference_logs, **options)
