"""Attempts to bring back what was removed, one idea per file.

`ATTACKS` maps names to where each attack stands; a module is imported when its attack is asked for, so that a
missing optional library costs the attacks that need it and nothing else. Adding an attack is adding a line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

from expunge.attacks.attack import (
    FAMILIES,
    NEVER_SEEN,
    Attack,
    Clock,
    Cost,
    Family,
    Findings,
    Probes,
    Recovery,
    Role,
    Setting,
    Target,
)
from expunge.errors import UsageError
from expunge.extension import load_object, names_object
from expunge.factories import made, nearest

PLAIN: Final = "prompt"
"""The attack that every audit begins with: the training prompt."""

_NONE = {
    "prompt": "expunge.attacks.plain:Prompt",
}
_INPUT = {
    "templates": "expunge.attacks.templates:Templates",
    "paraphrases": "expunge.attacks.templates:Paraphrases",
    "shifts": "expunge.attacks.shifts:Shifts",
    "prefix": "expunge.attacks.prefix:Prefix",
    "few-shot": "expunge.attacks.few_shot:FewShot",
    "multi-turn": "expunge.attacks.multi_turn:MultiTurn",
    "jailbreak": "expunge.attacks.jailbreak:Jailbreak",
    "composed": "expunge.attacks.composed:Composed",
    "perturbed": "expunge.attacks.perturbed:Perturbed",
    "gcg": "expunge.attacks.gcg:GCG",
}
_SAMPLING = {
    "best-of-n": "expunge.attacks.sampling:BestOfN",
    "beam-search": "expunge.attacks.sampling:Beams",
    "contrastive": "expunge.attacks.contrastive:Contrastive",
}
_PERTURBED = "expunge.attacks.embedding.perturbed_prompt:PerturbedPrompt"
_EMBEDDING = {
    "embedding-ddn": f"{_PERTURBED} way=ddn",
    "embedding-pgd-l2": f"{_PERTURBED} way=pgd-l2",
    "embedding-pgd-linf": f"{_PERTURBED} way=pgd-linf",
    "embedding-pgd-l1": f"{_PERTURBED} way=pgd-l1",
    "embedding-fgsm": f"{_PERTURBED} way=fgsm",
    "embedding-fgm": f"{_PERTURBED} way=fgm",
    "embedding-momentum": f"{_PERTURBED} way=momentum",
    "embedding-nes": f"{_PERTURBED} way=nes",
    "embedding-spsa": f"{_PERTURBED} way=spsa",
    "embedding-nattack": f"{_PERTURBED} way=nattack",
    "embedding-deepfool": f"{_PERTURBED} way=deepfool",
    "embedding-carlini-wagner": f"{_PERTURBED} way=carlini-wagner",
    "embedding-elastic-net": f"{_PERTURBED} way=elastic-net",
    "soft-prompt": "expunge.attacks.embedding.soft_prompt:SoftPrompt",
    "soft-prompt-universal": "expunge.attacks.embedding.soft_prompt:UniversalSoftPrompt",
}
_ACTIVATIONS = {
    "logit-lens": "expunge.attacks.activations.lens:LogitLens",
    "linear-probe": "expunge.attacks.activations.probe:LinearProbe",
    "activation-patching": "expunge.attacks.activations.patching:ActivationPatching",
    "refusal-ablation": "expunge.attacks.activations.refusal:RefusalAblation",
}
_RELEARN = "expunge.attacks.relearn:Relearn"
_WEIGHTS = {
    "relearn": _RELEARN,
    "relearn-lora": f"{_RELEARN} lora_rank=8",
    "relearn-retain": f"{_RELEARN} on=retain",
    "relearn-retain-lora": f"{_RELEARN} on=retain lora_rank=8",
    "relearn-unrelated": f"{_RELEARN} on=unrelated",
    "relearn-unrelated-lora": f"{_RELEARN} on=unrelated lora_rank=8",
    "quantise": "expunge.attacks.quantise:Quantise",
    "prune": "expunge.attacks.prune:Prune",
    "noise": "expunge.attacks.noise:Noise",
    "adapter": "expunge.attacks.adapter:Adapter",
    "interpolate": "expunge.attacks.interpolate:Interpolate",
}
_SCORED = "expunge.attacks.membership:Membership"
_MEMBERSHIP = {
    "membership-loss": f"{_SCORED} score=loss",
    "membership-zlib": f"{_SCORED} score=zlib",
    "membership-reference": f"{_SCORED} score=reference",
    "membership-gradient-norm": f"{_SCORED} score=gradient_norm",
    "membership-min-k": f"{_SCORED} score=min_k",
    "membership-min-k-plus-plus": f"{_SCORED} score=min_k_plus_plus",
    "membership-ensemble": "expunge.attacks.membership:MembershipEnsemble",
}

_BY_FAMILY: Final[Mapping[Family, Mapping[str, str]]] = {
    "none": _NONE,
    "input": _INPUT,
    "sampling": _SAMPLING,
    "embedding": _EMBEDDING,
    "activations": _ACTIVATIONS,
    "weights": _WEIGHTS,
    "membership": _MEMBERSHIP,
}

ATTACKS: Final[Mapping[str, str]] = {
    name: place for family in FAMILIES for name, place in _BY_FAMILY[family].items()
}
"""Name -> MODULE:NAME of a class, or of a function that returns an attack; in the order of a page.

Behind it may stand fields that make the variant, as KEY=VALUE with a space between.
"""

ON_REQUEST: Final = frozenset(
    {
        "embedding-fgm",
        "embedding-fgsm",
        "embedding-momentum",
        "embedding-pgd-l1",
        "embedding-pgd-linf",
        "embedding-nes",
        "embedding-spsa",
        "embedding-nattack",
        "embedding-deepfool",
        "embedding-carlini-wagner",
        "embedding-elastic-net",
        "relearn-retain-lora",
        "relearn-unrelated-lora",
    }
)
"""Near relatives of attacks that every audit runs: run where they are named, else listed as not tried."""


class UnavailableError(Exception):
    """An attack whose module cannot be imported: an optional library is missing; says which."""


def make_attack(name: str, settings: Mapping[str, Any] | None = None) -> Attack:
    """An attack by name, or FILE.py:NAME or MODULE:NAME of the user's own (whose code runs).

    Args:
        name: One of `ATTACKS`, or where the user's own stands: a class, a function or an attack.
        settings: Fields of the attack -> values; strings are read as what the field holds.

    Raises:
        UsageError: There is no such attack, or it refuses its settings.
        UnavailableError: It needs a library that is not installed.
    """
    factory, variant = _factory(name)
    settings = variant | dict(settings or {})
    if callable(factory):
        attack = _made(name, factory, settings)
    elif settings:
        raise UsageError(f"attack {name} is an object and takes no settings; got {', '.join(settings)}.")
    else:
        attack = factory
    if not isinstance(attack, Attack):
        missing = [part for part in ("name", "family", "line", "obstacle", "cost", "run")
                   if not hasattr(attack, part)]  # fmt: skip
        raise UsageError(
            f"attack {name} must have name, family, line, obstacle, cost and run (expunge.attacks.Attack); "
            f"{type(attack).__name__} lacks {', '.join(missing)}."
        )
    if name in ATTACKS and attack.name != name:
        raise UsageError(f"--set makes {attack.name} of attack {name}. Name that one in its place.")
    if attack.family not in FAMILIES:
        raise UsageError(
            f"attack {name} must be of a family among {', '.join(FAMILIES)}; got {attack.family!r}."
        )
    return attack


def lines() -> dict[str, str]:
    """Every built-in attack with its family and a line; what is missing where it cannot run."""
    found = {}
    for name in ATTACKS:
        try:
            attack = make_attack(name)
            found[name] = f"{attack.family}: {attack.line}"
        except UnavailableError as error:
            found[name] = f"Not available here: {error}"
    return found


def family_of(name: str) -> Family:
    """The family of a built-in attack, also of one that cannot be imported."""
    return next(family for family, members in _BY_FAMILY.items() if name in members)


def _factory(name: str) -> tuple[Any, dict[str, Any]]:
    """What makes an attack, and the fields that make the variant."""
    if name in ATTACKS:
        place, *fields = ATTACKS[name].split()
        module, _, wanted = place.partition(":")
        try:
            return getattr(import_module(module), wanted), dict(field.split("=", 1) for field in fields)
        except ImportError as error:
            raise UnavailableError(f"{error}. Install it to run this attack.") from error
    if names_object(name):
        return load_object(name, "--attacks", ATTACKS), {}
    raise UsageError(
        f"--attacks must name attacks, with commas between; {name!r} is none. {nearest(name, ATTACKS)}"
        "See expunge list attacks, or name your own as FILE.py:NAME."
    )


def _made(name: str, factory: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    try:
        return made("attack", name, factory, settings)
    except ImportError as error:
        raise UnavailableError(f"{error}. Install it to run this attack.") from error


def configuration(attack: Attack) -> dict[str, Any]:
    """The fields of an attack as plain values."""
    if not dataclasses.is_dataclass(attack) or isinstance(attack, type):
        return {}
    return {field.name: _plain(getattr(attack, field.name)) for field in dataclasses.fields(attack)}


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else repr(value)


__all__ = [
    "ATTACKS",
    "FAMILIES",
    "NEVER_SEEN",
    "ON_REQUEST",
    "PLAIN",
    "Attack",
    "Clock",
    "Cost",
    "Family",
    "Findings",
    "Probes",
    "Recovery",
    "Role",
    "Setting",
    "Target",
    "UnavailableError",
    "configuration",
    "family_of",
    "lines",
    "make_attack",
]
