"""What CI says of the packages underneath: versions, licences, known weaknesses; a list for releases."""

from __future__ import annotations

import importlib.util
import json
from email.message import Message
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def supply() -> ModuleType:
    spec = importlib.util.spec_from_file_location("supply", ROOT / ".ci" / "supply.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fields(**given: str | list[str]) -> Message:
    """Core metadata of a package."""
    message = Message()
    for name, values in given.items():
        for value in [values] if isinstance(values, str) else values:
            message[name.replace("_", "-")] = value
    return message


def test_versions_are_those_of_the_file(supply):
    pinned = supply.constraints("# comment\n\nPyYAML==6.0.3\ntorch==2.13.0  # why\nruamel_yaml==1\n")
    assert pinned == {"pyyaml": "6.0.3", "torch": "2.13.0", "ruamel-yaml": "1"}
    fine = {"pyyaml": "6.0.3", "torch": "2.13.0+cpu", "nvidia-cublas": "13"}
    assert supply.untested(fine, pinned) == []
    found = supply.untested({"pyyaml": "6.0.2", "cvxpy": "1.9.3"}, pinned)
    assert found == [
        "pyyaml 6.0.2 is installed, constraints.txt has 6.0.3",
        "cvxpy 1.9.3 is not in constraints.txt",
    ]


def test_all_that_an_installation_brings_is_pinned(supply):
    pinned = supply.constraints((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    free = {n for n in supply.needed() if n not in pinned and not n.startswith(supply.TORCH_BRINGS)}
    assert free <= supply.INSTALLERS


@pytest.mark.parametrize(
    ("given", "fine"),
    [
        ({"License_Expression": "MIT"}, True),
        ({"License_Expression": "BSD-3-Clause AND 0BSD AND Apache-2.0 WITH LLVM-exception"}, True),
        ({"License_Expression": "GPL-3.0-only OR MIT"}, True),
        ({"License_Expression": "MIT AND AGPL-3.0-only"}, False),
        ({"License_Expression": "(MIT OR Apache-2.0)"}, True),
        ({"License_Expression": "(MIT OR Apache-2.0) AND GPL-3.0-only"}, False),
        ({"License": "Apache 2.0 License"}, True),
        ({"License": "GPLv3"}, False),
        ({"License": "MIT", "Classifier": "License :: GNU Lesser General Public License v3"}, False),
        ({"Classifier": ["License :: OSI Approved :: BSD License", "Topic :: Education"]}, True),
        ({"License": "See the file LICENSE"}, False),
        ({}, False),
    ],
)  # fmt: skip
def test_licences_are_on_the_list(supply, given, fine):
    found = supply.unlicensed({"thing": SimpleNamespace(metadata=fields(**given))})
    assert (not found) == fine, found


def test_an_audit_that_asked_nobody_says_so(supply):
    missing = {"name": "torch", "skip_reason": "Dependency not found"}
    weak, sentence = supply.advisories({"dependencies": [missing]})
    assert (weak, sentence[:11]) == ([], "NOT audited")
    known = {"name": "jinja2", "version": "3.1.0", "vulns": [{"id": "CVE-2024-22195"}]}
    weak, sentence = supply.advisories({"dependencies": [missing, known]})
    assert weak == ["jinja2 3.1.0: CVE-2024-22195"]
    assert "1 of 2" in sentence
    assert "torch" in sentence


WEAK = {"dependencies": [{"name": "six", "version": "1", "vulns": [{"id": "X-1"}]}]}


@pytest.mark.parametrize(
    ("body", "code", "sentence"),
    [
        ("echo 'cannot connect' >&2; exit 1", 0, "NOT audited for known weaknesses"),
        (f"echo '{json.dumps(WEAK)}'; exit 1", 1, "six 1: X-1"),
    ],
)
def test_the_audit_fails_on_weaknesses_and_not_on_silence(
    supply, tmp_path, capsys, monkeypatch, body, code, sentence
):
    """pip-audit itself is replaced by what it prints; the environment is taken to be in order."""
    (tmp_path / "pip-audit").write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / "pip-audit").chmod(0o755)
    for name in ("unmet", "untested", "unlicensed"):
        monkeypatch.setattr(supply, name, lambda *_: [])
    assert supply.audit(tmp_path) == code
    assert sentence in capsys.readouterr().out


def test_the_list_leaves_out_what_only_tests_need(supply):
    needed = supply.needed()
    assert {"torch", "transformers", "tokenizers", "numpy", "pydantic-core"} <= needed
    assert not {"pytest", "mypy", "ruff", "peft", "cvxpy"} & needed
    parts = ["torch", "typing_extensions", "pytest"]
    document = {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [{"name": name, "bom-ref": f"{name}==1"} for name in parts],
        "dependencies": [
            {"ref": "root", "dependsOn": ["torch==1", "pytest==1"]},
            {"ref": "torch==1", "dependsOn": ["typing_extensions==1"]},
            {"ref": "pytest==1"},
        ],
    }
    found = supply.only(json.loads(json.dumps(document)), needed)
    assert [part["name"] for part in found["components"]] == parts[:2]
    assert found["dependencies"] == [
        {"ref": "root", "dependsOn": ["torch==1"]},
        {"ref": "torch==1", "dependsOn": ["typing_extensions==1"]},
    ]
