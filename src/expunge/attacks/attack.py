"""What an attack is: it tries to bring removed records back, and says for each record how far it came.

An attack sees one model at a time and never judges: whoever audits runs it on the original, the unlearned and
a control model, and compares. Knows records and models; knows no page, no folder and no verdict.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from expunge.collate import Encoding
from expunge.inference import Precision
from expunge.models import CausalModel
from expunge.record import Metric
from expunge.records import Record

Role = Literal["original", "unlearned", "control"]
Family = Literal["none", "input", "sampling", "embedding", "activations", "weights", "membership"]

FAMILIES: Final[tuple[Family, ...]] = (
    "none",
    "input",
    "sampling",
    "embedding",
    "activations",
    "weights",
    "membership",
)
"""In the order of a page; "none" asks the training prompt as it stands."""

NEVER_SEEN: Final = "targets never seen, reached"
"""Among the values of findings: share of targets reached that the model cannot have known.

An attack that can make any model say anything puts it there; the verdict counts nothing that such an attack
found where this share is as high.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """One model under attack; an attack that changes it changes a copy, or puts everything back.

    Attributes:
        role: What it is in the audit.
        model: In evaluation mode, on its device, weights in fp32.
        tokenizer: Its tokenizer; all targets of an audit share one vocabulary.
    """

    role: Role
    model: CausalModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Probes:
    """What is asked.

    Attributes:
        forget: Records that the attack tries to recover, in this order. Where the holdout plays the part of a
            control model, an attack is run once more with the holdout records here.
        retain: Records that an attacker may know and use (few-shot neighbours, retain-like relearning).
        holdout: Records of the same kind, never seen by the unlearned model; never in `forget` as well.
        encoding: How records become rows: the template and length that the run used.
    """

    forget: Sequence[Record]
    retain: Sequence[Record] = ()
    holdout: Sequence[Record] = ()
    encoding: Encoding = field(default_factory=Encoding)


class Clock:
    """Wall time that an attack may take on one model.

    It is looked at between batches and interrupts none: an attack that is due to stop ends the batch that it
    is in, so that it may take longer by about the time of one batch.

    Args:
        seconds: Positive; infinity never ends.
    """

    def __init__(self, seconds: float = float("inf")) -> None:
        if not seconds > 0:
            raise ValueError(f"`seconds` must be positive; got {seconds}. Give more, or leave it out.")
        self.seconds, self._start = seconds, time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() - self._start >= self.seconds


@dataclass(frozen=True, slots=True)
class Setting:
    """What surrounds an attack, the same for every model.

    Attributes:
        seed: Of every random choice; the same seed and configuration give the same findings.
        precision: Of forward passes.
        clock: When to stop.
        original: The model before unlearning, for attacks that borrow from it (contrastive decoding,
            interpolation, activation patching); None where it is not to be had.
    """

    seed: int = 0
    precision: Precision = "fp32"
    clock: Clock = field(default_factory=Clock)
    original: Target | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """How far an attack came with one record.

    Attributes:
        score: In [0, 1], 1 where all came back: ROUGE-L recall of the response's words where the attack
            yields text, else what the attack's docstring says.
        recovered: Whether the response came back, by the attack's own rule (for text: `metrics.leak`).
        input: What achieved it, in words that a reader can repeat: the prompt, or the setting.
        output: What the model said; "" where the attack yields no text.
        tries: Attempts made on this record.
    """

    score: float
    recovered: bool
    input: str = ""
    output: str = ""
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Findings:
    """What one attack found on one model.

    Attributes:
        recoveries: One per forget record, in order.
        curve: Budget spent -> per record whether it had been recovered by then, for attacks with a budget
            that can be spent in part (relearning steps, bits, samples, norm). No point is above `recoveries`.
        axis: What `curve` counts, with its unit: "relearning steps", "bits per weight", "samples".
        values: Further numbers with intervals (the spread over variants, an AUC, expected tries); of targets
            never seen under `NEVER_SEEN`.
        notes: What a reader must know ("stopped after 60 s: 12 of 40 records were tried").
        complete: False where time ran out; records that were not reached count as not recovered.
        past_filters: Whether the model stands behind filters and no answer has passed one; set by who audits.
    """

    recoveries: Sequence[Recovery]
    curve: Mapping[float, Sequence[bool]] = field(default_factory=dict)
    axis: str = ""
    values: Mapping[str, Metric] = field(default_factory=dict)
    notes: Sequence[str] = ()
    complete: bool = True
    past_filters: bool = False


@dataclass(frozen=True, slots=True)
class Cost:
    """What an attack is going to cost on one model, said before it starts.

    Attributes:
        forward_tokens: Tokens through a forward pass.
        backward_tokens: Tokens through a backward pass.
        generated_tokens: Tokens decoded.
    """

    forward_tokens: int = 0
    backward_tokens: int = 0
    generated_tokens: int = 0


@runtime_checkable
class Attack(Protocol):
    """One way to bring records back: a frozen dataclass whose fields are its budget, checked at creation.

    A user's own attack is such a class in a file of their own, named as FILE.py:NAME. One that takes answers
    from the model before unlearning says so with a class attribute `borrows = True`.
    """

    @property
    def name(self) -> str:
        """As the command line writes it, kebab-case."""
        ...

    @property
    def family(self) -> Family:
        """Where it stands on the page."""
        ...

    @property
    def line(self) -> str:
        """What it does, in one line, with its source."""
        ...

    def obstacle(self, probes: Probes, setting: Setting) -> str | None:
        """Why it cannot run here, as a sentence that says what would help (a library, records); or None."""
        ...

    def cost(self, probes: Probes) -> Cost:
        """An estimate from the probes alone."""
        ...

    def run(self, target: Target, probes: Probes, setting: Setting) -> Findings:
        """Attack one model. The target is bit-identical afterwards, also after an error."""
        ...


def borrows(attack: Attack) -> bool:
    """Whether it takes what it says from the original, which knows the forget records and no others."""
    return bool(getattr(attack, "borrows", False))
