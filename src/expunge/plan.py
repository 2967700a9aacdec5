"""Memory per rank and time of a run, before anything is loaded.

Plain arithmetic on what `footprint` counts. A step has a few moments at which memory may peak; the largest
counts. What is estimated rather than counted (the workspace of kernels, the share of peak speed) says so.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from expunge.arguments import UnlearningArguments
from expunge.defences.hardening import Hardening
from expunge.derived import is_forget
from expunge.footprint import Saved, Shape, Sizes, saved, sizes
from expunge.hardware import HEADROOM, UTILISATION, Device
from expunge.material import hardening_of, left_out
from expunge.methods import Method
from expunge.objectives import Objective
from expunge.objectives._chunks import ELEMENTS
from expunge.observation import sources_of
from expunge.references import live_sources
from expunge.walk import PARTS, SMALLEST

Engine = Literal["one", "ddp", "fsdp"]

LOOK_TOKENS = 4096
"""Tokens per batch when the engine looks at forget records (`forget_check.BATCH_TOKENS`)."""


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Args:
        config: Of the model.
        method: Objectives and weighting.
        args: Settings of the run.
        gpus: Ranks, at least 1.
        device: What each rank has; None is this machine's CPU.
        tokens: Tokens of a row, prompt and response.
        labels: Response tokens of a row.
    """

    config: PretrainedConfig
    method: Method
    args: UnlearningArguments
    gpus: int = 1
    device: Device | None = None
    tokens: int = 128
    labels: int = 64

    def __post_init__(self) -> None:
        if self.gpus < 1 or not 1 <= self.labels < self.tokens:
            raise ValueError(
                "`gpus` must be at least 1, and `labels` at least 1 and below `tokens`; "
                f"got {self.gpus}, {self.labels}, {self.tokens}."
            )

    @property
    def engine(self) -> Engine:
        """One process, replicas, or shards: sharded where `fsdp` is set."""
        if self.gpus == 1:
            return "one"
        return "fsdp" if self.args.fsdp else "ddp"

    @property
    def separate(self) -> bool:
        """Whether steps take a backward pass per objective (some, for the log, with constant weights)."""
        return self.always_separate or self.args.diagnose_every > 0

    @property
    def always_separate(self) -> bool:
        """Whether every step takes a backward pass per objective."""
        return self.method.weighting.needs_gramian or bool(self.hardening)

    @property
    def hardening(self) -> Hardening:
        """Adversaries of the objectives on forget records."""
        return hardening_of(self.method, self.args)

    @property
    def second_gradient(self) -> bool:
        """Whether a gradient is taken anew, sharpness-aware, while the last objective's stands whole."""
        early = self.method.objectives[:-1]
        return bool(self.hardening.sharpness) and any(is_forget(objective.source) for objective in early)


@dataclass(frozen=True)
class Plan:
    """Memory and time of one rank.

    Args:
        parts: What holds memory -> bytes, as they stand together at the peak.
        moment: When the peak is.
        tokens_per_second: Real tokens of all ranks, at the assumed utilisation; None for a CPU.
        seconds: Of all optimizer steps, measurements left out; None for a CPU.
        capacity: Bytes that a rank has for the run; None for a CPU.
        changes: Settings that differ from those asked for.
        notes: What its settings leave out of the method.
    """

    parts: dict[str, int]
    moment: str
    tokens_per_second: float | None
    seconds: float | None
    capacity: int | None
    changes: dict[str, Any]
    notes: list[str]

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within what a rank has."""
        return self.capacity is None or self.peak <= self.capacity


def plan(request: Request, changes: dict[str, Any] | None = None) -> Plan:
    """Memory per rank at its peak, and time.

    Args:
        request: What to plan.
        changes: Settings that this request has been given in place of the user's, for the answer.
    """
    counted = sizes(request.config, request.args)
    stages = moments(request, counted)
    moment = max(stages, key=lambda name: sum(stages[name].values()))
    parts = {name: size for name, size in stages[moment].items() if size}
    rate = _tokens_per_second(request, counted)
    step = _tokens_per_step(request)
    return Plan(
        parts=parts,
        moment=moment,
        tokens_per_second=rate,
        seconds=None if rate is None else step * request.args.max_steps / rate,
        capacity=None if request.device is None else int(request.device.memory * HEADROOM),
        changes=changes or {},
        notes=left_out(request.method, request.args),
    )


def cheapest(request: Request) -> Plan | None:
    """The fastest variant of a request that fits; of equally fast ones that with the fewest changes.

    Sharpness is given up only where nothing fits with it.
    """
    found = _fastest(request, {})
    if found is None and request.hardening.sharpness:
        return _fastest(request, {"sharpness": 0.0})
    return found


def _fastest(request: Request, given_up: dict[str, Any]) -> Plan | None:
    fitting = []
    for milder in _variants(request):
        changes = milder | given_up
        try:
            found = plan(replace(request, args=_changed(request.args, changes)), changes)
        except ValueError:  # settings that exclude each other, or that the model has no room for
            continue
        if found.fits:
            fitting.append(found)
        if found.fits and not changes:
            break
    return min(fitting, key=lambda p: (p.seconds or 0.0, len(p.changes)), default=None)


def _variants(request: Request) -> Iterator[dict[str, Any]]:
    """Settings that save memory, the mildest first; an adapter changes the result and comes last."""
    args = request.args
    engines: list[dict[str, Any]] = [{}]
    if request.gpus > 1 and not args.fsdp:
        engines.append({"fsdp": True})
    whole: list[dict[str, Any]] = [{}]
    if request.separate:
        whole += [{"gradient_buffers": "bf16"}, {"gradient_buffers": "cpu"}]
    cuts = [1] + ([4] if args.per_device_train_batch_size % 4 == 0 else [])
    narrow: list[dict[str, Any]] = [{}]
    if not args.lora_rank:
        narrow.append({"lora_rank": 16, "lora_merge": False})
        narrow.append({"lora_rank": 16, "lora_merge": False, "lora_bf16": True})
    elif not args.lora_bf16:
        narrow.append({"lora_merge": False, "lora_bf16": True})
    for adapter in narrow:
        for engine in engines:
            for cut in cuts:
                rows = args.per_device_train_batch_size // cut
                steps = args.gradient_accumulation_steps * cut
                smaller = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
                for checkpointing in ({}, {"gradient_checkpointing": True}):
                    for buffers in whole:
                        yield adapter | engine | (smaller if cut > 1 else {}) | checkpointing | buffers


def _changed(args: UnlearningArguments, changes: dict[str, Any]) -> UnlearningArguments:
    """The same settings with some in place of others; arithmetic reads no more than these.

    Raises:
        ValueError: They exclude each other.
    """
    varied = object.__new__(UnlearningArguments)
    varied.__dict__.update(args.__dict__ | changes)
    varied.check()
    return varied


# --- memory ----------------------------------------------------------------------------------------


def moments(request: Request, counted: Sizes) -> dict[str, dict[str, int]]:
    """What stands in memory together, at every moment that may be the peak."""
    args, method = request.args, request.method
    cut = request.gpus if request.engine == "fsdp" else 1
    trained = 4 * counted.trained // cut
    waiting = (len(method.objectives) - 1) * _waiting(request, trained) if request.separate else 0
    traced = _traced(request)
    kept = {
        "process": _process(request),
        "weights": _weights(counted, args) // cut,
        "gathered blocks": _gathered(request, counted),
        "optimizer state": _optimizer(args, trained),
        "last good state": trained if method.budget and not method.merge else 0,
        "reference": trained if live_sources(method) and not args.lora_rank else 0,
        "merge": trained * (1 + len(method.merge.further)) if method.merge else 0,
        "reduction buckets": trained if request.engine == "ddp" else 0,
    }
    copies = {"cast weights": 0 if args.gradient_checkpointing and args.lora_rank else traced.copies}
    aside = {"copy of the weights for sharpness": trained if request.hardening.sharpness else 0}
    standing = trained + waiting - _waiting(request, trained) if request.second_gradient else waiting
    line = method.step_size is not None
    update = kept | {"gradients": trained + waiting}
    return {
        "loading": {
            "process": _process(request),
            "weights": _weights(counted, args),
            "file": _file(request, counted),
        },
        "start of the last backward pass": kept
        | copies
        | aside
        | {
            "activations": _activations(request, counted, traced),
            "passing tensors": _passing(request, traced),
            "logits": _logits(request),
            "a chunk of the loss": _chunk(request),
            "gradients": standing + _head_gradient(request, counted),
        },
        "end of the last backward pass": kept
        | copies
        | aside
        | {"gradients": trained + standing, "workspace": 4 * counted.largest // cut},
        "optimizer step": update
        | {
            "parameters before the step": _before(request, counted, trained, cut),
            "workspace": 4 * counted.largest // cut,
        },
        "step size": (kept | {"gradients": trained, "parameters before the step": 2 * trained})
        if line
        else {},
        "look at the forget records": kept | copies | {"activations": _look(request)},
    }


def _weights(counted: Sizes, args: UnlearningArguments) -> int:
    """fp32 what trains; what is frozen as it was loaded (4 bits: 4.13 bits with their scales)."""
    if args.lora_4bit:
        narrow = int(counted.frozen_linear * 4.13 / 8)
        return 4 * counted.trained + narrow + 4 * (counted.frozen - counted.frozen_linear)
    return 4 * counted.trained + (2 if args.lora_bf16 else 4) * counted.frozen


def _optimizer(args: UnlearningArguments, trained: int) -> int:
    """Two fp32 moments for Adam, fewer for its relatives."""
    name = str(getattr(args.optim, "value", args.optim))
    if "8bit" in name:
        return trained // 2
    return 2 * trained if "adam" in name else (0 if name == "sgd" else trained)


def _before(request: Request, counted: Sizes, trained: int, cut: int) -> int:
    """All of them where a rule measures along the step, else a part at a time (see `walk`)."""
    name = str(getattr(request.args.optim, "value", request.args.optim))
    if request.method.step_size is not None or request.args.update == "sign":
        return trained
    if not request.separate:
        return 0
    part = max(trained // PARTS, min(SMALLEST, trained), 4 * counted.largest // cut)
    return part if name in ("sgd", "adamw_torch", "adamw_torch_fused") else trained


def _waiting(request: Request, trained: int) -> int:
    return {"fp32": trained, "bf16": trained // 2, "cpu": 0}[request.args.gradient_buffers]


def _gathered(request: Request, counted: Sizes) -> int:
    """Whole parameters beside the shares: two blocks, the embeddings, in the compute precision."""
    if request.engine != "fsdp":
        return 0
    ends = counted.embedding + (0 if counted.tied else counted.head)
    return (2 if request.args.bf16 else 4) * (2 * counted.block + ends)


def _rows(request: Request, names: Iterable[str]) -> int:
    """Rows of some data sets in a micro-batch; a schedule may join more of one with those of another."""
    size, schedule = request.args.per_device_train_batch_size, request.method.schedule
    return sum(schedule.rows(name, size) if schedule else size for name in names)


def _passes(request: Request) -> list[int]:
    """Rows of each forward pass whose graph is alive by itself."""
    each = [sources_of(objective) for objective in request.method.objectives]
    if not request.always_separate:
        return [_rows(request, {name for names in each for name in names})]
    return [_rows(request, names) for names in each]


def _traced(request: Request) -> Saved:
    shape = Shape(max(_passes(request)), request.tokens, request.labels)
    return saved(request.config, request.args, shape, on_cpu=request.device is None)


def _activations(request: Request, counted: Sizes, traced: Saved) -> int:
    if request.args.gradient_checkpointing:
        return counted.blocks * traced.stream + traced.block
    return traced.activations


def _passing(request: Request, traced: Saved) -> int:
    """On a CPU: what blocks hold for a moment between tensors that stay, as if nothing later fitted into it.

    glibc aligns a block by asking for more than its size; the hole that it leaves between neighbours that
    stay is too short for another of that size. An accelerator's allocator rounds sizes, and fills such holes.
    """
    return 0 if request.device is not None or request.args.gradient_checkpointing else traced.passing


def _file(request: Request, counted: Sizes) -> int:
    """On a CPU: the file that weights are read from is mapped while they are copied, at its own precision."""
    if request.device is not None:
        return 0
    stored = request.config.dtype if isinstance(request.config.dtype, torch.dtype) else torch.float32
    return (counted.trained + counted.frozen) * stored.itemsize


def _chunk(request: Request) -> int:
    """One chunk of logits in fp32, the probabilities made of them again, and their gradient."""
    places = max(_passes(request)) * request.labels
    vocabulary: int = request.config.get_text_config().vocab_size
    return 3 * 4 * min(places * vocabulary, ELEMENTS)


def _logits(request: Request) -> int:
    """Logits at label positions, and their gradient in chunks and joined; a reference's logits beside them.

    Losses on other functions of the logits than likelihoods and divergences hold fp32 copies on top.
    """
    places = max(_passes(request)) * request.labels
    vocabulary: int = request.config.get_text_config().vocab_size
    element = 2 if request.args.bf16 else 4
    beside = 1 if live_sources(request.method) else 0
    return places * vocabulary * element * (3 + beside)


def _head_gradient(request: Request, counted: Sizes) -> int:
    """The output embedding's gradient exists before any other, in the compute precision and in fp32."""
    if not counted.head_trains:
        return 0
    return counted.head * (4 + (2 if request.args.bf16 else 0))


def _look(request: Request) -> int:
    """An estimate: the widest layer's input and output for one batch, and its attention scores."""
    text = request.config.get_text_config()
    width = 2 * text.hidden_size + 2 * getattr(text, "intermediate_size", 4 * text.hidden_size)
    scores = text.num_attention_heads * request.tokens if request.device is None else 0
    return LOOK_TOKENS * 4 * (width + scores) if request.args.check_every else 0


def _process(request: Request) -> int:
    """On a CPU: interpreter and libraries, which this very process has loaded too."""
    if request.device is not None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# --- time ------------------------------------------------------------------------------------------


def _tokens_per_step(request: Request) -> int:
    rows = _rows(request, request.method.sources)
    return rows * request.args.gradient_accumulation_steps * request.gpus * request.tokens


def _looks(request: Request, objective: Objective) -> int:
    """Forward and backward passes of an objective in a step; an adversary's step is taken for a whole one."""
    if not is_forget(objective.source):
        return 1
    latent = request.hardening.latent
    return (2 if request.hardening.sharpness else 1) * (1 + (latent.steps if latent else 0))


def _reference_passes(request: Request, source: str) -> int:
    """Forward passes of the reference over a set that it is asked about, in a step; adversaries add none."""
    asking = [o for o in request.method.objectives if source in sources_of(o)]
    live = [o for o in asking if o.needs.reference in ("logits", "hidden")]
    again = bool(request.hardening.sharpness) and any(is_forget(o.source) for o in live)
    return 2 if again else 1


def _tokens_per_second(request: Request, counted: Sizes) -> float | None:
    """2 FLOP per matrix element and token forward, 4 backward (2 where the weight is frozen)."""
    if request.device is None:
        return None
    args, method = request.args, request.method
    share = request.labels / request.tokens
    active = counted.linear + share * counted.head
    backward = 2 if args.lora_rank else 4
    again = 2 if args.gradient_checkpointing else 0
    rows = _rows(request, method.sources)
    reads = sum(_looks(request, one) * _rows(request, sources_of(one)) for one in method.objectives)
    passes = reads / rows if request.always_separate else 1.0
    if method.weighting.needs_gramian and args.refresh_every > 1:
        passes = 1.0 + (passes - 1.0) / args.refresh_every
    asked = sum(_reference_passes(request, name) * _rows(request, [name]) for name in live_sources(method))
    reference = 2 * asked / rows
    flops = active * (passes * (2 + backward + again) + reference)
    return request.gpus * request.device.peak * UTILISATION / flops
