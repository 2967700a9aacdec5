"""Keys and values of rows' beginnings: what the scored pass has computed, the generation pass starts from.

On a CPU a forward pass over the prompts costs as much as many steps of decoding; it is not done twice, and
what must be done is done in batches that fit the processor's caches. Accelerators have no use for either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from expunge.collate import Encoded, batches_by_tokens, collate
from expunge.inference import bare, language_model
from expunge.logits import select_hidden

_MOST_BYTES = 1 << 30
"""Keys and values that are kept at once: 1 GiB. Beyond it they are computed again."""

_ROOM = 128
"""Positions by which a cache grows when it is full."""

_Pair = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


def growing_cache(model: nn.Module) -> DynamicCache | None:
    """An empty cache that rows can leave; None for models with another kind of state."""
    cache = DynamicCache(config=language_model(model).config)
    if not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class Prefixes:
    """Keys and values of token sequences under one model, found by the sequence.

    Args:
        model: Whose they are; they are of use only on a CPU and with full attention in every layer.
        wanted: Rows whose answers are to be decoded.
    """

    def __init__(self, model: nn.Module, wanted: Collection[Encoded] = ()) -> None:
        self.model = bare(model)
        cache = growing_cache(model)
        on_cpu = next(model.parameters()).device.type == "cpu"
        plain = cache is not None and all(isinstance(layer, RoomyLayer) for layer in cache.layers)
        self.useful = on_cpu and plain
        self.wanted = frozenset(wanted) if self.useful else frozenset()
        self.kept: dict[tuple[int, ...], list[_Pair]] = {}
        self.bytes = 0

    def cache(self, rows: Iterable[Encoded]) -> DynamicCache | None:
        """What a pass over these rows must fill, if any of them is wanted."""
        return DynamicCache() if not self.wanted.isdisjoint(rows) else None

    def keep(self, cache: DynamicCache | None, rows: Sequence[Encoded], known: Sequence[int]) -> None:
        """Keep beginnings of right-padded rows: the prompt and so many known tokens, less the last one."""
        if cache is None:
            return
        for i, (row, count) in enumerate(zip(rows, known, strict=True)):
            if row in self.wanted and count < len(row.labels) and self.bytes < _MOST_BYTES:
                self._add(row.input_ids[: row.prompt_length + count - 1], cache, i)

    def stacked(self, rows: Sequence[tuple[int, ...]], batch_tokens: int) -> DynamicCache | None:
        """A left-padded cache of all tokens of each row but its last; what is not kept is computed.

        What it takes is kept no longer. None where rows are to be passed through the model as a whole.
        """
        keys = [row[:-1] for row in rows]
        if not self.useful or not any(keys):
            return growing_cache(self.model)
        self._compute(sorted({key for key in keys if key and key not in self.kept}), batch_tokens)
        width, found = max(map(len, keys)), [self.kept.get(key, []) for key in keys]
        cache = DynamicCache()
        depth = max(map(len, found))
        columns = [[layers[i] if layers else None for layers in found] for i in range(depth)]
        cache.layers = [RoomyLayer.filled(column, width) for column in columns]
        for key in keys:
            self.bytes -= sum(map(_bytes, self.kept.pop(key, [])))
        return cache

    def _compute(self, keys: Sequence[tuple[int, ...]], batch_tokens: int) -> None:
        for batch in batches_by_tokens([len(key) for key in keys], batch_tokens):
            inputs = collate([Encoded(keys[i], 0) for i in batch], 0)
            first = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
            first[0, 0] = True
            cache = DynamicCache()
            select_hidden(self.model, inputs["input_ids"], inputs["attention_mask"], first, cache)
            for row, i in enumerate(batch):
                self._add(keys[i], cache, row)

    def _add(self, key: tuple[int, ...], cache: DynamicCache, row: int) -> None:
        if not key or key in self.kept:
            return
        part = (row, slice(None), slice(len(key)))
        layers = [(layer.keys, layer.values) for layer in cast(list[Any], cache.layers)]
        self.kept[key] = [(keys[part].clone(), values[part].clone()) for keys, values in layers]
        self.bytes += sum(map(_bytes, self.kept[key]))


class RoomyLayer(DynamicLayer):
    """Keys and values with room to grow: a step writes one position and does not copy all earlier ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stores: tuple[Tensor | None, Tensor | None] = (None, None)

    @classmethod
    def filled(cls, rows: Sequence[_Pair | None], width: int) -> RoomyLayer:
        """Rows of different length, [h, t, d] each or nothing, aligned at the right; what is before is 0."""
        layer = cls()
        first = next(pair for pair in rows if pair is not None)
        layer.lazy_initialization(*first)
        stores = [like.new_zeros(len(rows), len(like), width + _ROOM, like.shape[-1]) for like in first]
        for i, pair in enumerate(rows):
            for store, part in zip(stores, pair or (), strict=False):
                store[i, :, width - part.shape[1] : width] = part
        layer.stores = (stores[0], stores[1])
        layer.keys, layer.values = stores[0][:, :, :width], stores[1][:, :, :width]
        return layer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the next positions, [b, h, t, d]; returns all so far."""
        old = (self.keys, self.values) if self.is_initialized else (None, None)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        key_store, self.keys = _appended(self.stores[0], old[0], key_states)
        value_store, self.values = _appended(self.stores[1], old[1], value_states)
        self.stores = (key_store, value_store)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        super().batch_select_indices(indices)
        self.stores = (None, None)


def _appended(
    store: Tensor | None, old: Float[Tensor, "b h s d"] | None, new: Float[Tensor, "b h t d"]
) -> tuple[Tensor, Tensor]:
    """A store that begins with `old` and then `new`, and the part of it that they fill."""
    start = 0 if old is None else old.shape[-2]
    end = start + new.shape[-2]
    if store is None or end > store.shape[-2]:
        store = new.new_empty(*new.shape[:-2], end + _ROOM, new.shape[-1])
        if old is not None:
            store[..., :start, :] = old
    store[..., start:end, :] = new
    return store, store[..., :end, :]


def _bytes(pair: _Pair) -> int:
    return sum(part.nbytes for part in pair)
