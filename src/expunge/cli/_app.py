"""The application; verbs stand in the files beside it, and the flags that several take in `_flags`."""

from __future__ import annotations

from cyclopts import App

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
