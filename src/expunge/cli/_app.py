"""The application, and what several verbs take alike; verbs stand in the files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter

EXAMPLES = """
Examples:

    expunge demo
    expunge run --forget forget.jsonl --retain retain.jsonl --holdout unseen.jsonl --output out
    expunge run --model ./my-model --forget f.csv --retain r.csv --output out --set learning_rate=1e-5
    expunge evaluate records --model out/model --forget f.csv --holdout h.csv --output check
    expunge audit out
    expunge compare records --methods ngdiff,npo --seeds 0,1 --forget f.csv --retain r.csv --output study
"""

app = App(
    name="expunge",
    help="Remove chosen knowledge from a causal language model, keep the rest, and prove both.",
    help_epilogue=EXAMPLES,
    help_format="plaintext",
    version_flags=["--version"],
)

_look = Group("Output", sort_key=9)

Quiet = Annotated[bool, Parameter(help="Print nothing but errors.", negative=(), group=_look)]
Json = Annotated[
    bool, Parameter(name="--json", help="Print one JSON object instead of a table.", negative=(), group=_look)
]
Model = Annotated[str, Parameter(help="Local folder, Hub id, or smollm2-135m (the embedded default).")]
Output = Annotated[
    Path, Parameter(help="Folder for model/, record.json and report.html; must be new or empty.")
]
Resume = Annotated[bool, Parameter(help="Continue the interrupted run in --output.", negative=())]
Overwrite = Annotated[bool, Parameter(help="Replace the earlier run in --output.", negative=())]
Redact = Annotated[
    bool,
    Parameter(help="Keep every record's text out of record.json and report.html.", negative=()),
]
TrustRemoteCode = Annotated[
    bool, Parameter(help="Let a model run code that it brings along. Never by default.", negative=())
]
Settings = Annotated[
    list[str] | None,
    Parameter(
        name="--set", help="A setting as KEY=VALUE; may be repeated.", negative=(), consume_multiple=False
    ),
]
PromptField = Annotated[str | None, Parameter(help="Name of the prompt in the data, if not a usual one.")]
ResponseField = Annotated[str | None, Parameter(help="Name of the response in the data, if not a usual one.")]
Seed = Annotated[int | None, Parameter(help="Seed of every random choice. Default: 0.")]
Template = Annotated[
    Literal["auto", "chat", "none"] | None,
    Parameter(help="chat: the tokenizer's template; none: plain text; auto (default): chat if there is one."),
]
