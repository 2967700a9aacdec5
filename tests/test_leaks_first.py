"""Near the end, the records that still leak are drawn alone: the look that finds them, and what is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import conftest
from expunge import inputs
from expunge.arguments import UnlearningArguments
from expunge.batching import BySource
from expunge.companions import joined
from expunge.forget_check import CheckSettings, forget_check
from expunge.methods import METHODS, Method, dpo, ngdiff, ngdiff_gen
from expunge.record import Check
from expunge.records import read_records
from expunge.report import render
from expunge.report.tables import course
from expunge.scoring import TokenScores
from expunge.settings import configuration, resolve_method
from expunge.stopping import Looked, against_holdout, with_earlier
from expunge.tables import Part, examine
from expunge.training_sets import TrainingSets
from expunge.unlearner import Unlearner
from record_factory import run_record

FORGET, RETAIN, HOLDOUT = conftest.rows()[:6], conftest.rows()[6:], conftest.rows(("Ivy Iris", "Jon Juniper"))


def score(nll: float, *, reproduced: bool) -> TokenScores:
    return TokenScores(np.array([-nll]), np.array([reproduced]))


FAR, LEAKS, UNSEEN = (
    score(9.0, reproduced=False), score(0.1, reproduced=True), score(4.0, reproduced=False)
)  # fmt: skip


def test_the_look_names_the_rows_that_remain():
    seen = [11, *(row for row in range(20) if row not in (4, 9, 11))]
    rows = [LEAKS if row in (3, 11) else FAR for row in seen]
    look = against_holdout(7, rows, [UNSEEN], looked=Looked(seen, 18, 20))
    assert (look.met, look.remaining) == (False, [3, 11])


@pytest.mark.parametrize(
    ("forget", "holdout", "looked", "met"),
    [
        ([FAR, FAR], [UNSEEN], None, True),
        ([LEAKS, score(2.0, reproduced=False)], [UNSEEN], None, False),
        ([score(float("nan"), reproduced=False)], [UNSEEN], None, False),
        ([FAR, LEAKS], [UNSEEN], Looked([0, 1], 2, 30, whole=False), False),
        ([FAR, LEAKS], [UNSEEN, LEAKS], None, True),
    ],
    ids=[
        "met", "likely as well", "not a number", "some were looked at",
        "the control leaks as much",
    ],
)  # fmt: skip
def test_otherwise_it_names_none(forget, holdout, looked, met):
    look = against_holdout(7, forget, holdout, looked=looked)
    assert (look.met, look.remaining) == (met, [])


def test_rows_of_this_request_remain_whatever_became_of_earlier_ones():
    now = against_holdout(7, [FAR, LEAKS], [UNSEEN])
    assert with_earlier(now, now, now).remaining == [1]
    assert with_earlier(replace_met(now), now, now).remaining == []


def replace_met(check: Check) -> Check:
    return check.model_copy(update={"met": True, "remaining": []})


@pytest.mark.parametrize("given", [True, False], ids=["holdout", "synthetic holdout"])
def test_a_look_at_a_model_knows_which_rows_it_read(tokenizer, monkeypatch, given):
    """Rows are numbered as in the forget set, whichever were drawn for the look, or have a twin."""
    forget = read_records([*FORGET, {"prompt": "and then", "response": "nothing"}], name="forget")
    retain = read_records(conftest.rows()[6:] * 3, name="retain")
    settings = CheckSettings(5, 3, UnlearningArguments(template="none").encoding, "fp32")
    asked = {}

    def noted(step, rows, unseen, *, looked, **words):
        asked.update(vars(looked), scores=rows, unseen=unseen)
        return against_holdout(step, rows, unseen, looked=looked, **words)

    monkeypatch.setattr("expunge.forget_check.against_holdout", noted)
    seen = settings.encoding.rows(read_records(HOLDOUT, name="holdout"), tokenizer)
    model = conftest.build_model()
    look = forget_check(model, tokenizer, forget, seen if given else None, settings, retain=retain)
    assert look is not None
    usual = [0, 1, 2, 4, 6] if given else [0, 1, 2, 4]  # nobody is named in the last
    for how, numbers in (
        ({}, usual), ({"remained": [3, 4, 6]}, [*usual, 3]), ({"whole": True}, [*usual, 3, 5])
    ):  # fmt: skip
        check = look(0, **how)
        assert (asked["total"], asked["numbers"], asked["usual"]) == (7, numbers, len(usual))
        assert (check.rows, check.of, check.partial) == (len(numbers), 7, "whole" not in how)
        if not given:
            assert len(asked["unseen"]) == (6 if "whole" in how else 4)
        rows = settings.encoding.rows([forget[i] for i in numbers], tokenizer)
        alone = [examine(model, tokenizer, {"": Part([row])}, precision="fp32")[""].scores[0] for row in rows]
        nll = [found.nll for found in asked["scores"]]
        assert nll == pytest.approx([found.nll for found in alone], rel=1e-4)


# --- what is drawn


def sets(tokenizer, method: Method, **settings) -> TrainingSets:
    args = UnlearningArguments(template="none", save_strategy="no", **settings)
    records = {
        name: read_records(rows, name=name) for name, rows in {"forget": FORGET, "retain": RETAIN}.items()
    }
    records |= {"forgotten": read_records(HOLDOUT[:2], name="forgotten")}
    return TrainingSets.complete(records, method, args, conftest.build_model(), tokenizer)


def by_source(pairs: list[tuple[str, int]]) -> dict[str, list[int]]:
    return {name: [row for other, row in pairs if other == name] for name, _ in pairs}


def test_remaining_rows_come_in_turn_beside_those_of_earlier_requests(tokenizer):
    made = sets(tokenizer, ngdiff(), per_device_train_batch_size=4, max_steps=6, earlier_rows=1)
    plain = [by_source(pairs) for pairs in made.draws(1)]
    found = [by_source(made.drawn(i, [1, 4, 5, 0, 2])) for i in range(6)]
    assert {*found[0]} == {"forget"}  # retain stays what the loader brings
    assert [batch["forget"][-1] for batch in found] == [batch["forget"][-1] for batch in plain]
    assert all(batch["forget"][-1] >= 6 for batch in found)
    drawn = [row for batch in found for row in batch["forget"][:-1]]
    assert drawn == [1, 4, 5, 0, 2] * 4 + [1, 4, 5, 0]


def test_fewer_rows_than_a_batch_holds_come_once_each(tokenizer):
    made = sets(tokenizer, ngdiff(), per_device_train_batch_size=4, max_steps=6, earlier_rows=0)
    assert [by_source(made.drawn(i, [3, 1]))["forget"] for i in range(3)] == [[3, 1]] * 3


def test_paired_sets_stay_together(tokenizer):
    method = dpo()
    made = sets(tokenizer, method, per_device_train_batch_size=2, max_steps=6, earlier_rows=1)
    found = by_source(made.drawn(3, [2, 5, 1]))
    assert found["idk"] == found["forget"]
    assert len(found["forget"]) == 3
    assert "retain" not in found
    assert made.own["forget"] == 6 < len(joined(made.records)["forget"].rows)


# --- the run


def unlearner(tokenizer, folder, method, **settings) -> Unlearner:
    defaults = {
        "output_dir": str(folder), "bf16": False, "template": "none", "save_strategy": "no",
        "learning_rate": 1e-3, "check_every": 2, "per_device_train_batch_size": 4, "max_steps": 7,
    }  # fmt: skip
    run = Unlearner(
        model=conftest.build_model(),
        args=UnlearningArguments(**defaults | settings),
        method=method,
        processing_class=tokenizer,
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
        holdout_dataset=HOLDOUT,
    )
    run.monitor.check = scripted
    return run


def scripted(step: int, **_: object) -> Check:
    """Rows 3 and 1 remain from step 2 on, row 1 alone after step 3; all is forgotten after step 5."""
    remaining = {2: [1, 3], 3: [1], 4: [1]}.get(step, [])
    return Check(
        step=step, forget_nll=5.0 if step else 0.1, forget_leak=0.2 if step < 5 else 0.0, control="holdout",
        control_nll=4.0, control_leak=0.0, remaining=remaining, met=step >= 5,
    )  # fmt: skip


def watched(run: Unlearner) -> list[dict[str, torch.Tensor]]:
    """The forget batches of every micro-batch, as training runs."""
    seen, add = [], run.descent.add

    def noted(model, batches, counts):
        seen.append({name: batch["input_ids"] for name, batch in batches.items()})
        return add(model, batches, counts)

    run.descent.add = noted
    run.train()
    return seen


def batch_of(run: Unlearner, rows: list[int]) -> torch.Tensor:
    dataset = run.sets.dataset()
    return BySource(run.pad_id)([dataset["forget", row] for row in rows])["forget"]["input_ids"]


def test_a_run_draws_them_alone_looks_every_step_and_ends(tokenizer, tmp_path):
    run = unlearner(tokenizer, tmp_path, ngdiff(tolerance=1000.0, rows=10))
    seen = watched(run)
    assert [check.step for check in run.monitor.state.checks] == [0, 2, 3, 4, 5]
    assert (run.stop.reason, run.stop.step) == ("forgotten", 5)
    assert torch.equal(seen[2]["forget"], batch_of(run, [1, 3]))
    assert torch.equal(seen[3]["forget"], seen[4]["forget"])
    assert torch.equal(seen[4]["forget"], batch_of(run, [1]))
    plain = watched(unlearner(tokenizer, tmp_path, ngdiff(tolerance=1000.0, rows=10, leaks_first=False)))
    assert all(torch.equal(a["retain"], b["retain"]) for a, b in zip(seen, plain, strict=False))
    assert [batch["forget"].shape[0] for batch in plain] == [3] * 6  # looked at after 2, 4 and 6 alone


def test_micro_batches_of_a_step_are_drawn_one_after_another(tokenizer, tmp_path):
    """Two of two rows are one of four: the same rows, the same mean."""
    runs = [
        unlearner(
            tokenizer, tmp_path, ngdiff(tolerance=1000.0, rows=10), sharpness=0.0, max_steps=2,
            gradient_accumulation_steps=steps, per_device_train_batch_size=4 // steps,
        )
        for steps in (1, 2)
    ]  # fmt: skip
    for run in runs:
        run.monitor.check = lambda step, **_: scripted(2).model_copy(
            update={"step": step, "remaining": [1, 5, 3, 0]}
        )
    one, two = (watched(run) for run in runs)
    assert torch.equal(one[0]["forget"], batch_of(runs[0], [1, 5, 3, 0]))
    for batch, rows in zip(two, [[1, 5], [3, 0]] * 2, strict=True):
        assert torch.equal(batch["forget"], batch_of(runs[1], rows))
    plain = unlearner(
        tokenizer, tmp_path, ngdiff(tolerance=1000.0, rows=10, leaks_first=False), sharpness=0.0, max_steps=2,
        gradient_accumulation_steps=2, per_device_train_batch_size=2,
    )  # fmt: skip
    assert all(torch.equal(a["retain"], b["retain"]) for a, b in zip(two, watched(plain), strict=True))
    first, second = (run.history[0].losses["uce(forget)"] for run in runs)
    assert first == pytest.approx(second, rel=1e-6)


def test_what_the_reference_said_goes_with_the_rows(tokenizer, tmp_path):
    run = unlearner(tokenizer, tmp_path, replace(METHODS["npo"](), leaks_first=True), max_steps=4)
    seen, add = [], run.descent.add
    run.descent.add = lambda model, batches, counts: (
        seen.append(batches["forget"]) or add(model, batches, counts)
    )
    run.train()
    dataset = run.sets.dataset(run.facts.values)
    expected = BySource(run.pad_id)([dataset["forget", row] for row in (1, 3)])["forget"]
    assert expected.keys() > {"input_ids", "attention_mask", "labels"}
    assert seen[2].keys() == expected.keys()
    assert all(torch.equal(seen[2][key], expected[key]) for key in expected)


def test_weights_of_other_rows_are_not_carried_over(tokenizer, tmp_path):
    """Where rows change, weights are computed anew, whatever `refresh_every` says."""
    run = unlearner(tokenizer, tmp_path, ngdiff(tolerance=1000.0, rows=10), sharpness=0.0, refresh_every=50)
    watched(run)
    assert [bool(step.gradient_norms) for step in run.history] == [True, False, True, True, False]
    plain = unlearner(
        tokenizer, tmp_path, ngdiff(tolerance=1000.0, rows=10, leaks_first=False), sharpness=0.0,
        refresh_every=50,
    )  # fmt: skip
    watched(plain)
    assert [bool(step.gradient_norms) for step in plain.history] == [True] + [False] * 5


def test_rows_that_slip_back_are_looked_at_once_more(tokenizer, tmp_path):
    """After the last look that named rows the next step has one, though NLL fell below the control's."""
    run = unlearner(tokenizer, tmp_path, ngdiff(tolerance=1000.0, rows=10), check_every=4, max_steps=8)
    looks = []

    def look(step, **_):
        looks.append(step)
        slipped = {"forget_nll": 3.9, "remaining": [], "met": False}
        return scripted(2).model_copy(update={"step": step} | (slipped if step != 4 else {}))

    run.monitor.check = look
    run.train()
    assert looks == [0, 4, 5, 6, 8]


def test_rows_that_do_not_give_way_are_looked_at_as_seldom_as_others(tokenizer, tmp_path):
    run = unlearner(tokenizer, tmp_path, ngdiff(tolerance=1000.0, rows=10), check_every=3, max_steps=14)
    looks, stuck = [], scripted(2)

    def look(step, **_):
        looks.append(step)
        remaining = [1, 3] if step < 9 else [3]
        return stuck.model_copy(update={"step": step, "remaining": remaining if step else []})

    run.monitor.check = look
    run.train()
    assert looks == [0, 3, 4, 5, 6, 9, 10, 11, 12]


def test_a_resumed_run_draws_what_the_whole_one_drew(tokenizer, tmp_path):
    """The look that named the rows is in the checkpoint."""
    settings = {"save_strategy": "steps", "save_steps": 3}
    whole = unlearner(tokenizer, tmp_path / "whole", ngdiff(tolerance=1000.0, rows=10), **settings)
    seen = watched(whole)
    run = unlearner(tokenizer, tmp_path / "whole", ngdiff(tolerance=1000.0, rows=10), **settings)
    drawn, add = [], run.descent.add
    run.descent.add = lambda model, batches, counts: (
        drawn.append(batches["forget"]["input_ids"]) or add(model, batches, counts)
    )
    run.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert [torch.equal(a, b["forget"]) for a, b in zip(drawn, seen[3:], strict=True)] == [True, True]
    parameters = [torch.cat([p.detach().ravel() for p in r.model.parameters()]) for r in (whole, run)]
    assert torch.equal(*parameters)


def test_records_say_so_and_the_published_rule_does_without(tokenizer, tmp_path):
    args = UnlearningArguments(output_dir=str(tmp_path), template="none")
    assert configuration(args, ngdiff(), 1.0)["leaks_first"] is True
    for method in (ngdiff(leaks_first=False), ngdiff_gen()):
        assert "leaks_first" not in configuration(args, method, 1.0)
    for method, rows in ((ngdiff(), [1, 3]), (ngdiff_gen(), [])):
        run = unlearner(tokenizer, tmp_path, method)
        assert not run.monitor.remaining
        run.monitor.state.checks = [scripted(2)]
        assert run.monitor.remaining == rows


def test_the_page_says_how_many_steps_were_drawn_so():
    looks = [scripted(step) for step in (0, 2, 3, 4, 5)]
    told = {"leaks_first": True}
    made = run_record().model_copy(update={"checks": looks, "configuration": told})
    assert made.history[4].step == 5
    assert not any(step.repair for step in made.history[:5])
    assert course(made).narrowed == 3  # steps 3, 4 and 5
    assert ", 3 with none but the forget records that were still reproduced" in " ".join(render(made).split())
    assert not course(made.model_copy(update={"configuration": {}})).narrowed
    seldom = made.model_copy(update={"checks": [looks[0], looks[1], looks[4]]})
    assert course(seldom).narrowed == 3  # until the next look says otherwise


def test_repair_steps_are_not_looked_at_for_it(tokenizer, tmp_path):
    """They draw no forget record: the look at the step after them is soon enough."""
    run = unlearner(tokenizer, tmp_path, ngdiff(rows=10), check_every=50)
    looks = []
    run.monitor.check = lambda step, **_: looks.append(step) or scripted(2).model_copy(update={"step": step})
    run.monitor.state.checks = [scripted(2)]
    run.monitor.state.repairing = True
    run.monitor.after_step(3, 1e-3)
    assert looks == []
    run.monitor.state.repairing = False
    run.monitor.after_step(4, 1e-3)
    assert looks == [4]


def test_a_merged_method_cannot_draw_so():
    with pytest.raises(ValueError, match=r"must draw from all forget records to be merged.*Leave it out"):
        replace(METHODS["task-vector"](), leaks_first=True)


def test_the_command_line_turns_it_off():
    for text, on in (("true", True), ("false", False)):
        method, _ = resolve_method("ngdiff", inputs.given([f"leaks_first={text}"], None))
        assert method.leaks_first is on
