"""`UnlearningArguments`: the Trainer's arguments with defaults for unlearning, and a few of our own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from expunge.collate import Encoding
from expunge.defences.hardening import Hardening
from expunge.defences.latent import Latent
from expunge.launch import check_launch
from expunge.updates import ZerothOrder

UPDATES = Literal["plain", "sign", "zeroth-order"]

PLACES = frozenset(
    {"output_dir", "run_name", "logging_dir", "save_strategy", "save_steps", "save_total_limit"}
)
"""Settings that say where and how often something is written: no result depends on them."""


def bf16_pays() -> bool:
    """Whether this machine multiplies bf16 matrices in hardware."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@dataclass
class UnlearningArguments(TrainingArguments):
    r"""Settings of a run.

    Differences from `TrainingArguments`: a step limit always exists, the batch size counts rows *per
    data set*, gradients are not clipped (a normalised direction has its length already), and compute
    is bf16 where the machine has it, always over fp32 master weights.

    Args:
        fsdp: True shards the model over the processes of the launch (FSDP2, fully_shard).
        template: `chat` applies the tokenizer's template, `none` joins prompt and response with a
            space, `auto` takes the template if there is one.
        max_length: Tokens per record at most; longer responses are cut. None: the model's context.
        check_every: Optimizer steps between looks at whether the forget records are forgotten; near the goal
            every step is looked at, and while a few records that still leak are drawn alone; 0 never looks.
        check_rows: Forget rows that most looks read, fixed for the run, and as many of the holdout, given or
            synthetic. Before a run ends as forgotten, or leaks are drawn alone, all comparable rows are read.
        diagnose_every: A method with constant weights needs no gradient per objective; every so many
            steps they are computed all the same, for the log. 0 never does.
        refresh_every: A method whose weights depend on gradients computes them every so many optimizer steps
            only, and takes one fused backward pass with the last weights in between; 1 is the plain method.
        gradient_buffers: How gradients of one objective wait for those of the next: `fp32`, `bf16` (half the
            memory, rounded), or `cpu` (on the host, exact).
        lora_rank: Rank of a LoRA adapter to train in place of the weights; 0 trains the weights.
        lora_alpha: Its scale times the rank; None is twice the rank.
        lora_targets: Modules to adapt, comma-separated, or `all-linear`.
        lora_dora: DoRA: the adapter learns magnitude and direction apart.
        lora_merge: Deliver the model with the adapter merged in; otherwise the adapter alone is saved.
        lora_4bit: Load the base in 4 bits (QLoRA); needs bitsandbytes, a device it runs on, and no merging.
        lora_bf16: Load the frozen base in bf16, half its memory (no merging: bf16 cannot hold the change).
        train_last: Train this many of the last blocks only; 0 trains all.
        train_only: Train parameters alone in whose name this regular expression is found, such as
            `layers\.[5-7]\.mlp\.down_proj`; empty trains all.
        refusals: Text file with one refusal a line for methods that read `idk`; None: built-in ones.
        update: `plain` is what the optimizer makes of the gradient; `sign` its sign, η on every coordinate;
            `zeroth-order` estimates gradients from losses along random directions, without backward passes,
            and the run computes in fp32: differences that small are lost in bf16.
            The last two are harder to undo by relearning (arXiv 2510.00761; see `updates`).
        zeroth_queries: Random directions per zeroth-order step.
        zeroth_radius: How far along them losses are measured.
        zeroth_every: Every so many steps one is zeroth-order, the others are plain.
        self_retain: Without retain records: this many texts are sampled from the model itself in their
            place. 0 never does.
        sharpness: Forget gradients are taken where a move of the weights of this length (ρ, L2 over all that
            train) undoes forgetting fastest, so that relearning and rounding undo less of it. 0 never does;
            None: as the recipe has it (`Method.relative_sharpness`), unless another setting excludes it.
        latent_radius: Forget gradients are taken under an adversary that moves the residual stream of every
            prompt token by up to this length (ε), so that other prompts bring back less. 0 is none.
        latent_layers: Where it acts, comma-separated, from 0 (embeddings); negative from the end.
        latent_steps: Gradient steps of the adversary; each costs a pass over the forget rows.
        earlier_rows: With records of earlier requests (`after`): so many of them join the forget rows of
            every micro-batch. 0: they are looked at, not trained on.
        curriculum_rows: With neighbours: so many of their rows join the retain rows of every micro-batch,
            nearest first. 0: they are measured, not trained on.
    """

    output_dir: str | None = "expunge-output"
    per_device_train_batch_size: int = 8
    learning_rate: float = 3e-5
    lr_scheduler_type: str = "constant"
    max_steps: int = 200
    max_grad_norm: float = 0.0
    optim: str = "adamw_torch_fused"
    logging_steps: int | float = 1
    save_strategy: SaveStrategy | str = "steps"
    save_steps: int | float = 100
    save_total_limit: int | None = 1
    report_to: str | list[str] | None = "none"
    disable_tqdm: bool | None = True
    remove_unused_columns: bool = False
    bf16: bool = field(default_factory=bf16_pays)
    fsdp: bool | str | None = None  # type: ignore[assignment]
    template: Literal["auto", "chat", "none"] = "auto"
    max_length: int | None = None
    check_every: int = 5
    check_rows: int = 64
    diagnose_every: int = 10
    refresh_every: int = 1
    gradient_buffers: Literal["fp32", "bf16", "cpu"] = "fp32"
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_targets: str = "all-linear"
    lora_dora: bool = False
    lora_merge: bool = True
    lora_4bit: bool = False
    lora_bf16: bool = False
    train_last: int = 0
    train_only: str = ""
    refusals: str | None = None
    update: UPDATES = "plain"
    zeroth_queries: int = 8
    zeroth_radius: float = 1e-3
    zeroth_every: int = 1
    self_retain: int = 0
    sharpness: float | None = None
    latent_radius: float = 0.0
    latent_layers: str = ""
    latent_steps: int = 6
    earlier_rows: int = 2
    curriculum_rows: int = 2

    def __post_init__(self) -> None:
        check_launch(self)  # before settings act: the Trainer's own checks may import what is refused here
        # float64 sums and autocast over a whole pass are not to be had on Apple's GPUs
        self.use_cpu = (
            self.use_cpu or not torch.accelerator.is_available() or torch.backends.mps.is_available()
        )
        self.bf16 = self.bf16 and self.update != "zeroth-order"
        if self.fsdp and not isinstance(self.fsdp_config, str):
            self.fsdp_config = {"version": 2} | (self.fsdp_config or {})
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.check()

    def check(self) -> None:
        """Look at what must hold of settings together.

        Raises:
            ValueError: A value is out of range, or two exclude each other.
        """
        for holds, rule in _RULES:
            if not holds(self):
                raise ValueError(rule.format_map(vars(self)))

    @property
    def n_gpu(self) -> int:
        """One device per process: several GPUs take `torchrun` or `accelerate launch`."""
        return min(int(super().n_gpu), 1)

    @property
    def encoding(self) -> Encoding:
        """How records become rows."""
        return Encoding(self.template, self.max_length)

    @property
    def zeroth(self) -> ZerothOrder | None:
        """How gradients are estimated; None where they are computed.

        Raises:
            ValueError: A size is out of range.
        """
        if self.update != "zeroth-order":
            return None
        return ZerothOrder(self.zeroth_radius, self.zeroth_queries, self.zeroth_every)

    @property
    def sharpness_excluded_by(self) -> str:
        """The setting that a recipe's own sharpness gives way to, as `name=value`; empty where none does."""
        if self.update == "zeroth-order":
            return "update=zeroth-order"
        return f"refresh_every={self.refresh_every}" if self.refresh_every > 1 else ""

    def hardening(self, own: float = 0.0) -> Hardening:
        """Adversaries that the forget objectives face.

        Args:
            own: ρ that the recipe comes to, which holds where `sharpness` is None and nothing excludes it.

        Raises:
            ValueError: Layers are not whole numbers, or a size is out of range.
        """
        if self.sharpness_excluded_by:
            own = 0.0
        sharpness = own if self.sharpness is None else self.sharpness
        if not self.latent_radius:
            return Hardening(sharpness)
        try:
            layers = tuple(int(part) for part in self.latent_layers.split(",") if part.strip())
        except ValueError:
            raise ValueError(
                "`latent_layers` must be whole numbers, comma-separated; "
                f"got {self.latent_layers!r}. Name layers such as 4,8."
            ) from None
        if not layers:
            raise ValueError("`latent_layers` must name a layer where `latent_radius` is set; got none.")
        return Hardening(sharpness, Latent(layers, self.latent_radius, self.latent_steps))

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """Compute precision of training and of measurements that need no finer one."""
        return "bf16" if self.bf16 else "fp32"


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


_RULES: tuple[tuple[Callable[[UnlearningArguments], bool], str], ...] = (
    (
        lambda given: given.max_steps >= 1,
        "`max_steps` must be at least 1: a step limit always exists; got {max_steps}.",
    ),
    (
        lambda given: 0 <= given.learning_rate < math.inf,
        "`learning_rate` must be non-negative and finite; got {learning_rate}. Try 1e-5.",
    ),
    (
        lambda given: given.per_device_train_batch_size >= 1 and given.gradient_accumulation_steps >= 1,
        "`per_device_train_batch_size` and `gradient_accumulation_steps` must be at least 1; got "
        "{per_device_train_batch_size}, {gradient_accumulation_steps}.",
    ),
    (
        lambda given: 0 <= given.seed < 2**32,
        "`seed` must be at least 0 and below 2**32; got {seed}.",
    ),
    (
        lambda given: given.num_train_epochs == 3.0,  # the Trainer's own default
        "`num_train_epochs` must be left out (`max_steps` says how long a run takes); "
        "got {num_train_epochs}. Set `max_steps`.",
    ),
    (
        lambda given: not given.fp16,
        "`fp16` must be False (its loss scaling distorts gradient norms); got True. Use bf16.",
    ),
    (
        lambda given: given.max_length is None or given.max_length >= 2,
        "`max_length` must be at least 2 tokens; got {max_length}.",
    ),
    (
        lambda given: given.check_every >= 0 and given.check_rows >= 1 and given.diagnose_every >= 0,
        "`check_rows` must be at least 1, `check_every` and `diagnose_every` at least 0; "
        "got {check_rows}, {check_every}, {diagnose_every}.",
    ),
    (
        lambda given: given.refresh_every >= 1,
        "`refresh_every` must be at least 1; got {refresh_every}.",
    ),
    (
        lambda given: given.gradient_buffers in ("fp32", "bf16", "cpu"),
        "`gradient_buffers` must be fp32, bf16 or cpu; got {gradient_buffers!r}. Choose one.",
    ),
    (
        lambda given: given.lora_rank >= 0 and given.train_last >= 0 and given.self_retain >= 0,
        "`lora_rank`, `train_last` and `self_retain` must be at least 0; "
        "got {lora_rank}, {train_last}, {self_retain}.",
    ),
    (
        lambda given: not (given.train_only and (given.lora_rank or given.train_last)),
        "`train_only` must be left out with `lora_rank` or `train_last`, which say what trains, too; "
        "got {train_only!r}. Leave one of them out.",
    ),
    (
        lambda given: _is_pattern(given.train_only),
        "`train_only` must be a regular expression; got {train_only!r}, which is none.",
    ),
    (
        lambda given: given.update in get_args(UPDATES),
        f"`update` must be one of {', '.join(get_args(UPDATES))}; got {{update!r}}.",
    ),
    (
        lambda given: not (given.zeroth and given.hardening()),
        "`sharpness` and `latent_radius` must be 0 or left out with `update=zeroth-order` (they need "
        "backward passes); got {sharpness} and {latent_radius}. Leave them out.",
    ),
    (
        lambda given: given.earlier_rows >= 0 and given.curriculum_rows >= 0,
        "`earlier_rows` and `curriculum_rows` must be at least 0; got {earlier_rows}, {curriculum_rows}.",
    ),
    (
        lambda given: given.lora_rank > 0 or not (given.lora_dora or given.lora_4bit or given.lora_bf16),
        "`lora_dora`, `lora_4bit` and `lora_bf16` need a `lora_rank` of at least 1; got 0. Set it.",
    ),
    (
        lambda given: not (given.lora_merge and (given.lora_4bit or given.lora_bf16)),
        "`lora_merge` must be False with `lora_4bit` or `lora_bf16`; got True. Set lora_merge=false.",
    ),
    (
        lambda given: not (given.lora_4bit and given.lora_bf16),
        "`lora_bf16` must be False with `lora_4bit` (a base is held in one of them); got True. Drop one.",
    ),
    (
        lambda given: not (given.hardening().latent and given.gradient_checkpointing),
        "`gradient_checkpointing` must be False with `latent_radius` (the recomputed pass would run "
        "without the adversary); got True. Set one of them off.",
    ),
)
"""What must hold of settings, looked at in this order, and what is said where it does not."""
