"""A model behind filters, in the place of a model: attacks ask it as they ask any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from expunge.collate import Encoded, Template, encode_prompt
from expunge.defences.filters import Filter, Stack
from expunge.defences.pass_through import PassThrough
from expunge.generation import Decode, Generation

_MARK = "prompt-between-frames"


class Defended(nn.Module):
    """A causal language model whose answers pass through filters.

    The generation pass of this library (`expunge.generation.generate`) asks through the filters; so do all
    attacks that go through it: they ask in words. So do samples (best of N). Forward passes are the model's
    own. Of the attacks that use gradients, GCG finds its suffix on the model behind the filters, as one that
    takes the identity for their gradient, and is judged by an answer that has passed them. Those that decode
    by forward passes (perturbed embeddings, soft prompts, activation patching, contrastive decoding) never
    meet a filter: they show what is left behind it. Inputs given as embeddings pass `inputs` forwards and the
    identity backwards. The model's own `generate` (beam search) asks behind the filters too. All else is the
    model's.

    Args:
        model: A causal language model; not copied.
        tokenizer: Its tokenizer.
        filters: Outermost first.
        template: How prompts were put, so that filters see the user's words and not the frame around them.
        inputs: A filter on input embeddings, [b, t, d] to the same shape (`pass_through.nearest_tokens`).

    Attributes:
        asked: Answers that have passed the filters, and inputs that have passed `inputs`, so far.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        filters: Sequence[Filter] = (),
        *,
        template: Template = "auto",
        inputs: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.filters = model, tokenizer, Stack(tuple(filters))
        self.inputs = PassThrough(inputs) if inputs is not None else nn.Identity()
        self.train(model.training)
        self.template: Template = template
        self.asked = 0
        framed = _text(tokenizer, encode_prompt(_MARK, tokenizer, template))
        self._head, _, self._tail = framed.partition(_MARK)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *args: Any, inputs_embeds: Tensor | None = None, **options: Any) -> Any:
        """The model's own forward pass."""
        if inputs_embeds is not None:
            self.asked += 0 if isinstance(self.inputs, nn.Identity) else len(inputs_embeds)
            options["inputs_embeds"] = self.inputs(inputs_embeds)
        return self.model(*args, **options)

    def behind(self) -> nn.Module:
        """The model behind the filters."""
        model: nn.Module = self.model
        return model

    def guarded(
        self, rows: Sequence[Encoded], budgets: Sequence[int | None], decode: Decode
    ) -> list[Generation]:
        """What the filters make of the model's answers."""
        parts = [self._split(row) for row in rows]

        def ask(owners: Sequence[int], texts: Sequence[str], budget: int | None) -> list[str]:
            asked = [self._row(rows[i], parts[i], text) for i, text in zip(owners, texts, strict=True)]
            given = [budgets[i] if budget is None else budget for i in owners]
            return [one.text for one in decode(asked, given)] if asked else []

        said = self.filters([body for _, body, _ in parts], ask)
        self.asked += len(said)
        return [Generation(text, tuple(self._ids(text))) for text in said]

    def _split(self, row: Encoded) -> tuple[str, str, str]:
        """The frame before the prompt, the prompt, and what follows it: the frame's end, words given."""
        text = _text(self.tokenizer, row.input_ids[: row.prompt_length])
        if not text.startswith(self._head):
            return "", text, ""
        body = text.removeprefix(self._head)
        if not self._tail or self._tail not in body:
            return self._head, body, ""
        before, tail, after = body.rpartition(self._tail)
        return self._head, before, tail + after

    def _row(self, row: Encoded, parts: tuple[str, str, str], text: str) -> Encoded:
        """The row with another prompt; with its own ids where that is the same."""
        head, body, tail = parts
        if text == body:
            return row
        ids = self._ids(head + text + tail)
        return Encoded((*ids, *row.labels), len(ids))

    def _ids(self, text: str) -> list[int]:
        encoded: Any = self.tokenizer(text, add_special_tokens=False, verbose=False)
        return list(encoded["input_ids"])


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
