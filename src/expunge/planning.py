"""What the user says about a run to come -> a request that `plan` answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.errors import UsageError
from expunge.factories import nearest
from expunge.hardware import DEVICES
from expunge.material import check_engine
from expunge.models import load_config
from expunge.plan import Plan, Request, cheapest, plan
from expunge.run_options import RunOptions
from expunge.settings import arguments, resolve_method


def plan_run(
    model: str,
    method: str,
    settings: Mapping[str, Any],
    *,
    gpus: int = 1,
    gpu: str = "cpu",
    tokens: int = 128,
    labels: int = 64,
) -> tuple[Plan, Plan | None]:
    """The plan of a run, and where it does not fit the cheapest that does (None where none was found).

    Args:
        model: Folder, Hub id or `smollm2-135m`; its configuration is read, its weights are not.
        method: Name of a recipe.
        settings: Arguments of the recipe and fields of `UnlearningArguments`.
        gpus: Ranks.
        gpu: A key of `DEVICES`, or `cpu`.
        tokens: Tokens of a row.
        labels: Response tokens of a row.

    Raises:
        UsageError: A name is unknown, or a setting cannot be used.
    """
    if gpu != "cpu" and gpu not in DEVICES:
        raise UsageError(
            f"--gpu must be one of cpu, {', '.join(DEVICES)}; got {gpu!r}. {nearest(gpu, DEVICES)}"
        )
    recipe, rest = resolve_method(method, settings)
    rest = dict(rest)
    sharded = rest.pop("fsdp", None)  # a plan is made where there may be one process only
    args = arguments({"bf16": True, "use_cpu": True} | rest if gpu != "cpu" else rest, RunOptions(), method)
    args.fsdp = sharded
    try:
        check_engine(recipe, args)
        request = Request(
            load_config(model), recipe, args, gpus, DEVICES.get(gpu), tokens=tokens, labels=labels
        )
        asked = plan(request)
    except ValueError as error:
        raise UsageError(f"This cannot be planned: {error}") from None
    return asked, None if asked.fits else cheapest(request)
