"""Several processes share independent work: each does its part, all get the whole.

Where torch.distributed is not initialised, every process does everything; so it does where the model's own
forward pass takes all processes (FSDP, ZeRO-3, tensor parallel), unless work is divided `even`ly: then every
process runs as many forward passes, and some repeat a batch at the end whose result is there already.

Work of which each process does a whole piece for itself, an attack say, stands in `alone()`: there nothing is
shared further, and nobody is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from expunge.errors import UsageError

Item = TypeVar("Item")

PATIENCE: Final = timedelta(days=30)
"""How long processes wait for one that works on a piece of its own."""

LEFT: Final = (
    "Every process must stay to the end; another one has ended. Its own message says why: see to it, then "
    "continue."
)
"""What the processes say that wait for one that is gone."""

_TAKEN, _FAILED = "expunge/taken", "expunge/failed"

_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """While entered, this process is as if it were the only one: it does all and waits for nobody."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def several() -> bool:
    """Whether processes work together here."""
    return dist.is_available() and dist.is_initialized() and not _alone.get()


def sharers(model: nn.Module, *, even: bool = False) -> int:
    """Processes that divide independent work on this model between them; 1 if it cannot be divided."""
    if not several() or (sharded(model) and not even):
        return 1
    return dist.get_world_size()


def portion(budget: int, total: int, model: nn.Module, *, even: bool = False) -> int:
    """A batch's budget, cut so that there is a batch for every process."""
    count = sharers(model, even=even)
    return budget if count == 1 else max(1, min(budget, total // count))


def own(batches: Sequence[Item], model: nn.Module, *, even: bool = False) -> Sequence[Item]:
    """This process's part: every so-maniest batch, so that neighbours of like size are spread."""
    count = sharers(model, even=even)
    if count > 1 and sharded(model):
        batches = [*batches, *[batches[-1]] * (-len(batches) % count)]
    return batches if count == 1 else batches[dist.get_rank() :: count]


def together(found: Mapping[int, Item], model: nn.Module, *, even: bool = False) -> dict[int, Item]:
    """Row -> result of all processes, from each one's own; all of them must call this."""
    count = sharers(model, even=even)
    if count == 1:
        return dict(found)
    parts: list[Mapping[int, Item]] = [{}] * count
    dist.all_gather_object(parts, found)
    return {row: result for part in parts for row, result in part.items()}


def decided(make: Callable[[], Item], group: dist.ProcessGroup | None = None) -> Item:
    """What the first process makes, on every process; where that fails, it fails on every process.

    Args:
        make: Called on the first process only, alone.
        group: All processes as `patient` gives them, where it takes long.

    Raises:
        UsageError: The first process could not make it, and this is another one; or it has ended.
    """
    if not several():
        return make()
    made: Any = None
    failed: Exception | None = None
    if dist.get_rank() == 0:
        try:
            with alone():
                made = make()
        except Exception as error:
            failed = error
    box = [made, _said(failed)]
    try:
        dist.broadcast_object_list(box, src=0, group=group)
    except RuntimeError as error:
        if not (failed or group):
            raise
        raise failed or UsageError(LEFT) from error
    if failed:
        raise failed
    if box[1]:
        raise UsageError(box[1])
    return box[0]  # type: ignore[no-any-return]


def _said(error: Exception | None) -> str:
    """An error for the other processes; "" where there is none."""
    if error is None or isinstance(error, UsageError):
        return str(error or "")
    return f"Another process failed with {type(error).__name__}: {error}"


@contextmanager
def patient() -> Iterator[dist.ProcessGroup | None]:
    """All processes as a group that waits for `PATIENCE`; None where each works for itself."""
    if not several():
        yield None
        return
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def taken(count: int, work: Callable[[int], Item], group: dist.ProcessGroup | None) -> list[Item]:
    """Results of pieces of work, each done by one process, alone; every process gets all of them.

    Whoever is free takes the next piece. After a failure no piece is begun any more.

    Args:
        count: Of pieces.
        work: Takes a piece's number, from 0.
        group: All processes as `patient` gives them, once: a group counts its pieces.

    Raises:
        UsageError: Another process failed, or has ended.
    """
    mine: dict[int, Item] = {}
    if group is None:
        return [work(i) for i in range(count)]
    store, failed = group.get_group_store(), None
    try:
        while not store.check([_FAILED]) and (i := store.add(_TAKEN, 1) - 1) < count:
            with alone():
                mine[i] = work(i)
    except Exception as error:
        failed = UsageError(LEFT) if isinstance(error, dist.DistError) else error
        with suppress(RuntimeError):  # the process that holds the store may be the one that left
            store.set(_FAILED, "")
    found = _joined(mine, failed, group)
    return [found[i] for i in range(count)]


def _joined(mine: dict[int, Item], failed: Exception | None, group: dist.ProcessGroup) -> Mapping[int, Item]:
    """Everybody's results, or the failure of one."""
    parts: list[tuple[dict[int, Item], str]] = [({}, "")] * group.size()
    try:
        dist.all_gather_object(parts, (mine, _said(failed)), group=group)
    except RuntimeError as error:
        raise failed or UsageError(LEFT) from error
    if failed:
        raise failed
    if whys := [why for _, why in parts if why]:
        raise UsageError(whys[0])
    return {i: result for part, _ in parts for i, result in part.items()}


def wait() -> None:
    """Until every process is here."""
    if several():
        dist.barrier()


def first() -> bool:
    """Whether this is the process that writes files."""
    return not several() or dist.get_rank() == 0


def own_file(name: str) -> str:
    """A file name of this process's own: `a.b` becomes `a.3.b` on the fourth."""
    stem, dot, end = name.rpartition(".")
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return f"{stem}.{rank}{dot}{end}"


def sharded(model: nn.Module) -> bool:
    """Whether one forward pass of the model takes all processes."""
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return True
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())
