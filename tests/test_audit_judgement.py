"""What follows from numbers: the laws of the audit's verdict, and of a control that knows too much."""

from __future__ import annotations

import doctest
import itertools
import math
from functools import cache

import numpy as np
import pytest
from scipy.stats import beta, norm

from expunge import intervals
from expunge.attacks import ATTACKS, NEVER_SEEN, make_attack
from expunge.attacks.attack import borrows
from expunge.audit_record import AttackEntry, Column, Result, Verdict
from expunge.auditing import verdicts
from expunge.auditing.controls import doubt, knows
from expunge.auditing.evidence import telling
from expunge.auditing.judgement import area_chance, chance, judge
from expunge.auditing.verdicts import holm, verdict
from expunge.record import Metric

N = 40


@cache
def result(hits: int, n: int = N, score: float | None = None, *, complete: bool = True) -> Result:
    """So many of n records came back; the others scored 0, or all scored `score`."""
    flags = [i < hits for i in range(n)]
    scores = [float(flag) for flag in flags] if score is None else [score] * n
    return Result(recovered=intervals.exact_share(flags), score=intervals.share(scores), complete=complete)


def entry(name: str = "prompt", family: str = "none", **results: Result) -> AttackEntry:
    found: dict[Column, Result] = dict(results)  # type: ignore[arg-type]
    return AttackEntry(
        name=name,
        family=family,
        line="",
        status="done",
        results=found,
        judgement=judge(found, family),  # type: ignore[arg-type]
    )


def of(plain: int, other: int, control: int = 0, original: int = 40) -> str:
    """The word for so many records under the prompt and under another attack."""
    rest = {"control": result(control), "original": result(original)}
    first = entry(unlearned=result(plain), **rest)
    second = entry("relearn", "weights", unlearned=result(other), **rest)
    return verdict([first, second], None).word


def test_the_three_words():
    assert of(0, 0) == "erased"
    assert of(0, 20) == "suppressed"
    assert of(20, 20) == "not forgotten"
    assert of(20, 0) == "not forgotten"


@pytest.mark.parametrize("control", [0, 4, 15])
def test_more_recovery_never_gives_a_better_verdict(control):
    order = ["erased", "suppressed", "not forgotten"]
    for plain, other in itertools.product(range(0, 41, 8), repeat=2):
        found = order.index(of(plain, other, control))
        assert found <= order.index(of(plain, min(40, other + 8), control))
        assert found <= order.index(of(min(40, plain + 8), other, control))


def test_within_is_the_exact_interval_of_the_control():
    high = beta.ppf(0.975, 5, N - 4)
    inside, outside = int(high * N), int(high * N) + 1
    assert judge({"unlearned": result(inside), "control": result(4)}).outcome == "within"
    assert judge({"unlearned": result(outside), "control": result(4)}).outcome == "exceeds"


def test_a_control_model_comes_before_the_holdout():
    both = {"unlearned": result(20), "control": result(20), "holdout": result(0)}
    assert judge(both).outcome != "exceeds"
    assert judge({"unlearned": result(20), "holdout": result(0)}).outcome == "exceeds"


def test_partial_recovery_counts_when_the_scores_lie_apart():
    whole = {"unlearned": result(0, score=0.6), "control": result(0, score=0.2)}
    assert judge(whole).outcome == "exceeds"
    assert "in part" in judge(whole).sentence
    assert judge({"unlearned": result(0, score=0.2), "control": result(0, score=0.6)}).outcome == "within"


def test_an_attack_that_makes_any_model_speak_tells_nothing():
    found = judge({"unlearned": result(40), "control": result(39)})
    assert found.outcome == "blunt"
    plain = entry(unlearned=result(0), control=result(0), original=result(40))
    soft = entry("soft-prompt", "embedding", unlearned=result(40), control=result(39), original=result(40))
    assert telling([plain, soft]) == ["prompt"]
    judged = verdict([plain, soft], None)
    assert judged.word == "undecided", "nothing but the prompt has told anything"
    assert any("soft-prompt told nothing" in reason for reason in judged.reasons)


def test_too_few_records_of_the_control_prove_nothing():
    assert judge({"unlearned": result(0), "control": result(0, n=8)}).outcome == "blunt"
    assert judge({"unlearned": result(0), "control": result(0, n=12)}).outcome == "within"
    assert judge({"unlearned": result(40), "control": result(0, n=8)}).outcome == "exceeds"
    rest = {"control": result(0), "original": result(3, n=3)}
    few = [entry(n, "input", unlearned=result(0, n=3), **rest) for n in ("prompt", "x")]
    assert "Only 3 forget records were attacked." in verdict(few, None).reasons


def test_time_that_ran_out_is_no_answer():
    short = result(0, complete=False)
    assert judge({"unlearned": short, "control": result(0)}).outcome == "unfinished"
    assert judge({"unlearned": result(0), "control": short}).outcome == "unfinished"
    assert judge({"unlearned": result(30, complete=False), "control": result(0)}).outcome == "exceeds"
    assert judge({"unlearned": result(30), "control": short}).outcome == "unfinished"


def test_nothing_is_erased_that_was_not_known_or_not_attacked():
    assert of(0, 0, original=0) == "undecided"
    plain = entry(unlearned=result(0), control=result(0), original=result(40))
    assert verdict([plain], None).word == "undecided"
    assert verdict([], None).word == "undecided"


def short(name: str, family: str) -> AttackEntry:
    """An attack that time cut short on the unlearned model."""
    cut = {"unlearned": result(0, complete=False), "control": result(0), "original": result(40)}
    return entry(name, family, **cut)


def ended(name: str, family: str) -> AttackEntry:
    """An attack that came to its end and brought nothing back."""
    return entry(name, family, unlearned=result(0), control=result(0), original=result(40))


def word_of(*others: AttackEntry) -> str:
    return verdict([ended("prompt", "none"), *others], None).word


def test_nothing_is_erased_where_no_original_was_asked():
    rest = {"control": result(0)}
    plain, other = entry(unlearned=result(0), **rest), entry("x", "input", unlearned=result(0), **rest)
    found = verdict([plain, other], None)
    assert found.word == "undecided"
    assert "Give --original." in found.sentence
    through = entry("x", "input", unlearned=result(30), **rest)
    assert verdict([plain, through], None).word == "suppressed", "what came back needs no original"


def test_attacks_cut_short_do_not_support_that_nothing_is_left():
    """As many attacks that ended as did not, or a whole family that did not: undecided."""
    assert word_of(ended("a", "input")) == "erased"
    assert word_of(short("a", "input")) == "undecided"
    assert word_of(ended("a", "input"), short("b", "input")) == "undecided"
    assert word_of(ended("a", "input"), ended("b", "input"), short("c", "input")) == "erased"
    assert word_of(ended("a", "input"), ended("b", "input"), short("c", "weights")) == "undecided"
    several = [ended("a", "input"), ended("b", "input"), ended("c", "weights"), short("d", "weights")]
    assert word_of(*several) == "erased"
    judged = verdict([ended("prompt", "none"), *several], None)
    assert any("d did not come to an end." in reason for reason in judged.reasons)


def test_what_was_cut_short_is_named_in_the_sentence():
    judged = verdict([ended("prompt", "none"), ended("a", "input"), short("b", "input")], None)
    assert "b did not come to an end" in judged.sentence
    assert "More --seconds help where time ran out." in judged.sentence
    two = [ended("a", "input"), ended("e", "input"), short("c", "weights")]
    assert "no other of the same family" in verdict([ended("prompt", "none"), *two], None).sentence


def test_an_attack_cut_short_that_brings_records_back_decides_all_the_same():
    cut = {"unlearned": result(30, complete=False), "control": result(0), "original": result(40)}
    assert word_of(entry("a", "input", **cut), short("b", "weights")) == "suppressed"


def test_attacks_that_failed_or_had_no_control_do_not_support_it_either():
    failed = AttackEntry(name="f", family="weights", line="", status="failed", why="It failed.")
    skipped = AttackEntry(name="s", family="weights", line="", status="skipped", why="No library.")
    alone = entry("u", "weights", unlearned=result(0), original=result(40))
    assert word_of(ended("a", "input"), ended("b", "input"), failed) == "undecided"
    assert word_of(ended("a", "input"), ended("b", "input"), alone) == "undecided"
    assert word_of(ended("a", "input"), ended("b", "input"), skipped) == "erased", "it was never begun"
    blunt = entry("soft", "embedding", unlearned=result(40), control=result(39), original=result(40))
    assert word_of(ended("a", "input"), blunt) == "erased", "it came to its end, and tells nothing"


def test_attacks_together_may_exceed_where_none_does_alone():
    rest = {"control": result(0), "original": result(40)}
    plain, other = entry(unlearned=result(2), **rest), entry("x", "input", unlearned=result(3), **rest)
    both = entry("choose-best", unlearned=result(5), **rest)
    assert verdict([plain, other], both).word == "suppressed"
    assert verdict([plain, other], entry("choose-best", unlearned=result(3), **rest)).word == "erased"


def test_without_a_control_nothing_is_erased():
    def word(now: int, before: int | None) -> str:
        rest = {} if before is None else {"original": result(before)}
        entries = [entry(unlearned=result(now), **rest), entry("x", "input", unlearned=result(now), **rest)]
        return verdict(entries, None).word

    assert word(0, 40) == "undecided"
    assert word(0, None) == "undecided"
    assert word(40, None) == "undecided"
    assert word(40, 40) == "not forgotten"
    assert word(0, 0) == "undecided"
    assert "--holdout" in verdict([entry(unlearned=result(0))], None).sentence


def test_the_stand_in_is_named_in_the_reasons():
    rest = {"holdout": result(0), "original": result(40)}
    entries = [entry(unlearned=result(0), **rest), entry("x", "input", unlearned=result(0), **rest)]
    found = verdict(entries, None)
    assert found.word == "erased"
    assert any("stand in" in reason for reason in found.reasons)


# --- what could not have been seen


def erased(control: int, n: int, **more: AttackEntry) -> Verdict:
    rest = {"control": result(control, n), "original": result(n, n)}
    entries = [entry(name, family, unlearned=result(0, n), **rest) for name, family in PAIR]
    return verdict([*entries, *more.values()], None)


PAIR = [("prompt", "none"), ("prefix", "input")]


def test_erased_says_what_could_not_have_been_seen():
    """The interval of 0 of 12 ends at 1 - 0.025 ** (1 / 12) = 26.5 %: 3 of 12 are within, 4 of 12 exceed."""
    rest = {"control": result(0, 12), "original": result(12, 12)}
    for hits, word in ((3, "erased"), (4, "suppressed")):
        through = entry("prefix", "input", unlearned=result(hits, 12), **rest)
        assert verdict([entry(unlearned=result(0, 12), **rest), through], None).word == word
    found = erased(0, 12)
    assert "A recovery of less than 33% of whole records could not have been told" in found.sentence
    assert any("Under every attack more than 20%" in reason for reason in found.reasons)


def test_no_warning_where_little_could_hide():
    found = erased(0, 40)  # the interval ends at 1 - 0.025 ** (1 / 40) = 8.8 %: 4 of 40
    assert "less than 10% of whole records could" in found.sentence
    assert not any("would have had to come back" in reason for reason in found.reasons)


def test_the_attack_that_saw_least_is_named():
    rest = {"unlearned": result(0), "original": result(40)}
    loose = entry("shifts", "input", control=result(6), **rest)  # 6 of 40: the interval ends at 29.8 %
    found = erased(0, 40, loose=loose)
    assert "less than 10% to 30% of whole records, depending on the attack, could" in found.sentence
    assert any("Under shifts more than 20%" in reason for reason in found.reasons)
    members = entry("membership-loss", "membership", control=result(6), **rest)
    assert "less than 10% of whole records could" in erased(0, 40, members=members).sentence


# --- an attack must work on a model that knows


def test_an_attack_that_brings_nothing_back_from_the_original_supports_nothing():
    twelve = {"unlearned": result(0, 12), "control": result(0, 12)}
    weak = entry("few-shot", "input", **twelve, original=result(2, 12))  # 17 %, the control's reaches to 26 %
    assert weak.judgement is not None
    assert weak.judgement.outcome == "blunt"
    assert weak.judgement.sentence == "It brings nothing back from the original either."
    plain = entry(**twelve, original=result(12, 12))
    assert verdict([plain, weak], None).word == "undecided"
    found = verdict([plain, entry("prefix", "input", **twelve, original=result(11, 12)), weak], None)
    assert found.word == "erased"
    assert "under 1 other attack." in found.sentence
    assert any("few-shot told nothing" in reason for reason in found.reasons)
    assert telling([plain, weak]) == ["prompt"]


def test_it_works_where_the_original_gives_more_in_part_or_the_unlearned_model_gives_more():
    rest = {"unlearned": result(0), "control": result(0, score=0.2)}
    assert judge({**rest, "original": result(0, score=0.6)}).outcome == "within"
    assert judge({"unlearned": result(20), "control": result(0), "original": result(0)}).outcome == "exceeds"
    assert judge({"unlearned": result(0), "control": result(0)}).outcome == "within", "it was not asked"
    late = judge({"unlearned": result(0), "control": result(0), "original": result(0, complete=False)})
    assert late.outcome == "unfinished"
    assert "on the original" in late.sentence
    plain = ended("prompt", "none")
    cut = [
        entry(f"cut-{i}", "input", unlearned=result(0), control=result(0), original=result(0, complete=False))
        for i in range(3)
    ]
    assert verdict([plain, ended("a", "input"), *cut], None).word == "undecided"


def test_an_attack_that_failed_on_the_original_does_not_support_that_nothing_is_left():
    fell = entry("fell", "input", unlearned=result(0), control=result(0))
    fell = fell.model_copy(update={"why": "Not on original: It failed with RuntimeError."})
    plain = ended("prompt", "none")
    assert verdict([plain, fell], None).word == "undecided"
    assert verdict([plain, fell, ended("a", "input")], None).word == "undecided"
    assert verdict([plain, fell, ended("a", "input"), ended("b", "input")], None).word == "erased"


def test_the_training_prompt_and_the_worst_case_keep_their_own_rule():
    nothing = {"unlearned": result(0), "control": result(0), "original": result(0)}
    assert judge(nothing, "none").outcome == "within"
    found = verdict([entry(**nothing), ended("a", "input")], None)
    assert found.word == "undecided"
    assert "nothing to erase" in found.sentence


# --- membership brings nothing back


def test_recognised_is_not_brought_back():
    rest = {"control": result(4), "original": result(40)}
    loss = entry("membership-loss", "membership", unlearned=result(30), **rest)
    assert loss.judgement is not None
    assert "recognised as members than with the control model" in loss.judgement.sentence
    assert loss.judgement.sentence.endswith("no text came back.")
    found = verdict([ended("prompt", "none"), ended("a", "input"), loss], None)
    assert found.word == "suppressed"
    assert "membership-loss tells forget records from records never seen better" in found.sentence
    assert "bring" not in found.sentence.replace("none was brought back", "")
    both = [loss, entry("relearn", "weights", unlearned=result(30), **rest)]
    mixed = verdict([ended("prompt", "none"), *both], None).sentence
    assert (
        "relearn brings back more than the control gives up, and membership-loss tells forget records"
        in mixed
    )
    assert "none was brought back" not in mixed


def test_membership_that_tells_nothing_says_so_in_its_own_words():
    def said(unlearned: int, control: int, original: int) -> str:
        columns = {"unlearned": result(unlearned), "control": result(control), "original": result(original)}
        return judge(columns, "membership").sentence  # type: ignore[arg-type]

    assert said(2, 2, 30) == "No more were recognised as members than with the control model."
    assert "half or more for members with the control model too" in said(30, 30, 40)
    assert said(2, 2, 2) == "It recognises nothing with the original either."


# --- membership by area


def told(area: float, n: int = N, others: int = N, **more: bool) -> Result:
    """A membership attack with this area under its ROC curve."""
    metric = Metric(value=area, low=area, high=area, n=n + others)
    return result(0, n, **more).model_copy(update={"values": {"auc": metric}})


def test_membership_is_judged_by_its_area_and_not_by_a_threshold_drawn_from_few_records():
    lucky = told(0.5).model_copy(update={"recovered": intervals.exact_share([i < 20 for i in range(N)])})
    rest = {"control": told(0.5), "original": told(1.0)}
    assert judge({"unlearned": lucky, **rest}, "membership").outcome == "within", "shares do not count"
    found = judge({"unlearned": told(0.9), **rest}, "membership")
    assert found.outcome == "exceeds"
    assert found.p_value is not None
    assert found.p_value < 1e-4
    assert "better than with the control model; no text came back." in found.sentence
    entries = [ended("prompt", "none"), ended("a", "input")]
    loss = entry("membership-loss", "membership", unlearned=told(0.9), **rest)
    said = verdict([*entries, loss], None)
    assert said.word == "suppressed"
    assert not any("by score" in reason for reason in said.reasons)


def test_an_area_that_could_not_be_told_from_the_controls_supports_nothing():
    few = {"unlearned": told(0.5, 4, 4), "control": told(0.5, 4, 4), "original": told(1.0, 4, 4)}
    assert judge(few, "membership").outcome == "blunt"
    assert "Too few records" in judge(few, "membership").sentence
    apart = {"unlearned": told(0.99), "control": told(0.98), "original": told(1.0)}
    assert "tells the records apart with the control model too" in judge(apart, "membership").sentence
    deaf = {"unlearned": told(0.5), "control": told(0.5), "original": told(0.5)}
    assert judge(deaf, "membership").sentence == "It tells no more with the original either."
    cut = {"unlearned": told(0.5, complete=False), "control": told(0.5), "original": told(1.0)}
    assert judge(cut, "membership").outcome == "unfinished"


def test_records_less_familiar_than_records_never_seen_are_a_trace_of_their_own():
    found = judge({"unlearned": told(0.1), "control": told(0.5), "original": told(1.0)}, "membership")
    assert found.outcome == "within"
    assert "less familiar" in found.sentence


def test_the_areas_test_is_that_of_hanley_and_mcneil():
    # their worked example's variance formula by hand: A = 0.7, 10 members, 20 others
    ours, theirs = 0.7 / 1.3, 2 * 0.49 / 1.7
    variance = (0.7 * 0.3 + 9 * (ours - 0.49) + 19 * (theirs - 0.49)) / 200
    found = area_chance(told(0.8, 10, 20), told(0.6, 10, 20))
    assert found == pytest.approx(float(norm.sf(0.2 / math.sqrt(2 * variance))), abs=1e-12)
    assert area_chance(told(0.6, 10, 20), told(0.8, 10, 20)) == pytest.approx(1 - found, abs=1e-12)
    assert area_chance(told(1.0), told(1.0)) == 1.0


def test_strangers_exceed_as_seldom_as_the_level_says():
    """No difference: forget and holdout scores of one distribution, under two models that know neither."""
    draw, exceeded = np.random.default_rng(0), 0
    for _ in range(400):
        areas = [
            intervals.membership_auc(
                draw.normal(size=20).tolist(), draw.normal(size=20).tolist(), resamples=1
            )
            for _ in range(2)
        ]
        exceeded += area_chance(*(told(area.value, 20, 20) for area in areas)) < 0.05
    assert exceeded / 400 == pytest.approx(0.05, abs=0.03)


def test_only_members_that_got_a_score_count():
    """Where time ran out: 10 of 40 forget records and all 40 others."""
    cut = told(0.8, complete=False)
    area = Metric(value=0.8, low=0.8, high=0.8, n=10 + N)
    cut = cut.model_copy(update={"values": {"auc": area, "flagged": intervals.share([0.0] * 10)}})
    whole = told(0.8, 10, N)
    assert area_chance(cut, told(0.5)) == pytest.approx(area_chance(whole, told(0.5)))
    assert area_chance(cut, told(0.5)) > area_chance(told(0.8), told(0.5))


# --- what is borrowed from the original


def test_what_is_lent_by_the_original_is_no_finding_beside_holdout_records():
    found = {"unlearned": result(14), "holdout": result(0), "original": result(40)}
    lent = judge(found, "weights", borrows=True)
    assert lent.outcome == "blunt"
    assert "Give --control." in lent.sentence
    assert judge(found, "weights").outcome == "exceeds"
    with_control = {"unlearned": result(14), "control": result(0), "original": result(40)}
    assert judge(with_control, "weights", borrows=True).outcome == "exceeds"
    none = {"unlearned": result(0), "holdout": result(0), "original": result(40)}
    assert judge(none, "weights", borrows=True).outcome == "blunt", "nor does it support that nothing is left"
    assert {name for name in ATTACKS if borrows(make_attack(name))} == {
        "contrastive", "interpolate", "activation-patching",
    }  # fmt: skip


# --- targets that the model cannot have known


def reaching(hits: int, never: int, n: int = N, *, complete: bool = True) -> Result:
    values = {NEVER_SEEN: intervals.share([float(i < never) for i in range(n)])}
    return result(hits, complete=complete).model_copy(update={"values": values})


@pytest.mark.parametrize(
    ("hits", "never", "outcome"),
    [
        (20, 20, "blunt"),
        (20, 30, "blunt"),
        (20, 19, "exceeds"),
        (20, 0, "exceeds"),
        (2, 2, "blunt"),
        (2, 0, "within"),
        (0, 0, "within"),
        (0, 1, "blunt"),
    ],
)
def test_what_reaches_targets_never_seen_as_often_tells_nothing(hits, never, outcome):
    found = judge({"unlearned": reaching(hits, never), "control": result(0), "original": result(40)})
    assert found.outcome == outcome
    assert ("any model say anything" in found.sentence) == (outcome == "blunt")


@pytest.mark.parametrize(("never", "original"), [(0, 0), (0, 40), (6, 0), (6, 40)])
def test_more_recovery_never_unsays_that_an_attack_exceeds(never, original):
    """Whatever the original gave, and however many targets never seen were reached."""
    rest = {"control": result(0), "original": result(original)}
    found = [
        judge({"unlearned": reaching(hits, never), **rest}).outcome == "exceeds" for hits in range(N + 1)
    ]
    assert found == sorted(found)
    assert found.index(True) == max(never + 1, 4)  # 4 of 40: the control's interval ends at 8.8 %


def test_such_an_attack_does_not_make_a_model_suppressed():
    rest = {"control": result(0), "original": result(40)}
    soft = entry("soft-prompt", "embedding", unlearned=reaching(20, 20), **rest)
    assert word_of(ended("a", "input"), soft) == "erased"
    assert word_of(soft) == "undecided"
    assert telling([ended("prompt", "none"), soft]) == ["prompt"]


def test_targets_that_time_left_out_are_no_share():
    """5 true ones of 40, most never tried, beside 2 of the 10 that were: more, not less."""
    cut = {"unlearned": reaching(5, 2, 10, complete=False), "control": result(0)}
    assert judge(cut).outcome == "exceeds"
    whole = {"unlearned": reaching(5, 2, 10), "control": result(0)}
    assert judge(whole).outcome == "blunt", "of 10 control targets 20 %, of 40 records 12.5 %"


# --- many attacks, one word


def test_p_values_are_adjusted_by_hand():
    """0.01 * 4; 0.02 * 3 = 0.06; 0.03 * 2 = 0.06; 0.9: never below the one before, never above 1."""
    found = holm({"a": 0.02, "b": 0.9, "c": 0.01, "d": 0.03})
    assert found == pytest.approx({"c": 0.04, "a": 0.06, "d": 0.06, "b": 0.9})
    assert holm({"a": 0.4, "b": 0.3, "c": 0.04}) == pytest.approx({"c": 0.12, "b": 0.6, "a": 0.6})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert doctest.testmod(verdicts).failed == 0


def test_the_reasons_say_which_attacks_stand_beside_so_many():
    """Fisher's p of 4 of 40 beside 0 of 40 is C(40,4) / C(80,4) = 0.0578: weak, and weaker times five."""
    rest = {"control": result(0), "original": result(40)}
    strong = entry("relearn", "weights", unlearned=result(20), **rest)
    weak = entry("noise", "weights", unlearned=result(4), **rest)
    found = verdict([ended("prompt", "none"), ended("a", "input"), ended("b", "input"), strong, weak], None)
    assert found.word == "suppressed"
    assert weak.judgement is not None
    assert weak.judgement.p_value == pytest.approx(91390 / 1581580)
    reason = next(one for one in found.reasons if "Holm" in one)
    assert "adjusted for 5 attacks" in reason
    assert f"relearn ({5 * math.comb(40, 20) / math.comb(80, 20):.2g})" in reason
    assert reason.endswith("stands; noise (0.23) does not stand at 5%.")  # 4 * 0.0578
    assert not any(
        "Holm" in one for one in verdict([ended("prompt", "none"), ended("a", "input")], None).reasons
    )


def test_what_exceeds_by_score_is_not_blamed_for_its_p_value():
    columns = {"unlearned": result(0, score=0.6), "control": result(0, score=0.2), "original": result(40)}
    found = verdict([ended("prompt", "none"), entry("shifts", "input", **columns)], None)
    assert any("The test counts whole records; shifts exceeds by score." in one for one in found.reasons)


# --- the control


def test_the_chance_of_so_many_more():
    assert chance(intervals.exact_share([True] * 5 + [False] * 5), intervals.exact_share([False] * 10)) == (
        pytest.approx(0.01625, abs=1e-5)  # C(10,5) C(10,0) / C(20,5)
    )
    assert chance(intervals.exact_share([False] * 9), intervals.exact_share([False] * 9)) == 1.0


def test_a_control_that_knows_the_data_is_found():
    original, nothing = result(38), result(0)
    assert knows(result(38), original, nothing)
    assert knows(result(25), original, nothing)
    assert knows(result(38), original, None)
    assert knows(result(38), None, nothing)
    assert not knows(nothing, original, nothing)
    assert not knows(result(6), original, result(3)), "guessable records are no sign of knowledge"
    assert not knows(result(8), original, nothing), "above chance, but nearer to it than to the original"
    assert not knows(nothing, nothing, nothing)
    assert not knows(result(38), None, None), "there is nothing to tell it by"


def test_beside_a_control_that_knows_a_part_nothing_is_erased():
    """19 of 40 are nearer to the holdout's 0 than to the original's 40, and reach to 64 %."""
    control, original, held = result(19), result(40), result(0)
    assert not knows(control, original, held)
    rest = {"control": control, "original": original}
    asked = [entry(unlearned=result(25), **rest), entry("a", "input", unlearned=result(25), **rest)]
    found = verdict(asked, None, doubt(control, original, held))
    assert found.word == "undecided"
    assert "the control may know some of the records" in found.sentence
    assert any("48% of the forget records" in one and "0% of the holdout" in one for one in found.reasons)
    for hits, word in ((35, "suppressed"), (0, "undecided")):
        through = entry("a", "input", unlearned=result(hits), **rest)
        assert verdict([asked[0], through], None, doubt(control, original, held)).word == word


def test_a_control_that_guesses_as_well_elsewhere_raises_no_doubt():
    assert doubt(result(0), result(40), result(0)) is None
    assert doubt(result(6), result(40), result(3)) is None
    assert doubt(result(19), result(40), result(19)) is None, "guessable records"
    assert doubt(result(0), result(40), None) is None
    assert doubt(result(0), None, result(0)) is None


def test_without_enough_holdout_records_nothing_shows_that_a_control_guesses():
    for holdout, few in ((None, "no holdout records"), (result(0, 3), "too few holdout records")):
        found = doubt(result(19), result(40), holdout)
        assert found is not None
        assert found.bars
        assert few in found.sentence
        assert "--holdout" in found.sentence


def test_a_control_that_nothing_can_check_is_named():
    for holdout, lacking in ((None, "no holdout"), (result(0, 1), "only few holdout")):
        found = doubt(result(0), None, holdout)
        assert found is not None
        assert not found.bars
        assert "was not checked" in found.sentence
        assert lacking in found.sentence
    rest = {"control": result(0)}
    asked = [entry(unlearned=result(0), **rest), entry("a", "input", unlearned=result(30), **rest)]
    judged = verdict(asked, None, doubt(result(0), None, None))
    assert judged.word == "suppressed"
    assert any("was not checked" in one for one in judged.reasons)


def test_what_is_lent_counts_in_no_worst_case():
    """Within alone, and together with another's records beyond: without a control it says nothing."""
    plain = {"unlearned": result(0), "holdout": result(0), "original": result(40)}
    some = {"unlearned": result(3), "holdout": result(0), "original": result(40)}
    entries = [
        entry(**plain),
        AttackEntry(
            name="interpolate",
            family="weights",
            line="",
            status="done",
            results=dict(some),  # type: ignore[arg-type]
            judgement=judge(some, "weights", borrows=True),  # type: ignore[arg-type]
        ),
        entry("prefix", "input", **plain),
    ]
    assert telling(entries) == ["prompt", "prefix"]
    found = verdict(entries, None)
    assert found.word == "erased"
    assert any("interpolate told nothing" in reason for reason in found.reasons)


def test_fewer_than_five_records_on_a_side_tell_nothing():
    found = {"unlearned": told(1.0, 40, 40), "control": told(0.2, 4, 4), "original": told(1.0, 40, 40)}
    judged = judge(found, "membership")
    assert judged.outcome == "blunt"
    assert "Too few records (8)" in judged.sentence


@pytest.mark.parametrize("shift", [0.0, 0.7, 1.5])
def test_models_alike_differ_as_seldom_as_the_level_says(shift):
    """Half the records on the control's side, as where the holdout stands in; areas from 0.5 to 0.86."""
    draw = np.random.default_rng(0)

    def drawn(n: int) -> Result:
        members, others = draw.normal(shift, size=(n, 1)), draw.normal(size=(1, n))
        return told(float((members > others).mean()), n, n)

    differed = [area_chance(drawn(12), drawn(6)) < 0.05 for _ in range(1500)]
    assert 0.03 < np.mean(differed) < 0.10


def test_a_small_control_whose_area_is_high_by_chance_is_no_flood():
    few = {"unlearned": told(0.8, 4, 4), "control": told(0.75, 4, 4), "original": told(1.0, 4, 4)}
    assert "Too few records" in judge(few, "membership").sentence
