"""The verb that looks ahead: `plan`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from expunge import inputs
from expunge.cli._app import app
from expunge.cli._flags import Json, Model, Settings


@app.command
def plan(
    *,
    model: Model = "smollm2-135m",
    method: Annotated[str | None, Parameter(help="See expunge list methods. Default: ngdiff.")] = None,
    gpus: Annotated[int, Parameter(help="Accelerators, one rank on each.")] = 1,
    gpu: Annotated[
        str,
        Parameter(help="Kind: l4, a10, rtx4090, l40s, a100-40gb, a100-80gb, h100, h200, b200, mi300x; cpu."),
    ] = "cpu",
    tokens: Annotated[int, Parameter(help="Tokens of a row, prompt and response.")] = 128,
    labels: Annotated[int, Parameter(help="Response tokens of a row.")] = 64,
    config: Annotated[
        Path | None, Parameter(help="YAML file of settings; --set and --method win over it.")
    ] = None,
    set_: Settings = None,
    json_: Json = False,
) -> None:
    """Say what a run would take, in memory and time, before anything is loaded.

    Reads the model's configuration alone. Where the run would not fit, names the cheapest settings that do.
    """
    from expunge.planning import plan_run

    settings = {"method": "ngdiff"} | inputs.given(set_, config, method=method)
    name = settings.pop("method")
    asked, better = plan_run(model, name, settings, gpus=gpus, gpu=gpu, tokens=tokens, labels=labels)
    if json_:
        found = {"plan": _plain(asked), "suggestion": _plain(better) if better else None}
        print(json.dumps(found))
        return
    console = Console(highlight=False)
    console.print(_table(asked))
    console.print(*_sentences(asked, better), sep="\n", soft_wrap=True)


def _plain(found: Any) -> dict[str, Any]:
    return asdict(found) | {"peak": found.peak, "fits": found.fits}


def _table(found: Any) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for name, size in sorted(found.parts.items(), key=lambda item: -item[1]):
        table.add_row(name, _gigabytes(size))
    table.add_row("[bold]peak of a rank[/bold]", f"[bold]{_gigabytes(found.peak)}[/bold]")
    return table


def _sentences(asked: Any, better: Any) -> list[str]:
    from expunge.hardware import UTILISATION

    lines = [*asked.notes, f"The peak is at: {asked.moment}."]
    if asked.capacity is not None:
        verdict = "fits" if asked.fits else "does not fit"
        lines.append(f"It {verdict} into {_gigabytes(asked.capacity)} (what a rank has for the run).")
    if asked.seconds is not None:
        rate, minutes = asked.tokens_per_second, asked.seconds / 60
        lines.append(
            f"About {rate:,.0f} tokens/s and {minutes:,.1f} minutes for all steps, at an assumed "
            f"{UTILISATION:.0%} of the published peak; looks and evaluation come on top."
        )
    if better is not None:
        words = " ".join(f"--set {key}={json.dumps(value)}" for key, value in better.changes.items())
        slower = f"{better.seconds / asked.seconds:.2f} times the time" if asked.seconds else "more time"
        lines.append(f"The cheapest that fits: {words} ({_gigabytes(better.peak)}, {slower}).")
    elif not asked.fits:
        lines.append(
            "Nothing that was tried fits. Take more or larger GPUs, shorter rows, or lora_4bit=true."
        )
    return lines


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
