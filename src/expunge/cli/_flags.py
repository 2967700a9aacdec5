"""Flags that several verbs take alike: a class of them is one parameter of a verb."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from cyclopts import Group, Parameter

from expunge import inputs, terminal

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def flags(kind: type[T]) -> type[T]:
    """A class whose fields are flags of the verb that takes it, each under its own name."""
    return Parameter(name="*")(dataclass(frozen=True, kw_only=True)(kind))


_look = Group("Output", sort_key=9)

Json = Annotated[bool, Parameter(help="Print one JSON object instead of a table.", negative=(), group=_look)]
Model = Annotated[str, Parameter(help="Local folder, Hub id, or smollm2-135m (the embedded default).")]
Output = Annotated[
    Path, Parameter(help="Folder for model/, record.json and report.html; must be new or empty.")
]
Resume = Annotated[bool, Parameter(help="Continue the interrupted run in --output.", negative=())]
Overwrite = Annotated[bool, Parameter(help="Replace the earlier run in --output.", negative=())]
TrustRemoteCode = Annotated[
    bool, Parameter(help="Let a model run code that it brings along. Never by default.", negative=())
]
Settings = Annotated[
    list[str] | None,
    Parameter(
        name="--set", help="A setting as KEY=VALUE; may be repeated.", negative=(), consume_multiple=False
    ),
]


@flags
class Look:
    """What is seen of a verb."""

    quiet: Annotated[bool, Parameter(help="Print nothing but errors.", negative=(), group=_look)] = False
    json: Json = False

    @property
    def end(self) -> dict[str, bool]:
        """How a verb's end is shown, as `terminal` takes it."""
        return {"quiet": self.quiet, "as_json": self.json}

    def reporter(self) -> Any:
        return terminal.reporter(self.quiet or self.json)

    def finish(self, result: Any) -> None:
        terminal.finish(result, **self.end)


@flags
class Outcome:
    """What a verb may replace and write, and whose code it may run."""

    overwrite: Overwrite = False
    redact: Annotated[
        bool, Parameter(help="Keep every record's text out of record.json and report.html.", negative=())
    ] = False
    trust_remote_code: TrustRemoteCode = False


@flags
class Reading:
    """How records are read."""

    template: Annotated[
        Literal["auto", "chat", "none"] | None,
        Parameter(
            help="chat: the tokenizer's template; none: plain text; auto (default): chat if there is one."
        ),
    ] = None
    prompt_field: Annotated[
        str | None, Parameter(help="Name of the prompt in the data, if not a usual one.")
    ] = None
    response_field: Annotated[
        str | None, Parameter(help="Name of the response in the data, if not a usual one.")
    ] = None

    @property
    def fields(self) -> dict[str, Any]:
        """The names of prompt and response, as the API takes them."""
        return {"prompt_field": self.prompt_field, "response_field": self.response_field}


@flags
class Seeded(Reading):
    """How records are read, and what is drawn from them."""

    seed: Annotated[int | None, Parameter(help="Seed of every random choice. Default: 0.")] = None


@flags
class Training(Seeded):
    """How records are read, and any other setting."""

    set_: Settings = None

    def given(self, config: Path | None = None, **named: Any) -> dict[str, Any]:
        """What was given: settings of a file, over them those of --set, over these the flags."""
        return inputs.given(self.set_, config, seed=self.seed, template=self.template, **named)
