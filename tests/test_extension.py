"""Objectives, weightings and recipes of a user's own file, by name; data sets that a run makes for itself."""

from __future__ import annotations

import sys

import pytest
import torch

import conftest
import expunge
from expunge import UnlearningArguments, UsageError
from expunge.cli import app
from expunge.extension import load_object
from expunge.methods import METHODS, Method, whp
from expunge.methods.difference import fine_tune
from expunge.record import read_record
from expunge.settings import resolve_method
from expunge.terminal import guarded
from expunge.weightings import WEIGHTINGS, Stateful, weighting_for

ROWS = conftest.rows()
FORGET, RETAIN = ROWS[:6], ROWS[6:]
QUICK = {"bf16": False, "template": "none", "seed": 0, "max_steps": 2, "check_every": 0, "evaluate": False}

MINE = '''
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.methods import Method
from expunge.objectives import NLL, Objective, TokenLogits


@dataclass(frozen=True)
class Confidence(Objective):
    """Probability of the target."""

    source: str = "forget"
    name = "confidence"

    def __call__(self, tokens: TokenLogits) -> Tensor:
        return tokens.target_log_probs.exp()


@dataclass(frozen=True)
class Halves:
    """Weights 1/2, whatever the gradients say."""

    needs_gramian = True

    def __call__(self, gramian: Tensor, losses: Tensor) -> Tensor:
        return torch.full((len(losses),), 0.5, dtype=torch.float64)


def modest(strength: int = 2) -> Method:
    """Lower the confidence."""
    if strength < 1:
        raise ValueError(f"`strength` must be at least 1; got {strength}.")
    return Method(f"modest-{strength}", (Confidence(), NLL("retain")), Halves())


ready = modest(5)
number = 3
not_a_method = lambda: 3
'''


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_a_recipe_of_ones_own_runs_by_name(mine, model_folder, tmp_path, capsys):
    """Objective, weighting and recipe stand outside of the package; settings reach the recipe."""
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        lines = [f'{{"prompt": "{r["prompt"]}", "response": "{r["response"]}"}}' for r in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    command = f"run --model {model_folder} --forget {tmp_path}/forget.jsonl --retain {tmp_path}/retain.jsonl "
    command += f"--output {tmp_path}/out --method {mine}:modest --template none --quiet "
    command += "--set strength=4 --set max_steps=2 --set bf16=false --set check_every=0"
    assert guarded(lambda: app(command.split(), exit_on_error=False, print_error=False)) in (None, 0)
    record = read_record(tmp_path / "out")
    assert record.method == "modest-4"
    assert record.history[0].weights == {"confidence": 0.5, "nll(retain)": 0.5}
    assert record.configuration["objectives"] == {
        "confidence": "Confidence(source='forget')",
        "nll(retain)": "NLL(source='retain')",
    }


def test_a_ready_method_and_a_module(mine, monkeypatch):
    recipe, rest = resolve_method(f"{mine}:ready", {"max_steps": 3})
    assert (recipe.name, rest) == ("modest-5", {"max_steps": 3})
    monkeypatch.syspath_prepend(mine.parent)
    assert isinstance(resolve_method("mine:modest", {})[0], Method)
    assert resolve_method("ngdiff", {})[0] == METHODS["ngdiff"]()


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("{}:modst", "Did you mean modest"),
        ("{}:number", "must be a Method or a function; it is int"),
        ("{}:not_a_method", "must return a Method; it returned int"),
        ("{}x.py:modest", "existing file"),
        (
            "no.such.module:modest",
            "must name an existing module; there is no module no, neither in ",
        ),
        ("ngdif", "Did you mean ngdiff"),
    ],
)
def test_what_cannot_be_found_is_one_message(mine, name, rule):
    with pytest.raises(UsageError, match=rule) as caught:
        resolve_method(name.format(mine), {})
    assert "\n" not in str(caught.value)


def test_a_recipe_takes_no_setting_of_the_run_for_itself(tmp_path):
    (tmp_path / "drawn.py").write_text(
        "from expunge import methods\ndef mine(seed: int = 0):\n    return methods.grad_diff()\n"
    )
    with pytest.raises(
        UsageError, match=r"argument named as a setting of every run.*; it has seed. Rename it"
    ):
        resolve_method(f"{tmp_path}/drawn.py:mine", {"seed": 1})


def test_failures_of_the_users_code_are_the_users(mine, tmp_path):
    with pytest.raises(UsageError, match=r"strength. must be at least 1; got 0"):
        resolve_method(f"{mine}:modest", {"strength": 0})
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    with pytest.raises(UsageError, match=r"broken.py must run; it raises ModuleNotFoundError"):
        load_object(f"{tmp_path}/broken.py:x", "--method")


def test_what_stands_beside_a_file_can_be_imported_at_once_and_later(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", before := list(sys.path))
    (tmp_path / "beside_mine.py").write_text(MINE)
    (tmp_path / "beside_later.py").write_text("strength = 7")
    (tmp_path / "beside.py").write_text(
        "from beside_mine import modest\n"
        "def late():\n    import beside_later\n    return modest(beside_later.strength)\n"
    )
    assert resolve_method(f"{tmp_path}/beside.py:modest", {})[0].name == "modest-2"
    assert sys.path == [*before[:-1], str(tmp_path)]  # last from then on: it hides no module of others
    assert resolve_method(f"{tmp_path}/beside.py:late", {})[0].name == "modest-7"


def test_a_module_is_found_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "module_here.py").write_text(MINE)
    assert resolve_method("module_here:modest", {})[0].name == "modest-2"
    (tmp_path / "broken_here.py").write_text("import math\nimport nothing_of_that_name")
    with pytest.raises(UsageError, match=r"broken_here must run; it raises ModuleNotFound.*, line 2\)"):
        resolve_method("broken_here:modest", {})
    with pytest.raises(UsageError, match="there is no module nowhere_at_all, neither in "):
        resolve_method("nowhere_at_all:modest", {})


FAILING = """
from dataclasses import dataclass
from abc import ABC, abstractmethod
from expunge.objectives import NLL, Objective

@dataclass(frozen=True)
class Nameless(Objective):
    source: str = "forget"
    def __call__(self, tokens): return tokens.target_log_probs

def key(): return {}["k"]
def abstract(): return Nameless()
def needs(strength: int): return None
def hint(strength: "Unheard" = 3): return None

class Weights:
    needs_gramian = True
    def __init__(self): self.table = {}["k"]
    def __call__(self, gramian, losses): return losses

class Silent:
    def __call__(self, gramian, losses): return losses

class Base(ABC):
    @abstractmethod
    def weigh(self): ...
"""


@pytest.mark.parametrize(
    ("method", "settings", "rule"),
    [
        ("key", {}, r"failing.py:key must run; it raises KeyError: 'k' \(.*failing.py, line 11\)\. Mend it"),
        ("abstract", {}, r"TypeError: Can't instantiate abstract class Nameless .* name \(.*py, line 12\)"),
        ("needs", {}, "refused its settings: .*missing 1 required positional argument: 'strength'"),
        ("hint", {}, "failing.py:hint must run; it raises NameError: name 'Unheard' is not defined"),
        ("Base", {}, "failing.py:Base must define weigh; it does not"),
        ("", {"weighting": "{}:Weights"}, r"weighting: .* it raises KeyError: 'k' \(.*failing.py, line 18\)"),
        ("", {"weighting": "{}:Silent"}, "must be a Weighting; .* is Silent, which lacks needs_gramian"),
    ],
)
def test_whatever_the_users_code_raises_is_one_message_with_its_line(tmp_path, method, settings, rule):
    (path := tmp_path / "failing.py").write_text(FAILING)
    settings = {key: value.format(path) for key, value in settings.items()}
    with pytest.raises(UsageError, match=rule) as caught:
        resolve_method(f"{path}:{method}" if method else "ngdiff", settings)
    assert "\n" not in str(caught.value)


def test_a_run_makes_the_sets_that_it_reads_and_says_so(model_folder, tmp_path):
    (tmp_path / "paired.py").write_text(
        "from engine_objectives import Preference\n"
        "from expunge.methods import Method\n"
        "from expunge.objectives import NLL\n"
        "from expunge.weightings import Normalized\n"
        "def pairs(): return Method('pairs', (Preference(pair='alternate'), NLL('retain')), Normalized())\n"
    )
    result = expunge.unlearn(
        model_folder,
        forget=FORGET,
        method=f"{tmp_path}/paired.py:pairs",
        output=tmp_path / "out",
        self_retain=4,
        **QUICK,
    )
    data = result.record.data
    assert data.keys() == {"forget", "alternate", "retain"}
    assert "written by the model itself" in data["retain"].source
    assert data["alternate"].rows == 6
    assert any("No retain records were given" in note for note in result.record.notes)
    assert any("generated by the model itself" in note for note in result.record.notes)
    assert not (result.folder / "checkpoints").exists()


def test_without_retain_records_the_way_out_is_named(model_folder):
    with pytest.raises(UsageError, match="self_retain=200"):
        expunge.unlearn(model_folder, forget=FORGET, **QUICK)


def test_a_resumed_run_takes_the_sets_it_made(model_folder, tmp_path, monkeypatch):
    """Samples need not repeat bit for bit elsewhere: they are kept beside the checkpoints."""
    from engine_objectives import Preference
    from expunge.objectives import NLL
    from expunge.weightings import Constant

    method = Method("m", (Preference(pair="alternate"), NLL("retain")), Constant((1.0, 1.0)))
    settings = QUICK | {"max_steps": 4, "output": tmp_path / "out", "save_steps": 2, "method": method}
    original = expunge.unlearner.Unlearner.after_optimizer

    def stop(self):
        original(self)
        if self.state.global_step == 1:
            self.interrupt.requested = True  # as Ctrl-C would

    monkeypatch.setattr(expunge.unlearner.Unlearner, "after_optimizer", stop)
    first = expunge.unlearn(model_folder, forget=FORGET, retain=RETAIN, **settings)
    assert first.record.stop.reason == "interrupted"
    assert (tmp_path / "out" / "checkpoints" / "derived" / "alternate.json").is_file()
    monkeypatch.setattr(expunge.unlearner.Unlearner, "after_optimizer", original)
    monkeypatch.setattr("expunge.derived.sample_whole_texts", lambda *_, **__: pytest.fail("sampled again"))
    second = expunge.unlearn(model_folder, forget=FORGET, retain=RETAIN, resume=True, **settings)
    assert second.record.stop.reason == "step-limit"
    assert second.record.data["alternate"].sha256 == first.record.data["alternate"].sha256
    assert any("generated by the model itself" in note for note in second.record.notes)


def test_any_recipe_goes_with_any_weighting_and_step_size_by_name(mine, model_folder):
    for settings, weighting, rule, name in (
        ({"weighting": "mgda"}, "TorchJD(MGDAWeighting", "schedule", "ngdiff+mgda"),
        ({"weighting": f"{mine}:Halves", "step_size": "gen"}, "Halves()", "GeN(", "ngdiff+Halves+gen"),
        ({"step_size": "within-budget"}, "Normalized(", "WithinBudget(", "ngdiff+within-budget"),
        (
            {"step_size": "schedule", "method": "ngdiff-gen"},
            "Normalized(",
            "schedule",
            "ngdiff-gen+schedule",
        ),
        ({"selector": "content-words"}, "Normalized(", "schedule", "ngdiff+@content-words"),
    ):
        sets = {"forget": tuple(FORGET), "retain": tuple(RETAIN)}
        record = expunge.unlearn(model_folder, **sets, **QUICK, **settings).record
        assert record.method == name
        assert record.configuration["weighting"].startswith(weighting)
        assert record.configuration["step_size"].startswith(rule)
        assert len(record.history) == 2
        forget = next(name for name in record.history[0].losses if "forget" in name)
        assert forget.endswith("@content-words") == ("selector" in settings)


def refused(method: str, weighting: str) -> str:
    """Why a weighting does not go with a recipe; nothing where it does."""
    plain = METHODS[method]()
    count = len(plain.objectives)
    if plain.merge and plain.merge.further:
        return "whose trainings differ in theirs"
    if weighting == "dual-ascent":
        return "needs no arguments; dual-ascent"
    if count < {"bi-level": 2, "krum": 3}.get(weighting, 1):
        return f"as many objectives as there are \\({count}\\)"
    if plain.merge and isinstance(weighting_for(weighting, count), Stateful):
        return "no weighting with a memory to be merged"
    return ""


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_weighting_goes_with_every_recipe_or_says_why_not(weighting):
    try:
        weighting_for(weighting, 3)
    except TypeError:
        assert weighting == "dual-ascent"
    except UsageError as missing:
        pytest.skip(str(missing))
    for name in METHODS:
        if why := refused(name, weighting):
            with pytest.raises(UsageError, match=why):
                resolve_method(name, {"weighting": weighting})
            continue
        method, rest = resolve_method(name, {"weighting": weighting})
        assert (method.name, rest) == (f"{name}+{weighting}", {})
        m = len(method.objectives)
        gradients = torch.randn(m, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        weights = method.weighting(gradients @ gradients.T, torch.ones(m, dtype=torch.float64))
        assert weights.shape == (m,)
        assert weights.isfinite().all()


def test_the_rule_by_name_knows_whether_the_method_repairs():
    for name, repairs in (("ngdiff", True), ("grad-diff", False)):
        assert resolve_method(name, {"step_size": "within-budget"})[0].step_size.repairs is repairs


@pytest.mark.parametrize("weighting", ["pcgrad", "random", "gradvac"])
def test_lots_are_drawn_by_the_seed_of_the_run(weighting):
    """Other lots on every seed, the same on the same; the name in a record is that of all seeds."""
    gradients = torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients[1] -= gradients[0]
    gradients[2] -= gradients[1]

    def drawn(**seed: int) -> tuple[list[list[float]], str]:
        method, rest = resolve_method("mollm", {"weighting": weighting} | seed)
        assert rest == seed
        calls = [method.weighting(gradients @ gradients.T, torch.ones(3)).tolist() for _ in range(6)]
        return calls, repr(method.weighting)

    (first, name), (again, _), (other, same), (usual, _) = (
        drawn(seed=0),
        drawn(seed=0),
        drawn(seed=1),
        drawn(),
    )
    assert first == again
    assert first != other
    assert other[:-1] != first[1:], "nor the same ones a call later"
    assert usual == drawn(seed=UnlearningArguments.seed)[0]
    assert name == same


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"weighting": "mgdda"}, "Did you mean mgda"),
        ({"weighting": "dual-ascent"}, "must name what needs no arguments; dual-ascent"),
        ({"weighting": "{}:number"}, "must name what needs no arguments|must be a Weighting"),
        ({"weighting": "krum"}, r"as many objectives as there are \(2\)"),
        ({"step_size": "genn"}, "Did you mean gen"),
        ({"step_size": "{}:Halves"}, "must be a StepSize; .* is Halves"),
        ({"selector": "entity"}, "selector must be one of all, .* Did you mean entities"),
        ({"method": "grad-ascent", "weighting": "bi-level"}, r"as many objectives as there are \(1\)"),
        ({"method": "grad-ascent", "step_size": "gen"}, "must read retain records"),
    ],
)
def test_parts_that_do_not_fit_are_one_message(mine, settings, rule):
    words = {key: value.format(mine) for key, value in settings.items()}
    with pytest.raises(UsageError, match=rule) as caught:
        resolve_method(words.pop("method", "ngdiff"), words)
    assert "\n" not in str(caught.value)


def test_a_selector_needs_objectives_on_forget_records_that_have_none_of_their_own():
    with pytest.raises(UsageError, match="needs an objective on forget records; method fine-tune has none"):
        resolve_method(fine_tune(), {"selector": "entities"})
    with pytest.raises(UsageError, match=r"selector was refused by method whp: .* without a selector"):
        resolve_method(whp(), {"selector": "all"})
