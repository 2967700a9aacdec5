"""Words, selectors and integrated gradients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import conftest
from expunge import UsageError
from expunge.attribution import answer_log_probability, attributions
from expunge.collate import encode
from expunge.records import read_records
from expunge.selectors import SELECTORS, Responses, find_selector, select
from expunge.words import content_words, covering, entities, token_spans, words


def texts(found) -> list[str]:
    return [word.text for word in found]


def responses(tokenizer, rows, model=None) -> Responses:
    encoded = encode(read_records(rows, name="x"), tokenizer, template="none")
    return Responses(encoded, tokenizer, conftest.build_model() if model is None else model, 1)


@pytest.mark.parametrize(
    ("text", "names", "content"),
    [
        ("She was born in Oslo in 1962.", ["Oslo", "1962"], ["born", "Oslo", "1962"]),
        ("Ada Ash lives at 12 Elm Street.", ["Ada", "Ash", "12", "Elm", "Street"], None),
        ("Books are fun. Reading helps. But Eve reads.", ["Eve"], None),
        ("Write to ann.lee@mail.org or 555-0199!", ["ann.lee@mail.org", "555-0199"], None),
        ("The of and to.", [], []),
        ("", [], []),
    ],
)
def test_words_that_name_and_words_that_carry_content(text, names, content):
    assert texts(entities(text)) == names
    if content is not None:
        assert texts(content_words(text)) == content
    assert all(text[word.start : word.end] == word.text for word in words(text))


def test_token_spans_tile_the_text(tokenizer):
    ids = [*tokenizer("Zoë 北京 lives at 12 Ash Street", add_special_tokens=False)["input_ids"], 1]
    text, spans = token_spans(ids, tokenizer)
    assert text == "Zoë 北京 lives at 12 Ash Street"
    assert spans[0][0] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert spans[-1] == (len(text), len(text)), "a special token writes nothing"


def test_selected_tokens_write_the_selected_words(tokenizer):
    rows = [{"prompt": "Where?", "response": "It is at 77 Birch Street, near the sea"}]
    given = responses(tokenizer, rows)
    (choice,) = select("entities", given)
    text, spans = token_spans(given.rows[0].labels, tokenizer)
    chosen = {text[a:b].strip() for (a, b), on in zip(spans, choice, strict=True) if on}
    left = "".join(text[a:b] for (a, b), on in zip(spans, choice, strict=True) if not on)
    assert "".join(sorted(chosen)) != ""
    assert "77" not in left
    assert "Birch" not in left
    assert "near the sea" in left
    assert not choice[-1], "the end of the turn is no word"
    (content,) = select("content-words", given)
    assert content.sum() > choice.sum()
    assert (content >= choice).all()


def test_a_row_without_a_match_counts_whole(tokenizer):
    (choice,) = select("entities", responses(tokenizer, [{"prompt": "Why?", "response": "because of that"}]))
    assert choice.all()


def test_space_around_a_word_is_not_the_word():
    assert covering([(0, 1), (1, 4), (4, 6)], words(" abc  "), " abc  ") == [False, True, False]


def test_integrated_gradients_are_complete(tokenizer):
    """Attributions sum to log P at the input minus log P at the baseline (proposition 1)."""
    model = conftest.build_model().double()
    given = responses(tokenizer, conftest.rows()[:3], model)
    before = [p.requires_grad for p in model.parameters()]
    model.train()
    found = attributions(model, given.rows, baseline=1, steps=64)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())
    table = model.get_input_embeddings()
    for row, values in zip(given.rows, found, strict=True):
        with torch.no_grad():
            ids = torch.tensor([row.input_ids, [1] * len(values)])
            full, empty = answer_log_probability(model.eval(), table(ids), row).tolist()
        assert values.sum() == pytest.approx(full - empty, abs=1e-4)
        assert abs(full - empty) > 0.01
        assert values[-1] == 0.0
    usual = attributions(model, given.rows[:1], baseline=1)[0].sum()
    coarse = attributions(model, given.rows[:1], baseline=1, steps=4)[0].sum()
    assert usual == pytest.approx(found[0].sum(), abs=1e-2)
    assert coarse != pytest.approx(found[0].sum(), abs=1e-2)


def test_the_log_probability_of_an_answer_is_the_models(tokenizer):
    model = conftest.build_model().eval()
    (row,) = responses(tokenizer, conftest.rows()[:1]).rows
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].log_softmax(-1)
        places = range(row.prompt_length, len(row.input_ids))
        expected = sum(float(logits[i - 1, row.input_ids[i]]) for i in places)
        found = answer_log_probability(model, model.get_input_embeddings()(ids), row)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_attribution_takes_half_of_the_response(tokenizer):
    given = responses(tokenizer, conftest.rows()[:2])
    for row, choice in zip(given.rows, select("attribution", given), strict=True):
        assert choice.sum() == round(len(row.labels) / 2)
        assert not choice[-1]


def test_a_rule_of_ones_own(tokenizer, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def first(given):\n"
        "    return [np.arange(len(row.labels)) == 0 for row in given.rows]\n"
        "def short(given):\n"
        "    return [np.ones(1, dtype=bool) for row in given.rows]\n"
    )
    given = responses(tokenizer, conftest.rows()[:2])
    chosen = select(f"{tmp_path}/mine.py:first", given)
    assert [np.flatnonzero(choice).tolist() for choice in chosen] == [[0], [0]]
    with pytest.raises(ValueError, match="one boolean per label token"):
        select(f"{tmp_path}/mine.py:short", given)
    assert all(choice.all() for choice in select("all", given))


def test_unknown_rules_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean entities"):
        find_selector("entitys")
    assert {"all", "content-words", "entities", "attribution"} <= SELECTORS.keys()


def test_spacy_is_asked_for_by_name(tokenizer):
    try:
        import spacy

        spacy.load("en_core_web_sm")
    except (ImportError, OSError):
        with pytest.raises(UsageError, match="needs spacy and its model"):
            select("spacy-entities", responses(tokenizer, conftest.rows()[:1]))
    else:
        assert select("spacy-entities", responses(tokenizer, conftest.rows()[:1]))
