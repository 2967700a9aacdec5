"""Looks at some forget records and at all: what some say of all, and that a run ends on a look at all."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import conftest
import expunge
from expunge import intervals
from expunge.arguments import UnlearningArguments
from expunge.collate import Encoding
from expunge.deadline import rank
from expunge.forget_check import CheckSettings, forget_check
from expunge.looks import Looks
from expunge.methods import ngdiff
from expunge.monitor import Monitor
from expunge.record import Check
from expunge.records import read_records
from expunge.scoring import TokenScores
from expunge.stopping import (
    Looked,
    RetainBudget,
    against_holdout,
    against_swaps,
    all_wanted,
    closing_in,
    forgotten,
)
from expunge.unlearner import Unlearner

FORGET, RETAIN, HOLDOUT = (
    conftest.rows()[:12],
    conftest.rows()[12:],
    conftest.rows(("Ivy Iris", "Jon Juniper")),
)


def score(nll: float, *, reproduced: bool = False) -> TokenScores:
    return TokenScores(np.array([-nll]), np.array([reproduced]))


NLLS = st.lists(st.floats(0.0, 9.0), min_size=4, max_size=9)


def some(count: int, total: int, last: Check | None, **told: object) -> Looked:
    return Looked(range(count), count, total, whole=False, last=last, **told)


LEAKS = score(0.1, reproduced=True)


# --- what some rows say of all


@given(NLLS, st.floats(0.5, 5.0), st.floats(-1.0, 1.0))
def test_some_rows_speak_for_all_less_their_lead(nlls, unseen, moved):
    """The difference estimator: exact while the rest moves as the usual rows do."""
    rows, total = [score(nll) for nll in nlls], len(nlls)
    whole = against_holdout(1, rows, [score(unseen)], looked=Looked(range(total), 2, total))
    assert whole.lead == pytest.approx(np.mean(nlls[:2]) - np.mean(nlls), abs=1e-9)
    later = [score(nll + moved) for nll in nlls[:2]]
    found = against_holdout(2, later, [score(unseen)], looked=some(2, total, whole))
    assert found.forget_nll == pytest.approx(np.mean(nlls) + moved, abs=1e-9)
    assert (found.partial, whole.partial) == (True, False)
    assert (found.rows, found.of, found.lead) == (2, total, whole.lead)


@given(NLLS, st.data())
def test_beside_made_records_the_lead_is_in_the_distance(nlls, data):
    """There the control is of the same rows, and another where more are read."""
    count = st.lists(st.floats(0.0, 9.0), min_size=len(nlls), max_size=len(nlls))
    rows, made = [score(nll) for nll in nlls], [score(nll) for nll in data.draw(count)]
    whole = against_holdout(1, rows, made, control="synthetic", looked=Looked(range(len(rows)), 2, len(rows)))
    assert whole.control_nll == intervals.mean([one.nll for one in made]).high
    found = against_holdout(
        2, rows[:2], made[:2], control="synthetic", looked=some(2, len(rows), whole)
    )  # fmt: skip
    assert found.control_nll == whole.control_nll
    assert found.ahead == pytest.approx(whole.ahead, abs=1e-9)
    first = against_holdout(0, rows[:2], made[:2], control="synthetic", looked=some(2, len(rows), None))
    assert first.control_nll == intervals.mean([one.nll for one in made[:2]]).high


def test_beside_made_records_leaks_are_compared_with_those_of_all():
    """One made record of four is reproduced, one of the two that are looked at: a quarter is chance."""
    rows, made = [score(5.0)] * 3 + [LEAKS], [score(2.0), LEAKS, score(2.0), score(2.0)]
    whole = against_holdout(1, rows, made, control="synthetic", looked=Looked(range(4), 2, 4))
    assert (whole.control_leak, whole.met) == (0.25, True)
    rows[2] = LEAKS
    worse = against_holdout(1, rows, made, control="synthetic", looked=Looked(range(4), 2, 4))
    assert (worse.met, worse.remaining) == (False, [2, 3])
    looked = Looked([0, 1, 2, 3], 2, 4, whole=False, remained=[2, 3], last=worse)
    again = against_holdout(2, rows, made[:2], control="synthetic", looked=looked)
    assert (again.control_leak, again.forget_leak, again.met) == (0.25, 0.5, False)
    rows[2] = score(5.0)
    assert against_holdout(3, rows, made[:2], control="synthetic", looked=looked).met


def test_beside_swaps_the_lead_is_in_the_preference():
    rows, swaps = [score(1.0)] * 4, [[score(0.5)], [score(0.5)], [score(2.0)], [score(2.0), score(3.0)]]
    whole = against_swaps(1, rows, swaps, looked=Looked(range(4), 2, 4))
    assert (whole.preference, whole.lead, whole.met) == (0.6, 0.6, False)
    found = against_swaps(2, rows[:2], swaps[:2], looked=some(2, 4, whole))
    assert (found.preference, found.met, found.partial) == (0.6, False, True)
    far = against_swaps(2, rows[2:3], swaps[2:3], looked=some(1, 4, whole))
    assert far.preference == 1.0  # a share
    assert against_swaps(1, rows[:2], swaps[:2]).met


def test_what_remained_is_looked_at_beside_the_usual_rows():
    """Leak is of all rows then, since no other was reproduced; a usual row that slips back is added."""
    unseen, rows = [score(2.0)], [score(5.0), LEAKS, score(5.0), LEAKS]
    looked = Looked(
        [0, 1, 7, 8], 2, 20, whole=False, remained=[7, 8], last=seen(rows=18, whole=True, lead=0.0)
    )
    look = against_holdout(3, rows, unseen, looked=looked)
    assert look.forget_nll == pytest.approx(2.55)  # of the usual rows alone
    assert look.forget_leak == 2 / 18
    assert look.remaining == [1, 8]
    gone = against_holdout(3, [score(5.0)] * 4, unseen, looked=looked)
    assert (gone.met, gone.remaining, gone.partial) == (True, [], True)


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_a_lead_that_is_no_number_is_none(lost):
    whole = against_holdout(1, [score(lost), score(1.0)], [score(2.0)], looked=Looked(range(2), 1, 2))
    assert (whole.lead, whole.whole) == (None, True)


def test_the_pace_is_that_of_the_rows_that_both_looks_read():
    """The usual rows went from 3.5 to 4.1 in 5 steps; all stand at 3.7 of 4, and are there in 3."""
    first = seen(step=5, forget_nll=3.5, whole=False, lead=None)
    last = seen(step=10, forget_nll=3.7, whole=True, lead=0.4)
    assert closing_in([first, last], 5)
    assert closing_in([first.model_copy(update={"forget_nll": 3.1, "lead": 0.4}), last], 5)
    assert not closing_in([first, last.model_copy(update={"lead": 0.0})], 5)


def seen(**told: object) -> Check:
    usual = {
        "step": 4, "forget_nll": 5.0, "forget_leak": 0.2, "control": "holdout", "control_nll": 4.0,
        "control_leak": 0.0, "met": False, "rows": 64, "of": 500, "whole": False,
    }  # fmt: skip
    return Check(**usual | told)


@pytest.mark.parametrize(
    ("check", "leaks_first", "wanted"),
    [
        (seen(met=True, forget_leak=0.0), False, True),
        (seen(met=True, forget_leak=0.0, control="swap", preference=0.4), False, True),
        (seen(met=True, rows=500, whole=True), True, False),
        (seen(met=True, rows=None, of=None, whole=None), True, False),
        (seen(forget_nll=3.0), True, False),
        (seen(), True, True),
        (seen(), False, False),
        (seen(remaining=[3]), True, False),
    ],
    ids=[
        "over, say some", "over, say some by swaps", "over, say all", "an older record", "on the way",
        "leaks alone", "leaks alone, to no use", "named already",
    ],
)  # fmt: skip
def test_all_are_looked_at_where_some_say_that_it_may_be_over(check, leaks_first, wanted):
    assert all_wanted(check, leaks_first=leaks_first, may_end=True) is wanted
    assert all_wanted(check, leaks_first=leaks_first, may_end=False) is (wanted and not check.met)


def test_the_sentence_says_how_many_were_looked_at():
    assert "leak 0% (500 of 500 records)" in forgotten(seen(met=True, forget_leak=0.0, rows=500, whole=True))
    assert "leak 0%;" in forgotten(seen(met=True, forget_leak=0.0, rows=None, of=None))


def test_a_state_that_all_were_asked_about_is_better_than_one_that_some_praise():
    """0 of 64 before anybody looked at the others, then 5 of 500."""
    praised = rank(seen(forget_nll=3.99, forget_leak=0.0), True, 20)
    known = rank(seen(forget_nll=4.5, forget_leak=0.01, whole=True, rows=500, lead=0.1), True, 25)
    later = rank(seen(forget_nll=4.6, forget_leak=0.002, lead=0.1), True, 26)
    assert praised < known < later
    unasked = seen(forget_nll=4.5, forget_leak=0.0, met=True)  # by some, while over budget
    assert rank(unasked, True, 30) < known


# --- the run


class Scripted:
    """Of six rows two are looked at; the fifth is forgotten at step 9 only, all others at step 4."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    def __call__(self, step, *, remained=(), last=None, whole=False) -> Check:
        self.asked.append((step, "all" if whole else "remained" if remained else "some"))
        numbers = range(6) if whole else [0, 1, *remained]
        gone = [step >= (9 if n == 4 else 4) for n in numbers]
        rows = [score(5.0) if there else LEAKS for there in gone]
        looked = Looked([*numbers], 2, 6, whole, list(remained), last)
        return against_holdout(step, rows, [score(2.0)], looked=looked)


def monitor(check, **method) -> Monitor:
    made = ngdiff(**method)
    plain = expunge.Method("mine", made.objectives, made.weighting, leaks_first=made.leaks_first)
    return Monitor(conftest.build_model(), plain, [], check, 5, {})


def played(run: Monitor) -> list[int]:
    """Steps after which the run ended."""
    run.begin()
    return [step for step in range(1, 12) if run.state.stop is None and run.after_step(step, 1e-3)]


def test_a_run_ends_on_a_look_at_all():
    """Two rows say that it is over; all say that one remains, which is drawn until it has gone, too."""
    looks = Scripted()
    run = monitor(looks)
    assert played(run) == [9]
    assert looks.asked == [
        (0, "some"), (5, "some"), (5, "all"), *((step, "remained") for step in range(6, 10)), (9, "all"),
    ]  # fmt: skip
    named = [(check.step, check.remaining) for check in run.state.checks if check.remaining]
    assert named == [(step, [4]) for step in range(5, 9)]
    assert run.state.checks[-1].rows == 6
    assert run.state.stop.reason == "forgotten"


def test_a_method_that_draws_all_rows_asks_for_those_that_were_named():
    looks = Scripted()
    run = monitor(looks, leaks_first=False)
    assert played(run) == [10]
    assert looks.asked == [(0, "some"), (5, "some"), (5, "all"), (10, "remained"), (10, "all")]
    assert run.remaining == []


def test_over_budget_all_are_not_asked():
    """What some say waits; the look after the first reading within budget asks all."""
    looks = Scripted()
    run = monitor(looks)
    run.method = replace(run.method, budget=RetainBudget(every=2))
    run.state.checks, run.state.over_budget = [seen(step=0, forget_nll=0.1)], 1
    over = {10: 1, 12: 0}
    run._read = lambda step, rate: setattr(run.state, "over_budget", over.get(step, 1))
    assert run.after_step(10, 1e-3) is None
    assert (run.state.checks[-1].met, run.state.checks[-1].partial) == (True, True)
    assert run.after_step(11, 1e-3) is None
    assert run.after_step(12, 1e-3).reason == "forgotten"
    assert looks.asked == [(10, "some"), (12, "some"), (12, "all")]


def test_a_reading_that_is_within_budget_again_has_all_asked():
    """Between readings some say that it is over; the reading then taken finds the loss back within budget."""
    looks = Scripted()
    run = monitor(looks)
    run.method = replace(run.method, budget=RetainBudget(every=4))
    run.state.checks, run.state.over_budget = [seen(step=0, forget_nll=0.1)], 1
    run._read = lambda step, rate: setattr(run.state, "over_budget", 0)
    assert run.after_step(10, 1e-3).reason == "forgotten"
    assert looks.asked == [(10, "some"), (10, "some"), (10, "all")]
    assert [check.step for check in run.state.checks] == [0, 10]
    assert not run.state.checks[-1].partial


def test_looks_of_later_steps_do_not_count():
    """As where an earlier state was put back."""
    looks = Scripted()
    run = monitor(looks)
    run.state.checks = [seen(step=2, forget_nll=0.1), seen(step=8, remaining=[4], whole=True, lead=0.1)]
    run.look(3, may_end=True)
    run.look(8, may_end=True)
    assert looks.asked == [(3, "some"), (8, "remained")]


def test_rows_that_were_named_are_read_until_all_are_asked_again():
    """Also after a step at which all stood below the control, and named none."""
    looks, script = Looks(leaks_first=True), Scripted()
    named = seen(step=5, whole=True, lead=0.0, rows=6, of=6, remaining=[4])
    slipped = seen(step=6, forget_nll=3.9)
    found = looks.take(script, 7, [named, slipped], may_end=True)
    assert (script.asked, found.remaining) == ([(7, "remained")], [4])
    asked_again = seen(step=6, forget_nll=3.9, whole=True, lead=0.0)
    looks.take(script, 7, [named, asked_again], may_end=True)
    assert script.asked[1:] == [(7, "some"), (7, "all")]


def test_a_run_that_begins_over_budget_asks_all_whether_there_is_anything_to_forget():
    """Two rows are unknown from the start, and the fifth is known."""
    looks = Scripted()
    run = monitor(lambda step, **how: looks(step + 4, **how))
    run.state.over_budget = 1
    run.begin()
    assert run.state.stop is None
    assert looks.asked == [(4, "some"), (4, "all")]


def test_many_rows_drawn_alone_are_looked_at_as_seldom_as_others():
    run = monitor(Scripted())
    run.state.checks = [seen(step=5, whole=True, lead=0.0, remaining=[*range(65)])]
    assert run.after_step(6, 1e-3) is None
    assert len(run.state.checks) == 1
    run.state.checks = [seen(step=5, whole=True, lead=0.0, remaining=[*range(5)])]
    assert run.after_step(6, 1e-3) is None
    assert len(run.state.checks) == 2


def test_what_time_does_not_allow_is_not_met():
    """Two rows took a second: six take three, and two are left."""
    script, now = Scripted(), [0.0]
    looks = Looks(leaks_first=True, clock=lambda: now[0])

    def slow(step, **how):
        now[0] += 1.0
        return script(step, **how)

    looks.spare = lambda: 2.0
    found = looks.take(slow, 20, [], may_end=True)
    assert (found.met, found.partial, script.asked) == (False, True, [(20, "some")])
    looks.spare = lambda: 3.0
    found = looks.take(slow, 20, [], may_end=True)
    assert (found.met, found.partial, script.asked[1:]) == (True, False, [(20, "some"), (20, "all")])
    assert looks.seconds == 1.0


def test_a_real_run_ends_on_a_look_at_all(taught_folder, tmp_path, no_pages):
    result = expunge.unlearn(
        taught_folder, forget=FORGET, retain=RETAIN, holdout=HOLDOUT, output=tmp_path / "out", bf16=False,
        template="none", learning_rate=2e-3, max_steps=60, check_rows=3, check_every=2, evaluate=False,
        tolerance=1000.0, sharpness=0.0, per_device_train_batch_size=4,
    )  # fmt: skip
    record = result.record
    assert record.stop.reason == "forgotten"
    assert {check.rows for check in record.checks[:2]} == {3}
    last = record.checks[-1]
    assert (last.rows, last.of, last.partial, last.forget_leak) == (12, 12, False, 0.0)
    assert "(12 of 12 records)" in record.stop.sentence


def test_a_resumed_run_looks_as_the_whole_one_did(taught_folder, tokenizer, tmp_path):
    """What a look at all found corrects those that follow, from the checkpoint, too."""

    def run() -> Unlearner:
        args = UnlearningArguments(
            output_dir=str(tmp_path), bf16=False, template="none", learning_rate=1e-3, max_steps=60,
            check_rows=2, check_every=3, sharpness=0.0, per_device_train_batch_size=4, seed=0,
            save_strategy="steps", save_steps=1, save_total_limit=4,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(taught_folder)
        return Unlearner(model, args, ngdiff(tolerance=1000.0), tokenizer, FORGET, RETAIN, HOLDOUT)

    whole, again = run(), run()
    whole.train()
    assert whole.stop.reason == "forgotten"
    before = whole.stop.step - 1
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{before}"))
    assert again.monitor.state.checks == whole.monitor.state.checks
    assert again.stop == whole.stop


def test_looks_at_all_rows_see_the_usual_ones_as_looks_at_these(tokenizer):
    """Beside rows never seen, made ones, and swaps: estimates agree where nothing was trained between."""
    model, retain = conftest.build_model(), read_records(conftest.rows()[6:] * 3, name="retain")
    settings = CheckSettings(4, 1, UnlearningArguments(template="none").encoding, "fp32")
    unseen = Encoding("none", None).rows(read_records(HOLDOUT, name="holdout"), tokenizer)
    kinds = {"holdout": (unseen, retain), "synthetic": (None, retain), "swap": (None, ())}
    for kind, (holdout, others) in kinds.items():
        look = forget_check(
            model, tokenizer, read_records(FORGET[:6], name="forget"), holdout, settings, retain=others
        )
        assert look is not None
        whole = look(1, whole=True)
        assert whole.lead is not None
        found = look(2, last=whole)
        assert (found.control, whole.control) == (kind, kind)
        assert whole.rows > found.rows
        if kind == "swap":
            assert found.preference == pytest.approx(whole.preference)
        else:
            assert found.ahead == pytest.approx(whole.ahead, abs=1e-5)
        assert math.isfinite(whole.lead)
        assert look(2, last=whole) == found  # whichever looks came before
