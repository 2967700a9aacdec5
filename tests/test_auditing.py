"""The audit end to end on tiny models: its verdicts, what it keeps, what it refuses, what it hides."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import VERSION

import audit_world as world
import conftest
import expunge
from audit_world import FORGET, HOLDOUT, QUICK, RETAIN, FirstTokens
from expunge import UsageError, attacks
from expunge.attacks.attack import Cost, Findings, Probes, Recovery, Setting, Target
from expunge.attacks.choose_best import ChooseBest
from expunge.audit_record import AUDIT_SCHEMA, AuditRecord, read_audit, write_audit
from expunge.auditing.running import announced
from expunge.auditing.subjects import cases, halved
from expunge.defences.defended import Defended
from expunge.defences.filters import RefusePrompts
from expunge.progress import Silent
from expunge.weights import weights_hash

SETS = {"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT}
BOTH = ["prompt", FirstTokens()]
SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "audit.schema.json"


@pytest.fixture(scope="module")
def original(tokenizer):
    return world.taught(world.KEPT + world.GONE, tokenizer)


@pytest.fixture(scope="module")
def control(tokenizer):
    return world.taught(world.KEPT, tokenizer)


@pytest.fixture(scope="module")
def hidden(original, tokenizer):
    return world.hiding(original, tokenizer)


@pytest.fixture(scope="module")
def never(tokenizer):
    """Another model that never saw the forget records."""
    return world.taught((*world.KEPT, "Oda Olive"), tokenizer)


@pytest.fixture(scope="module")
def audited(hidden, control, original, tokenizer):
    return expunge.audit(
        hidden, tokenizer, **SETS, original=original, control=control, attacks=BOTH, **QUICK
    ).record


def test_what_is_merely_hidden_is_found(audited):
    assert audited.verdict.word == "suppressed"
    assert "first-tokens" in audited.verdict.sentence
    plain, deeper = audited.attack("prompt"), audited.attack("first-tokens")
    assert plain.results["unlearned"].recovered.value == 0.0
    assert plain.results["original"].recovered.value == 1.0
    assert deeper.results["unlearned"].recovered.value == 1.0
    assert (plain.judgement.outcome, deeper.judgement.outcome) == ("within", "exceeds")
    assert audited.best.judgement.outcome == "exceeds"
    assert audited.control == "model"
    first = audited.worst[0]
    assert first.answer.recovered
    assert first.attacks == ["first-tokens"]
    assert first.control is False
    assert first.response.endswith(first.answer.output)


def test_what_was_never_known_is_erased(never, control, original, tokenizer):
    sets = SETS | {"holdout": None}
    found = expunge.audit(
        never, tokenizer, **sets, original=original, control=control, attacks=BOTH, **QUICK
    ).record
    assert found.verdict.word == "erased"
    assert {entry.judgement.outcome for entry in found.attacks} == {"within"}


def test_what_was_not_removed_is_not_forgotten(original, control, tokenizer):
    found = expunge.audit(original, tokenizer, **SETS, control=control, attacks=["prompt"], **QUICK).record
    assert found.verdict.word == "not forgotten"
    assert any("No original model" in reason for reason in found.verdict.reasons)


def test_without_a_control_the_holdout_stands_in_and_the_record_says_so(hidden, original, tokenizer):
    found = expunge.audit(hidden, tokenizer, **SETS, original=original, attacks=BOTH, **QUICK).record
    assert found.control == "holdout"
    assert set(found.attack("prompt").results) == {"unlearned", "holdout", "original"}
    assert found.attack("prompt").results["holdout"].recovered.n == len(HOLDOUT)
    assert any("stand in" in reason for reason in found.verdict.reasons)
    alone = expunge.audit(hidden, tokenizer, forget=FORGET, attacks=["prompt"], **QUICK).record
    assert alone.control == "none"
    assert alone.verdict.word == "undecided"
    assert "--control" in alone.verdict.sentence


def test_the_same_seed_gives_the_same_audit(audited, hidden, control, original, tokenizer):
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    again = expunge.audit(
        hidden, tokenizer, **SETS, original=original, control=control, attacks=BOTH, **QUICK
    ).record

    def plain(record: AuditRecord) -> str:
        dumped = json.loads(record.model_dump_json(exclude={"created", "timings", "peak_memory_bytes"}))
        return json.dumps(world.without(dumped, "seconds"))

    assert plain(again) == plain(audited)
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


# --- what has ended is kept


@dataclass(frozen=True)
class Counting(FirstTokens):
    """Counts how often it is run; breaks off where it is told to."""

    name: ClassVar[str] = "counting"
    runs: ClassVar[list[str]] = []
    stop_at: ClassVar[str] = ""

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        if target.role == self.stop_at:
            raise KeyboardInterrupt
        self.runs.append(target.role)
        return super().run(target, probes, setting)


def test_an_interrupted_audit_goes_on(hidden, control, original, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "runs", [])
    monkeypatch.setattr(Counting, "stop_at", "original")

    def go(**more):
        return expunge.audit(
            hidden,
            tokenizer,
            original=original,
            control=control,
            output=tmp_path / "a",
            **QUICK,
            **{**SETS, "attacks": ["prompt", Counting()], **more},
        )

    with pytest.raises(KeyboardInterrupt):
        go()
    assert Counting.runs == ["unlearned", "control"]
    assert not (tmp_path / "a" / "audit.json").exists()
    with pytest.raises(UsageError, match="--resume"):
        go()
    monkeypatch.setattr(Counting, "stop_at", "")
    done = go(resume=True)
    assert Counting.runs == ["unlearned", "control", "original"], "what had ended was not run again"
    assert read_audit(tmp_path / "a") == done.record
    assert done.record.verdict.word == "suppressed"
    more = go(resume=True, attacks=["prompt", Counting(), FirstTokens()])
    assert len(Counting.runs) == 3
    assert [entry.name for entry in more.record.attacks] == ["prompt", "counting", "first-tokens"]
    go(resume=True, attacks=[Counting(tokens=2)])
    assert len(Counting.runs) == 6, "other settings are another attack"
    go(resume=True, attacks=[Counting(tokens=2)], forget=FORGET[:-1])
    assert len(Counting.runs) == 9, "other records give other findings"
    for path in (tmp_path / "a" / "findings").glob("counting-*"):
        path.write_text(path.read_text()[:-40])
    go(resume=True, attacks=[Counting(tokens=2)], forget=FORGET[:-1])
    assert len(Counting.runs) == 12, "a damaged file is no finding"
    go(overwrite=True, attacks=["prompt"])
    assert not list((tmp_path / "a" / "findings").glob("counting-*"))


# --- redaction


def test_redaction_leaves_no_word_of_what_was_removed(hidden, control, original, tokenizer, tmp_path):
    files = {name: tmp_path / f"{name}.jsonl" for name in SETS}
    for name, path in files.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in SETS[name]))

    def go(redact: bool, **more) -> AuditRecord:
        return expunge.audit(
            hidden,
            tokenizer,
            **files,
            original=original,
            control=control,
            attacks=["prompt", Quoting()],
            output=tmp_path / "a",
            redact=redact,
            **QUICK,
            **more,
        ).record

    def written() -> str:
        return "".join(p.read_text() for p in sorted((tmp_path / "a").rglob("*")) if p.is_file())

    secrets = [row[key] for row in FORGET for key in ("prompt", "response")]
    go(redact=False)
    assert all(secret in written() for secret in secrets[:2])
    found = go(redact=True, resume=True)
    assert not [secret for secret in secrets if secret in written()]
    assert found.redacted
    assert found.verdict.word == "suppressed"
    assert found.worst
    assert found.worst[0].place == "line 1"
    assert found.attack("quoting").results["unlearned"].notes == ["A note was left out: it quotes a record."]
    assert "Redacted" in (tmp_path / "a" / "report.html").read_text()
    go(redact=False, resume=True)
    assert secrets[0] in written(), "without --redact the text is found again, by running again"


@dataclass(frozen=True)
class Quoting(FirstTokens):
    """Its notes quote a record."""

    name: ClassVar[str] = "quoting"

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        found = super().run(target, probes, setting)
        return Findings(found.recoveries, notes=[f"The first is {probes.forget[0].response}, it says."])


# --- attacks that misbehave


@dataclass(frozen=True)
class Odd:
    """Does what it is told to, badly."""

    fault: str = ""
    name: ClassVar[str] = "odd"
    family: ClassVar[str] = "weights"
    line: ClassVar[str] = "Misbehaves."

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        return "It needs a full moon. Wait for one." if self.fault == "obstacle" else None

    def cost(self, probes: Probes) -> Cost:
        return Cost(backward_tokens=12)

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        if self.fault == "library":
            import no_such_library  # noqa: F401
        if self.fault == "defect":
            raise RuntimeError("the moon is wrong")
        if self.fault == "changes":
            with torch.no_grad():
                next(target.model.parameters()).add_(1.0)
        if self.fault == "changes and falls":
            with torch.no_grad():
                next(target.model.parameters()).add_(1.0)
            raise RuntimeError("the moon is wrong")
        count = len(probes.forget) - (self.fault == "short")
        return Findings([Recovery(2.0 if self.fault == "score" else 0.0, False)] * count)


def test_an_attack_that_fails_on_the_control_alone_has_no_outcome(hidden, control, tokenizer):
    found = expunge.audit(
        hidden, tokenizer, **SETS, control=control, attacks=["prompt", Picky(), FirstTokens()], **QUICK
    ).record
    assert found.attack("picky").judgement.outcome == "unjudged"
    why = {one.name: one.why for one in found.untried}
    assert "Not on control: It failed with RuntimeError: not this one" in why["picky"]
    assert any("picky had no control" in reason for reason in found.verdict.reasons)
    assert found.verdict.word == "suppressed"


@dataclass(frozen=True)
class Picky(FirstTokens):
    """Fails on a control."""

    name: ClassVar[str] = "picky"

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        if target.role == "control":
            raise RuntimeError("not this one")
        return super().run(target, probes, setting)


@pytest.mark.parametrize(
    ("fault", "status", "why"),
    [
        ("obstacle", "skipped", "full moon"),
        ("library", "skipped", "A library is missing: No module named 'no_such_library'"),
        ("defect", "failed", "It failed with RuntimeError: the moon is wrong"),
        ("short", "failed", r"one per record \(12\); attack odd gave 11"),
        ("score", "failed", r"must be in \[0, 1\]; attack odd gave 2"),
    ],
)
def test_an_attack_that_cannot_run_is_named_and_ends_nothing(fault, status, why, hidden, tokenizer):
    found = expunge.audit(
        hidden, tokenizer, **SETS, attacks=["prompt", Odd(fault), FirstTokens()], **QUICK
    ).record
    entry = found.attack("odd")
    assert entry.status == status
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(entry.why)
    assert entry.name in {one.name for one in found.untried}
    assert any("odd could not be run" in reason for reason in found.verdict.reasons)
    assert found.attack("first-tokens").status == "done"


@pytest.mark.parametrize("fault", ["changes", "changes and falls"])
def test_an_attack_that_changes_a_model_ends_the_audit(fault, control, tokenizer):
    model = copy.deepcopy(control)
    with pytest.raises(UsageError, match="odd must leave the model as it was"):
        expunge.audit(model, tokenizer, **SETS, attacks=[Odd(fault)], **QUICK)


def test_a_missing_library_at_import_skips_the_attack(hidden, tokenizer, monkeypatch):
    known = {**attacks.ATTACKS, "needy": "no_such_library.attack:Attack"}
    monkeypatch.setattr(attacks, "ATTACKS", known)
    monkeypatch.setattr("expunge.auditing.material.ATTACKS", known)
    monkeypatch.setattr("expunge.auditing.material.family_of", lambda name: "weights")
    assert "Not available here" in attacks.lines()["needy"]
    found = expunge.audit(hidden, tokenizer, **SETS, attacks=["prompt", "needy"], **QUICK).record
    assert found.attack("needy").status == "skipped"
    assert "no_such_library" in found.attack("needy").why


# --- what is refused


def test_a_control_that_knows_the_data_is_refused(hidden, original, tokenizer):
    knowing = copy.deepcopy(original)
    with torch.no_grad():
        knowing.model.norm.weight.mul_(1.01)  # other weights, the same knowledge
    for sets in (SETS, SETS | {"holdout": None}):
        with pytest.raises(UsageError, match="never saw the forget records; it gives 100%"):
            expunge.audit(
                hidden, tokenizer, **sets, original=original, control=knowing, attacks=["prompt"], **QUICK
            )
    with pytest.raises(UsageError, match="it has the weights of the original model"):
        expunge.audit(hidden, tokenizer, **SETS, original=original, control=original, **QUICK)


def test_a_control_that_may_know_a_part_is_named_in_the_verdict(never, original, tokenizer):
    """Half of the records: too few to refuse it without holdout records, too many to take for guesses."""
    guard = RefusePrompts(tuple(row["prompt"] for row in FORGET[::2]), 1.0)
    partly = Defended(copy.deepcopy(original), tokenizer, [guard], template="none")
    found = expunge.audit(
        never, tokenizer, forget=FORGET, original=original, control=partly, attacks=["prompt"], **QUICK
    ).record
    assert found.attack("prompt").results["control"].recovered.value == 0.5
    assert found.verdict.word == "undecided"
    (reason,) = [one for one in found.verdict.reasons if "to tell whether by guessing" in one]
    assert "The control gives 50% of the forget records" in reason


def test_models_of_different_vocabularies_are_refused(model_folder, tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["zzyzx"])
    conftest.build_model().save_pretrained(tmp_path / "m")
    other.save_pretrained(tmp_path / "m")
    with pytest.raises(UsageError, match="original and the unlearned model must share one vocabulary"):
        expunge.audit(model_folder, **SETS, original=tmp_path / "m", **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "--seconds must be positive; got 0"),
        ({"seconds": float("nan")}, "--seconds must be positive"),
        ({"attacks": ["promt"]}, "Did you mean prompt"),
        ({"attacks": []}, "at least one attack"),
        ({"attacks": ["prompt", "prompt"]}, "stands there twice"),
        ({"attacks": ["prompt"], "prompt:steps": 1}, "must name a setting of the attack; it has none"),
        ({"attacks": ["prompt"], "relearn:steps": 1}, "must name an attack or a filter of this audit"),
        ({"attacks": ["nowhere.py:Mine"]}, "there is no nowhere.py"),
        ({"forget": None}, "audit needs forget records"),
        ({"holdout": FORGET[:1]}, "must share no record"),
        ({"learning_rat": 1}, "'learning_rat' is none"),
    ],
)
def test_bad_input_is_one_message_before_any_model_loads(options, message, model_folder, monkeypatch):
    monkeypatch.setattr("expunge.auditing.subjects.load_model", lambda source: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=message):
        expunge.audit(model_folder, **{**SETS, **QUICK, **options})


def test_an_attack_of_the_users_own_file(hidden, tokenizer, tmp_path):
    place = f"{world.__file__}:FirstTokens"
    found = expunge.audit(
        hidden, tokenizer, **SETS, attacks=["prompt", place], **{f"{place}:tokens": "2"}, **QUICK
    ).record
    assert found.attack("first-tokens").configuration == {"tokens": 2}
    assert found.attack("first-tokens").results["unlearned"].recovered.value > 0.5
    with pytest.raises(UsageError, match=r"refused its settings: `tokens` must be at least 1; got 0"):
        attacks.make_attack(place, {"tokens": 0})
    with pytest.raises(UsageError, match=r"tokens must be a valid integer.*got 'many'"):
        attacks.make_attack(place, {"tokens": "many"})
    (tmp_path / "bare.py").write_text("class Bare:\n    name = 'bare'\n")
    with pytest.raises(UsageError, match=r"must have name, family, line.*Bare lacks family, line"):
        attacks.make_attack(f"{tmp_path / 'bare.py'}:Bare")


def test_the_attack_of_the_documentation_runs(hidden, tokenizer, tmp_path):
    text = (SCHEMA.parent / "audit.md").read_text(encoding="utf-8")
    (tmp_path / "politely.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    place = f"{tmp_path / 'politely.py'}:Politely"
    found = expunge.audit(
        hidden, tokenizer, **SETS, attacks=["prompt", place], **{f"{place}:ways": "3"}, **QUICK
    ).record
    assert found.attack("politely").status == "done"
    assert found.attack("politely").results["unlearned"].tries == 3 * len(FORGET)
    assert found.attack("politely").cost.generated_tokens > 0


# --- parts


def test_every_attack_of_the_registry_has_its_name_and_family():
    for name in attacks.ATTACKS:
        attack = attacks.make_attack(name)
        assert (attack.name, attack.family) == (name, attacks.family_of(name))
        assert attack.line.endswith(".")
        assert "\n" not in attack.line
    assert set(attacks.ATTACKS) > attacks.ON_REQUEST
    assert next(iter(attacks.ATTACKS)) == attacks.PLAIN
    assert set(attacks.lines()) == set(attacks.ATTACKS)
    assert attacks.make_attack("relearn-retain", {"rows": "4"}).rows == 4
    assert attacks.make_attack("relearn", {"steps": "3, 9"}).steps == (3, 9)
    assert attacks.make_attack("relearn", {"steps": 3}).steps == (3,)


def test_the_cost_is_said_before_an_attack_starts(hidden, tokenizer):
    told: list[str] = []

    class Telling(Silent):
        def phase(self, title, total):
            told.append(title)
            return super().phase(title, total)

    Counting.runs.clear()
    expunge.audit(hidden, tokenizer, **SETS, attacks=[Counting()], seconds=60, reporter=Telling(), **QUICK)
    assert told[0].startswith("2 attacks on unlearned, holdout: tokens: ")
    assert told[0].endswith("at most 240 s")
    read = Counting().cost(Probes(world.records(FORGET))).forward_tokens
    assert f"counting on unlearned (tokens: {read} read; at most 60 s)" in told
    assert announced(Cost(95, 12_345, 234_900), float("inf")) == (
        "tokens: 95 read, 12k differentiated, 235k written"
    )


def test_choose_best_is_the_worst_case_per_record(hidden, tokenizer):
    target, probes = (
        Target("unlearned", hidden, tokenizer),
        Probes(world.records(FORGET), encoding=world.ENCODING),
    )
    plain, deeper = attacks.make_attack("prompt"), FirstTokens()
    both = ChooseBest((plain, deeper, Odd("obstacle")))
    found = both.run(target, probes, Setting())
    alone = deeper.run(target, probes, Setting())
    assert [one.recovered for one in found.recoveries] == [one.recovered for one in alone.recoveries]
    assert found.recoveries[0].input == f"first-tokens: {alone.recoveries[0].input}"
    assert {one.tries for one in found.recoveries} == {2}
    assert any("odd was left out" in note for note in found.notes)
    assert both.cost(probes).forward_tokens == sum(a.cost(probes).forward_tokens for a in (plain, deeper))
    assert ChooseBest((Odd("obstacle"),)).obstacle(probes, Setting()) is not None
    with pytest.raises(ValueError, match="at least one attack"):
        ChooseBest(())


def test_membership_attacks_get_unseen_records_in_the_stand_in(hidden, tokenizer):
    target = Target("unlearned", hidden, tokenizer)
    probes = Probes(world.records(FORGET), holdout=world.records(HOLDOUT), encoding=world.ENCODING)
    found = cases({"unlearned": target}, probes, {"unlearned": world.model_entry(weights_hash(hidden))})
    assert [case.column for case in found] == ["unlearned", "holdout"]
    stand_in = halved(found[1]).probes
    assert {r.prompt for r in stand_in.forget}.isdisjoint(r.prompt for r in stand_in.holdout)
    assert len(stand_in.forget) + len(stand_in.holdout) == len(HOLDOUT)
    assert halved(found[0]) is found[0]


def test_the_record_survives_the_round_trip(audited, tmp_path):
    path = write_audit(audited, tmp_path)
    assert read_audit(tmp_path) == audited
    changed = json.loads(path.read_text()) | {"schema_version": AUDIT_SCHEMA + 1}
    path.write_text(json.dumps(changed))
    with pytest.raises(UsageError, match="schema version 1; it has 2"):
        read_audit(tmp_path)
    path.write_text("{")
    with pytest.raises(UsageError, match="is not an audit"):
        read_audit(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read_audit(tmp_path / "nowhere")


@pytest.mark.skipif(VERSION < "2.12", reason="older pydantic words the schema otherwise")
def test_the_exported_schema_is_that_of_the_code():
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == AuditRecord.model_json_schema()
