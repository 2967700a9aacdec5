"""Code of a user's own is part of what a run is: recorded, and not exchanged under a run or a comparison."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

import conftest
import expunge
from expunge import UsageError
from expunge.comparison_record import Setting, _uneven, begun, ended
from expunge.methods import METHODS, Method
from expunge.monitor import Monitor
from expunge.objectives import NLL
from expunge.one_table import check_asked
from expunge.own_code import UNKNOWN, code_hashes, difference
from expunge.own_parts import code_of
from expunge.record import read_record
from expunge.report import render
from expunge.runs import Run
from expunge.settings import asked_code, own_code, resolve_method
from expunge.trials import plan
from expunge.unlearner import Unlearner
from expunge.weightings import Constant
from record_factory import run_record

ROWS = conftest.rows()
QUICK = {"bf16": False, "template": "none", "seed": 0, "max_steps": 1, "check_every": 0}

LOSSES = """
from dataclasses import dataclass
from expunge.objectives import Objective

class Shared(Objective):
    def __call__(self, tokens):
        return tokens.target_log_probs
"""

MINE = """
from dataclasses import dataclass
from code_losses import Shared
from expunge.methods import Method
from expunge.objectives import NLL, Ascent
from expunge.weightings import Constant, TorchJD
from torchjd.aggregation import MGDAWeighting

@dataclass(frozen=True)
class Confidence(Shared):
    source: str = "forget"
    name = "confidence"

def plain():
    return Method("plain", (NLL("forget"), NLL("retain")), Constant((1.0, 1.0)))

def mine():
    return Method("mine", (Confidence(), NLL("retain")), TorchJD(MGDAWeighting()))

def choose(responses):
    return [[True] * len(row.labels) for row in responses.rows]
"""


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def forget_modules() -> None:
    """As in a new process."""
    for name in [name for name in sys.modules if name.startswith(("expunge_user_", "code_losses"))]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "code_losses.py").write_text(LOSSES)
    (tmp_path / "code_mine.py").write_text(MINE)
    yield tmp_path
    forget_modules()


def made(method: str, **settings) -> dict[str, str]:
    return own_code(method, settings, resolve_method(method, settings)[0])


def test_every_own_file_behind_a_method_and_no_other(folder):
    mine, losses = folder / "code_mine.py", folder / "code_losses.py"
    assert made(f"{mine}:mine") == {"code_losses.py": sha(losses), "code_mine.py": sha(mine)}
    assert made(f"{mine}:plain") == {"code_mine.py": sha(mine)}  # the function itself
    assert made("ngdiff", selector=f"{mine}:choose") == {"code_mine.py": sha(mine)}
    assert made("ngdiff", weighting="mgda", step_size="gen") == {}
    assert [name for name, recipe in METHODS.items() if code_of(recipe())] == []


def test_two_files_of_one_name_are_told_apart(tmp_path):
    paths = [tmp_path / place / "same.py" for place in ("a", "b", "c")]
    for path, text in zip(paths, ("x = 1", "x = 2", "x = 1"), strict=True):
        path.parent.mkdir()
        path.write_text(text)
    assert code_hashes([], paths) == {"same.py": sha(paths[0]), "same.py 2": sha(paths[1])}


def test_code_that_runs_does_not_change_with_its_file(folder):
    mine = folder / "code_mine.py"
    before = made(f"{mine}:mine")
    mine.write_text(MINE + "# changed\n")
    assert made(f"{mine}:mine") == before
    forget_modules()
    now = made(f"{mine}:mine")
    assert now["code_mine.py"] == sha(mine)
    assert difference(before, now) == "code_mine.py has changed since"
    assert difference({}, now) == "code_losses.py was not recorded there"
    assert difference(before, {}) == "code_losses.py belongs to it no longer"
    assert difference(before, before) == ""


class Cell:
    """As one in a notebook or in the script that runs."""

    __module__ = "__main__"

    def __call__(self, gramian, losses):
        return losses


def test_a_class_of_a_script_or_a_cell_is_its_own_source():
    found = code_hashes([Cell()])
    assert found.keys() == {"Cell"}
    assert len(found["Cell"]) == 64
    nowhere = type("Nowhere", (), {"__module__": "__main__"})
    assert code_hashes([nowhere()]) == {"Nowhere": UNKNOWN}


def test_a_checkpoint_of_other_code_is_refused(model, tmp_path):
    def monitor(code):
        method = Method("m", (NLL("forget"),), Constant((1.0,)))
        return Monitor(model, method, [], None, 0, {"data": "print"}, code=code)

    monitor({"mine.py": "1"}).save(tmp_path)
    monitor({"mine.py": "1"}).load(tmp_path)
    assert monitor({"mine.py": "1"}).owns(tmp_path)
    assert not monitor({"mine.py": "2"}).owns(tmp_path)
    with pytest.raises(ValueError, match=r"of the same code; of your own, mine.py has changed since \("):
        monitor({"mine.py": "2"}).load(tmp_path)
    with pytest.raises(ValueError, match="belongs to it no longer"):
        monitor({}).load(tmp_path)


def test_a_run_records_its_code_and_is_continued_with_the_same_alone(folder, model_folder, monkeypatch):
    original, mine = Run.evaluate, folder / "code_mine.py"

    def interrupting(self, stage, *words):
        if stage == "after":
            raise KeyboardInterrupt
        original(self, stage, *words)

    def go(**more):
        words = {"forget": ROWS[:6], "retain": ROWS[6:], "method": f"{mine}:mine", "output": folder / "out"}
        return expunge.unlearn(model_folder, **words, **QUICK, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "evaluate", interrupting)
        with pytest.raises(KeyboardInterrupt):
            go()
    code = {"code_losses.py": sha(folder / "code_losses.py"), "code_mine.py": sha(mine)}
    assert read_record(folder / "out").code == code
    mine.write_text(MINE + "# changed\n")
    forget_modules()
    with pytest.raises(UsageError, match=r"the same code; of your own, code_mine\.py has changed since"):
        go(resume=True)
    mine.write_text(MINE)
    forget_modules()
    assert go(resume=True).record.code == code
    page = (folder / "out" / "report.html").read_text().replace("<wbr>", "")
    assert "code of code_mine.py" in page
    assert sha(mine)[:16] in page


def test_the_engine_knows_the_code_of_a_recipe_that_made_a_method_of_ours(folder, model, tokenizer):
    method = resolve_method(f"{folder}/code_mine.py:mine", {})[0]
    args = expunge.UnlearningArguments(output_dir=str(folder), use_cpu=True, **QUICK)
    state = Unlearner(model, args, method, tokenizer, ROWS[:6], ROWS[6:]).monitor.state
    assert state.code.keys() == {"code_losses.py", "code_mine.py"}


def test_trials_of_one_name_are_of_one_code(folder):
    mine, method = folder / "code_mine.py", f"{folder}/code_mine.py:mine"
    known = [begun(trial) for trial in plan([method, "npo"], [0, 1], {}, {"npo:beta": [0.1, 0.2]})]
    assert known[0].code.keys() == {"code_losses.py", "code_mine.py"}
    assert known[1].code == {}
    mine.write_text(MINE + "# changed\n")
    forget_modules()
    for settings, grid in (({}, {}), ({}, {"max_steps": [1, 2]})):
        now = [begun(trial) for trial in plan([method], [2], settings, grid, evaluation_seed=0)]
        rule = r"with the same settings; the code of code_mine.py was \w{12} in out and is \w{12} now"
        with pytest.raises(UsageError, match=rule):
            check_asked(known, now[0], Path("out"))
    check_asked(known, known[0], Path("out"))


def test_a_mean_of_trials_of_different_code_says_so():
    record = run_record()
    first, second = (record.model_copy(update={"code": {"mine.py": digit * 64}}) for digit in "12")
    trial = begun(plan(["npo"], [0], {}, {})[0])
    entries = [ended(trial.model_copy(update={"name": name}), record) for name in ("a", "b")]
    setting = Setting(method="npo", varied={}, trials=[entry.name for entry in entries], whole=True)
    notes = list(_uneven([setting], {"a": first, "b": second}))
    assert any("differ in the code of mine.py (111111111111, 222222222222)" in note for note in notes)


def test_asking_for_a_recipe_of_ours_makes_nothing(monkeypatch):
    monkeypatch.setattr("expunge.settings.resolve_method", lambda *_: pytest.fail("made"))
    assert asked_code("ngdiff", {"weighting": "mgda"}) == {}


def test_the_page_of_a_run_without_own_code_has_no_such_line():
    assert "<dt>code of " not in render(run_record())
