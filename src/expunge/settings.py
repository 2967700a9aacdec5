"""Words of the user -> typed settings: which names exist, what their values may be, what was meant.

Knows `UnlearningArguments`, the recipes and nothing that runs.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from expunge import output
from expunge.arguments import PLACES, UnlearningArguments
from expunge.derived import is_forget
from expunge.errors import UsageError
from expunge.extension import described, failed, load_object, names_object
from expunge.factories import missing_methods, nearest, typed
from expunge.material import hardening_of
from expunge.methods import METHODS, Method
from expunge.objectives import Objective, Selected
from expunge.own_code import is_ours, line_of
from expunge.own_parts import check_parts, code_of
from expunge.run_options import RunOptions
from expunge.selectors import find_selector
from expunge.step_sizes import STEP_SIZES, StepSize, WithinBudget
from expunge.weightings import WEIGHTINGS, Weighting, weighting_for

RESERVED = {
    "output_dir": "--output",
    "kind": "the verb",
    "claimed": "--output",
    "reporter": "--quiet",
    "cache": "--cache",
    "benchmark": "BENCHMARK",
    "evaluation_seed": "compare",
}
"""Names that a command line sets in another way."""

_SETTINGS = frozenset(
    one.name for kind in (UnlearningArguments, RunOptions) for one in dataclasses.fields(kind)
)


def resolve_method(method: str | Method, settings: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """A recipe by name with its arguments taken from `settings`, and the settings left over.

    `weighting` and `step_size` replace the recipe's own, by a name from `WEIGHTINGS` or `STEP_SIZES`, or from
    the user's file likewise. `selector` lets the objectives on forget records count chosen tokens alone
    (`selectors.SELECTORS`).

    A name is one of `METHODS`, or `FILE.py:NAME` or `MODULE:NAME` of the user's own: a `Method`, or a
    function that returns one. The code of that file runs.

    Raises:
        UsageError: No recipe has that name, it refuses an argument, or a part of it does not keep what its
            interface promises.
    """
    made, rest = _made(method, settings)
    composed, rest = _composed(made, rest)
    try:
        check_parts(composed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return composed, rest


def own_code(method: str | Method, settings: Mapping[str, Any], recipe: Method) -> dict[str, str]:
    """Hashes of the user's own code behind a recipe, by the name of its file (`own_code.code_hashes`).

    Args:
        method: As asked for.
        settings: Likewise; they may name parts of a file of the user's.
        recipe: As `resolve_method` made it of both.
    """
    return code_of(recipe, [name for name in _names(method, settings) if isinstance(name, str)])


def asked_code(method: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """As `own_code`, of a recipe that has not been made yet; nothing is made where no file is named."""
    if not any(isinstance(name, str) and names_object(name) for name in _names(method, settings)):
        return {}
    return own_code(method, settings, resolve_method(method, settings)[0])


def _names(method: str | Method, settings: Mapping[str, Any]) -> list[Any]:
    return [method, *(settings.get(key) for key in ("selector", *_PARTS))]


def _made(method: str | Method, settings: Mapping[str, Any]) -> tuple[Method, Mapping[str, Any]]:
    """The recipe as it comes, and the settings that it did not take."""
    recipe = method if isinstance(method, Method) else find_recipe(method)
    if isinstance(recipe, Method):
        return recipe, settings
    if lacking := missing_methods(recipe):
        raise UsageError(f"--method {method} must define {lacking}; it does not. Add what is missing.")
    hints, names = _parameters(recipe, str(method))
    if taken := [name for name in names if name in _SETTINGS]:
        raise UsageError(
            f"method {method} must not have an argument named as a setting of every run, which would not get "
            f"its value; it has {taken[0]}. Rename it."
        )
    mine = {key: typed(key, value, hints.get(key, Any)) for key, value in settings.items() if key in names}
    try:
        made = recipe(**mine)
    except UsageError:
        raise
    except Exception as error:
        raise _refusal(str(method), recipe, error) from error
    if not isinstance(made, Method):
        raise UsageError(f"--method {method} must return a Method; it returned {type(made).__name__}.")
    return made, {key: value for key, value in settings.items() if key not in names}


def _parameters(
    recipe: Callable[..., Method], name: str
) -> tuple[Mapping[str, Any], Mapping[str, inspect.Parameter]]:
    """Types and parameters of a recipe; annotations of the user's may name what is not there."""
    try:
        return get_type_hints(recipe), inspect.signature(recipe).parameters
    except Exception as error:
        if is_ours(recipe):
            raise
        raise failed(name, "--method", error) from error


def _refusal(name: str, recipe: Callable[..., Method], error: Exception) -> Exception:
    """What is to be said of a recipe that raises: that it refused its settings, or, of the user's, where."""
    place = line_of(error)
    refused = isinstance(error, ValueError) or (isinstance(error, TypeError) and not place)
    if not refused:
        return error if is_ours(recipe) else failed(name, "--method", error)
    words = " ".join(str(error).split())
    return UsageError(f"method {name} refused its settings: {words}{f' ({place})' if place else ''}")


def _composed(method: Method, settings: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """With another weighting, step size or selector where the settings name one; the name says so."""
    if "weighting" in settings and method.merge and method.merge.further:
        raise UsageError(
            f"--set weighting must be left out with method {method.name}, whose trainings differ in theirs."
        )
    rest, names = dict(settings), [method.name]
    parts: dict[str, Any] = {}
    if "selector" in rest:
        parts["objectives"] = _selective(method, chosen := str(rest.pop("selector")))
        names.append(f"@{chosen.rpartition(':')[2]}")
    seed = typed("seed", settings["seed"], int) if "seed" in settings else UnlearningArguments.seed
    for key in _PARTS:
        if key in rest:
            chosen = rest.pop(key)
            parts[key] = _part(key, chosen, *_known(key, method, seed))
            names.append(str(chosen).rpartition(":")[2] if isinstance(chosen, str) else described(chosen))
    if not parts:
        return method, rest
    try:
        return dataclasses.replace(method, name="+".join(names), **parts), rest
    except ValueError as error:
        raise UsageError(f"--set was refused: {error}") from None


def _selective(method: Method, selector: str) -> tuple[Objective, ...]:
    """The objectives, those that read forget records on chosen tokens alone."""
    find_selector(selector)
    if not method.forgets:
        raise UsageError(
            f"--set selector needs an objective on forget records; method {method.name} has none. "
            "Leave it out."
        )
    try:
        return tuple(Selected(one, selector) if is_forget(one.source) else one for one in method.objectives)
    except ValueError as error:
        raise UsageError(f"--set selector was refused by method {method.name}: {error}") from None


_PARTS = ("weighting", "step_size")
_MEMBERS = {"weighting": ("needs_gramian", "__call__"), "step_size": ("every", "rows", "__call__")}


def _known(key: str, method: Method, seed: int) -> tuple[Mapping[str, Callable[..., Any] | None], type]:
    """What a part of a method may be by name, and of which type it is; lots are drawn by the seed."""
    if key == "step_size":
        repairs = method.budget is not None and method.budget.repair
        return STEP_SIZES | {"within-budget": functools.partial(WithinBudget, repairs=repairs)}, StepSize
    count = len(method.objectives)
    return {name: functools.partial(weighting_for, name, count, seed) for name in WEIGHTINGS}, Weighting


def _part(key: str, name: Any, known: Mapping[str, Callable[..., Any] | None], kind: type) -> Any:
    """A weighting or a step size by name, from a file of the user's, or as it is."""
    found = name
    if isinstance(name, str):
        if not names_object(name) and name not in known:
            raise UsageError(
                f"--set {key} must be one of {', '.join(known)}, or FILE.py:NAME; got {name!r}. "
                f"{nearest(name, known)}".rstrip()
            )
        found = load_object(name, f"--set {key}", known) if names_object(name) else known[name]
    if found is None and name in known:
        return None
    try:
        made = found() if isinstance(found, type) or not isinstance(found, kind) else found
    except UsageError:
        raise
    except Exception as error:
        if names_object(str(name)) and line_of(error):
            raise failed(str(name), f"--set {key}", error) from error
        if not isinstance(error, TypeError | ValueError):
            raise
        raise UsageError(
            f"--set {key} must name what needs no arguments; {name}: {error}. "
            "Make it in a file of your own, and name that as FILE.py:NAME."
        ) from None
    if not isinstance(made, kind):
        lacking = ", ".join(member for member in _MEMBERS[key] if not hasattr(made, member))
        raise UsageError(
            f"--set {key} must be a {kind.__name__}; {name} is {type(made).__name__}, which lacks {lacking}. "
            "Add what is missing."
        )
    return made


def find_recipe(name: str) -> Method | Callable[..., Method]:
    """A recipe of ours by name, or one from the user's own file or module.

    Raises:
        UsageError: There is no such recipe.
    """
    if not isinstance(name, str):
        raise UsageError(f"--method must be one name; got {name!r}. See expunge list methods.")
    if name in METHODS:
        return METHODS[name]
    if not isinstance(name, str):
        raise UsageError(f"--method must be one name; got {name!r}. See expunge list methods.")
    if not names_object(name):
        raise UsageError(
            f"--method must be one of {', '.join(METHODS)}; got {name!r}. "
            f"{nearest(name, METHODS)}See expunge list methods, or name your own as FILE.py:NAME."
        )
    found = load_object(name, "--method", METHODS)
    if not isinstance(found, Method) and not callable(found):
        raise UsageError(f"--method {name} must be a Method or a function; it is {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def arguments(settings: Mapping[str, Any], options: RunOptions, method: str = "") -> UnlearningArguments:
    """Training arguments, every value checked against its type.

    Args:
        settings: Field -> value; strings are read as what the field holds.
        options: Where the run writes.
        method: Name of the recipe, whose arguments are suggested too where a name is unknown.

    Raises:
        UsageError: A name is unknown, or a value is not what its field takes.
    """
    known = {f.name for f in dataclasses.fields(UnlearningArguments) if f.init}
    recipe = inspect.signature(METHODS[method]).parameters if method in METHODS else ()
    options_too = (f.name for f in dataclasses.fields(RunOptions))
    candidates = {*known, *recipe, *_PARTS, *options_too} - RESERVED.keys()
    for key in settings:
        if key not in known:
            raise UsageError(
                f"--set must name a setting; {key!r} is none. "
                f"{nearest(key, candidates)}Settings are the fields of UnlearningArguments and the "
                "arguments of the method."
            )
    hints = get_type_hints(UnlearningArguments)
    values = {key: typed(key, value, hints[key]) for key, value in settings.items()}
    try:
        made = UnlearningArguments(**_places(options) | values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--set was refused: {error}") from None
    if options.output is None and "output_dir" not in values:
        made.output_dir = _private_folder(made)
    return made


def configuration(args: UnlearningArguments, method: Method, norm: float) -> dict[str, Any]:
    """Settings that decide the result, as plain values: ours, and every other that is not the default.

    Args:
        args: Settings.
        method: The recipe.
        norm: ‖θ‖₂ that a sharpness of the method's own is relative to (`Unlearner.norm`).
    """
    names = (
        "learning_rate", "lr_scheduler_type", "max_steps", "per_device_train_batch_size",
        "gradient_accumulation_steps", "optim", "template", "max_length", "check_every", "check_rows",
    )  # fmt: skip
    elsewhere = {"use_cpu", "bf16", "seed", "sharpness"}  # said below, or by the record itself
    default = UnlearningArguments(output_dir="unused", use_cpu=args.use_cpu)
    changed = [
        f.name
        for f in dataclasses.fields(UnlearningArguments)
        if f.init and f.name not in PLACES | elsewhere and getattr(args, f.name) != getattr(default, f.name)
    ]
    parts = {"merge": method.merge, "schedule": method.schedule}
    further: dict[str, Any] = {name: described(part) for name, part in parts.items() if part is not None}
    if method.forgets:
        further["sharpness"] = hardening_of(method, args, norm).sharpness
        if args.sharpness is None and further["sharpness"]:
            further["relative_sharpness"] = method.relative_sharpness
        if method.leaks_first:
            further["leaks_first"] = True
    return (
        {name: _plain(getattr(args, name)) for name in dict.fromkeys((*names, *changed))}
        | further
        | {
            "precision": args.precision,
            "objectives": {objective.name: described(objective) for objective in method.objectives},
            "weighting": described(method.weighting),
            "step_size": described(method.step_size) if method.step_size else "schedule",
            "retain_budget": dataclasses.asdict(method.budget) if method.budget else None,
        }
    )


def _places(options: RunOptions) -> dict[str, Any]:
    """Where checkpoints go: beside the model, or nowhere."""
    if options.output is None:
        return {"output_dir": "unused", "save_strategy": "no"}
    return {"output_dir": str(Path(options.output) / output.CHECKPOINTS)}


def _private_folder(args: UnlearningArguments) -> str:
    """A folder of this run's own, closed to other users, which goes when its settings do.

    The Trainer creates the folder that it is given, even if nothing will be written there. One of a fixed
    name in the temporary directory would be everybody's: another user may have put a link there beforehand.
    """
    folder = tempfile.mkdtemp(prefix="expunge-")
    weakref.finalize(args, shutil.rmtree, folder, ignore_errors=True)
    return folder


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else str(value)
