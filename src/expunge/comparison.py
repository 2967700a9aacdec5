"""`compare`: methods × settings × seeds, each an ordinary run in a folder of its own; one at a time.

What has ended is not run again, and what was interrupted continues. A trial that fails is recorded, keeps
what it has for `resume`, and stops no other. What the trials mean together is for `comparison_record`.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from expunge import api, failures, output
from expunge.arguments import UnlearningArguments
from expunge.collate import encode
from expunge.comparison_record import (
    FILE,
    Comparison,
    TrialEntry,
    begun,
    ended,
    plain,
    read_comparison,
    status_of,
    summarise,
    write_comparison,
)
from expunge.errors import ResumeError, UsageError
from expunge.locks import exclusive
from expunge.material import check_engine, missing
from expunge.methods import Method
from expunge.models import ModelSource, configured_context, load_tokenizer
from expunge.one_table import asked_otherwise, check_asked, differing, found_again
from expunge.record import RunRecord, read_record
from expunge.report.comparison import write_page
from expunge.run_options import RunOptions
from expunge.runs import data_entries
from expunge.settings import arguments, configuration, resolve_method
from expunge.subject import SETTINGS, CompareOptions, Subject, axis_of, subject_of
from expunge.trials import Trial, plan

EVALUATIONS = "evaluations"
"""Folder of the evaluations that all trials share: the model before unlearning is measured once."""

_PROCESS = "Peak memory is that of the whole comparison's process up to this trial."
_LOG = logging.getLogger("expunge")


@exclusive
def compare(
    model: ModelSource,
    *,
    methods: Sequence[str],
    output: str | Path,
    seeds: Sequence[int] = (0,),
    grid: Mapping[str, Sequence[Any]] | None = None,
    **settings: Any,
) -> Comparison:
    """Run several methods on the same model and records, and weigh forgetting against utility.

    A folder that holds an interrupted comparison is continued with `resume`; with it, more methods, settings
    or seeds can be added as well, and the result is of all of them together.

    Args:
        model: A local folder, a Hub id, or `smollm2-135m`.
        methods: Names from `expunge list methods`, or `FILE.py:NAME`.
        output: Folder for one folder per trial, `comparison.json` and `report.html`.
        seeds: Every setting is run with each.
        grid: Setting -> values to try, all combined; `npo:beta` is tried with npo only.
        **settings: Fields of `CompareOptions`; all others are settings of every trial, as for `unlearn`.

    Returns:
        What was measured. Ctrl-C returns too, with trials that have not ended.

    Raises:
        UsageError: Data, model or settings cannot be used; nothing was run yet.

    Example:
        >>> found = compare(  # doctest: +SKIP
        ...     "smollm2-135m", methods=["ngdiff", "npo"], seeds=[0, 1, 2], output="out",
        ...     forget="forget.jsonl", retain="retain.jsonl", holdout="unseen.jsonl",
        ...     grid={"npo:learning_rate": [1e-5, 3e-5]},
        ... )
    """
    options, settings = CompareOptions.take(settings)
    if not isinstance(model, str | Path):
        raise ValueError("`model` must be a folder or a name: every trial loads it anew. Save it first.")
    if "seed" in settings:
        raise UsageError("--set must not name seed in a comparison; give --seeds 0,1,2.")
    settings = dict(SETTINGS.get(options.benchmark, {})) | settings
    trials = plan(methods, seeds, settings, grid or {}, options.evaluation_seed)
    subject = subject_of(options, settings.get("template"))
    checked = {
        setting: _check(trial, subject)
        for setting, trial in {_setting(trial): trial for trial in trials}.items()
    }
    comparison = Comparison(
        expunge_version="",
        created="",
        benchmark=options.benchmark,
        options=plain(options.options),
        control=None if options.reference is None else str(options.reference),
        source=str(model),
        data=data_entries(subject.sets, subject.benchmark),
        forget_axis=axis_of(options.forget_metric or subject.axes[0], "forget", subject),
        utility_axis=axis_of(options.utility_metric or subject.axes[1], "retain", subject),
        trials=[begun(trial, checked[_setting(trial)][1]) for trial in trials],
        models_kept=options.keep_models,
    )
    reading = arguments({k: v for k, v in settings.items() if k in _READING}, RunOptions())
    _check_model(model, subject, reading, trust=options.trust_remote_code)
    second = [place for recipe, _ in checked.values() for place in recipe.second_models]
    folder = _claim(Path(output), [model, *second], options)
    comparison = _joined(comparison, folder, options, reading.device)
    return _Study(comparison, folder, subject, options, {trial.name: trial for trial in trials}).run(model)


def refresh(folder: Path) -> Comparison:
    """Make comparison and page again from the records of the trials.

    Raises:
        UsageError: The folder holds no comparison, or records of different models or data.
    """
    comparison = read_comparison(folder)
    return _write(comparison, folder)


def merge(folders: Sequence[Path], folder: Path) -> Comparison:
    """One comparison of the trials of several, for example of parts that ran side by side.

    What the trials left is copied; the parts stay as they are. Parts of different models or data are refused.

    Args:
        folders: Each holds a comparison; a trial that stands in two of them is taken from the first.
        folder: Of the whole; made if need be, and brought up to date if it holds an earlier merge. What else
            stands in it leaves the comparison, unless it is among `folders`.

    Raises:
        UsageError: A folder holds no comparison, or the comparisons are of different things or asked the same
            of a method otherwise.
    """
    if not folders:
        raise ValueError("`folders` must hold at least one comparison; got none.")
    parts = {place: read_comparison(place) for place in folders}
    whole = next(iter(parts.values()))
    trials: dict[str, TrialEntry] = {}
    for place, part in parts.items():
        _check_alike(part, whole, place)
        for entry in part.trials:
            if unlike := asked_otherwise(entry, trials.values()):
                raise UsageError(
                    f"Comparisons that are merged must ask {entry.name} with the same settings; {unlike[0]} "
                    f"is {unlike[1]} elsewhere and {unlike[2]} in {place}. Leave one out."
                )
            new = entry.name not in trials and place.resolve() != folder.resolve()
            if new and (place / entry.name).is_dir():
                shutil.copytree(place / entry.name, folder / entry.name, dirs_exist_ok=True)
            trials.setdefault(entry.name, entry)
    folder.mkdir(parents=True, exist_ok=True)
    return _write(whole.model_copy(update={"trials": list(trials.values())}), folder)


def _check_alike(part: Comparison, whole: Comparison, place: Path) -> None:
    axes = (part.forget_axis, part.utility_axis) == (whole.forget_axis, whole.utility_axis)
    if what := differing(part, whole) or ("" if axes else "metrics"):
        raise UsageError(
            f"Comparisons that are merged must have the same {what}; that of {place} has another. "
            "Leave it out."
        )


@dataclass
class _Study:
    """A comparison under way."""

    comparison: Comparison
    folder: Path
    subject: Subject
    options: CompareOptions
    trials: Mapping[str, Trial]

    def run(self, model: str | Path) -> Comparison:
        """All trials that have not ended, one after another, until one is interrupted."""
        self._write()  # what ended just before a kill has its record, and is not run again
        for entry in self.comparison.trials:
            if entry.status == "done":
                _drop(self.folder / entry.name, keep=self.options.keep_models)
        open_ = [e for e in self.comparison.trials if e.name in self.trials and not _over(e)]
        for number, entry in enumerate(open_, 1):
            self._tell(f"Trial {number} of {len(open_)}: {entry.name}")
            entry = self._tried(entry, model)
            self._replace(entry)
            self._write()
            if entry.status == "interrupted":
                break
        if self.options.redact and all(map(_over, self.comparison.trials)):
            shutil.rmtree(self.folder / EVALUATIONS, ignore_errors=True)  # it holds what models said
            self._write()
        return self.comparison

    def _tried(self, entry: TrialEntry, model: str | Path) -> TrialEntry:
        """One trial; what goes wrong in it is what it says."""
        try:
            record = self._gone_on(entry, model)
        except Exception as error:  # whatever it is, the other trials do not depend on it
            return self._failed(entry, error)
        finally:
            _free()
        failures.forget(self.folder / entry.name)
        return ended(entry, record)

    def _failed(self, entry: TrialEntry, error: Exception) -> TrialEntry:
        """The trial with its error; checkpoints and model stay, for `resume`."""
        redact = self.options.redact
        said = failures.said(error, redact=redact)
        file = failures.leave(error, self.folder / entry.name, redact=redact)
        _LOG.warning("%s failed: %s%s", entry.name, said, f" (traceback: {file})" if file else "")
        return entry.model_copy(update={"status": "failed", "error": said})

    def _gone_on(self, entry: TrialEntry, model: str | Path) -> RunRecord:
        """A trial from where it stands; from the beginning where nothing is left, or not to be continued."""
        place = self.folder / entry.name
        why = "nothing is left to resume" if entry.status == "failed" and not _resumable(place) else ""
        if not why:
            try:
                return self._unlearn(entry, model, resume=place.is_dir())
            except ResumeError as refused:
                if record := _whole(place):  # what failed came after it
                    return record
                why = str(refused)
            _free()
        _LOG.warning("%s starts from the beginning: %s", entry.name, why)
        return self._unlearn(entry, model, overwrite=True)

    def _unlearn(
        self, entry: TrialEntry, model: str | Path, *, resume: bool = False, overwrite: bool = False
    ) -> RunRecord:
        trial = self.trials[entry.name]
        sets: dict[str, Any] = dict(self.subject.sets)
        result = api.unlearn(
            model,
            **sets,
            benchmark=self.subject.benchmark,
            control=self.options.reference,
            method=trial.method,
            **trial.fixed,
            **trial.varied,
            seed=trial.seed,
            output=self.folder / entry.name,
            resume=resume,
            overwrite=overwrite,
            cache=self.folder / EVALUATIONS,
            evaluation_seed=trial.evaluation_seed,
            notes=(_PROCESS,),
            redact=self.options.redact,
            trust_remote_code=self.options.trust_remote_code,
            reporter=self.options.reporter,
        )
        return result.record

    def _replace(self, entry: TrialEntry) -> None:
        if _over(entry):
            _drop(self.folder / entry.name, keep=self.options.keep_models and entry.status == "done")
        trials = [entry if known.name == entry.name else known for known in self.comparison.trials]
        self.comparison = self.comparison.model_copy(update={"trials": trials})

    def _write(self) -> None:
        self.comparison = _write(self.comparison, self.folder)

    def _tell(self, words: str) -> None:
        with self.options.reporter.phase(words, 1) as advance:
            advance(1, "")


def _write(comparison: Comparison, folder: Path) -> Comparison:
    """Take up every trial's record, and write comparison and page."""
    records = {entry.name: record for entry in comparison.trials if (record := _recorded(folder, entry))}
    trials = [
        ended(entry, records[entry.name]) if entry.name in records else entry for entry in comparison.trials
    ]
    found = summarise(comparison.model_copy(update={"trials": trials, "disk_bytes": _size(folder)}), records)
    write_comparison(found, folder)
    write_page(found, folder)
    return found


def _recorded(folder: Path, entry: TrialEntry) -> RunRecord | None:
    """The record of a trial; one of an attempt that failed does not count."""
    if entry.status == "failed" or not (folder / entry.name / "record.json").is_file():
        return None
    return read_record(folder / entry.name)


def _resumable(place: Path) -> bool:
    """Whether a run was left there that can go on: at a checkpoint, or behind its training."""
    ended_training = (place / "record.json").is_file() and (place / "model").is_dir()
    return ended_training or output.last_checkpoint(place) is not None


def _whole(place: Path) -> RunRecord | None:
    """The record of a run that came to its end there."""
    if not (place / "record.json").is_file():
        return None
    record = read_record(place)
    return record if status_of(record) in ("done", "diverged") else None


def _over(entry: TrialEntry) -> bool:
    return entry.status in ("done", "diverged")


def _claim(folder: Path, models: Sequence[str | Path], options: CompareOptions) -> Path:
    inputs = [*models, options.reference, options.data, options.forget, options.retain, options.holdout]
    paths = [Path(found) for found in inputs if isinstance(found, str | Path)]
    return output.claim(folder, resume=options.resume, overwrite=options.overwrite, inputs=paths)


def _joined(
    comparison: Comparison, folder: Path, options: CompareOptions, device: torch.device
) -> Comparison:
    """With the trials of the comparison that is in the folder already; without `resume` there is none.

    Raises:
        UsageError: That one is of another model, of other data, or asked the same trial otherwise.
    """
    if options.overwrite:
        output.clear(folder)
    if not (folder / FILE).is_file():
        return comparison
    known = read_comparison(folder)
    trust = options.trust_remote_code
    models = {
        "model": found_again(comparison.source, known.source, known.model, device, trust=trust),
        "control_model": found_again(
            comparison.control, known.control, known.control_model, device, trust=trust
        ),
    }
    comparison = comparison.model_copy(update=models)
    if what := differing(comparison, known):
        raise UsageError(
            f"--resume must continue with the same {what}; those of {folder} differ. "
            "Choose another --output, or give --overwrite."
        )
    for entry in comparison.trials:
        check_asked(known.trials, entry, folder)
    old = {entry.name for entry in known.trials}
    new = [entry for entry in comparison.trials if entry.name not in old]
    return comparison.model_copy(update={"trials": [*known.trials, *new]})


def _setting(trial: Trial) -> str:
    """What trials that differ in their seed alone have in common."""
    return trial.name.rpartition("-seed")[0]


def _check(trial: Trial, subject: Subject) -> tuple[Method, dict[str, Any]]:
    """The recipe and the settings of a trial; everything that can be refused before anything is run is."""
    options, settings = RunOptions.take({**trial.fixed, **trial.varied, "seed": trial.seed})
    if changed := [f.name for f in dataclasses.fields(options) if f.name in {*trial.fixed, *trial.varied}]:
        raise UsageError(
            f"--set and --grid must name settings of the training or of the method; got {changed[0]}."
        )
    recipe, settings = resolve_method(trial.method, settings)
    args = arguments(settings, options, trial.method)
    try:
        check_engine(recipe, args)
    except ValueError as error:
        raise UsageError(f"{trial.name} cannot be run: {error}") from error
    for source in missing(recipe, subject.sets, args):
        raise UsageError(
            f"method {recipe.name} needs {source} records; none are given. Give --{source} FILE, or leave "
            f"{trial.method} out."
        )
    return recipe, _resolved(args, recipe)


def _resolved(args: UnlearningArguments, recipe: Method) -> dict[str, Any]:
    """The configuration of a trial as far as it is known before a model is loaded, on any machine."""
    found = configuration(args, recipe, 1.0)
    unknown = {"precision", "sharpness"} if "relative_sharpness" in found else {"precision"}
    return {key: value for key, value in found.items() if key not in unknown}


_READING = ("template", "max_length")


def _check_model(model: str | Path, subject: Subject, args: UnlearningArguments, *, trust: bool) -> None:
    """The model exists, and the records fit it."""
    tokenizer = load_tokenizer(model, trust_remote_code=trust)
    context = configured_context(model, trust_remote_code=trust)
    for name, records in subject.sets.items():
        encode(
            records,
            tokenizer,
            template=args.template,
            max_length=args.max_length,
            context=context,
            name=name,
        )
    if subject.benchmark is not None:
        subject.benchmark.parts(tokenizer, context)


def _drop(folder: Path, *, keep: bool) -> None:
    if not keep:
        shutil.rmtree(folder / "model", ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _free() -> None:
    """The trial's model must be gone before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
