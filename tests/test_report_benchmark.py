"""Pages about benchmarks: what they show, that links arrive, and that no string acts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import pytest

from expunge.benchmarks.series import series
from expunge.cli import app
from expunge.errors import UsageError
from expunge.record import Metric, RunRecord, read_record, write_record
from expunge.report import Published, render
from expunge.report.board import board, shared_keys
from expunge.report.components import groups, headlines
from expunge.report.leaderboard import Entrant, render_leaderboard, write_leaderboard
from expunge.report.limits import not_tested
from expunge.report.tables import anchor
from expunge.report.wording import is_benchmark, meaning, stage_titles
from record_factory import INJECTIONS, evaluation, map_strings, run_record, sparse_record, tofu_like
from test_report import Page, shown

PUBLISHED = (
    Published("Team One", {"all/model_utility": 0.5, "all/unheard": 0.1}, "Table 3 of a paper"),
    Published("Team Two", {"all/forget_quality": 0.25}, "Table 3 of a paper"),
    Published("Elsewhere", {"all/unheard": 0.9}, "Another paper"),
)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(tofu_like(), PUBLISHED))


def write_runs(folder: Path, levels: Sequence[float] = (0.1, 0.5)) -> list[Path]:
    folders = [folder / f"run {level}" for level in levels]
    for place, level in zip(folders, levels, strict=True):
        write_record(tofu_like(level, sample_count=2), place)
    return folders


# --- one record


def test_only_splits_of_its_own_make_a_benchmark() -> None:
    assert is_benchmark(tofu_like())
    assert not is_benchmark(run_record(control=True))
    assert not is_benchmark(sparse_record())


def test_aggregates_come_first_and_stand_in_large_type(page: Page) -> None:
    found = groups(tofu_like())
    assert [group.title for group in found][:3] == ["Aggregates", "forget", "retain"]
    names = [(headline.name, headline.value) for headline in headlines(tofu_like(0.5))]
    assert names == [("model utility", "0.61"), ("forget quality", "0.50")]
    assert "[0.58–0.64] over 900 records; Reference 0.61 [0.58–0.64]" in page.text
    assert page.text.index("Aggregates") < page.text.rindex("real authors")
    assert "Are the forget records forgotten?" not in page.text, "no verdict on sets that were not measured"


def test_without_aggregates_the_first_metric_of_each_split_leads() -> None:
    record = tofu_like()
    bare = {
        stage: found.model_copy(update={"splits": {s: m for s, m in found.splits.items() if s != "all"}})
        for stage, found in record.evaluations.items()
    }
    names = [h.name for h in headlines(record.model_copy(update={"evaluations": bare}))]
    assert names == [
        f"ROUGE-L recall, {split}" for split in ("forget", "retain", "real authors", "world facts")
    ]


def test_every_number_stands_on_the_page_with_interval_and_reference(page: Page) -> None:
    record = tofu_like()
    ids = set(page.values("id"))
    for split, metrics in record.evaluations["before"].splits.items():
        for name in metrics:
            assert anchor(split, name) in ids
    for group in groups(record):
        for row in group.rows:
            for cell in row.cells:
                assert f"{cell.value} {cell.interval}" in page.text
    assert stage_titles(record) == {"before": "Model", "after": "Model", "control": "Reference"}


def test_bars_show_what_lies_between_0_and_1_and_say_it(page: Page) -> None:
    plots = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(plots) == 5
    assert "Response probability: Model 0.30, Reference 0.050." in page.text
    assert "Negative log-likelihood: Model" not in page.text
    assert "Aggregates" in page.text


def test_a_metric_explains_itself(page: Page) -> None:
    assert "Probability of the true response per token" in page.text


def test_published_rows_stand_below_ours_with_their_source(page: Page) -> None:
    text = page.text[page.text.index("Beside published results") :]
    assert text.index("Model 0.61 [0.58–0.64]0.66") < text.index("Team One published 0.50 —")
    assert "Team Two published — 0.25" in text
    assert "Source: Table 3 of a paper." in text
    assert "Elsewhere" not in page.text, "it states no metric that was measured"
    assert "Another paper" not in page.text
    assert "Beside published" not in Page(render(tofu_like(), PUBLISHED[2:])).text


def test_records_are_reached_from_their_split(page: Page) -> None:
    assert f"#{anchor('real_authors')}" in page.values("href")
    assert anchor("real_authors") in page.values("id")
    assert f"#{anchor('world_facts')}" not in page.values("href"), "none of its records are shown"
    assert "given away" in page.text
    assert "reproduced in full" not in page.text


def test_ids_are_unique_and_every_reference_resolves(page: Page) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.values("href") if value.startswith("#")} <= set(ids)
    assert all(value.startswith("#") for value in page.values("href"))


def test_what_only_own_sets_lack_is_not_asked_of_a_benchmark() -> None:
    def lacking(record: RunRecord) -> list[str]:
        return [limit.title for limit in not_tested(record) if limit.here]

    assert lacking(tofu_like()) == ["Other seeds"]
    assert lacking(tofu_like(reference=False)) == ["Control model", "Other seeds"]


def test_values_that_are_no_numbers_are_shown_and_not_drawn() -> None:
    record = tofu_like(reference=False)
    nan = Metric(value=float("nan"), low=float("nan"), high=float("nan"), n=3)
    found = record.evaluations["before"].model_copy(update={"splits": {"all": {"forget_quality": nan}}})
    html = Page(render(record.model_copy(update={"evaluations": {"before": found}})))
    assert "undefined [no interval]" in html.text
    assert not any(tag == "svg" for tag, _ in html.elements)


# --- many records


def test_every_number_leads_to_its_place_in_its_record(tmp_path: Path) -> None:
    folders = write_runs(tmp_path / "runs")
    output = write_leaderboard(folders, tmp_path / "pages" / "board.html", published=PUBLISHED)
    html = Page(output.read_text(encoding="utf-8"))
    links = [href for href in html.values("href") if not href.startswith("#")]
    assert len(links) > 2 * 18
    assert not any(":" in link or "//" in link for link in links)
    targets: dict[Path, Page] = {}
    for link in links:
        path, _, place = link.partition("#")
        file = (output.parent / unquote(path)).resolve()
        if file not in targets:
            targets[file] = Page(file.read_text(encoding="utf-8"))
        assert not place or place in targets[file].values("id")
    assert set(targets) == {(folder / "report.html").resolve() for folder in folders}


def test_models_stand_in_the_order_given_and_a_shared_reference_once(tmp_path: Path) -> None:
    output = write_leaderboard(write_runs(tmp_path), tmp_path / "board.html", published=PUBLISHED)
    html = Page(output.read_text(encoding="utf-8"))
    text = html.text[html.text.index("Numbers In") if "Numbers In" in html.text else 0 :]
    first = text[text.index("Aggregates Model") :]
    order = ["run 0.1", "run 0.5", "reference of run 0.1", "Team One", "Team Two"]
    places = [first.index(name) for name in order]
    assert places == sorted(places)
    assert "reference of run 0.5" not in text, "both runs name the same reference"
    assert "0.82 [0.020–0.99]" in first


def test_measurements_that_cannot_be_compared_are_said_to_be() -> None:
    one, two = tofu_like(), tofu_like(benchmark="lume")
    forget = two.data["forget"].model_copy(update={"sha256": "0" * 64})
    two = two.model_copy(update={"data": {"forget": forget}, "expunge_version": "9"})
    text = Page(render_leaderboard([Entrant("one", "a.html", one), Entrant("two", "b.html", two)])).text
    assert "two was measured on other rows than one: forget." in text
    assert "The records differ in benchmark: lume, tofu." in text
    assert "The records differ in version of expunge: 0.1.0, 9." in text
    alike = Page(render_leaderboard([Entrant("one", "a.html", one), Entrant("two", "b.html", one)])).text
    assert "Careful" not in alike


def test_own_sets_can_stand_on_a_leaderboard_too(tmp_path: Path) -> None:
    for name, forget in (("a", 0.1), ("b", 0.4)):
        write_record(
            run_record(history=0, sample_count=3, after=evaluation(forget, 0.9, 0.1)), tmp_path / name
        )
    output = write_leaderboard([tmp_path / "a", tmp_path / "b"], tmp_path / "board.html")
    text = Page(output.read_text(encoding="utf-8")).text
    assert "10 % [2–18]" in text.replace("\xa0", " ")
    assert "before of a" in text


def test_a_series_is_drawn_as_curves(tmp_path: Path) -> None:
    folders = write_runs(tmp_path, (0.1, 0.5, 0.9))
    output = write_leaderboard(folders, tmp_path / "b.html", series=series(folders, "request"))
    text = Page(output.read_text(encoding="utf-8")).text
    assert "By the number of removal requests so far" in text
    assert "At 1.00: 0.82. At 2.00: 0.50. At 3.00: 0.18." in text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "at least two run folders; got 1"),
        (["a", "a"], "must be named once"),
        (["a", "bare"], r"bare must hold an evaluation"),
        (["a", "none"], r"none.* does not exist"),
    ],
)
def test_what_is_no_leaderboard_is_refused(names: list[str], message: str, tmp_path: Path) -> None:
    write_record(tofu_like(sample_count=2), tmp_path / "a")
    write_record(sparse_record(), tmp_path / "bare")
    with pytest.raises(UsageError, match=message):
        write_leaderboard([tmp_path / name for name in names], tmp_path / "board.html")
    assert not (tmp_path / "board.html").exists()


def test_the_command_takes_one_folder_or_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [str(folder) for folder in write_runs(tmp_path)]
    monkeypatch.chdir(tmp_path)

    def call(*tokens: str) -> str:
        app(["report", *tokens], exit_on_error=False, print_error=False, result_action="return_value")
        return capsys.readouterr().out.strip()

    assert call(folders[0]) == str(Path(folders[0]) / "report.html")
    assert call(*folders) == "leaderboard.html"
    assert call(*folders, "--output", "other.html", "--series", "request") == "other.html"
    assert (tmp_path / "other.html").read_text(encoding="utf-8").count("<svg") > 2
    with pytest.raises(UsageError, match="--series must have several folders"):
        call(folders[0], "--series", "size")


def test_names_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    folders = [tmp_path / "one" / "out", tmp_path / "two" / "out"]
    for folder in folders:
        write_record(tofu_like(sample_count=2), folder)
    text = Page(write_leaderboard(folders, tmp_path / "b.html").read_text(encoding="utf-8")).text
    assert "one/out" in text
    assert "two/out" in text


# --- strings of strangers


def poisoned(payload: str, *, keys: bool) -> RunRecord:
    dumped = tofu_like(sample_count=2).model_dump(mode="json")
    return RunRecord.model_validate(map_strings(dumped, lambda text: f"{text} {payload}", keys=keys))


def pages(payload: str, *, keys: bool) -> list[Page]:
    record = poisoned(payload, keys=keys)
    row = next(iter(record.evaluations["before"].splits.items()))
    foreign = [Published(payload, {f"{row[0]}/{next(iter(row[1]))}": 0.5}, payload)]
    board_page = render_leaderboard(
        [Entrant(payload, "a.html", record), Entrant("b", "b.html", record)], foreign
    )
    return [Page(render(record, foreign)), Page(board_page)]


@pytest.mark.parametrize("keys", [False, True], ids=["values", "keys"])
def test_no_string_adds_an_element_or_attribute(keys: bool) -> None:
    payload = " ".join(INJECTIONS)
    for harmless, html in zip(pages("harmless [a.b_c]", keys=keys), pages(payload, keys=keys), strict=True):
        assert html.shapes <= harmless.shapes
        assert not html.open
        assert "1337" not in html.text
        assert all(shown(one) in html.text for one in INJECTIONS)


def test_a_folder_s_name_cannot_leave_its_link(tmp_path: Path) -> None:
    folders = [tmp_path / "a\"><b onx='1'>#?javascript:%41", tmp_path / "b"]
    for folder in folders:
        write_record(tofu_like(sample_count=2), folder)
    html = Page(write_leaderboard(folders, tmp_path / "board.html").read_text(encoding="utf-8"))
    assert not any(tag == "b" for tag, _ in html.elements)
    link = next(href for href in html.values("href") if href.startswith("a"))
    assert re.fullmatch(r"[\w./%-]+report.html(#m-[0-9a-f]{12})?", link)
    assert (tmp_path / unquote(link.partition("#")[0])).is_file()
    assert read_record(folders[0]).kind == "evaluate"


def test_a_board_without_rows_of_others_has_no_source() -> None:
    made = board("Numbers", [("all", "x")], [], PUBLISHED)
    assert (made.rows, made.sources, shared_keys([], PUBLISHED)) == ((), (), [])


def test_a_benchmark_says_what_its_own_metrics_mean() -> None:
    said = [row.meaning for group in groups(tofu_like()) for row in group.rows]
    assert any("max(0, 1 - R)" in text for text in said)
    assert not any("other records' responses" in text for text in said)
    assert "40 %" in meaning("membership_min_k_auc", "tofu")
    assert "fifth" in meaning("membership_min_k_auc")
