"""The training inside a verb: the engine made ready, run or taken up again, and what it left.

Knows a run and the engine; knows no data as users name it, and no option.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from expunge import output, ranks
from expunge.alike import first_difference
from expunge.callbacks import Ticker
from expunge.errors import ResumeError, UsageError
from expunge.file_hashes import differences
from expunge.heap import give_back
from expunge.material import norm_wanted
from expunge.methods import Method
from expunge.models import CausalModel, load_as
from expunge.monitor import RunState
from expunge.own_code import difference
from expunge.record import RunRecord
from expunge.redaction import REDACTED
from expunge.runs import Run, data_entries
from expunge.settings import configuration
from expunge.unlearner import Unlearner
from expunge.weights import weights_hash


def ended(run: Run, recipe: Method, model: CausalModel) -> RunRecord | None:
    """With `resume`: the record of a run whose training ended but whose evaluation did not.

    It is continued only with the model, data, method, seed, settings and the user's own code of the training.

    Args:
        run: Knows what is asked for now.
        recipe: The method.
        model: As it was before the training.

    Raises:
        ResumeError: One of them is another, or the evaluation has ended too.
    """
    record = run.unfinished()
    if record is None:
        return None
    now = {name: entry.sha256 for name, entry in data_entries(run.sets, run.benchmark).items()}
    known = {name: entry.sha256 for name, entry in record.data.items()}
    same = all(known.get(name) == sha for name, sha in now.items())
    same = same and (record.method, record.seed) == (recipe.name, run.args.seed)
    if not same or record.models["before"].sha256 != run.models["before"].sha256:
        raise ResumeError(
            f"--resume must continue with the same model, data, method and seed; those of {run.folder} "
            "differ. Give the same, or --overwrite to run again."
        )
    if changed := difference(record.code, run.code):
        raise ResumeError(
            f"--resume must continue with the same code; of your own, {changed} ({run.folder}). "
            "Put it back, or give --overwrite to run again."
        )
    settled = configuration(run.args, recipe, norm_wanted(recipe, run.args, model)) | run.asked
    if found := first_difference(_trained(record.configuration), _trained(settled)):
        what, before, asked = found
        raise ResumeError(
            f"--resume must continue with the same settings; {what} was {before} in {run.folder} and is "
            f"{asked} now. Give the same, or --overwrite to run again."
        )
    return record


def _trained(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of the training; the evaluation is yet to come."""
    return {key: value for key, value in settings.items() if key not in ("benchmark", "evaluation_seed")}


def prepare(run: Run, model: Any, tokenizer: PreTrainedTokenizerBase, recipe: Method) -> Unlearner:
    """The engine, and with `resume` the proof that the checkpoint is of this run.

    Raises:
        UsageError: The engine refuses model, data or settings.
        ResumeError: The checkpoint is of another run.
    """
    sets = run.sets
    retain = sets.get("retain", sets.get("train"))
    try:
        unlearner = Unlearner(
            model,
            run.args,
            recipe,
            tokenizer,
            sets.get("forget"),
            retain,
            sets.get("holdout"),
            derived_datasets=run.derived | run.companions,
        )
    except ValueError as error:
        raise UsageError(f"This run cannot start: {error}") from error
    unlearner.cache = run.options.cache
    models = {name: entry for name, entry in run.models.items() if name.startswith(("before", "reinforced"))}
    identity = {f"the hash of the model {name}": entry.sha256 for name, entry in models.items()}
    if run.chain:
        identity["the hash of the earlier run's record"] = run.chain.record_sha256
    unlearner.monitor.state.identity |= identity
    unlearner.monitor.state.code |= run.code
    if (checkpoint := _checkpoint(run)) is not None:
        try:
            unlearner.monitor.load(checkpoint)
        except ValueError as error:
            raise ResumeError(f"--resume cannot continue this run: {error}") from None
    if recipe.forgets and unlearner.monitor.check is None:
        run.notes.append("There was no control to compare the forget records with: only limits end this run.")
    run.norm = unlearner.norm
    run.notes += [note for note in unlearner.notes if note not in run.notes]
    return unlearner


def _checkpoint(run: Run) -> Path | None:
    return output.last_checkpoint(run.folder) if run.folder and run.options.resume else None


def train(run: Run, unlearner: Unlearner, title: str) -> RunState:
    """Train, from the last checkpoint where the run is resumed; what only training needs is then given back.

    Args:
        run: Takes the time, and notes.
        unlearner: As `prepare` made it.
        title: Of the phase.
    """
    checkpoint = _checkpoint(run)
    if run.options.resume and checkpoint is None:
        run.notes.append("--resume found no checkpoint; the run started from the beginning.")
    if checkpoint is not None:
        run.notes.append("Resumed from a checkpoint; times are those of the last session.")
    with run.timed("train"), run.options.reporter.phase(title, run.args.max_steps) as advance:
        unlearner.add_callback(Ticker(unlearner, advance))
        unlearner.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if ranks.sharded(unlearner.trained):
        run.notes.append(f"The model was sharded over {unlearner.accelerator.num_processes} processes.")
    unlearner.release()
    give_back()
    return unlearner.monitor.state


def conclude(run: Run, settled: Mapping[str, Any], method: str, state: RunState) -> RunRecord:
    """The record of the run as it ended; only once it is written may the checkpoints go."""
    record = run.record(settled, method, state)
    if "after" in run.models:
        run.tidy()
    return record


def usable(run: Run, state: RunState) -> bool:
    """Whether the weights are worth keeping: a diverged run without a last good state leaves none."""
    if state.stop is None or state.stop.reason != "diverged" or state.stop.restored_step is not None:
        return True
    run.notes.append("The run diverged and the method keeps no earlier state: no model was saved.")
    return False


def state_of(record: RunRecord) -> RunState:
    """What an ended training measured, from its record."""
    return RunState(steps=record.history, probes=record.probes, checks=record.checks, stop=record.stop)


def written(run: Run, record: RunRecord) -> CausalModel:
    """The model that an ended training left in the output folder; the run takes over what it measured.

    Raises:
        ResumeError: It is not the one that the record tells of.
    """
    assert run.folder is not None
    place, run.files = run.folder / "model", record.files
    rule = f"--resume must find the model that {run.folder / 'record.json'} tells of;"
    if record.files is not None and (found := next(iter(differences(place, record.files)), None)):
        name, why = found
        raise ResumeError(f"{rule} {place / name} is {why}. Put it right, or give --overwrite to run again.")
    held, trust = record.models["after"].dtype, run.options.trust_remote_code
    model = load_as(place, held, device=run.args.device, trust_remote_code=trust)
    model.to(run.args.device)  # type: ignore[arg-type]
    if weights_hash(model) != record.models["after"].sha256:
        raise ResumeError(f"{rule} {place} is another. Give --overwrite to run again.")
    run.timings = record.timings | run.timings
    run.peak = record.peak_memory_bytes
    run.notes = [*(note for note in record.notes if note != REDACTED), *run.notes]
    return model
