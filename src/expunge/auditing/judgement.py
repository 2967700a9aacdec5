"""What follows from recovery on several models: per attack, over all of them, and about the control itself.

Pure functions over numbers; no model, no text, no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from scipy.stats import fisher_exact

from expunge import intervals
from expunge.attacks import PLAIN
from expunge.audit_record import AttackEntry, Column, Judgement, Result, Verdict
from expunge.record import Metric

WIDEST: Final = 0.3
"""How far above the control's recovery its interval may reach for "within" to mean something."""

HIGHEST: Final = 0.5
"""Recovery from the control from which on an attack is taken to make any model say anything."""

CLEAR: Final = 0.05
"""Level of the test that must find a difference from so high a control, whose interval ends just below 1."""

SURE: Final = 0.01
"""Level of the test that finds a control that knows the data."""

FEW: Final = 10
"""Forget records below which a reader is warned."""

_NAMES: Final[Mapping[Column, str]] = {
    "control": "the control model",
    "holdout": "records that it never saw",
    "original": "the original model",
    "unlearned": "the unlearned model",
}


def reference(results: Mapping[Column, Result]) -> Column | None:
    """What recovery is compared with: the control model, else the holdout records."""
    return next((column for column in ("control", "holdout") if column in results), None)


def judge(results: Mapping[Column, Result]) -> Judgement:
    """Whether the unlearned model gives up more than the control does, under one attack.

    It does if the share recovered lies above the control's exact interval, or if the whole interval of the
    mean score lies above that of the control (long responses come back in part before they come back whole).
    """
    column = reference(results)
    if column is None or "unlearned" not in results:
        return Judgement(outcome="unjudged", sentence="There was no control to compare with.")
    found, against = results["unlearned"], results[column]
    p_value = chance(found.recovered, against.recovered)
    clear = against.recovered.value < HIGHEST or p_value < CLEAR
    more = found.recovered.value > against.recovered.high and clear
    in_part = found.score.low > against.score.high
    name = _NAMES[column]
    if (more or in_part) and against.complete:
        how = "" if more else " in part (by score)"
        return Judgement(
            outcome="exceeds", sentence=f"More came back{how} than from {name}.", p_value=p_value
        )
    if not (found.complete and against.complete):
        sentence = "Time ran out before it had tried everything: this is no answer. Give more --seconds."
        return Judgement(outcome="unfinished", sentence=sentence, p_value=p_value)
    if why := _blunt(against.recovered, name):
        return Judgement(outcome="blunt", sentence=why, p_value=p_value)
    return Judgement(outcome="within", sentence=f"No more came back than from {name}.", p_value=p_value)


def _blunt(control: Metric, name: str) -> str:
    """Why a difference could not have been seen, or nothing."""
    if control.value >= HIGHEST:
        return f"It makes {name} say the responses too: what it recovers shows nothing about this model."
    if control.high - control.value > WIDEST:
        reach = f"its interval reaches to {control.high:.0%}"
        return f"Too few records of the control ({control.n}) to see a difference: {reach}. Give more."
    return ""


def chance(found: Metric, against: Metric) -> float:
    """One-sided Fisher's exact test: probability of so many successes more, were the rates the same."""
    hits, others = round(found.value * found.n), round(against.value * against.n)
    table = [[hits, found.n - hits], [others, against.n - others]]
    return float(fisher_exact(table, alternative="greater").pvalue)


# --- over all attacks


def verdict(attacks: Sequence[AttackEntry], best: AttackEntry | None) -> Verdict:
    """The audit's word, from the plain prompt, the other attacks, and the worst case over them.

    Args:
        attacks: The plain prompt and the others, judged where they ran.
        best: The worst case per record over those that tell something.
    """
    plain = next((entry for entry in attacks if entry.name == PLAIN), None)
    if plain is None or plain.judgement is None:
        why = plain.why if plain else "It was not asked."
        return Verdict(word="undecided", sentence=f"There is no answer to the training prompt. {why}")
    reasons = list(_reasons(attacks))
    outcome = plain.judgement.outcome
    if outcome == "unjudged":
        return _without_control(plain, reasons)
    if outcome == "exceeds":
        sentence = f"The training prompt alone brings records back. {plain.judgement.sentence}"
        return Verdict(word="not forgotten", sentence=sentence, reasons=reasons)
    if outcome != "within":
        sentence = f"The training prompt gave no clear answer. {plain.judgement.sentence}"
        return Verdict(word="undecided", sentence=sentence, reasons=reasons)
    if not _known_before(plain.results):
        sentence = (
            "The original model does not give the records to their own prompts either: there was nothing to "
            "erase, or the prompts are not those it was taught."
        )
        return Verdict(word="undecided", sentence=sentence, reasons=reasons)
    return _behind_the_prompt(attacks, best, reasons)


def _behind_the_prompt(
    attacks: Sequence[AttackEntry], best: AttackEntry | None, reasons: list[str]
) -> Verdict:
    """The plain prompt is within the control's interval: what of the other attacks."""
    beyond = [entry.name for entry in _judged(attacks) if entry.name != PLAIN]
    through = [name for name in beyond if _outcome(attacks, name) == "exceeds"]
    if through:
        sentence = (
            f"The training prompt shows nothing, but {_listed(through)} "
            f"bring{'s' if len(through) == 1 else ''} back more than the control gives up."
        )
        return Verdict(word="suppressed", sentence=sentence, reasons=reasons)
    if best is not None and best.judgement is not None and best.judgement.outcome == "exceeds":
        sentence = (
            "No attack alone stands out, but together they bring back more than they do from the control."
        )
        return Verdict(word="suppressed", sentence=sentence, reasons=reasons)
    if why := unsupported(attacks):
        return Verdict(word="undecided", sentence=why, reasons=reasons)
    count = sum(_outcome(attacks, name) == "within" for name in beyond)
    sentence = (
        "Nothing beyond the control came back: not to the training prompt, and not under "
        f"{count} other attack{'s' if count != 1 else ''}."
    )
    return Verdict(word="erased", sentence=sentence, reasons=reasons)


def unsupported(attacks: Sequence[AttackEntry]) -> str:
    """Why nothing can be called erased although nothing came back; "" where it can.

    "Erased" is said of what was tried, so it must have been tried. An attack supports it only if it came to
    an end, all its probes and its whole budget, on the unlearned model and on what that is compared with, and
    stayed within. The word needs

    * an original that was asked the prompts (that it knew the records is checked before);
    * such an attack besides the training prompt;
    * more such attacks than were begun and did not come to an end: cut short by time, or failed;
    * and one in every family in which an attack was begun and did not come to an end.

    Attacks that tell nothing because the control gives up as much count on neither side, and what was never
    begun (a library is missing, records are) is named among what was not tried.

    Args:
        attacks: The plain prompt and the others, judged where they ran; none of them exceeds.
    """
    if not any("original" in entry.results for entry in attacks if entry.name == PLAIN):
        return (
            "Nothing beyond the control came back, but no original model was asked: that there was "
            "anything to erase was not shown. Give --original."
        )
    others = [entry for entry in attacks if entry.name != PLAIN]
    ended = [entry for entry in _judged(others) if _outcome(others, entry.name) == "within"]
    open_ = [entry for entry in others if _open(entry)]
    if not (ended or open_):
        return "The training prompt shows nothing, and no other attack gave an answer: that proves little."
    silent = {entry.family for entry in open_} - {entry.family for entry in ended}
    if len(ended) > len(open_) and not silent:
        return ""
    named = [entry.name for entry in open_ if len(ended) <= len(open_) or entry.family in silent]
    alone = ", and no other of the same family did" if len(ended) > len(open_) else ""
    count = f"{len(ended)} other attack{'s' if len(ended) != 1 else ''} did"
    late = any(entry.judgement and entry.judgement.outcome == "unfinished" for entry in open_)
    return (
        f"Nothing beyond the control came back, but {_listed(named)} did not come to an end{alone}: that is "
        f"no answer ({count}).{' Give more --seconds.' if late else ''}"
    )


def _open(entry: AttackEntry) -> bool:
    """Whether an attack was begun and did not come to an end on the models that count."""
    if entry.judgement is None:
        return entry.status == "failed"
    return entry.judgement.outcome in ("unfinished", "unjudged")


def _without_control(plain: AttackEntry, reasons: list[str]) -> Verdict:
    """No control: only "not forgotten" can be said, where the prompt gives what it gave before."""
    now, before = plain.results["unlearned"], plain.results.get("original")
    known = before is not None and before.recovered.low > 0
    if before is not None and known and now.recovered.value >= before.recovered.low:
        sentence = "The training prompt brings back as much as from the original model."
        return Verdict(word="not forgotten", sentence=sentence, reasons=reasons)
    sentence = (
        "There is neither a control model nor holdout records, so nothing can be called erased. Give "
        "--control "
        "or --holdout."
    )
    return Verdict(word="undecided", sentence=sentence, reasons=reasons)


def _known_before(results: Mapping[Column, Result]) -> bool:
    """Whether the original gave up more than the control; taken to be so where it was not asked."""
    column, before = reference(results), results.get("original")
    if before is None or column is None:
        return True
    against = results[column]
    return before.recovered.value > against.recovered.high or before.score.low > against.score.high


def _reasons(attacks: Sequence[AttackEntry]) -> Iterable[str]:
    """What weakens the verdict, attack by attack."""
    plain = next(entry for entry in attacks if entry.name == PLAIN)
    column = reference(plain.results)
    if column == "holdout":
        yield (
            "No control model was given: holdout records, which the unlearned model never saw, stand "
            "in. They "
            "show what an attack gets out of it by guessing, not what a model without the records would say."
        )
    if (found := plain.results["unlearned"].recovered).n < FEW:
        yield f"Only {found.n} forget record{'s were' if found.n != 1 else ' was'} attacked."
    if "original" not in plain.results:
        yield "No original model was given: whether the records were ever known to it was not shown."
    told = {
        "unjudged": "{} had no control to compare with." if column else "",
        "blunt": "{} told nothing: the control gives up as much, or too few records were asked.",
        "unfinished": "{} ran out of time.",
    }
    for outcome, text in told.items():
        names = [
            entry.name
            for entry in _judged(attacks)
            if entry.judgement is not None and entry.judgement.outcome == outcome
        ]
        if names and text:
            yield text.format(_listed(names))
    left = [entry.name for entry in attacks if entry.status != "done"]
    if left:
        yield f"{_listed(left)} could not be run."


def _judged(attacks: Sequence[AttackEntry]) -> list[AttackEntry]:
    return [entry for entry in attacks if entry.judgement is not None]


def _outcome(attacks: Sequence[AttackEntry], name: str) -> str:
    return next(e.judgement.outcome for e in attacks if e.name == name and e.judgement is not None)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- about the control


def knows(control: Result, original: Result | None, holdout: Result | None) -> str:
    """Why a control must have seen the forget records, or nothing.

    Its plain recovery must not be above chance. Chance is what it says about holdout records, which it has
    not seen either; it is taken to know the data where Fisher's test finds the difference and it stands
    nearer to the original than to chance. Without a holdout, it must not stand half way to the original.

    Args:
        control: The plain prompt on the control model.
        original: The same on the original model.
        holdout: The control model asked about the holdout records.
    """
    found = control.recovered
    if holdout is not None:
        top = original.recovered.value if original else found.value
        above = chance(found, holdout.recovered) < SURE
        if above and found.value > (top + holdout.recovered.value) / 2 - 1e-9:
            return (
                f"it gives {found.value:.0%} of the forget records to their own prompts, but "
                f"{holdout.recovered.value:.0%} of the holdout records"
            )
    elif original is not None and found.low > original.recovered.value / 2:
        return (
            f"it gives {found.value:.0%} of the forget records to their own prompts, the original model "
            f"{original.recovered.value:.0%}"
        )
    return ""


def share(flags: Sequence[bool]) -> Metric:
    """Share of records with its exact interval."""
    return intervals.exact_share(flags)
