"""What a run is made of, settled before it begins: which data sets, in which order, under which name.

Checks that model and settings can give what the objectives of a method need.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import PreTrainedTokenizerBase

from expunge.arguments import PLACES, UnlearningArguments
from expunge.batching import Rows, RowStream
from expunge.collate import Encoded
from expunge.companions import accompany
from expunge.defences.hardening import Hardening
from expunge.derived import RULES, Derived, Means, derive, is_derived
from expunge.extension import described
from expunge.facts import needs_facts
from expunge.hidden import blocks, resolve_layers
from expunge.inference import language_model, model_context
from expunge.methods import Method
from expunge.models import load_config
from expunge.records import Records
from expunge.references import adapter_is_idle, live_sources
from expunge.schedules import ChunkPlan
from expunge.selectors import find_selector
from expunge.self_retain import write_retain
from expunge.sharding import fsdp_wanted
from expunge.weights import weights_hash, weights_norm


def missing(method: Method, names: Mapping[str, Any], args: UnlearningArguments) -> list[str]:
    """Data sets that a method reads, that are not given, and that nothing here can make."""
    makes_retain = args.self_retain > 0 and "forget" in names
    return [
        name for name in base_sources(method) if name not in names and not (name == "retain" and makes_retain)
    ]


def base_sources(method: Method) -> list[str]:
    """Data sets that must be given: those that a method reads, forget in place of sets derived from it."""
    return list(dict.fromkeys("forget" if is_derived(name) else name for name in method.sources))


def means_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase, args: UnlearningArguments) -> Means:
    """What a run makes data sets with."""
    return Means(
        model,
        tokenizer,
        args.seed,
        args.template,
        args.precision,
        args.refusals,
        limit=args.max_length or model_context(model),
    )


def complete(
    given: Mapping[str, Records], method: Method, args: UnlearningArguments, means: Means
) -> dict[str, Derived]:
    """The data sets that a method reads beyond the given ones, made now; the same on all ranks.

    Args:
        given: Data set -> records.
        method: Says what it reads.
        args: Settings.
        means: What they are made with: the model as it is.

    Raises:
        ValueError: A data set is missing, or a derived one does not fit the forget set.
        UsageError: A data set could not be made.
    """
    if lacking := missing(method, given, args):
        raise ValueError(
            f"method {method.name!r} reads {method.sources}; missing: `{lacking[0]}_dataset`. "
            "Give it, or choose a method that does not read it."
        )
    for name in {*given} & {*RULES} if "forget" in given else ():
        if len(given[name]) != len(given["forget"]):
            raise ValueError(
                f"`derived_datasets[{name!r}]` must have one row per forget row ({len(given['forget'])}); "
                f"got {len(given[name])}."
            )
    return {name: _make(name, given["forget"], args, means) for name in method.sources if name not in given}


def _make(name: str, forget: Records, args: UnlearningArguments, means: Means) -> Derived:
    if next(means.model.parameters()).device.type != args.device.type:
        means.model.to(args.device)
    made = write_retain(forget, args.self_retain, means) if name == "retain" else derive(name, forget, means)
    return broadcast_object_list([made])[0] if PartialState().num_processes > 1 else made


def check_demands(method: Method, model: nn.Module, args: UnlearningArguments) -> None:
    """Refuse, before anything is computed, what an objective needs and the run cannot give.

    Raises:
        ValueError: A layer that the model lacks; a reinforced model of another vocabulary; a pair that is not
            derived; a live reference under FSDP; what `check_engine` refuses.
        UsageError: A selector or a reinforced model that does not exist.
    """
    if latent := args.hardening().latent:
        resolve_layers(latent.layers, len(blocks(model)))
    for objective in method.objectives:
        needs = objective.needs
        if needs.layers:
            resolve_layers(needs.layers, len(blocks(model)))
        if needs.selector is not None:
            find_selector(needs.selector)
        if needs.generic is not None and needs.generic.model:
            _check_reinforced(model, needs.generic.model, args)
        if needs.paired is not None and not is_derived(needs.paired):
            raise ValueError(
                f"objective {objective.name!r} must be paired with a derived data set "
                f"({', '.join(RULES)}); got {needs.paired!r}."
            )
        if needs.paired is not None and not (objective.source == "forget" or is_derived(objective.source)):
            raise ValueError(
                f"objective {objective.name!r} must read the forget set to be paired; it reads "
                f"{objective.source!r}."
            )
    check_engine(method, args)
    if live_sources(method) and fsdp_wanted(args) and not (args.lora_rank or adapter_is_idle(model)):
        raise ValueError(
            f"method {method.name!r} needs the reference's whole distribution, which a sharded model "
            "cannot give beside its own. Train an adapter (lora_rank), or use DDP."
        )


def _check_reinforced(model: nn.Module, reinforced: str, args: UnlearningArguments) -> None:
    if args.lora_4bit or args.lora_bf16:
        raise ValueError(
            "`reinforced` must be left out with `lora_4bit` or `lora_bf16` (its difference to such a model "
            "would be rounding). Leave one of them out."
        )
    own, other = (
        config.get_text_config().vocab_size
        for config in (language_model(model).config, load_config(reinforced))
    )
    if own != other:
        raise ValueError(
            f"`reinforced` must be the same model taught further, with its vocabulary of {own} tokens; "
            f"{reinforced} has {other}."
        )


def check_engine(method: Method, args: UnlearningArguments) -> None:
    """Refuse, without a model, what method and settings cannot do together.

    Raises:
        ValueError: Weights are to be carried that depend on no gradient, or between hardened steps; there
            are too few steps for all trainings; a merge or a zeroth-order update under FSDP.
    """
    weightings = (method.weighting, *(method.merge.further if method.merge else ()))
    needy = [weighting for weighting in weightings if weighting.needs_gramian]
    if args.refresh_every > 1 and not needy:
        raise ValueError(
            f"`refresh_every` must be 1 for method {method.name!r}, whose weights depend on no gradient "
            f"(one backward pass is all it takes); got {args.refresh_every}. Leave it out."
        )
    if args.refresh_every > 1 and args.hardening():
        raise ValueError(
            "`refresh_every` must be 1 with `sharpness` or `latent_radius`, which take a backward pass per "
            f"objective at every step; got {args.refresh_every}. Leave one of them out."
        )
    if method.merge and args.max_steps <= len(method.merge.further):
        raise ValueError(
            f"`max_steps` must be at least one for each training of method {method.name!r} "
            f"({1 + len(method.merge.further)}); got {args.max_steps}."
        )
    if args.zeroth is not None and fsdp_wanted(args):
        raise ValueError(
            "`update` must not be zeroth-order for a sharded model: every rank would draw other directions. "
            "Use one process or DDP."
        )
    if method.merge and fsdp_wanted(args):
        raise ValueError(
            f"method {method.name!r} needs whole parameters to merge, which a sharded model does not have. "
            "Use one process or DDP."
        )


def hardening_of(method: Method, args: UnlearningArguments, norm: float = 1.0) -> Hardening:
    """Adversaries that the forget objectives face: what settings say, or the method's own sharpness.

    Args:
        method: One that reads no forget records has none.
        args: Settings.
        norm: ‖θ‖₂ of the model (`weights.weights_norm`). Whether there is an adversary does not depend on it.
    """
    return args.hardening(method.relative_sharpness * norm) if method.forgets else Hardening()


def norm_wanted(method: Method, args: UnlearningArguments, model: nn.Module) -> float:
    """‖θ‖₂ of a model as it comes, the first rank's on all, where a sharpness is relative to it; else 1."""
    if args.sharpness is not None or not hardening_of(method, args).sharpness:
        return 1.0
    norm = weights_norm(model)
    return float(broadcast_object_list([norm])[0]) if PartialState().num_processes > 1 else norm


def left_out(method: Method, args: UnlearningArguments) -> list[str]:
    """A sentence on the method's own sharpness, where another setting leaves no room for it."""
    if not (method.relative_sharpness and args.sharpness is None and args.sharpness_excluded_by):
        return []
    return [
        f"{args.sharpness_excluded_by} leaves no room for the sharpness that {method.name} has by itself; "
        "it forgets without."
    ]


def streams(
    method: Method,
    encoded: Mapping[str, Sequence[Encoded]],
    args: UnlearningArguments,
    own: Mapping[str, int] | None = None,
) -> dict[str, RowStream | Rows]:
    """The batches of every data set that a method reads; paired sets are drawn together.

    Args:
        method: Says what it reads.
        encoded: Data set -> rows.
        args: Settings.
        own: Data set -> rows of its own; rows behind these are a companion's. None: all are.
    """
    if own is None:
        return _own_streams(method, encoded, args)
    cut = {name: rows[: own["forget"] if is_derived(name) else own[name]] for name, rows in encoded.items()}
    counts = {"forgotten": args.earlier_rows, "curriculum": args.curriculum_rows}
    return accompany(_own_streams(method, cut, args), encoded, own, counts, args.seed)


def _own_streams(
    method: Method, encoded: Mapping[str, Sequence[Encoded]], args: UnlearningArguments
) -> dict[str, RowStream | Rows]:
    size = args.per_device_train_batch_size
    if method.schedule is not None:
        plan = ChunkPlan(method.schedule, len(encoded["forget"]), len(encoded["retain"]), size, args.seed)
        return {name: plan.retain if name == "retain" else plan.forget for name in method.sources}
    groups: dict[str, list[str]] = {}
    for name in method.sources:
        groups.setdefault("forget" if is_derived(name) else name, []).append(name)
    found: dict[str, RowStream | Rows] = {}
    for members in groups.values():
        columns = [[len(row.input_ids) for row in encoded[name]] for name in members]
        lengths = [sum(row) for row in zip(*columns, strict=True)]
        stream = RowStream(lengths, size, (args.seed, method.sources.index(members[0])))
        found |= dict.fromkeys(members, stream)
    return found


def identity(
    args: UnlearningArguments,
    method: Method,
    encoded: Mapping[str, Sequence[Encoded]],
    processes: int,
    model: nn.Module,
) -> dict[str, str]:
    """What decides a training, part by part: method, settings, data and, where it is read again, the model.

    Rows and weights stand there as hashes.
    """
    parts = {f"the method's {f.name}": described(getattr(method, f.name)) for f in dataclasses.fields(method)}
    plain: dict[str, Any] = args.to_dict()  # type: ignore[no-untyped-call]
    parts |= {key: repr(plain[key]) for key in sorted(plain) if key not in PLACES}
    parts["the number of processes"] = str(processes)
    for name in sorted(encoded):
        parts[f"the hash of {name} rows"] = hashlib.sha256(repr(encoded[name]).encode()).hexdigest()[:16]
    if needs_facts(method) or live_sources(method) or method.merge:
        parts["the model's hash at the start"] = weights_hash(model)
    return parts
