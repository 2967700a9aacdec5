"""What follows from numbers: the laws of the audit's verdict, and of a control that knows too much."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
from scipy.stats import beta

from expunge import intervals
from expunge.audit_record import AttackEntry, Column, Result
from expunge.auditing.evidence import telling
from expunge.auditing.judgement import chance, judge, knows, verdict

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
        name=name, family=family, line="", status="done", results=found, judgement=judge(found)
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
    assert any("d ran out of time" in reason for reason in judged.reasons)


def test_what_was_cut_short_is_named_in_the_sentence():
    judged = verdict([ended("prompt", "none"), ended("a", "input"), short("b", "input")], None)
    assert "b did not come to an end" in judged.sentence
    assert "Give more --seconds." in judged.sentence
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
