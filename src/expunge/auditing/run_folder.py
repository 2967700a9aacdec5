"""What a finished run's folder says about its audit: model, records, template, original; all verified."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import UsageError
from expunge.record import RunRecord, read_record
from expunge.records import Records, read_records

SETS = ("forget", "retain", "holdout")


@dataclass(frozen=True)
class RunFolder:
    """A folder that `run` or `demo` left.

    Attributes:
        folder: Where it is.
        record: Its record.
    """

    folder: Path
    record: RunRecord

    @property
    def model(self) -> Path:
        """The unlearned model."""
        return self.folder / "model"

    def settings(self) -> dict[str, Any]:
        """How the run read records, and in which precision it measured."""
        configuration = self.record.configuration
        known: dict[str, Any] = {
            key: configuration[key] for key in ("template", "max_length") if key in configuration
        }
        if configuration.get("precision") in ("fp32", "bf16"):
            known["bf16"] = configuration["precision"] == "bf16"
        return known | {"seed": self.record.seed}

    def sets(self, given: Iterable[str]) -> tuple[dict[str, Records], list[str]]:
        """The records that the run read, each proved by its hash, and notes on those that are not to be had.

        Args:
            given: Sets that are given in another way, and are not looked for.

        Raises:
            UsageError: A file has changed since the run, or the forget records are not to be had.
        """
        found, notes = {}, []
        for name in SETS:
            if name not in self.record.data or name in given:
                continue
            try:
                found[name] = self._records(name)
            except FileNotFoundError as missing:
                if name == "forget":
                    raise UsageError(f"{missing} Give --forget FILE.") from None
                notes.append(f"{missing} The audit goes without; --{name} FILE would give them.")
        return found, notes

    def _records(self, name: str) -> Records:
        entry = self.record.data[name]
        source = self._place(entry.source, name)
        fields = entry.fields
        records = read_records(
            source, name=name, prompt_field=fields.get("prompt"), response_field=fields.get("response")
        )
        if records.sha256 != entry.sha256:
            raise UsageError(
                f"The {name} records must be those of the run; {entry.source} has changed since (its hash is "
                f"another). Restore the file, or name the right one by --{name} FILE."
            )
        return records

    def _place(self, source: str, name: str) -> str | Path:
        """The file that a record names, as seen from here or from the run's folder; or a Hub id."""
        hub, _, split = source.partition(", split ")
        if split:
            return hub
        places = [Path(source), self.folder / source, self.folder.parent / source]
        if self.folder.is_dir() and Path(source).name:
            places.append(self.folder / "data" / Path(source).name)  # a demo's folder that was moved
        for place in places:
            if place.is_file() or (place.is_dir() and source):
                return place
        raise FileNotFoundError(
            f"{self.folder}/record.json names {name} records at {source!r}, where there are none."
        )

    def original(self) -> tuple[str, str] | None:
        """Where the model before unlearning came from, and its hash; None where the record names none."""
        entry = self.record.models.get("before")
        return (entry.source, entry.sha256) if entry else None

    def control(self) -> tuple[str, str] | None:
        """The same of the control model."""
        entry = self.record.models.get("control")
        return (entry.source, entry.sha256) if entry else None


def run_folder(path: object) -> RunFolder | None:
    """The run that left a folder, or None where it is not one.

    Raises:
        UsageError: It is one, but the run has not ended well, or it was no unlearning run.
    """
    if not isinstance(path, str | Path):
        return None
    folder = Path(path).expanduser()
    if not (folder / "record.json").is_file() or (folder / "config.json").is_file():
        return None
    record = read_record(folder)
    if record.kind not in ("run", "demo"):
        raise UsageError(
            f"{folder} must be the folder of an unlearning run; it is one of {record.kind}. Give --model and "
            "--forget."
        )
    if not (folder / "model").is_dir():
        ended = f"it ended as {record.stop.reason}" if record.stop else "it has not ended"
        raise UsageError(f"{folder} must hold model/; the run left none ({ended}). Run it to its end first.")
    return RunFolder(folder, record)
