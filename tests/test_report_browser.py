"""The page in a real browser: nothing runs, nothing is fetched, nothing is cut off, in any width."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from conftest import absent
from expunge.record import RunRecord
from expunge.report import Published, render
from expunge.report.leaderboard import Entrant, render_leaderboard
from record_factory import INJECTIONS, evaluation, map_strings, run_record, sparse_record, tofu_like

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=4000",
)
WIDTHS = (360, 1280)
Seen = tuple[dict[str, dict[str, Any]], str]
# Runs in the page around the frames, never in a report: what a report became once the browser had parsed it.
MEASURE = """
addEventListener("load", () => setTimeout(() => {
  const foreign = "script,iframe,frame,img,image,object,embed,video,audio,link,base,form,input,a[href*=':']";
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, view = frame.contentWindow;
    const all = [...page.querySelectorAll("*")];
    return {
      name: frame.name,
      title: page.title,
      ran: Boolean(view.pwned),
      foreign: page.querySelectorAll(foreign).length,
      handlers: all.filter(e => [...e.attributes].some(a => a.name.startsWith("on"))).length,
      metas: page.querySelectorAll("meta").length,
      styles: page.querySelectorAll("style").length,
      fetched: view.performance.getEntriesByType("resource").length,
      styled: view.getComputedStyle(page.querySelector("main") || page.body).maxWidth,
      headings: page.querySelectorAll("h2").length,
      width: view.innerWidth,
      needed: Math.max(page.documentElement.scrollWidth, page.body.scrollWidth),
      wide: all.filter(e => e.getBoundingClientRect().right > view.innerWidth + 1)
        .slice(0, 5).map(e => e.tagName + "." + e.getAttribute("class") + ":" + e.textContent.slice(0, 40)),
    };
  });
  document.body.textContent = JSON.stringify(found);
}, 300));
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        absent(f"no browser found: none of {', '.join(names)} is on PATH", "EXPUNGE_REQUIRE_BROWSER")
    return found


def browse(chromium: str, folder: Path, page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [chromium, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def frames(chromium: str, folder: Path, pages: dict[str, str]) -> Seen:
    """Load pages, each in a frame of every width; what became of each, and what the console said."""
    body = "".join(
        f'<iframe name="{name} {width}" width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
    )
    harness = folder / "harness.html"
    style = "iframe { border: 0; display: block }"
    harness.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><style>{style}</style><body>{body}<script>{MEASURE}</script>',
        encoding="utf-8",
    )
    done = browse(chromium, folder, harness, "--dump-dom")
    match = re.search(r"<body>(\[.*\])\s*</body>", done.stdout, re.DOTALL)
    assert match, f"the measurement did not run: {done.stdout[-500:]} {done.stderr[-500:]}"
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return {found["name"]: found for found in json.loads(html.unescape(match[1]))}, console


def poisoned(*, keys: bool) -> RunRecord:
    """Every string (and every free key) of a record carries all injections."""
    dumped = run_record(history=3, sample_count=3, control=True).model_dump(mode="json")
    payload = " ".join(INJECTIONS)
    return RunRecord.model_validate(map_strings(dumped, lambda text: f"{text} {payload}", keys=keys))


def records() -> dict[str, RunRecord]:
    record = run_record(control=True, after=evaluation(0.2, 0.85, 0.02))
    endless = [
        record.samples[0].model_copy(update={"prompt": "x" * 900, "generations": {"after": "漢" * 900}})
    ]
    return {
        "run": record,
        "demo": run_record(history=12).model_copy(update={"kind": "demo"}),
        "evaluate": run_record(history=0).model_copy(update={"kind": "evaluate", "probes": [], "checks": []}),
        "finetune": sparse_record("finetune", history=record.history[:4]),
        "endless": sparse_record(samples=endless, method="y" * 300, configuration={"k" * 200: "v" * 500}),
        "poisoned values": poisoned(keys=False),
        "poisoned keys": poisoned(keys=True),
    }


def pages() -> dict[str, str]:
    """Every kind of page: of a record, of a benchmark, of several records; each also with hostile strings."""
    payload = " ".join(INJECTIONS)
    dumped = tofu_like(sample_count=2).model_dump(mode="json")
    hostile = RunRecord.model_validate(map_strings(dumped, lambda text: f"{text} {payload}", keys=True))
    row = Published(
        "A team", {"all/model_utility": 0.5, f"all {payload}/model_utility {payload}": 0.5}, payload
    )
    found = {name: render(record) for name, record in records().items()}
    for name, record in (("", tofu_like()), ("poisoned ", hostile)):
        entrants = [Entrant(f"x{name}" * 40, "a/report.html", record), Entrant("b", "b/report.html", record)]
        found[f"{name}benchmark"] = render(record, [row])
        found[f"{name}leaderboard"] = render_leaderboard(entrants, [row])
    return found


@pytest.fixture(scope="module")
def seen(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return frames(chromium, tmp_path_factory.mktemp("browser"), pages())


def test_every_page_was_seen_in_every_width(seen: Seen) -> None:
    found = {(frame["name"], frame["width"]) for frame in seen[0].values()}
    assert found == {(f"{name} {width}", width) for name in pages() for width in WIDTHS}
    assert all(frame["headings"] >= 2 for frame in seen[0].values())


def test_the_policy_lets_the_style_sheet_in(seen: Seen) -> None:
    assert {frame["styled"] for frame in seen[0].values()} == {"1056px"}


def test_no_string_of_a_record_runs_or_becomes_an_element(
    seen: Seen,
) -> None:
    for frame in seen[0].values():
        assert not frame["ran"], frame
        assert re.search("report|demonstration|leaderboard", frame["title"].lower()), frame
        assert (frame["foreign"], frame["handlers"], frame["metas"], frame["styles"]) == (0, 0, 5, 1), frame


def test_nothing_is_fetched_and_nothing_had_to_be_blocked(
    seen: Seen,
) -> None:
    assert {frame["fetched"] for frame in seen[0].values()} == {0}
    assert seen[1] == ""


def test_no_page_is_wider_than_its_window(seen: Seen) -> None:
    wide = {name: frame["wide"] for name, frame in seen[0].items() if frame["needed"] > frame["width"]}
    assert not wide


def test_the_measurement_would_notice(chromium: str, tmp_path: Path) -> None:
    """A page with each defect is found defective; and the policy alone stops what the escaping would miss."""
    page = render(sparse_record())
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert policy.search(page)
    broken = page.replace("<main>", "<main>" + INJECTIONS[0] + INJECTIONS[1])
    pages = {
        "unescaped": policy.sub("", broken),
        "guarded": broken,
        "wide": page.replace("<main>", "<main><pre>" + "x" * 500 + "</pre>").replace("anywhere", "normal"),
    }
    found, console = frames(chromium, tmp_path, pages)
    assert found["unescaped 360"]["ran"]
    assert found["unescaped 360"]["foreign"] == 2
    assert found["unescaped 360"]["handlers"] == 1
    assert not found["guarded 360"]["ran"]
    assert "Content Security Policy" in console
    assert found["wide 360"]["styled"] == "none", "a changed style sheet must not pass the policy"
    assert found["wide 360"]["needed"] > 360


def test_the_page_prints(chromium: str, tmp_path: Path) -> None:
    page, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    page.write_text(render(run_record()), encoding="utf-8")
    browse(chromium, tmp_path, page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    content = paper.read_bytes()
    assert content.startswith(b"%PDF-")
    assert len(content) > 50_000
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 20


@pytest.mark.parametrize(("scheme", "brightness"), [("light", (0.85, 1.0)), ("dark", (0.0, 0.25))])
def test_the_page_follows_the_colour_scheme(
    scheme: str, brightness: tuple[float, float], chromium: str, tmp_path: Path
) -> None:
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(render(sparse_record()), encoding="utf-8")
    dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    browse(chromium, tmp_path, page, f"--screenshot={shot}", "--window-size=800,600", *dark)
    pixels = imread(shot)[:, :, :3]
    assert pixels.shape == (600, 800, 3)
    assert brightness[0] <= np.median(pixels) <= brightness[1]
    assert pixels.std() > 0.02, "an empty page"
