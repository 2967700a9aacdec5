"""The contract between an objective and the engine that evaluates it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from expunge.objectives.tokens import TokenLogits

Unit = Literal["token", "row"]


@dataclass(frozen=True)
class GenericLabels:
    r"""Which token stands for each label token, as a model would write it that has not read the records.

    With a second model, trained further on the records to be forgotten, what it boosts is specific to them:
    the generic label is the best token of $v_{ref} - \alpha\, \mathrm{ReLU}(v_{reinforced} - v_{ref})$, v
    being logits. Without one it is the reference's best token beside the target.

    Args:
        model: Folder or name of the second model, of the same vocabulary; empty does without.
        alpha: α, positive; not read without a second model.

    Reference:
        Eldan and Russinovich (2023), arXiv 2310.02238, equation 1.
    """

    model: str = ""
    alpha: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"`alpha` must be positive and finite; got {self.alpha}.")


@dataclass(frozen=True)
class Needs:
    """What an objective reads beyond the logits of its own rows.

    Args:
        reference: `log_probs` of the targets under the reference model (computed once and cached), its whole
            `logits`, or its `hidden` states at `layers`.
        layers: Blocks after which the residual stream is wanted, from 0 (embeddings); negative from the end.
        paired: Data set that holds another response for every row of the objective's own data set.
        selector: Name of the rule that selects the response tokens that count; None counts all.
        generic: How generic labels are found (once, and cached).
    """

    reference: Literal["nothing", "log_probs", "logits", "hidden"] = "nothing"
    layers: tuple[int, ...] = ()
    paired: str | None = None
    selector: str | None = None
    generic: GenericLabels | None = None


class Objective(ABC):
    """A scalar loss on one data source, always minimised.

    A user's own objective is a frozen dataclass on this class with a field `source`, a `name` and a
    `__call__` that gives one value per label token (or per row, with `unit = "row"`). Its loss is the
    mean over all tokens (rows) of the optimizer step, however many micro-batches or ranks they came from.

    Example:
        >>> @dataclass(frozen=True)
        ... class Confidence(Objective):
        ...     source: str = "forget"
        ...     name = "confidence"
        ...     def __call__(self, tokens: TokenLogits) -> Tensor:
        ...         return tokens.target_log_probs.exp()
    """

    source: str
    """The data set that it reads: `forget`, `retain`, or one derived from them."""

    unit: ClassVar[Unit] = "token"
    """What the loss is a mean over."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Key in logs and records; unique within a method."""

    @property
    def needs(self) -> Needs:
        """What it reads beyond the logits of its own rows."""
        return Needs()

    @abstractmethod
    def __call__(self, tokens: TokenLogits) -> Float[Tensor, " n"]:
        """One value per label token, or per row where `unit` is "row"."""
