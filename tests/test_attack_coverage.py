"""Every attack of the registry is tried on models that hide and on models that never knew; all are there."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import expunge
from expunge import UsageError
from expunge.attacks import ATTACKS, FAMILIES, family_of, make_attack
from expunge.attacks.shifts import Group
from expunge.auditing.store import _DECIDING
from test_activation_attacks import ATTACKS as WITHIN
from test_attacks_input import ASKING
from test_attacks_membership import every
from test_attacks_sampling import SAMPLING
from test_attacks_weights import MINE
from test_soft_attacks import ATTACKS as EMBEDDING

REQUIRED = {
    "input": "templates paraphrases shifts prefix few-shot multi-turn jailbreak gcg perturbed composed",
    "sampling": "best-of-n beam-search contrastive",
    "embedding": "embedding-fgsm embedding-fgm embedding-pgd-linf embedding-pgd-l2 embedding-pgd-l1 "
    "embedding-momentum embedding-carlini-wagner embedding-ddn embedding-elastic-net embedding-deepfool "
    "embedding-nes embedding-spsa embedding-nattack soft-prompt soft-prompt-universal",
    "activations": "logit-lens linear-probe activation-patching refusal-ablation",
    "weights": "relearn relearn-lora relearn-retain relearn-retain-lora relearn-unrelated "
    "relearn-unrelated-lora quantise prune noise adapter interpolate",
    "membership": "membership-loss membership-zlib membership-reference membership-gradient-norm "
    "membership-min-k membership-min-k-plus-plus membership-ensemble",
}
MEANINGFUL = {"lora_rank"}
"""Counts of which zero means something: the weights in place of an adapter."""


def test_every_family_has_at_least_the_members_named():
    for family, names in REQUIRED.items():
        assert {name for name in ATTACKS if family_of(name) == family} >= set(names.split()), family
    assert set(FAMILIES) == {*REQUIRED, "none"}
    assert {*get_args(Group)} == {
        "casing", "punctuation", "spacing", "synonyms", "person", "form", "format",
    }  # fmt: skip
    assert make_attack("quantise").bits == (16, 8, 4)


def test_every_attack_is_tried_on_what_hides_and_on_what_never_knew():
    """Each of these lists feeds the test of its module that does so; the plain prompt is the measure."""
    tried: list[Any] = [*ASKING, *SAMPLING, *EMBEDDING, *WITHIN, *MINE.values(), *every("x")]
    assert {attack.name for attack in tried} | {"prompt"} == set(ATTACKS)


def test_findings_are_kept_under_the_code_that_decides_them():
    """A module that an attack imports is part of its key, unless it only names, loads or refuses."""
    root = Path(expunge.__file__).parent
    parsed = [ast.parse(path.read_text(encoding="utf-8")) for path in (root / "attacks").rglob("*.py")]
    imported = set()
    for node in (node for tree in parsed for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        if node.module == "expunge":
            imported |= {alias.name for alias in node.names}
        elif node.module and node.module.startswith("expunge."):
            imported.add(node.module.split(".")[1])
    files = {f"{name}.py" for name in imported if (root / f"{name}.py").exists()}
    plain = {
        "default_model.py",
        "errors.py",
        "extension.py",
        "factories.py",
        "models.py",
        "record.py",
        "records.py",
        "settings.py",
    }
    assert files - plain <= set(_DECIDING), sorted(files - plain - set(_DECIDING))
    assert all((root / name).exists() for name in _DECIDING)


def budgets() -> list[tuple[str, str]]:
    """All counts, and all lists of budgets, of all attacks."""
    found = []
    for name in ATTACKS:
        kind = type(make_attack(name))
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            counted = hints[field.name] is int or "tuple" in str(hints[field.name])
            if counted and field.name not in MEANINGFUL:
                found.append((name, field.name))
    return found


@pytest.mark.parametrize(("name", "field"), budgets())
def test_a_budget_of_zero_is_refused_by_the_command_line(name, field):
    empty: Any = 0 if isinstance(getattr(make_attack(name), field), int) else ()
    with pytest.raises(UsageError, match=rf"attack {name} refused its settings: .*`{field}`.*must be"):
        make_attack(name, {field: empty})


def test_a_setting_that_makes_another_attack_is_refused():
    with pytest.raises(UsageError, match=r"makes relearn of attack relearn-lora\. Name that one"):
        make_attack("relearn-lora", {"lora_rank": 0})
    with pytest.raises(UsageError, match="makes embedding-ddn of attack embedding-nes"):
        make_attack("embedding-nes", {"way": "ddn"})
