"""Looks at some forget records and at all: what some say of all, and that a run ends on a look at all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import conftest
import expunge
from expunge import intervals
from expunge.arguments import UnlearningArguments
from expunge.collate import Encoding
from expunge.forget_check import CheckSettings, forget_check
from expunge.methods import ngdiff
from expunge.monitor import Monitor
from expunge.record import Check
from expunge.records import read_records
from expunge.scoring import TokenScores
from expunge.stopping import Looked, against_holdout, against_swaps, all_wanted, forgotten

FORGET, RETAIN, HOLDOUT = (
    conftest.rows()[:12],
    conftest.rows()[12:],
    conftest.rows(("Ivy Iris", "Jon Juniper")),
)


def score(nll: float, *, reproduced: bool = False) -> TokenScores:
    return TokenScores(np.array([-nll]), np.array([reproduced]))


NLLS = st.lists(st.floats(0.0, 9.0), min_size=4, max_size=9)
LEAKS = score(0.1, reproduced=True)


# --- what some rows say of all


@given(NLLS, st.floats(0.5, 5.0), st.floats(-1.0, 1.0))
def test_some_rows_speak_for_all_less_their_lead(nlls, unseen, moved):
    """The difference estimator: exact while the rest moves as the usual rows do."""
    rows, total = [score(nll) for nll in nlls], len(nlls)
    whole = against_holdout(1, rows, [score(unseen)], looked=Looked(range(total), 2, total))
    assert whole.lead == pytest.approx(np.mean(nlls[:2]) - np.mean(nlls), abs=1e-9)
    later = [score(nll + moved) for nll in nlls[:2]]
    some = against_holdout(
        2, later, [score(unseen)], looked=Looked(range(2), 2, total, whole=False, lead=whole.lead)
    )
    assert some.forget_nll == pytest.approx(np.mean(nlls) + moved, abs=1e-9)
    assert (some.partial, whole.partial) == (True, False)
    assert (some.rows, some.of, some.lead) == (2, total, None)


@given(NLLS, st.data())
def test_beside_made_records_the_lead_is_in_the_distance(nlls, data):
    """There the control is of the same rows, and another where more are read."""
    count = st.lists(st.floats(0.0, 9.0), min_size=len(nlls), max_size=len(nlls))
    rows, made = [score(nll) for nll in nlls], [score(nll) for nll in data.draw(count)]
    whole = against_holdout(1, rows, made, control="synthetic", looked=Looked(range(len(rows)), 2, len(rows)))
    assert whole.control_nll == intervals.mean([one.nll for one in made]).high
    some = against_holdout(
        2, rows[:2], made[:2], control="synthetic",
        looked=Looked(range(2), 2, len(rows), whole=False, lead=whole.lead),
    )  # fmt: skip
    assert some.control_nll == intervals.mean([one.nll for one in made[:2]]).high
    assert some.forget_nll - some.control_nll == pytest.approx(whole.forget_nll - whole.control_nll, abs=1e-9)


def test_beside_swaps_the_lead_is_in_the_preference():
    rows, swaps = [score(1.0)] * 4, [[score(0.5)], [score(0.5)], [score(2.0)], [score(2.0), score(3.0)]]
    whole = against_swaps(1, rows, swaps, looked=Looked(range(4), 2, 4))
    assert (whole.preference, whole.lead, whole.met) == (0.6, 0.6, False)
    some = against_swaps(2, rows[:2], swaps[:2], looked=Looked(range(2), 2, 4, whole=False, lead=0.6))
    assert (some.preference, some.met, some.partial) == (0.6, False, True)
    far = against_swaps(2, rows[2:3], swaps[2:3], looked=Looked([2], 1, 4, whole=False, lead=0.6))
    assert far.preference == 1.0  # a share
    assert against_swaps(1, rows[:2], swaps[:2]).met


def test_what_remained_is_looked_at_beside_the_usual_rows():
    """Leak is of all rows then, since no other was reproduced; a usual row that slips back is added."""
    unseen, rows = [score(2.0)], [score(5.0), LEAKS, score(5.0), LEAKS]
    looked = Looked([0, 1, 7, 8], 2, 20, whole=False, remained=[7, 8, 13])
    look = against_holdout(3, rows, unseen, looked=looked)
    assert look.forget_nll == pytest.approx(2.55)  # of the usual rows alone
    assert look.forget_leak == 2 / 20
    assert look.remaining == [1, 8, 13]  # nobody could look at 13
    gone = against_holdout(3, [score(5.0)] * 4, unseen, looked=looked)
    assert (gone.met, gone.remaining, gone.partial) == (True, [], True)


def seen(**told: object) -> Check:
    usual = {
        "step": 4, "forget_nll": 5.0, "forget_leak": 0.2, "control": "holdout", "control_nll": 4.0,
        "control_leak": 0.0, "met": False, "rows": 64, "of": 500,
    }  # fmt: skip
    return Check(**usual | told)


NAMED, UNNAMED = seen(rows=500, lead=0.1, remaining=[3]), seen(rows=400, lead=0.1)


@pytest.mark.parametrize(
    ("check", "before", "leaks_first", "wanted"),
    [
        (seen(met=True, forget_leak=0.0), [], False, True),
        (seen(met=True, forget_leak=0.0, control="swap", preference=0.4), [], False, True),
        (seen(met=True, rows=500, lead=0.0), [], True, False),
        (seen(met=True, rows=None, of=None), [], True, False),
        (seen(forget_nll=3.0), [], True, False),
        (seen(), [], True, True),
        (seen(), [], False, False),
        (seen(), [NAMED, seen(forget_nll=3.9)], True, True),
        (seen(), [UNNAMED, seen()], True, False),
        (seen(), [seen(rows=500, lead=0.1, forget_nll=3.9)], True, True),
        (seen(remaining=[3]), [NAMED], True, False),
    ],
    ids=[
        "over, say some", "over, say some by swaps", "over, say all", "an older record", "on the way",
        "leaks alone", "leaks alone, to no use", "leaks alone again", "nobody can name them",
        "all were not so far", "named already",
    ],
)  # fmt: skip
def test_all_are_looked_at_where_some_say_that_it_may_be_over(check, before, leaks_first, wanted):
    assert all_wanted(check, before, leaks_first=leaks_first) is wanted


def test_the_sentence_says_how_many_were_looked_at():
    assert "leak 0% (500 of 500 records)" in forgotten(seen(met=True, forget_leak=0.0, rows=500, lead=0.0))
    assert "leak 0%;" in forgotten(seen(met=True, forget_leak=0.0, rows=None, of=None))


# --- the run


class Looks:
    """Of six rows two are looked at; the fifth is forgotten at step 9 only, all others at step 4."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    def __call__(self, step, *, remained=(), lead=0.0, whole=False) -> Check:
        self.asked.append((step, "all" if whole else "remained" if remained else "some"))
        numbers = range(6) if whole else [0, 1, *remained]
        rows = [
            score(5.0 if step >= (9 if n == 4 else 4) else 0.1, reproduced=n == 4 and step < 9)
            for n in numbers
        ]
        return against_holdout(
            step, rows, [score(2.0)], looked=Looked([*numbers], 2, 6, whole, list(remained), lead)
        )


def monitor(check, **method) -> Monitor:
    made = Monitor(conftest.build_model(), ngdiff(**method), [], check, 5, {})
    made.method = expunge.Method(
        "mine", made.method.objectives, made.method.weighting, leaks_first=made.method.leaks_first
    )
    return made


def test_a_run_ends_on_a_look_at_all():
    """Two rows say that it is over; all say that one remains, which is drawn until it has gone, too."""
    looks = Looks()
    run = monitor(looks)
    run.begin()
    ends = [step for step in range(1, 12) if run.state.stop is None and run.after_step(step, 1e-3)]
    assert ends == [9]
    assert looks.asked == [
        (0, "some"), (5, "some"), (5, "all"), *((step, "remained") for step in range(6, 10)), (9, "all"),
    ]  # fmt: skip
    assert [(check.step, check.remaining) for check in run.state.checks if check.remaining] == [
        (step, [4]) for step in range(5, 9)
    ]
    assert run.state.checks[-1].rows == 6
    assert run.state.stop.reason == "forgotten"


def test_a_method_that_draws_all_rows_waits_for_all():
    looks = Looks()
    run = monitor(looks, leaks_first=False)
    run.begin()
    ends = [step for step in range(1, 12) if run.state.stop is None and run.after_step(step, 1e-3)]
    assert ends == [10]
    assert [step for step, what in looks.asked if what == "all"] == [5, 10]


def test_what_time_does_not_allow_is_not_met():
    """Two rows took a second: six take three, and two are left."""
    looks, now = Looks(), [0.0]
    run = monitor(looks)

    def slow(step, **how):
        now[0] += 1.0
        return looks(step, **how)

    run.check, run.clock, run.spare = slow, lambda: now[0], lambda: 2.0
    found = run.look(20)
    assert (found.met, found.partial, looks.asked) == (False, True, [(20, "some")])
    run.spare = lambda: 3.0
    found = run.look(20)
    assert (found.met, found.partial, looks.asked[1:]) == (True, False, [(20, "some"), (20, "all")])


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
        some = look(2, lead=whole.lead)
        assert (some.control, whole.control) == (kind, kind)
        assert whole.rows > some.rows
        if kind == "swap":
            assert some.preference == pytest.approx(whole.preference)
        else:
            ahead = [check.forget_nll - check.control_nll for check in (some, whole)]
            assert ahead[0] == pytest.approx(ahead[1], abs=1e-5)
        assert math.isfinite(whole.lead)
        assert look(2, lead=whole.lead) == some  # whichever looks came before
