"""The verb that attacks: `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from expunge import inputs, terminal
from expunge.cli._app import app
from expunge.cli._flags import Look, Training, TrustRemoteCode, flags
from expunge.errors import UsageError


@flags
class Material:
    """Models that are attacked, what stands around them, and records to attack them with."""

    model: Annotated[str | None, Parameter(help="The unlearned model, or the folder of a finished run.")] = (
        None
    )
    forget: Annotated[str | None, Parameter(help="Records that were removed.")] = None
    retain: Annotated[str | None, Parameter(help="Records that an attacker may know and use.")] = None
    holdout: Annotated[
        str | None, Parameter(help="Records of the same kind, never seen by the unlearned model.")
    ] = None
    original: Annotated[str | None, Parameter(help="The model before unlearning.")] = None
    control: Annotated[str | None, Parameter(help="A model that never saw the forget records.")] = None
    filters: Annotated[
        str | None,
        Parameter(
            help="Filters that the model is deployed behind, outermost first: names from expunge list "
            "filters or FILE.py:NAME, with commas between."
        ),
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """By name, as `expunge.auditing.audit` takes them."""
        filters = [] if self.filters is None else inputs.listed(self.filters)
        if self.filters is not None and not filters:
            raise UsageError("--filters must name at least one filter; got none. Leave the flag out instead.")
        return vars(self) | {"filters": filters}


@flags
class Place:
    """What becomes of an earlier audit, and whose code may run."""

    resume: Annotated[
        bool,
        Parameter(
            help="Continue the audit in --output, or add attacks: what has ended is kept.", negative=()
        ),
    ] = False
    overwrite: Annotated[bool, Parameter(help="Replace the audit in --output.", negative=())] = False
    trust_remote_code: TrustRemoteCode = False


@app.command
def audit(
    folder: Annotated[
        str | None, Parameter(help="Output folder of a finished run, which says all that is needed.")
    ] = None,
    /,
    *,
    material: Material = Material(),
    attacks: Annotated[
        str | None,
        Parameter(help="Names from expunge list attacks or FILE.py:NAME, with commas between. Default: all."),
    ] = None,
    seconds: Annotated[
        float | None, Parameter(help="Time that an attack may take on one model. Default: 120.")
    ] = None,
    redact: Annotated[
        bool, Parameter(help="Keep the removed text out of everything that is written.", negative=())
    ] = False,
    output: Annotated[
        Path | None, Parameter(help="Folder for audit.json and report.html. Default: audit/ in the run's.")
    ] = None,
    training: Training = Training(),
    place: Place = Place(),
    look: Look = Look(),
) -> None:
    """Try to bring back what was removed: attacks on the original, the unlearned and a control model.

    Ends in a verdict: erased, suppressed, not forgotten. --set takes settings of the reading (bf16=false),
    of an attack (ATTACK:FIELD=VALUE) and of a filter (FILTER:FIELD=VALUE).
    """
    subject = _subject(folder, material.model)
    settings = _settings(training, seconds)
    where = output if output is not None else _beside_run(subject)
    from expunge.auditing import audit as run_audit

    try:
        result = run_audit(
            **material.given | {"model": subject},
            attacks=None if attacks is None else inputs.listed(attacks),
            redact=redact,
            output=where,
            **settings,
            **training.fields,
            **vars(place),
            reporter=look.reporter(),
        )
    except KeyboardInterrupt:
        raise SystemExit(_interrupted(where)) from None
    terminal.audited(result.record, where, **look.end)


def _settings(training: Training, seconds: float | None) -> dict[str, Any]:
    settings = training.given()
    if named := sorted({"attacks", "filters", "redact", "seconds", "tokenizer"} & settings.keys()):
        raise UsageError(f"--set must not name {named[0]}; see expunge audit --help for the flags.")
    return settings if seconds is None else settings | {"seconds": seconds}


def _subject(folder: str | None, model: str | None) -> str:
    if folder is not None and model is not None:
        raise UsageError(f"audit takes a run's folder or --model, not both; got {folder} and {model}.")
    if folder is None and model is None:
        raise UsageError("audit needs a model. Name the folder of a finished run, or give --model.")
    return str(folder if folder is not None else model)


def _beside_run(subject: str) -> Path:
    from expunge.auditing.run_folder import run_folder

    if run_folder(subject) is None:
        there = Path(subject).expanduser().exists()
        why = "none. Give" if there else "no folder here. Check the path, or give"
        raise UsageError(
            "audit needs a folder to write to, unless it is given that of a run; "
            f"{subject} is {why} --output DIR."
        )
    return Path(subject).expanduser() / "audit"


def _interrupted(where: Path) -> int:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(
        f"expunge: interrupted; attacks that had ended are kept in {where}, and --resume continues.",
        soft_wrap=True,
        markup=False,
    )
    return 130
