"""What one training step keeps in memory, found without running it.

The real model class runs on fake tensors, which have shapes and no bytes; what autograd would save for the
backward pass is counted, whatever the architecture. One and two blocks are traced, the others are like the
second. Knows a configuration and settings; reads no weights.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from expunge.adapters import prepare_trainable
from expunge.arguments import UnlearningArguments
from expunge.hidden import blocks as blocks_of
from expunge.logits import output_embedding

_READ = ("bf16", "lora_rank", "lora_targets", "lora_dora", "lora_bf16", "train_last", "train_only")
"""Settings that a trace depends on."""

_known: dict[tuple[object, ...], tuple[int, int]] = {}


@dataclass(frozen=True)
class Shape:
    """One forward pass: rows, tokens in each, and label tokens among them."""

    rows: int
    tokens: int
    labels: int


@dataclass(frozen=True)
class Sizes:
    """Parameter counts of a model as it trains.

    Args:
        trained: Elements that train.
        frozen: Elements that do not, of which `frozen_linear` in the blocks' matrices (what 4 bits compress).
        frozen_linear: See `frozen`.
        embedding: Elements of the input embedding.
        head: Elements of the output embedding; the same ones where tied.
        head_trains: Whether these train.
        tied: Whether both are one.
        largest: Elements of the largest tensor that trains.
        block: Elements of one block.
        blocks: Number of blocks.
        linear: Elements of all matrices that multiply activations, the head's left out.
    """

    trained: int
    frozen: int
    frozen_linear: int
    embedding: int
    head: int
    head_trains: bool
    tied: bool
    largest: int
    block: int
    blocks: int
    linear: int


@dataclass(frozen=True)
class Saved:
    """Bytes that autograd keeps of one forward pass through all blocks, logits left out.

    Args:
        activations: What grows with the tokens.
        copies: What does not: weights cast for the compute precision.
        block: Activations of one block, which activation checkpointing recomputes one at a time.
        stream: Bytes of one block's input, which it keeps.
        passing: What a block's forward pass holds at its height and not at its end, summed over blocks.
    """

    activations: int
    copies: int
    block: int
    stream: int
    passing: int


_counted: dict[tuple[object, ...], Sizes] = {}


def sizes(config: PretrainedConfig, args: UnlearningArguments) -> Sizes:
    """Count a model's parameters on the meta device, once for the same question."""
    key = _key(config, args)
    if key not in _counted:
        _counted[key] = _count(config, args)
    return _counted[key]


def _count(config: PretrainedConfig, args: UnlearningArguments) -> Sizes:
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
        model = prepare_trainable(model, args)
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    base: Any = model
    body, head = base.get_input_embeddings().weight, output_embedding(model).weight
    matrices = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Linear)}
    linear = sum(w.numel() for key, w in matrices.items() if key != id(head))
    count = config.get_text_config().num_hidden_layers
    whole = sum(p.numel() for p in model.parameters())
    rest = body.numel() if head is body else body.numel() + head.numel()  # type: ignore[operator]
    return Sizes(
        trained=sum(p.numel() for p in trained),
        frozen=sum(p.numel() for p in frozen),
        frozen_linear=sum(w.numel() for w in matrices.values() if w is not head and not w.requires_grad),
        embedding=body.numel(),
        head=head.numel(),  # type: ignore[operator]
        head_trains=bool(head.requires_grad),
        tied=head is body,
        largest=max((p.numel() for p in trained), default=0),
        block=(whole - rest) // count,
        blocks=count,
        linear=linear,
    )


def saved(config: PretrainedConfig, args: UnlearningArguments, shape: Shape, *, on_cpu: bool) -> Saved:
    """Trace one forward pass of a shape, and one of next to nothing for what does not grow with tokens.

    Args:
        config: Of the model.
        args: Precision, and what trains.
        shape: Of the pass.
        on_cpu: Attention is eager there (as `load_model` has it), fused elsewhere.
    """
    attention = "eager" if on_cpu else "sdpa"
    (one, _), (two, passing) = (_traced(config, args, shape, blocks, attention) for blocks in (1, 2))
    tiny = Shape(1, 2, 1)
    (one_fixed, _), (two_fixed, _) = (_traced(config, args, tiny, blocks, attention) for blocks in (1, 2))
    count = config.get_text_config().num_hidden_layers
    fixed = one_fixed + (count - 1) * (two_fixed - one_fixed)
    block = (two - one) - (two_fixed - one_fixed)
    activations = (one - one_fixed) + (count - 1) * block
    wide = 2 if args.lora_bf16 and args.bf16 else 4
    stream = shape.rows * shape.tokens * config.get_text_config().hidden_size * wide
    return Saved(activations, copies=fixed, block=block, stream=stream, passing=count * passing)


def _key(config: PretrainedConfig, args: UnlearningArguments) -> tuple[object, ...]:
    return (config.to_json_string(), *(getattr(args, name) for name in _READ))


def _traced(
    config: PretrainedConfig, args: UnlearningArguments, shape: Shape, blocks: int, attention: str
) -> tuple[int, int]:
    """`_trace`, once for the same question: plans are made in many variants."""
    key = (*_key(config, args), shape, blocks, attention)
    if key not in _known:
        _known[key] = _trace(config, args, shape, blocks, attention)
    return _known[key]


def _trace(
    config: PretrainedConfig, args: UnlearningArguments, shape: Shape, blocks: int, attention: str
) -> tuple[int, int]:
    """Bytes that autograd saves of one forward pass up to the logits, parameters left out.

    And bytes that the last block holds at its height beyond those at its end.
    """
    seen: dict[int, int] = {}
    with torch.device("meta"):
        model = prepare_trainable(_shortened(config, args, blocks, attention), args)
    with FakeTensorMode():
        _fake(model)
        owned = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}

        def pack(tensor: Tensor) -> Tensor:
            if (key := _storage(tensor)) not in owned:
                seen[key] = tensor.untyped_storage().nbytes()
            return tensor

        def first(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (inputs[0].reshape(-1, inputs[0].shape[-1])[: shape.rows * shape.labels].clone(),)

        output_embedding(model).register_forward_pre_hook(first)
        living = Living()
        last = blocks_of(model)[-1]
        last.register_forward_pre_hook(lambda *_: living.restart())
        ends: list[int] = []
        last.register_forward_hook(lambda *_: ends.append(living.height - living.bytes))
        ids = torch.zeros(shape.rows, shape.tokens, dtype=torch.long)
        model.train()
        cast = torch.autocast("cpu", torch.bfloat16, enabled=args.bf16)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), cast, living:
            logits = model(input_ids=ids, use_cache=False).logits
        seen.pop(_storage(logits), None)
        return sum(seen.values()), ends[0]


class Living(TorchDispatchMode):
    """Bytes of all tensors that operations inside have made and that are still alive, and their height."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.height = 0
        self._owners: Counter[int] = Counter()

    def restart(self) -> None:
        """Measure the height from here."""
        self.height = self.bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self._meet(tensor)
        return out

    def _meet(self, tensor: Tensor) -> None:
        key, size = _storage(tensor), int(tensor.untyped_storage().nbytes())
        if not self._owners[key]:
            self.bytes += size
            self.height = max(self.height, self.bytes)
        self._owners[key] += 1
        weakref.finalize(tensor, self._part, key, size)

    def _part(self, key: int, size: int) -> None:
        self._owners[key] -= 1
        if not self._owners[key]:
            self.bytes -= size


def _shortened(config: PretrainedConfig, args: UnlearningArguments, blocks: int, attention: str) -> nn.Module:
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers = blocks
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:blocks]
    dtype = torch.bfloat16 if args.lora_bf16 else torch.float32
    model: nn.Module = AutoModelForCausalLM.from_config(short, dtype=dtype, attn_implementation=attention)
    return model


def _fake(model: nn.Module) -> None:
    """Replace tensors on the meta device by fake ones that pass for tensors on the CPU."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            trains = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if trains else empty
        return made[id(tensor)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                held[name] = None if tensor is None else fake(tensor)  # type: ignore[assignment]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
