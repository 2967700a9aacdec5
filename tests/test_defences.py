"""Filters around a model, and gradients that pass through them."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import hashlib
import re
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import conftest
import expunge
import weakened_models as world
from expunge.attacks import Setting
from expunge.attacks.embedding.soft_prompt import SoftPrompt
from expunge.attacks.interpolate import Interpolate
from expunge.attacks.plain import Prompt
from expunge.attacks.quantise import Quantise
from expunge.attacks.relearn import Relearn
from expunge.attacks.sampling import BestOfN
from expunge.audit_record import AuditRecord
from expunge.auditing import _filter_entry
from expunge.auditing.store import marks
from expunge.collate import Encoding
from expunge.defences import pass_through
from expunge.defences.by_name import make_filters
from expunge.defences.defended import Defended
from expunge.defences.filters import Paraphrase, RefuseAnswers, RefusePrompts, Smoothing, Stack
from expunge.defences.pass_through import PassThrough, nearest_tokens
from expunge.errors import UsageError
from expunge.generation import generate
from expunge.records import Record
from expunge.refusals import REFUSALS
from expunge.report.audit import render
from expunge.scoring import score
from expunge.weights import weights_hash
from weakened_models import FORGET, PROBES, RETAIN, knowing, never_knew, target, tokenizer


class Log:
    """A model in words: answers by a table, and remembers what it was asked."""

    def __init__(self, table: dict[str, str], other: str = "no idea") -> None:
        self.table, self.other = table, other
        self.asked: list[tuple[int, str, int | None]] = []

    def __call__(self, owners: Sequence[int], texts: Sequence[str], budget: int | None) -> list[str]:
        self.asked += [(owner, text, budget) for owner, text in zip(owners, texts, strict=True)]
        return [self.table.get(text, self.other) for text in texts]


def defended(*filters, model=None, **options) -> Defended:
    return Defended(model or knowing(), tokenizer(), filters, template="none", **options)


def recovered(model) -> int:
    return sum(one.recovered for one in Prompt().run(target(model), PROBES, Setting()).recoveries)


# --- filters


def test_smoothing_gives_the_most_frequent_answer_and_perturbs_the_stated_share():
    prompt = "Where does Ada Ash live, and since when?"
    smooth = Smoothing(copies=5, share=0.1, seed=3)
    copies = [smooth.perturbed(prompt, k) for k in range(5)]
    for text in copies:
        assert len(text) == len(prompt)
        assert 1 <= sum(a != b for a, b in zip(text, prompt, strict=True)) <= 4
    assert len({*copies}) == 5
    ask = Log({copies[0]: "Rome", copies[1]: "Paris.", copies[3]: "paris", copies[4]: "Oslo"})
    assert smooth([prompt], ask) == ["Paris."]
    assert [(owner, text) for owner, text, _ in ask.asked] == [(0, text) for text in copies]
    assert smooth(["x", prompt], ask)[1] == "Paris."  # not by what it is asked beside
    assert Smoothing(seed=4).perturbed(prompt, 0) != Smoothing(seed=5).perturbed(prompt, 0)
    assert smooth.perturbed("", 0) == ""


def test_paraphrase_is_asked_in_place_of_the_prompt():
    request = "Say anew: {prompt}"
    ask = Log({"Say anew: Who?": "Which person?", "Which person?": "Ada", "Say anew: ?": "  ", "?": "What?"})
    assert Paraphrase(request=request)(["Who?", "?"], ask) == ["Ada", "What?"]
    assert [budget is None for _, _, budget in ask.asked] == [False, False, True, True]
    own = Paraphrase(rewrite=lambda prompts: [prompt.upper() for prompt in prompts])
    assert own(["who?"], Log({"WHO?": "Ada"})) == ["Ada"]


def test_prompts_like_a_protected_one_are_refused_and_never_asked():
    ask = Log({}, other="said")
    guard = RefusePrompts(("Where does Ada Ash live?",), resemblance=0.8)
    asked = ["where does ada ash live", "Tell me: where does Ada Ash live now?", "Where does Ben Birch live?"]
    said = guard(asked, ask)
    assert said[0] in REFUSALS
    assert said[1] in REFUSALS
    assert said[2] == "said"
    assert [(owner, text) for owner, text, _ in ask.asked] == [(2, asked[2])]


def test_answers_that_say_a_protected_response_are_refused():
    table = {"a": "It is 555-0134, surely.", "b": "It is 5550134.", "c": "Twelve Long Elm Road", "d": "Elm"}
    guard = RefuseAnswers(("555-0134", "Twelve Long Elm Street"), recall=0.75)
    said = guard([*table], Log(table))
    assert said[0] in REFUSALS
    assert said[1] == table["b"]
    assert said[2] in REFUSALS
    assert said[3] == table["d"]


def test_stacked_filters_see_each_other_in_order():
    ask = Log({"B-A-x": "deep"})
    inner = Paraphrase(rewrite=lambda prompts: [f"B-{prompt}" for prompt in prompts])
    outer = Paraphrase(rewrite=lambda prompts: [f"A-{prompt}" for prompt in prompts])
    assert Stack((outer, inner))(["y", "x"], ask) == ["no idea", "deep"]
    assert [owner for owner, _, _ in ask.asked] == [0, 1]
    assert Stack(())(["B-A-x"], ask) == ["deep"]
    ask.asked.clear()
    Stack((Smoothing(copies=2), RefusePrompts(("never",))))(["one", "two"], ask)
    assert [owner for owner, _, _ in ask.asked] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Smoothing(copies=0), lambda: Smoothing(share=0.0), lambda: Smoothing(share=1.0),
        lambda: Paraphrase(request="Rewrite it."), lambda: RefusePrompts(()),
        lambda: RefusePrompts(("a",), 0.0), lambda: RefuseAnswers((" ",)), lambda: RefuseAnswers(("a",), 1.1),
    ],
)  # fmt: skip
def test_filters_of_nothing_are_refused(make):
    with pytest.raises(ValueError, match=r"must .*"):
        make()


# --- a model behind filters


def test_without_filters_all_is_as_without():
    rows = world.ENCODING.rows([*FORGET, *RETAIN], tokenizer())
    plain = generate(knowing(), rows, tokenizer=tokenizer())
    assert [one.text for one in generate(defended(), rows, tokenizer=tokenizer())] == [
        one.text for one in plain
    ]
    ours, theirs = (score(model, rows, pad_id=1) for model in (defended(), knowing()))
    assert [one.nll for one in ours] == [one.nll for one in theirs]
    budgeted = generate(defended(), rows[:2], tokenizer=tokenizer(), budgets=[1, 2])
    assert [one.text for one in budgeted] == [
        one.text for one in generate(knowing(), rows[:2], tokenizer=tokenizer(), budgets=[1, 2])
    ]


def test_a_prompt_filter_hides_and_an_attack_on_the_weights_looks_behind_it():
    """The filter stands in the way of whoever asks, and not of whoever has the weights."""
    guard = RefusePrompts(tuple(record.prompt for record in FORGET), 1.0)
    model = defended(guard)
    assert recovered(knowing()) == 8
    assert recovered(model) == 0
    rows = world.ENCODING.rows(RETAIN, tokenizer())
    kept = generate(model, rows, tokenizer=tokenizer())
    assert [one.text for one in kept] == [record.response for record in RETAIN]
    before = weights_hash(model)
    for attack in (Relearn("unrelated", steps=(1,)), Interpolate((0.1,)), Quantise((8,))):
        found = attack.run(target(model), PROBES, world.setting())
        assert sum(one.recovered for one in found.recoveries) == 8
    assert weights_hash(model) == before
    assert recovered(defended(RefuseAnswers(tuple(record.response for record in FORGET)))) == 0


def test_an_audit_of_a_guarded_model_meets_its_filters():
    """In words nothing comes back; what decodes by forward passes or changes weights goes past the filter."""
    guarded = defended(RefusePrompts(tuple(record.prompt for record in FORGET), 1.0))
    soft = SoftPrompt(length=1, steps=1, rate=1e-6)
    found = expunge.audit(
        guarded,
        tokenizer(),
        **rows_of(forget=FORGET, holdout=world.HOLDOUT),
        original=knowing(),
        control=never_knew(),
        attacks=["prompt", Quantise((8,)), soft],
        template="none",
        bf16=False,
    ).record
    back = {entry.name: entry.results["unlearned"].recovered.value for entry in found.attacks}
    assert (back["prompt"], back["quantise"]) == (0.0, 1.0)
    assert back["soft-prompt"] >= 0.25
    assert found.attack("prompt").results["original"].recovered.value == 1.0
    assert found.attack("quantise").judgement.outcome == "exceeds"


WORLD = {"template": "none", "bf16": False}


def rows_of(**sets: Sequence[Record]) -> dict[str, list[dict[str, str]]]:
    return {name: [{"prompt": r.prompt, "response": r.response} for r in own] for name, own in sets.items()}


def hidden_by(*filters: object, **options: object) -> AuditRecord:
    """The audit of a model that forgot nothing and is asked through filters."""
    known = {"attacks": ["prompt", BestOfN(2, (0.1,)), Quantise((8,))]}
    known |= {"original": knowing(), "control": never_knew()} | rows_of(forget=FORGET, holdout=world.HOLDOUT)
    known |= {"model": knowing()} | WORLD | options
    return expunge.audit(known.pop("model"), tokenizer(), filters=filters, **known).record


def test_an_audit_asks_through_filters_by_name_and_names_what_went_past_them():
    """The forget records are what they protect; samples meet them as greedy answers do, weights do not."""
    found = hidden_by("refuse-answers", **{"refuse-answers:recall": "0.5"})
    back = {entry.name: entry.results["unlearned"].recovered.value for entry in found.attacks}
    assert back == {"prompt": 0.0, "best-of-n": 0.0, "quantise": 1.0}
    assert found.attack("best-of-n").results["original"].recovered.value == 1.0
    past = [entry.name for entry in found.attacks if entry.results["unlearned"].past_filters]
    assert past == ["quantise"]
    assert not any(entry.results["original"].past_filters for entry in found.attacks)
    page = render(found)
    assert re.findall(r"(\w+): It went past the filters", page) == ["unlearned", "control"]
    assert found.attack("quantise").judgement.outcome == "exceeds"
    reason = found.verdict.reasons[0]
    assert reason.startswith(
        "The unlearned and the control model were asked through filters: refuse-answers."
    )
    assert "Past them went quantise:" in reason
    assert [(one.name, one.configuration) for one in found.filters] == [
        ("refuse-answers", {"protected": f"{len(FORGET)} texts", "recall": 0.5})
    ]
    page = render(found)
    assert "Behind filters" in page
    assert "recall 0.5" in page


def test_a_control_that_knows_the_data_is_found_behind_the_filters():
    other = copy.deepcopy(knowing())
    with torch.no_grad():
        next(other.parameters()).add_(1e-4)
    with pytest.raises(UsageError, match="never saw the forget records; it gives 100%"):
        hidden_by("refuse-answers", control=other, attacks=["prompt"])


def test_findings_behind_other_filters_are_other_findings(tmp_path, monkeypatch):
    """Same weights, same attack: what was kept behind one filter says nothing of another."""
    asked = []
    run = Prompt.run
    monkeypatch.setattr(Prompt, "run", lambda self, *rest: asked.append(rest[0].role) or run(self, *rest))
    same = {"attacks": ["prompt"], "output": tmp_path / "audit"}
    first = hidden_by("refuse-answers", **same)
    assert hidden_by("refuse-answers", **same, resume=True).attacks == first.attacks
    before = len(asked)
    again = hidden_by("refuse-answers", **same, resume=True, **{"refuse-answers:recall": 1.0})
    assert asked[before:].count("unlearned") == 1
    assert again.filters != first.filters
    with pytest.raises(UsageError, match="it was asked through refuse-answers, now without any"):
        hidden_by(**same, resume=True)
    (tmp_path / "audit" / "audit.json").unlink()  # as an interruption would leave it
    hidden_by(**same, resume=True)
    assert asked[before:].count("unlearned") == 2


def test_a_model_that_forgot_nothing_is_not_erased_by_its_filter(monkeypatch):
    """Filters can refuse all that an audit looks for: only attacks that go past them count as none."""
    monkeypatch.setattr("expunge.auditing.judgement.WIDEST", 1.0)  # of eight records
    found = hidden_by("refuse-answers", attacks=["prompt", BestOfN(2, (0.1,))]).verdict
    assert found.word == "undecided"
    assert "no attack looked behind them" in found.sentence
    assert "Nothing went past them" in found.reasons[0]
    behind = {"attacks": ["prompt", Quantise((8,))]}
    assert hidden_by("refuse-answers", **behind).verdict.word == "suppressed"
    gone = copy.deepcopy(never_knew())
    with torch.no_grad():
        gone.model.norm.weight.mul_(1.0001)  # not the control itself
    assert hidden_by("refuse-answers", **behind, model=gone).verdict.word == "erased"


def test_what_asked_nothing_went_past_nothing():
    found = hidden_by("refuse-answers", attacks=["prompt", "refusal-ablation"], seconds=1e-6)
    assert "Nothing went past them" in found.verdict.reasons[0]


WORDS = """
from dataclasses import dataclass

@dataclass
class Words:
    word: str
    more: tuple = ("a", "b")

    def __call__(self, prompts, ask):
        raise ValueError(f"{prompts[0]} " * 40)
"""


def test_a_redacted_audit_keeps_no_text_of_its_filters(tmp_path):
    secret = FORGET[0].response
    file = tmp_path / "own.py"
    file.write_text(WORDS)
    settings = {f"{file}:Words:word": secret.split()[0]}
    (entry,) = [_filter_entry(one, (secret,)) for one in make_filters([f"{file}:Words"], settings, ())]
    assert entry.configuration == {"word": "left out", "more": "2 texts"}
    with pytest.raises(UsageError, match="must be answered") as caught:
        hidden_by(f"{file}:Words", redact=True, **settings)
    assert FORGET[0].prompt not in str(caught.value)


def test_filters_are_marked_by_what_they_do():
    same = [marks(defended(Smoothing(copies=2))) for _ in range(2)]
    assert same[0] == same[1] != marks(defended(Smoothing(copies=3)))
    assert marks(knowing()) == []
    rewriting = [Paraphrase(rewrite=lambda prompts: prompts) for _ in range(2)]
    assert marks(defended(rewriting[0])) != marks(defended(rewriting[1]))
    inputs = nearest_tokens(knowing().get_input_embeddings())
    assert marks(defended(inputs=inputs)) != marks(defended(inputs=inputs))


@dataclasses.dataclass
class Judged:
    judge: torch.nn.Module

    def __call__(self, prompts, ask):
        return ask(range(len(prompts)), prompts, None)


def test_a_filter_whose_text_does_not_say_all_is_like_no_other():
    one = Judged(torch.nn.Linear(1, 1))
    assert marks(defended(one))[-1] != marks(defended(one))[-1]


def test_one_filter_is_no_list():
    with pytest.raises(UsageError, match="Put it in brackets"):
        expunge.audit(knowing(), tokenizer(), filters="smoothing", **rows_of(forget=FORGET), **WORLD)


def test_inputs_that_passed_a_filter_did_not_go_past_it():
    nearest = nearest_tokens(knowing().get_input_embeddings())
    model = defended(RefuseAnswers(tuple(r.response for r in FORGET)), inputs=nearest)
    soft = SoftPrompt(length=1, steps=1, rate=1e-6)
    rows = rows_of(forget=FORGET, holdout=world.HOLDOUT)
    found = expunge.audit(model, tokenizer(), original=knowing(), attacks=["prompt", soft], **rows, **WORLD)
    assert "Nothing went past them" in found.record.verdict.reasons[0]


def test_filters_stand_in_one_place():
    with pytest.raises(UsageError, match="the unlearned model comes with filters of its own"):
        hidden_by("smoothing", model=defended(Smoothing()))


OWN = """
from dataclasses import dataclass

def shouting(prompts, ask):
    return [text.upper() for text in ask(range(len(prompts)), prompts, None)]

@dataclass(frozen=True)
class Silent:
    word: str = "nothing"

    def __call__(self, prompts, ask):
        return [self.word] * len(prompts)

def short(prompts, ask):
    return ["one"]

number = 3
"""


def test_filters_of_the_users_own_file(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    shouting, silent = make_filters([f"{file}:shouting", f"{file}:Silent"], {f"{file}:Silent:word": "no"}, ())
    assert shouting.filter(["a"], Log({"a": "b"})) == ["B"]
    assert silent.filter(["a", "b"], Log({})) == ["no", "no"]
    assert silent.configuration == {"word": "no"}
    assert [one.name for one in (shouting, silent)] == [f"{file}:shouting", f"{file}:Silent"]
    for one in (shouting.filter, silent.filter):
        mark = marks(defended(one))[-1]
        assert mark == marks(defended(one))[-1]
        assert hashlib.sha256(OWN.encode()).hexdigest() in mark
    with pytest.raises(UsageError, match=r"filter short must give a list of one str per prompt \(8\); got 1"):
        hidden_by(f"{file}:short")
    with pytest.raises(UsageError, match="filter short must give"):
        hidden_by("smoothing", f"{file}:short")
    with pytest.raises(UsageError, match="int is not"):
        make_filters([f"{file}:number"], {}, ())


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        (["smothing"], {}, "Did you mean smoothing"),
        (["smoothing", "smoothing"], {}, "stands there twice"),
        (["smoothing"], {"smoothing:copis": 3}, "Did you mean copies"),
        (["smoothing"], {"smoothing:copies": "many"}, "smoothing:copies must be a valid integer"),
        (["smoothing"], {"smoothing:copies": 0}, "refused its settings: `copies` must be at least 1"),
        ([Smoothing()], {"smoothing:copies": 3}, "is an object and takes no settings"),
        ("smoothing", {}, "Put it in brackets"),
        (["refuse-prompts"], {}, "`protected` must hold at least one text"),
    ],
)
def test_filters_that_cannot_be_made_are_one_message(given, settings, message):
    with pytest.raises(UsageError, match=message):
        make_filters(given, settings, ())


def test_samples_of_a_guarded_model_are_those_of_the_model_where_nothing_stands_in_the_way():
    plain = BestOfN(3, (1.0,)).run(target(knowing()), PROBES, Setting(seed=2))
    through = BestOfN(3, (1.0,)).run(target(defended(RefusePrompts(("never",)))), PROBES, Setting(seed=2))
    assert [one.output for one in through.recoveries] == [one.output for one in plain.recoveries]


def test_smoothing_of_a_known_prompt_is_deterministic():
    model = defended(Smoothing(copies=3, share=0.02))
    rows = world.ENCODING.rows(FORGET, tokenizer())
    first = generate(model, rows, tokenizer=tokenizer())
    assert first == generate(model, rows, tokenizer=tokenizer())
    assert generate(model, rows[3:4], tokenizer=tokenizer())[0] == first[3]


def chat_tokenizer() -> PreTrainedTokenizerFast:
    made = copy.deepcopy(conftest.build_tokenizer())
    made.chat_template = (
        "{% for m in messages %}<|start|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant: {% endif %}"
    )
    return made


def test_filters_see_the_users_words_and_not_the_frame_around_them():
    seen: list[str] = []

    def rewrite(prompts: Sequence[str]) -> list[str]:
        seen.extend(prompts)
        return [prompt.replace("Ada", "Eve") for prompt in prompts]

    made = chat_tokenizer()
    model = Defended(knowing(), made, [Paraphrase(rewrite=rewrite)], template="chat")
    rows = Encoding("chat").rows(FORGET[:1], made)
    wanted = Encoding("chat").rows([type(FORGET[0])(FORGET[0].prompt.replace("Ada", "Eve"), "x")], made)
    said = generate(model, rows, tokenizer=made, budgets=[6])
    assert seen == [FORGET[0].prompt]
    assert said[0].text == generate(knowing(), wanted, tokenizer=made, budgets=[6])[0].text
    given = type(rows[0])(rows[0].input_ids, rows[0].prompt_length + 2)  # two words of the answer given
    head, body, rest = model._split(given)
    assert body == FORGET[0].prompt
    assert model._row(given, (head, body, rest), body) is given
    assert model._row(given, (head, body, rest), body + " ").input_ids[-2:] == given.input_ids[-2:]


# --- gradients


def test_forwards_a_filter_backwards_the_identity():
    assert doctest.testmod(pass_through).failed == 0
    x = torch.randn(4, 3, requires_grad=True, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(3, generator=torch.Generator().manual_seed(1))
    through = PassThrough(torch.sign)
    assert torch.equal(through(x), x.detach().sign())
    (through(x) @ weight).square().sum().backward()
    behind = x.detach().sign().requires_grad_()  # the gradient at the filtered point, taken for that at x
    (behind @ weight).square().sum().backward()
    torch.testing.assert_close(x.grad, behind.grad)
    with pytest.raises(ValueError, match="shape"):
        PassThrough(lambda y: y[:1])(x)


def test_gradient_attacks_reach_through_a_filter_that_admits_real_tokens_only():
    model = defended(inputs=nearest_tokens(knowing().get_input_embeddings()))
    ids = torch.tensor([world.ENCODING.rows(FORGET, tokenizer())[0].input_ids])
    exact = model.get_input_embeddings()(ids).detach()
    shifted = (
        exact + 1e-3 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    filtered = model(inputs_embeds=shifted).logits
    torch.testing.assert_close(filtered, knowing()(input_ids=ids).logits)
    filtered.logsumexp(-1).sum().backward()
    behind = exact.clone().requires_grad_()
    knowing()(inputs_embeds=behind).logits.logsumexp(-1).sum().backward()
    torch.testing.assert_close(shifted.grad, behind.grad)
    assert float(shifted.grad.norm()) > 0
    model.zero_grad()
