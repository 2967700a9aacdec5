"""The page: what it concludes, what it shows, and that no string of a record can act on it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import os
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.record import Metric, RunRecord, Sample, Step, read_record, write_record
from expunge.report import render, wording, write_report
from expunge.report.limits import not_tested
from expunge.report.spans import overlap
from expunge.report.svg import draw, styled, to_svg
from expunge.report.tables import MOST_SAMPLES, metric_tables, sample_groups
from expunge.report.text import clip, label, visible
from expunge.report.verdict import (
    Reference,
    agreement,
    findings,
    judge_forgetting,
    judge_keeping,
    judge_learning,
)
from record_factory import INJECTIONS, amount, evaluation, map_strings, run_record, share, sparse_record


def metric(value: float, low: float, high: float, n: int = 50) -> Metric:
    return Metric(value=value, low=low, high=high, n=n)


class Page(HTMLParser):
    """The elements, attributes and text of a page."""

    VOID = frozenset({"meta", "br", "wbr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.style = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    @property
    def shapes(self) -> set[tuple[str, tuple[str, ...]]]:
        """Which elements there are, with which attributes."""
        return {(tag, tuple(sorted(attributes))) for tag, attributes in self.elements}

    def values(self, name: str) -> list[str]:
        return [found for _, attributes in self.elements if (found := attributes.get(name)) is not None]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(run_record()))


# --- verdict

LOW, SOME, MUCH = metric(0.03, 0, 0.09), metric(0.3, 0.2, 0.42), metric(0.96, 0.9, 1)
GUESS = Reference("holdout", metric(0.02, 0, 0.06))


@pytest.mark.parametrize(
    ("before", "after", "against", "status", "word"),
    [
        (MUCH, LOW, GUESS, "yes", "Forgotten"),
        (MUCH, metric(0, 0, 0), GUESS, "yes", "Forgotten"),
        (MUCH, metric(0.06, 0.06, 0.06), GUESS, "yes", "Forgotten"),
        (MUCH, metric(0.01, 0, 0.02), Reference("control", metric(0.2, 0.1, 0.3)), "yes", "Forgotten"),
        (MUCH, metric(0.2, 0.05, 0.4), GUESS, "barely", "Forgotten, as far as 50 records tell"),
        (MUCH, SOME, GUESS, "partly", "Partly forgotten"),
        (MUCH, metric(0.5, 0.061, 0.89), GUESS, "partly", "Partly forgotten"),
        (MUCH, metric(0.93, 0.87, 0.98), GUESS, "no", "Not forgotten"),
        (MUCH, metric(0.7, 0.5, 0.9), GUESS, "no", "Not forgotten"),
        (SOME, MUCH, GUESS, "no", "Not forgotten"),
        (LOW, LOW, GUESS, "unknown", "Not shown"),
        (LOW, metric(0, 0, 0), GUESS, "unknown", "Not shown"),
        (metric(0.75, 0.25, 1, n=4), metric(0.5, 0, 1, n=4), GUESS, "unknown", "Not shown"),
        (MUCH, LOW, None, "unknown", "Not shown"),
        (MUCH, None, GUESS, "unknown", "Not measured"),
        (None, LOW, GUESS, "unknown", "Not measured"),
        (None, None, None, "unknown", "Not measured"),
    ],
)
def test_forgetting_is_judged_by_the_intervals(
    before: Metric | None, after: Metric | None, against: Reference | None, status: str, word: str
) -> None:
    finding = judge_forgetting(before, after, against)
    assert (finding.status, finding.word) == (status, word)


def test_the_forgetting_sentence_names_every_number() -> None:
    sentence = judge_forgetting(MUCH, LOW, GUESS).sentence
    assert sentence == "leak 3\xa0% [0–9], before 96\xa0% [90–100]; holdout 2\xa0% [0–6]"
    assert "nothing to compare with" in judge_forgetting(MUCH, LOW, None).sentence
    assert judge_forgetting(None, None, GUESS).sentence.startswith("leak not measured, before not measured")


@pytest.mark.parametrize(
    ("before", "after", "against", "caution"),
    [
        (LOW, LOW, GUESS, "even before"),
        (metric(0.75, 0.25, 1, n=4), metric(0.5, 0, 1, n=4), GUESS, "too few records"),
        (MUCH, metric(0.2, 0.05, 0.4), GUESS, "lies above the holdout's interval"),
        (MUCH, LOW, None, "guesswork"),
        (MUCH, metric(0, 0, 0, n=8), GUESS, "forget figure rests on 8 records only"),
        (MUCH, LOW, Reference("control", metric(0, 0, 0.3, n=1)), "control figure rests on 1 record only"),
    ],
)
def test_what_weakens_the_forgetting_verdict_is_said(
    before: Metric, after: Metric, against: Reference | None, caution: str
) -> None:
    assert any(caution in said for said in judge_forgetting(before, after, against).cautions)


def test_a_strong_verdict_carries_no_caution() -> None:
    assert judge_forgetting(MUCH, LOW, GUESS).cautions == ()
    assert judge_keeping(metric(0.9, 0.88, 0.92, n=900), metric(0.9, 0.88, 0.92, n=900)).cautions == ()


@pytest.mark.parametrize(
    ("before", "after", "status", "word"),
    [
        (metric(0.95, 0.9, 1), metric(0.93, 0.87, 0.98), "yes", "Kept"),
        (metric(1, 1, 1), metric(0.95, 0.9, 1), "yes", "Kept"),
        (metric(0.2, 0.1, 0.3), metric(0.4, 0.3, 0.5), "yes", "Kept"),
        (metric(1, 1, 1), metric(0.949, 0.9, 0.98), "partly", "Partly kept"),
        (metric(1, 1, 1), metric(0.8, 0.7, 0.9), "partly", "Partly kept"),
        (metric(1, 1, 1), metric(0.799, 0.7, 0.9), "no", "Not kept"),
        (metric(0.5, 0.4, 0.6), metric(0, 0, 0.1), "no", "Not kept"),
        (metric(0, 0, 0.1), metric(0, 0, 0.1), "unknown", "Not shown"),
        (None, metric(0.9, 0.8, 1), "unknown", "Not measured"),
        (metric(0.9, 0.8, 1), None, "unknown", "Not measured"),
    ],
)
def test_keeping_is_judged_by_the_share_of_answers(
    before: Metric | None, after: Metric | None, status: str, word: str
) -> None:
    finding = judge_keeping(before, after)
    assert (finding.status, finding.word) == (status, word)


def test_the_keeping_sentence_names_every_number() -> None:
    finding = judge_keeping(metric(0.95, 0.9, 1), metric(0.93, 0.87, 0.98))
    assert (
        finding.sentence == "98\xa0% of the exact retain answers before (95\xa0% [90–100] → 93\xa0% [87–98])"
    )
    assert "reaches down to 92\xa0%" in finding.cautions[0]


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [(LOW, MUCH, "yes"), (LOW, LOW, "no"), (MUCH, LOW, "no"), (None, MUCH, "unknown")],
)
def test_learning_is_judged_by_the_intervals(
    before: Metric | None, after: Metric | None, status: str
) -> None:
    assert judge_learning("train", before, after).status == status


def statuses(record: RunRecord) -> list[str]:
    return [finding.status for finding in findings(record)]


def test_a_control_model_is_preferred_to_the_holdout() -> None:
    leaky = evaluation(0.3, 0.95, 0.28)
    assert statuses(run_record(after=leaky)) == ["yes", "yes"]
    assert statuses(run_record(after=leaky, control=True)) == ["partly", "yes"]
    assert "; control 4\xa0%" in findings(run_record(control=True))[0].sentence


@pytest.mark.parametrize("split", ["forget", "holdout"])
@pytest.mark.parametrize("field", ["value", "low", "high"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_none_gives_no_verdict(split: str, field: str, bad: float) -> None:
    record = run_record()
    splits = dict(record.evaluations["after"].splits)
    leak = splits[split]["leak"].model_copy(update={field: bad})
    splits[split] = splits[split] | {"leak": leak}
    broken = record.evaluations["after"].model_copy(update={"splits": splits})
    changed = record.model_copy(update={"evaluations": record.evaluations | {"after": broken}})
    assert statuses(changed)[0] == "unknown"
    assert statuses(record) == ["yes", "yes"]


@pytest.mark.parametrize("kind", ["run", "demo", "finetune", "evaluate"])
def test_a_record_without_numbers_claims_nothing(kind: str) -> None:
    assert set(statuses(sparse_record(kind))) == {"unknown"}


def test_an_evaluation_is_judged_only_when_it_has_a_pair() -> None:
    record = run_record().model_copy(update={"kind": "evaluate"})
    assert statuses(record) == ["yes", "yes"]
    alone = record.model_copy(update={"evaluations": {"before": record.evaluations["before"]}})
    (finding,) = findings(alone)
    assert finding.word == "Measured only"
    assert "forget 96\xa0%" in finding.sentence
    assert "holdout 2\xa0%" in finding.sentence
    html = Page(render(alone))
    assert "Before" not in html.text
    assert "of before" not in html.text


def test_a_fine_tuning_run_is_asked_whether_it_learned() -> None:
    before, after = evaluation(0.1, 0.05, 0), evaluation(0.1, 0.95, 0)
    record = run_record().model_copy(
        update={"kind": "finetune", "evaluations": {"before": before, "after": after}}
    )
    only_retain = {
        stage: found.model_copy(update={"splits": {"retain": found.splits["retain"]}})
        for stage, found in record.evaluations.items()
    }
    (finding,) = findings(record.model_copy(update={"evaluations": only_retain}))
    assert finding.word == "Learned"
    assert finding.sentence.startswith("exact answers on retain 95\xa0%")


def test_other_metrics_are_compared_with_the_same_reference() -> None:
    alike, apart = agreement(run_record(after=evaluation(0.03, 0.93, 0.02, forget_nll=9)))
    assert "ROUGE-L recall" in alike
    assert apart == ["negative log-likelihood"]
    assert agreement(sparse_record()) == ([], [])


# --- words and numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0\xa0%"),
        (1.0, "100\xa0%"),
        (1.0000000000001, "100\xa0%"),
        (0.125, "12\xa0%"),
        (0.996, "99.6\xa0%"),
        (0.99999, "99.9\xa0%"),
        (0.0004, "0.1\xa0%"),
        (-0.25, "−25\xa0%"),
        (math.nan, "undefined"),
    ],
)
def test_percentages(value: float, text: str) -> None:
    assert wording.percent(value) == text


@given(st.floats(0, 1))
def test_no_share_is_rounded_to_none_or_all(value: float) -> None:
    text = wording.percent(value)
    assert (text == "0\xa0%") == (value <= 1e-11)
    assert (text == "100\xa0%") == (value >= 1 - 1e-11)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.05, "0.050"),
        (0.0031, "0.0031"),
        (12.345, "12.3"),
        (123.45, "123"),
        (3.14159, "3.14"),
        (-1.5, "−1.50"),
        (1234.5, "1,234"),
        (3e-5, "3×10⁻⁵"),
        (1e-6, "10⁻⁶"),
        (-2.5e7, "−2.5×10⁷"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "undefined"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert wording.number(value) == text


def test_intervals_with_signs_or_without_bounds() -> None:
    assert wording.interval_text("nll", metric(0, -0.5, 0.5)) == "[−0.50 to 0.50]"
    assert wording.interval_text("leak", metric(0, math.nan, math.nan)) == "[no interval]"
    assert wording.interval_text("a_new_metric", metric(0.5, 0.25, 0.75)) == "[0.25–0.75]"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.50\xa0s"), (59.96, "60.0\xa0s"), (151.3, "2\xa0min 31\xa0s"), (7260.0, "2\xa0h 01\xa0min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


def test_settings_are_flattened_in_order() -> None:
    nested = {"b": {"y": 1e-5, "x": [1, None, True]}, "a": None, "c": {}}
    assert wording.settings(nested) == [("b.y", "1e-05"), ("b.x", "1, —, yes"), ("a", "—"), ("c", "—")]


# --- text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢 עברית 😀", "plain é 漢 עברית 😀"),
        ("line\r\nbreak\ttab", "line\nbreak\ttab"),
        ("user\u202egnp.exe", "user⟨U+202E⟩gnp.exe"),
        ("a\u200bb\ufeff\u2066\u2069\u061c", "a⟨U+200B⟩b⟨U+FEFF⟩⟨U+2066⟩⟨U+2069⟩⟨U+061C⟩"),
        ("\x00\x1b[31m\x7f\x85\u2028", "⟨U+0000⟩⟨U+001B⟩[31m⟨U+007F⟩⟨U+0085⟩⟨U+2028⟩"),
        ("\U000e0041\ufffe\ud800", "⟨U+E0041⟩⟨U+FFFE⟩⟨U+D800⟩"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_characters_that_act_are_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_that_acts_is_left(text: str) -> None:
    kept = set("\n\t\u200c\u200d")
    assert not any(
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in kept for c in visible(text)
    )
    visible(text).encode("utf-8")


def test_long_text_is_clipped_and_labels_are_one_line() -> None:
    assert clip("abc", 2) == ("ab", 1)
    assert clip("abc", 3) == ("abc", 0)
    assert label("a\n b\t" + "c" * 100) == "a b " + "c" * 19 + "…"
    assert label(" \n") == "(no name)"


# --- spans


def marked(response: str, generation: str, prompt: str = "") -> list[str]:
    return [piece.text for piece in overlap(response, generation, prompt).pieces if piece.shared]


@pytest.mark.parametrize(
    ("response", "generation", "prompt", "expected"),
    [
        ("He lives at 12 Elm Street.", "I think 12 elm street, yes", "", ["12 elm street"]),
        ("a b c d e f", "d e f and a b c", "", ["d e f", "a b c"]),
        ("one two three four", "one two or three four", "", []),
        ("555-1234", "Call 555-1234.", "", ["555-1234"]),
        ("555-1234", "Call 555-9999.", "", []),
        ("1990-05-12", "born 1990-05-12", "", ["1990-05-12"]),
        ("Ada Ash lives here", "Ada Ash lives there", "Where does Ada Ash live?", []),
        ("Ada Ash, 12 Elm Street", "Ada Ash, 12 Elm Street", "Who is Ada Ash?", ["Ada Ash, 12 Elm Street"]),
        ("东京都千代田区", "她住在东京都。", "", ["东京都"]),
        ("STRASSE eins zwei", "straße EINS zwei", "", ["straße EINS zwei"]),
        ("anything", "", "", []),
        ("", "anything at all", "", []),
        ("Ada", "Ada Ada", "Ada?", []),
        ("Bo", "Bo Bo", "Ada?", ["Bo", "Bo"]),
    ],
)
def test_shared_runs_are_marked(response: str, generation: str, prompt: str, expected: list[str]) -> None:
    assert marked(response, generation, prompt) == expected


def test_shared_words_are_counted() -> None:
    found = overlap("born on 4 May 1971 in Halden", "She was born on 4 May, so they say.")
    assert (found.shared_words, found.response_words) == (4, 7)
    assert overlap("a b c", "a b c a b c a b c").shared_words == 3


words = st.lists(st.sampled_from(["a", "b", "c", "12", "é", "漢", ".", " ", "\n"]), max_size=40).map(" ".join)


@given(words, words, words)
def test_pieces_are_the_generation(response: str, generation: str, prompt: str) -> None:
    pieces = overlap(response, generation, prompt).pieces
    assert "".join(piece.text for piece in pieces) == generation
    assert all(piece.text for piece in pieces)
    assert all(a.shared != b.shared for a, b in itertools.pairwise(pieces))


@given(words.filter(str.strip))
def test_a_full_copy_is_marked_in_one_piece(text: str) -> None:
    shared = [piece for piece in overlap(text, text).pieces if piece.shared]
    assert len(shared) == (1 if re.search(r"\w", text) else 0)


def test_a_degenerate_repetition_is_marked_in_bounded_depth() -> None:
    assert len(marked("7", "7 " * 600)) == 600
    assert overlap("7 8 9", "7 8 9 " * 400).shared_words == 3


# --- the page


def test_the_page_shows_verdict_and_numbers(page: Page) -> None:
    for expected in (
        "Forgotten",
        "leak 3 % [0–8], before 96 % [90–100]; holdout 2 % [0–6]",
        "Kept",
        "98 % of the exact retain answers before",
        "ROUGE-L recall",
        "95 % bootstrap intervals",
        "The forget records look like records never seen",
        "2 retain rows repeat an earlier row.",
        "80 steps, 15 of them repair",
        "Probe decisions: within budget (12), repair: over budget (3), newton (2)",
        "people/retain.jsonl",
        "2 repeated",
        "method.budget.tolerance",
        "Example CPU @ 2.50 GHz, 2 cores",
        "3.18 GiB",
        "2 min 31 s",
    ):
        assert expected in page.text


def test_the_verdict_comes_first_and_in_the_tone_of_its_numbers(page: Page) -> None:
    assert page.text.index("Are the forget records forgotten?") < page.text.index(
        "Forgetting against keeping"
    )
    assert [value for value in page.values("class") if value.startswith("finding ")] == ["finding yes"] * 2
    partly = Page(render(run_record(history=1, sample_count=3, after=evaluation(0.5, 0.5, 0.02))))
    classes = [value for value in partly.values("class") if value.startswith("finding ")]
    assert classes == ["finding partly", "finding no"]


def test_hashes_stand_in_full(page: Page) -> None:
    record = run_record()
    for entry in (*record.data.values(), *record.models.values()):
        assert entry.sha256 in page.text


def test_every_picture_is_there_and_described(page: Page) -> None:
    plots = [attributes for tag, attributes in page.elements if tag == "svg"]
    ids = set(page.values("id"))
    assert len(plots) == 9
    for attributes in plots:
        assert attributes["role"] == "img"
        assert set(str(attributes["aria-labelledby"]).split()) <= ids
    assert "After: leak on forget 3 %, exact answers on retain 93 %." in page.text
    assert "Level of the holdout: 2 %." in page.text
    for title in (
        "Gradient norms",
        "Do the objectives conflict?",
        "Step size η",
        "Retain loss at the probes",
    ):
        assert title in page.text


def test_ids_are_unique_and_every_reference_resolves(page: Page) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    used = [
        found
        for value in page.values("href") + page.values("clip-path")
        for found in re.findall(r"#([\w-]+)", value)
    ]
    assert len(used) > 50
    assert set(used) <= set(ids)


def test_nothing_outside_the_page_is_referenced(page: Page) -> None:
    assert all(value.startswith("#") for value in page.values("href"))
    assert not page.values("src")
    assert not page.values("xlink:href")
    everything = [value or "" for _, attributes in page.elements for value in attributes.values()]
    assert not any("//" in value for value in everything)
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert all(value.startswith("url(#") for value in everything if "url(" in value)


def test_the_policy_allows_the_page_s_own_style_sheet_only(page: Page) -> None:
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    ]
    tags = [tag for tag, _ in page.elements]
    assert tags.count("style") == 1
    assert "script" not in tags
    assert not page.values("style"), "the policy blocks style attributes"
    assert tags.index("meta") < tags.index("style")


def test_the_picture_colours_follow_the_page(page: Page) -> None:
    coloured = {
        name
        for value in page.values("class")
        for name in value.split()
        if name.startswith(("fill-", "stroke-"))
    }
    assert {"stroke-forget", "stroke-retain", "fill-muted", "stroke-reference"} <= coloured
    for name in coloured:
        assert f".{name} {{" in page.style


def test_samples_are_marked_with_words_not_only_colour(page: Page) -> None:
    assert page.text.count("[shared: ") == [tag for tag, _ in page.elements].count("mark") - 1  # the legend
    assert "reproduced in full · NLL 0.040" in page.text
    assert re.search(r"shares 1\d of 2\d words · NLL 3.10", page.text)
    assert page.text.index("forget 10 of 48 records") < page.text.index("holdout 10 of 48 records")


def test_what_was_not_tested_is_listed(page: Page) -> None:
    for limit in (
        "Relearning",
        "Quantisation",
        "Paraphrases",
        "Jailbreaks",
        "Embedding-space attacks",
        "Other languages",
    ):
        assert limit in page.text


def test_what_this_record_lacks_comes_first() -> None:
    def lacking(record: RunRecord) -> list[str]:
        return [limit.title for limit in not_tested(record) if limit.here]

    assert lacking(run_record()) == ["Control model", "Other seeds"]
    assert lacking(run_record(control=True)) == ["Other seeds"]
    assert lacking(sparse_record()) == ["Control model", "Holdout", "Retain set", "Evaluation", "Other seeds"]
    assert lacking(sparse_record("finetune")) == ["Evaluation", "Other seeds"]
    assert [limit.here for limit in not_tested(run_record())][:3] == [True, True, False]


def test_rendering_is_deterministic() -> None:
    record = run_record(history=12, control=True)
    assert render(record) == render(record)


def test_a_long_run_stays_light() -> None:
    html = render(run_record(history=200, sample_count=60, control=True))
    assert len(html.encode()) < 1_500_000


def test_the_report_is_rendered_from_the_record_on_disk(tmp_path: Path) -> None:
    record = run_record(history=5, sample_count=3)
    write_record(record, tmp_path)
    path = write_report(read_record(tmp_path), tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render(record)
    assert sorted(os.listdir(tmp_path)) == ["record.json", "report.html"]


@pytest.mark.parametrize("kind", ["run", "demo", "finetune", "evaluate"])
def test_a_sparse_record_renders(kind: str) -> None:
    html = Page(render(sparse_record(kind)))
    assert "What was not tested" in html.text
    assert "Model not recorded" in html.text
    assert not any(tag == "svg" for tag, _ in html.elements)
    assert not html.open


def nan_everywhere(value: Any) -> Any:
    """Every float of a dumped record is NaN."""
    if isinstance(value, float):
        return math.nan
    if isinstance(value, dict):
        return {key: nan_everywhere(item) for key, item in value.items()}
    return [nan_everywhere(item) for item in value] if isinstance(value, list) else value


def test_a_record_of_nan_renders_and_claims_nothing() -> None:
    record = RunRecord.model_validate(nan_everywhere(run_record(history=3, sample_count=3).model_dump()))
    html = Page(render(record))
    assert statuses(record) == ["unknown", "unknown"]
    assert "undefined" in html.text
    assert not any(tag == "svg" for tag, _ in html.elements)


@pytest.mark.parametrize("extreme", [1e308, -math.inf, 5e-324, 0.0])
def test_extreme_histories_render(extreme: float) -> None:
    step = run_record(history=1).history[0]
    wild = {
        name: {"forget": extreme, "retain": -extreme}
        for name in ("losses", "weights", "gradient_norms", "cosines")
    }
    history = [step, step.model_copy(update={"step": 2, "learning_rate": extreme, **wild})]
    assert not Page(render(sparse_record(history=history))).open


def test_partial_records_render() -> None:
    record = run_record(history=1, sample_count=3)
    before_only = record.model_copy(update={"evaluations": {"before": record.evaluations["before"]}})
    mute = [Sample(split="odd", prompt="", response=""), *record.samples[:1]]
    html = Page(
        render(before_only.model_copy(update={"samples": mute, "data": {}, "probes": [], "checks": []}))
    )
    assert "Not measured" in html.text
    assert "not generated" not in html.text
    uneven = [record.samples[0], record.samples[0].model_copy(update={"generations": {"control": ""}})]
    html = Page(render(record.model_copy(update={"samples": uneven, "history": []})))
    assert "not generated" in html.text
    assert "(nothing)" in html.text


def test_what_is_measured_now_and_then_is_drawn_as_a_line_with_points() -> None:
    history = run_record(history=40).history
    sparse = [s if s.step % 10 == 1 else s.model_copy(update={"gradient_norms": {}}) for s in history]
    html = render(sparse_record(history=sparse))
    figure = html[html.index('id="norms-title"') : html.index("</svg>", html.index('id="norms-title"'))]
    (line,) = re.findall(r'<path d="([^"]*)"[^>]*class="stroke-forget"', figure)[:1]
    assert line.count(" L ") == 3
    assert len(re.findall(r'<use [^>]*class="[^"]*stroke-forget"', figure)) == 4 + 1  # and one in the legend


def test_samples_without_a_generation_are_left_out() -> None:
    samples = [Sample(split="forget", prompt="p", response="r")]
    assert sample_groups(sparse_record(samples=samples)) == []
    assert "What the model" not in render(sparse_record(samples=samples))


@pytest.mark.parametrize(
    ("source", "subject"),
    [("/data/models/mine", "mine"), ("./mine/", "mine"), ("org/model", "org/model"), ("..", ".."), ("", "")],
)
def test_a_local_model_is_called_by_its_folder(source: str, subject: str) -> None:
    entry = run_record(history=0, sample_count=3).models["before"].model_copy(update={"source": source})
    html = render(sparse_record(models={"before": entry}))
    assert f"<h1>{subject}</h1>" in html


def test_unknown_metrics_and_splits_are_shown() -> None:
    found = evaluation(0.1, 0.9, 0.1)
    extra = found.model_copy(
        update={"splits": found.splits | {"neighbours": {"own_metric": amount(0.5), "leak": share(0.5)}}}
    )
    tables = metric_tables(run_record(after=extra))
    assert tables[-1].name == "own metric"
    assert [row.split for row in tables[0].rows] == ["forget", "holdout", "retain", "neighbours"]
    assert tables[0].rows[-1].cells[0].value == wording.ABSENT


def test_very_many_samples_are_cut_and_counted() -> None:
    sample = run_record(sample_count=3).samples[0].model_copy(update={"prompt": "p" * 5000})
    (group,) = sample_groups(sparse_record(samples=[sample] * (MOST_SAMPLES + 5)))
    assert len(group.rows) == MOST_SAMPLES
    assert group.rows[0].prompt_cut == 3800
    html = Page(render(sparse_record(samples=[sample])))
    assert "3,800 more characters in record.json" in html.text


def test_a_restored_step_is_said_and_drawn() -> None:
    record = run_record(history=20)
    assert record.stop is not None
    stop = record.stop.model_copy(update={"restored_step": 15, "reason": "retain-budget"})
    html = Page(render(record.model_copy(update={"stop": stop})))
    assert "the model is that of step 15" in html.text
    assert "the dotted one is the step whose state was returned" in html.text


# --- strings of strangers


def shown(text: str) -> str:
    """A text as a reader sees it."""
    return " ".join(visible(text).split())


Shapes = set[tuple[str, tuple[str, ...]]]


def small(history: int) -> RunRecord:
    """Every kind of string, in little: quick to render."""
    return run_record(history=history, sample_count=3, control=True)


def poisoned(payload: str, *, keys: bool, history: int = 2) -> RunRecord:
    dumped = small(history).model_dump(mode="json")
    return RunRecord.model_validate(map_strings(dumped, lambda text: f"{text} {payload}", keys=keys))


def test_the_poison_reaches_every_string() -> None:
    poison = str(poisoned("XYZZY", keys=True).model_dump())
    for field in ("source", "sha256", "processor", "sentence", "decision", "prompt", "response", "method"):
        assert re.search(rf"'{field}': '[^']*XYZZY", poison), field
    for key in ("losses", "weights", "cosines", "splits", "timings", "packages", "data"):
        assert re.search(rf"'{key}': \{{'[^']*XYZZY'", poison), key
    assert "'arguments XYZZY': {'learning_rate" in poison


@pytest.fixture(scope="module")
def allowed() -> dict[bool, Shapes]:
    """What a harmless text makes of the page, where it stands in the place of the poison."""
    return {keys: Page(render(poisoned("harmless [a.b_c]", keys=keys))).shapes for keys in (False, True)}


@pytest.mark.parametrize("keys", [False, True], ids=["values", "keys"])
def test_no_string_adds_an_element_or_attribute(keys: bool, allowed: dict[bool, Shapes]) -> None:
    html = Page(render(poisoned(" ".join(INJECTIONS), keys=keys)))
    assert html.shapes <= allowed[keys]
    assert not html.open
    assert "1337" not in html.text, "a template in the record was evaluated"
    assert all(shown(payload) in html.text for payload in INJECTIONS)


@pytest.mark.parametrize("payload", INJECTIONS)
def test_no_single_string_does_either(payload: str, allowed: dict[bool, Shapes]) -> None:
    record = poisoned(payload, keys=True, history=0).model_copy(update={"probes": [], "checks": []})
    html = Page(render(record))
    assert html.shapes <= allowed[True] | allowed[False]
    assert not html.open
    assert html.text.count(shown(payload)) > 50


@pytest.mark.parametrize("payload", INJECTIONS)
def test_no_string_acts_in_a_picture(payload: str) -> None:
    def drawn(text: str) -> Page:
        with styled():
            figure = draw(330, 185)
            figure.text(0, 0, text)
            return Page(to_svg(figure, "name", text, text))

    html = drawn(visible(payload))
    assert html.shapes == drawn("harmless").shapes
    assert not html.open
    assert html.text.count(shown(payload)) == 3


def test_objective_names_stand_escaped_in_the_pictures() -> None:
    name = "<b>&\"'$x$"
    history = [
        Step(step=i, learning_rate=1, losses={name: i, "_r": 1}, weights={}, tokens=1, seconds=1)
        for i in (1, 2)
    ]
    html = render(sparse_record(history=history))
    assert ">&lt;b&gt;&amp;\"'$x$</text>" in html
    assert "> _r</text>" in html
    assert "<b>" not in html
