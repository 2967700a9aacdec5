"""Every kind of bad input is one message and exit status 2, without a traceback, and nothing is written."""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bad_input import FORGET, KINDS, RETAIN, World, lines
from expunge import cli, terminal

WORDS = st.text("abcdefghijklmnopqrstuvwxyzäß漢😀", min_size=1, max_size=6)


def state(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, with what the files hold."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_there_are_many_kinds():
    assert len(KINDS) >= 60


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(word=WORDS)
def test_bad_input_is_refused(kind, word, model_folder):
    with tempfile.TemporaryDirectory() as place:
        world = World(Path(place), model_folder)
        world.write("forget.jsonl", lines(FORGET))
        world.write("retain.jsonl", lines(RETAIN))
        typed = KINDS[kind](world, word)
        before = state(world.folder)
        out, err = io.StringIO(), io.StringIO()
        here = os.getcwd()
        os.chdir(place)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                status = terminal.guarded(lambda: cli.app(typed, exit_on_error=False, print_error=False))
        finally:
            os.chdir(here)
        assert status == 2, (typed, out.getvalue(), err.getvalue())
        assert err.getvalue().count("expunge:") == 1, err.getvalue()
        assert "Traceback" not in err.getvalue()
        assert out.getvalue() == ""
        assert state(world.folder) == before
