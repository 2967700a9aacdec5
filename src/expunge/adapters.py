"""What of a model trains: all of it, its last blocks, parameters by name, or a LoRA or DoRA adapter on top.

Knows a model and settings; `peft` (the extra `lora`) is imported where an adapter is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import re
from typing import Any, cast

import torch
from torch import nn

from expunge.arguments import UnlearningArguments
from expunge.errors import UsageError
from expunge.four_bits import keep_codes
from expunge.hidden import blocks

ALL_LINEAR = "all-linear"

_UNMERGED = "`lora_merge` must be False with weights in few bits (they cannot hold the change); got True."


def prepare_trainable(model: nn.Module, args: UnlearningArguments) -> nn.Module:
    """The model, or the model with a new adapter, with what must not train frozen.

    Args:
        model: A causal language model.
        args: `lora_rank`, `lora_alpha`, `lora_targets`, `lora_dora`, `train_last`, `train_only`.

    Raises:
        ValueError: See `check_trainable`.
        UsageError: peft is not installed.
    """
    check_trainable(model, args)
    first = _first_trained(model, args.train_last)
    if args.lora_rank:
        return _add_adapter(model, args, first)
    if args.train_last:
        model.requires_grad_(False)
        for block in blocks(model)[first:]:
            block.requires_grad_(True)
    if args.train_only:
        chosen = _named(model, args.train_only)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
    return model


def check_trainable(model: nn.Module, args: UnlearningArguments) -> None:
    """Refuse blocks, parameters and targets that a model does not have; nothing is changed.

    Raises:
        ValueError: Targets or names match nothing, there are fewer blocks, or the model has an adapter, or
            codes of few bits, that settings leave no room for.
    """
    adapted = hasattr(model, "peft_config")
    if args.lora_rank and adapted:
        raise ValueError(
            "`lora_rank` must be 0 for a model that already has an adapter (that one is trained on); "
            f"got {args.lora_rank}."
        )
    if (args.train_last or args.train_only) and (adapted or (_quantised(model) and not args.lora_rank)):
        raise ValueError(
            "`train_last` and `train_only` must be left out for a model with an adapter, which alone is "
            f"saved, or in few bits; got {args.train_last} and {args.train_only!r}."
        )
    if args.lora_rank and args.lora_merge and _quantised(model):
        raise ValueError(_UNMERGED)
    _first_trained(model, args.train_last)
    _named(model, args.train_only)
    if args.lora_rank:
        _targets(model, args.lora_targets)


def merge_adapter(model: nn.Module) -> nn.Module:
    """The plain model with the adapter's change added to its weights.

    Raises:
        ValueError: The weights are quantised; adding to them would round the change away.
    """
    if _quantised(model):
        raise ValueError(_UNMERGED)
    with torch.no_grad():
        return cast(nn.Module, cast(Any, model).merge_and_unload())


def _first_trained(model: nn.Module, last: int) -> int:
    """Index of the first of the `last` blocks; 0 where all train."""
    if not last:
        return 0
    count = len(blocks(model))
    if last > count:
        raise ValueError(f"`train_last` must be at most the model's {count} blocks; got {last}.")
    return count - last


def _named(model: nn.Module, pattern: str) -> set[str]:
    """Names of the parameters that a pattern is found in."""
    names = [name for name, _ in model.named_parameters()]
    chosen = {name for name in names if re.search(pattern, name)}
    if not chosen:
        raise ValueError(
            f"`train_only` must be found in the name of a parameter; {pattern!r} is in none. "
            f"They are named like {names[len(names) // 2]}."
        )
    return chosen


def _add_adapter(model: nn.Module, args: UnlearningArguments, first: int) -> nn.Module:
    targets = _targets(model, args.lora_targets)
    try:
        peft: Any = importlib.import_module("peft")
    except ImportError:
        raise UsageError("lora_rank needs the package peft: pip install 'expunge[lora]'.") from None
    config = peft.LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha if args.lora_alpha is not None else 2 * args.lora_rank,
        target_modules=targets,
        use_dora=args.lora_dora,
        layers_to_transform=list(range(first, len(blocks(model)))) if args.train_last else None,
        task_type="CAUSAL_LM",
    )
    if _quantised(model):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        keep_codes(model)  # it widened what is no code
    with torch.random.fork_rng():  # the first factor is random: the same run begins with the same one
        torch.manual_seed(args.seed)
        adapted: nn.Module = peft.get_peft_model(model, config)
    return adapted


def _targets(model: nn.Module, text: str) -> list[str]:
    """Names of the modules to adapt, each of which must exist."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == [ALL_LINEAR]:
        return _linear_names(model)
    present = _linear_names(model)
    absent = [name for name in names if name not in present]
    if absent or not names:
        near = difflib.get_close_matches(absent[0], present, n=1) if absent else []
        hint = f"Did you mean {near[0]}?" if near else "Name some of them, comma-separated, or all-linear."
        raise ValueError(
            f"`lora_targets` must name modules of the model's blocks ({', '.join(present)}); "
            f"got {absent[0] if absent else text!r}. {hint}"
        )
    return names


def _linear_names(model: nn.Module) -> list[str]:
    """Last parts of the names of the matrices inside the blocks."""
    kinds = ("Linear", "Linear4bit", "Linear8bitLt", "Conv1D")
    found = [
        name.rpartition(".")[2]
        for block in blocks(model)
        for name, module in block.named_modules()
        if type(module).__name__ in kinds
    ]
    return list(dict.fromkeys(found))


def _quantised(model: nn.Module) -> bool:
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))
