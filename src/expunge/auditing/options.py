"""Options of an audit that are not settings of how records are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from expunge import api
from expunge.defences.filters import Filter
from expunge.errors import UsageError
from expunge.progress import Reporter, Silent
from expunge.run_options import VerbOptions

SECONDS: Final = 120.0
"""That an attack may take on one model, where nothing else is said."""


@dataclass(frozen=True)
class AuditOptions(VerbOptions):
    """Options of an audit that are not settings of how records are read.

    Args:
        retain: Records that an attacker may know and use.
        holdout: Records of the same kind that the unlearned model has never seen.
        output: Folder for `audit.json`, `report.html` and `findings/`; None writes nothing.
        resume: Continue the audit in `output`, or add attacks to it: what has ended is not run again.
        overwrite: Replace the audit in `output`.
        seconds: That an attack may take on one model.
        filters: Names (`expunge list filters`), FILE.py:NAME, or filters, outermost first: the unlearned and
            the control model are asked through them, as users of the deployed model are.
        trust_remote_code: Let a model run code of its own.
        redact: Keep prompts, responses, inputs and outputs out of everything that is written.
        prompt_field: Name of the prompt in the data.
        response_field: Name of the response in the data.
        reporter: Is told of every attack.
    """

    retain: api.Data | None = None
    holdout: api.Data | None = None
    output: str | Path | None = None
    resume: bool = False
    overwrite: bool = False
    seconds: float = SECONDS
    filters: Sequence[str | Filter] = ()
    trust_remote_code: bool = False
    redact: bool = False
    prompt_field: str | None = None
    response_field: str | None = None
    reporter: Reporter = field(default_factory=Silent)

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise UsageError(
                f"--seconds must be positive; got {self.seconds:g}. Give more, or leave it out ({SECONDS:g})."
            )

    @classmethod
    def take(cls, settings: Mapping[str, Any]) -> tuple[AuditOptions, dict[str, Any]]:
        """Split options of the audit from the rest; 75 and 75.0 seconds are one configuration."""
        seconds = {"seconds": float(settings["seconds"])} if "seconds" in settings else {}
        return super().take({**settings, **seconds})
