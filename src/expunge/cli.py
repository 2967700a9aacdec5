"""The command line: verbs, each a call into `expunge.api`. Nothing imports this module."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import App, CycloptsError, Group, Parameter
from rich.console import Console
from rich.table import Table

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

FLAGS = {
    "model", "forget", "retain", "holdout", "data", "output", "output_dir", "resume", "overwrite",
    "control", "original", "prompt_field", "response_field", "kind", "claimed", "reporter", "source",
    "notes", "evaluate",
}  # fmt: skip
"""What a flag or the verb says, and a setting therefore may not."""

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
        reporter=_reporter(quiet or json_),
    )
    _finish(result, quiet=quiet, as_json=json_)


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

    settings = _settings(set_, None, seed=seed, template=template)
    result = api.finetune(
        model,
        data=data,
        **settings,
        output=output,
        resume=resume,
        overwrite=overwrite,
        prompt_field=prompt_field,
        response_field=response_field,
        reporter=_reporter(quiet or json_),
    )
    _finish(result, quiet=quiet, as_json=json_)


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

    settings = {"method": "ngdiff"} | _settings(set_, config, seed=seed, template=template, method=method)
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
        reporter=_reporter(quiet or json_),
    )
    _finish(result, quiet=quiet, as_json=json_)


@app.command
def evaluate(
    benchmark: Annotated[
        Literal["records"], Parameter(help="records: your own forget, retain and holdout sets.")
    ],
    *,
    output: Output,
    model: Model = "smollm2-135m",
    forget: Annotated[str | None, Parameter(help="Records that should be forgotten.")] = None,
    retain: Annotated[str | None, Parameter(help="Records that should be kept.")] = None,
    holdout: Annotated[
        str | None, Parameter(help="Records of the same kind, never seen by the model.")
    ] = None,
    original: Annotated[str | None, Parameter(help="The model before unlearning, measured as well.")] = None,
    control: Annotated[
        str | None, Parameter(help="A model that never saw the forget records, measured as well.")
    ] = None,
    template: Template = None,
    prompt_field: PromptField = None,
    response_field: ResponseField = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Measure what a model says about records."""
    from expunge import api

    result = api.evaluate(
        model,
        forget=forget,
        retain=retain,
        holdout=holdout,
        original=original,
        control=control,
        **_settings(None, None, seed=seed, template=template),
        output=output,
        overwrite=overwrite,
        prompt_field=prompt_field,
        response_field=response_field,
        reporter=_reporter(quiet or json_),
    )
    _finish(result, quiet=quiet, as_json=json_)


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
        methods=_listed(methods),
        seeds=[_whole(seed, "--seeds") for seed in _listed(seeds)],
        grid=_grid(grid),
        forget=forget,
        retain=retain,
        holdout=holdout,
        forget_metric=forget_metric,
        utility_metric=utility_metric,
        keep_models=keep_models,
        **_given(set_, config, template=template),
        output=output,
        resume=resume,
        overwrite=overwrite,
        prompt_field=prompt_field,
        response_field=response_field,
        reporter=_reporter(quiet or json_),
    )
    _compared(found, output, quiet=quiet, as_json=json_)


@app.command
def report(folder: Annotated[Path, Parameter(help="Output folder of an earlier run.")], /) -> None:
    """Render report.html again from record.json, or from all records of a comparison."""
    from expunge.record import read_record
    from expunge.report import write_report

    folder = folder.parent if folder.name in ("record.json", "comparison.json") else folder
    if (folder / "comparison.json").is_file():
        from expunge.comparison import refresh

        refresh(folder)
        print(folder / "report.html")
        return
    print(write_report(read_record(folder), folder))


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
    sys.exit(guarded(lambda: app(exit_on_error=False, print_error=False)))


def guarded(call: Callable[[], Any]) -> int:
    """Exit status of a call; what the user can mend is one message on standard error."""
    _hush()
    errors = Console(stderr=True, highlight=False)
    try:
        call()
    except (UsageError, CycloptsError) as error:
        errors.print(f"[red]expunge:[/red] {_plain(error)}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("expunge: interrupted at once; nothing more was written.")
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _plain(error: Exception) -> str:
    return str(error).replace("[", r"\[")


def _hush() -> None:
    """Libraries' notices are not the user's business; ours and errors are."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: large blocks in huge pages, fewer faults
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"torch|transformers|accelerate")
    logging.basicConfig(level=logging.WARNING, format="expunge: %(message)s")
    logging.getLogger("expunge").setLevel(logging.INFO)


def _reporter(silent: bool) -> Any:
    from transformers.utils import logging as transformers_logging

    from expunge.heap import keep_freed_memory
    from expunge.progress import Bars, Silent

    keep_freed_memory()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return Silent() if silent else Bars(Console(stderr=True, highlight=False))


def _settings(pairs: list[str] | None, config: Path | None, **flags: Any) -> dict[str, Any]:
    """What was given, and a seed."""
    return {"seed": 0} | _given(pairs, config, **flags)


def _given(pairs: list[str] | None, config: Path | None, **flags: Any) -> dict[str, Any]:
    """A YAML file, over it KEY=VALUE pairs, over these the flags that were given; values are YAML scalars."""
    settings = _read_config(config) if config else {}
    for pair in pairs or []:
        key, value = _pair(pair, "--set learning_rate=1e-5")
        settings[key] = _scalar(value)
    for key in settings:
        if key in FLAGS:
            raise UsageError(f"--set and --config must not name {key}; give it as --{key.replace('_', '-')}.")
    return settings | {key: value for key, value in flags.items() if value is not None}


def _pair(text: str, example: str) -> tuple[str, str]:
    """KEY=VALUE; hyphens in a key are underscores, but those in METHOD:KEY's method stay."""
    key, found, value = text.partition("=")
    if not found or not key:
        flag = example.partition(" ")[0]
        raise UsageError(f"{flag} must be KEY=VALUE; got {text!r}. For example {example}.")
    method, colon, name = key.strip().rpartition(":")
    return f"{method}{colon}{name.replace('-', '_')}", value


def _grid(pairs: list[str] | None) -> dict[str, list[Any]]:
    """KEY=V1,V2 pairs -> the values of each key."""
    found: dict[str, list[Any]] = {}
    for pair in pairs or []:
        key, values = _pair(pair, "--grid learning_rate=1e-5,3e-5")
        if key in found:
            raise UsageError(f"--grid must name {key} once; give all its values with commas between.")
        found[key] = [_scalar(value) for value in _listed(values)]
    return found


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _whole(text: str, flag: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{flag} must be whole numbers with commas between; got {text!r}.") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config must be a readable file; {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config must be YAML; {path}: {str(error).splitlines()[0]}.") from None
    if not isinstance(loaded, dict):
        raise UsageError(f"--config must hold KEY: VALUE lines; {path} holds {type(loaded).__name__}.")
    return {str(k).replace("-", "_"): _number(v) for k, v in loaded.items()}


def _scalar(text: str) -> Any:
    try:
        return _number(yaml.safe_load(text))
    except yaml.YAMLError:
        return text


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 as a string."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _finish(result: Any, *, quiet: bool, as_json: bool) -> None:
    from pydantic_core import to_json

    from expunge.summary import summary, table

    if as_json:
        print(to_json(summary(result.record, result.folder), inf_nan_mode="null").decode())
    elif not quiet:
        console = Console(highlight=False)
        for part in table(result.record):
            console.print(part)
        if result.folder:
            console.print(
                f"\nReport: {(result.folder / 'report.html').resolve()}", soft_wrap=True, markup=False
            )
    if result.record.stop and result.record.stop.reason == "interrupted":
        raise SystemExit(130)


def _compared(found: Any, folder: Path, *, quiet: bool, as_json: bool) -> None:
    from expunge.report.comparison import table

    if as_json:
        print(found.model_dump_json())
    elif not quiet:
        console = Console(highlight=False)
        for part in table(found):
            console.print(part)
        console.print(f"\nReport: {(folder / 'report.html').resolve()}", soft_wrap=True, markup=False)
    states = [trial.status for trial in found.trials]
    if "interrupted" in states:
        raise SystemExit(130)
    if all(state == "failed" for state in states):
        raise UsageError(f"No trial came to an end; the first one: {found.trials[0].error}")
