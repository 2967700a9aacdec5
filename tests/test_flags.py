"""The flags of every verb: which there are, and that each reaches what the verb calls."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from expunge import cli, terminal

READING = "--template --prompt-field --response-field"
LOOK = "--quiet --json"
TRAINING = f"{READING} --seed --set --resume --overwrite --redact --trust-remote-code {LOOK}"
FLAGS = {
    "demo": f"--output --model --seed --control --overwrite {LOOK}",
    "finetune": f"--data --output --model {TRAINING}",
    "run": "--forget --output --retain --holdout --model --method --control --after --forgotten --original "
    f"--neighbours --config {TRAINING}",
    "evaluate": "BENCHMARK --output --model --data --option --forget --retain --holdout --original "
    f"--reference --cache --logs --reference-logs --generations {READING} --seed --overwrite --redact "
    f"--trust-remote-code {LOOK}",
    "audit": "FOLDER --model --forget --retain --holdout --original --control --filters --attacks "
    f"--seconds --redact --output {READING} --seed --set --resume --overwrite --trust-remote-code {LOOK}",
    "compare": "BENCHMARK --methods --output --forget --retain --holdout --model --data --option --reference "
    f"--seeds --grid --forget-metric --utility-metric --keep-models --config {READING} --set --resume "
    f"--overwrite --redact --trust-remote-code {LOOK}",
    "neighbours": "--forget --retain --output --model --k --pool --margin --probes --templates --curriculum "
    f"--generator {READING} --seed --overwrite --trust-remote-code {LOOK}",
    "report": "FOLDERS --output --series",
    "list": "WHAT",
    "plan": "--model --method --gpus --gpu --tokens --labels --config --set --json",
    "verify": f"FOLDER --trust-remote-code {LOOK}",
}


@pytest.mark.parametrize("verb", FLAGS)
def test_a_verb_has_these_flags_in_this_order_and_takes_no_other_by_position(verb):
    shown = [argument for argument in cli.app[verb].assemble_argument_collection() if argument.show]
    names = [a.name if a.index is None else a.name.lstrip("-").upper() for a in shown]
    assert names == FLAGS[verb].split()
    assert all(argument.parameter.help for argument in shown)


def test_no_verb_is_without_a_line_here():
    assert {name for name in cli.app if not name.startswith("-")} == set(FLAGS)


class ReachedError(Exception):
    """In place of work."""


@pytest.fixture
def handed(monkeypatch):
    """What a command line hands to the function that does its work."""

    def find(line: str, function: str) -> dict[str, object]:
        module, _, name = function.rpartition(".")
        signature, found = inspect.signature(getattr(importlib.import_module(module), name)), {}

        def stand_in(*args: object, **keywords: object) -> None:
            for key, value in signature.bind(*args, **keywords).arguments.items():
                found.update(value if signature.parameters[key].kind.name == "VAR_KEYWORD" else {key: value})
            raise ReachedError

        monkeypatch.setattr(function, stand_in)
        with pytest.raises(ReachedError):
            terminal.guarded(lambda: cli.app(line.split(), exit_on_error=False, print_error=False))
        return {key: value for key, value in found.items() if key != "reporter"}

    return find


READ = "--template chat --prompt-field q --response-field a"
READS = {"template": "chat", "prompt_field": "q", "response_field": "a"}
MAY = {"overwrite": True, "trust_remote_code": True}
ALL = f"{READ} --seed 4 --set beta=0.5 --resume --overwrite --trust-remote-code"


def test_run_hands_every_flag_on(handed):
    line = f"run --forget f --output o --retain r --holdout h --model m --method npo --control c {ALL} "
    line += "--after p --forgotten f1 --forgotten f2 --original g --neighbours n --redact"
    assert handed(line, "expunge.api.unlearn") == READS | MAY | {
        "forget": "f", "output": Path("o"), "retain": "r", "holdout": "h", "model": "m", "method": "npo",
        "control": "c", "after": Path("p"), "forgotten": ["f1", "f2"], "original": "g",
        "neighbours": Path("n"), "seed": 4, "beta": 0.5, "resume": True, "redact": True,
    }  # fmt: skip
    usual = handed("run --forget f --output o", "expunge.api.unlearn")
    assert (usual["model"], usual["method"], usual["seed"]) == ("smollm2-135m", "ngdiff", 0)
    assert "template" not in usual
    assert handed("run --forget f --output o --after p", "expunge.api.unlearn")["model"] is None


def test_finetune_hands_every_flag_on(handed):
    line = f"finetune --data d --data e --output o --model m {ALL} --redact"
    assert handed(line, "expunge.api.finetune") == READS | MAY | {
        "data": ["d", "e"], "output": Path("o"), "model": "m", "seed": 4, "beta": 0.5, "resume": True,
        "redact": True,
    }  # fmt: skip


def test_evaluate_hands_every_flag_on_and_a_benchmark_reads_its_own_records(handed):
    words = "--output o --model m --data d --option x=1 --option y=z --forget f --retain r --holdout h "
    words += f"--original g --reference e --cache k {READ} --seed 4 --overwrite --redact --trust-remote-code"
    common = MAY | {
        "output": Path("o"), "model": "m", "data": "d", "forget": "f", "retain": "r", "holdout": "h",
        "original": "g", "reference": "e", "cache": Path("k"), "seed": 4, "redact": True,
    }  # fmt: skip
    options = {"x": 1, "y": "z"}
    assert handed(f"evaluate records {words}", "expunge.api.evaluate") == common | READS | {
        "benchmark": "records", "options": options,
    }  # fmt: skip
    del (named := dict(READS))["template"]
    assert handed(f"evaluate tofu {words}", "expunge.api.evaluate") == common | named | {
        "benchmark": "tofu", "options": options | {"template": "chat"},
    }  # fmt: skip


def test_what_others_measured_is_read(handed):
    line = "evaluate tofu --logs l --reference-logs q --output o --seed 2 --overwrite --redact"
    assert handed(line, "expunge.foreign.read_results") == {
        "benchmark": "tofu", "results": Path("l"), "reference": Path("q"), "output": Path("o"), "seed": 2,
        "overwrite": True, "redact": True, "rows": None,
    }  # fmt: skip


def test_compare_hands_every_flag_on(handed):
    line = (
        f"compare tofu --methods a,b --output o --forget f --retain r --holdout h --model m {READ} --data d "
    )
    line += "--option x=1 --reference e --seeds 1,2 --grid a=1,2 --grid npo:b=3 --forget-metric s/t "
    line += "--utility-metric u/v --keep-models --set beta=0.5 --resume --overwrite --redact "
    line += "--trust-remote-code"
    assert handed(line, "expunge.comparison.compare") == READS | MAY | {
        "benchmark": "tofu", "methods": ["a", "b"], "output": Path("o"), "forget": "f", "retain": "r",
        "holdout": "h", "model": "m", "data": "d", "options": {"x": 1}, "reference": "e", "seeds": [1, 2],
        "grid": {"a": [1, 2], "npo:b": [3]}, "forget_metric": "s/t", "utility_metric": "u/v",
        "keep_models": True, "beta": 0.5, "resume": True, "redact": True,
    }  # fmt: skip


def test_audit_hands_every_flag_on(handed):
    line = "audit --model m --forget f --retain r --holdout h --original g --control c --filters x,y "
    line += f"--attacks a,b --seconds 3 --redact --output o {ALL}"
    assert handed(line, "expunge.auditing.audit") == READS | MAY | {
        "model": "m", "forget": "f", "retain": "r", "holdout": "h", "original": "g", "control": "c",
        "filters": ["x", "y"], "attacks": ["a", "b"], "seconds": 3.0, "redact": True, "output": Path("o"),
        "seed": 4, "beta": 0.5, "resume": True,
    }  # fmt: skip
    assert "seed" not in handed("audit --model m --output o", "expunge.auditing.audit")


def test_neighbours_hands_every_flag_on(handed):
    line = "neighbours --forget f --retain r --output o --model m --k 4 --pool 20 --margin 0.3 --probes 0.1 "
    line += f"--templates direct,choice --curriculum direct --generator g {READ} "
    line += "--seed 4 --overwrite --trust-remote-code"
    assert handed(line, "expunge.neighbours.find_neighbours") == READS | MAY | {
        "forget": "f", "retain": "r", "output_folder": Path("o"), "model": "m", "k": 4, "pool": 20,
        "margin": 0.3, "probes": 0.1, "templates": ("direct", "choice"), "curriculum": ("direct",),
        "generator": "g", "seed": 4,
    }  # fmt: skip
    usual = handed("neighbours --forget f --retain r --output o", "expunge.neighbours.find_neighbours")
    assert (usual["template"], usual["seed"]) == ("auto", 0)


def test_quiet_and_json_are_silent_while_a_verb_runs(monkeypatch):
    silent = []
    monkeypatch.setattr(terminal, "reporter", silent.append)
    monkeypatch.setattr("expunge.demo.run_demo", lambda *_, **__: None)
    monkeypatch.setattr(terminal, "finish", lambda _, **how: silent.append(how))
    for words in ("", "--quiet", "--json"):
        cli.app(
            ["demo", *words.split()], exit_on_error=False, print_error=False, result_action="return_value"
        )
    quiet, json = {"quiet": True, "as_json": False}, {"quiet": False, "as_json": True}
    assert silent == [False, {"quiet": False, "as_json": False}, True, quiet, True, json]
