"""Loading and saving models: a folder, an adapter, the embedded default, the Hub.

Whatever is wrong with a folder or a name is said in one `UsageError`, before anything large is read
where that can be known. A folder that this module writes is whole or absent.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from expunge.default_model import DEFAULT_MODEL, HOW_TO_GET, default_folder
from expunge.disk import sync, writing
from expunge.errors import UsageError, one_line
from expunge.four_bits import FOUR_BIT, four_bit, keep_codes

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_WEIGHTS = ("*.safetensors",)
_PICKLES = ("pytorch_model*.bin", "adapter_model.bin", "*.pt", "*.pth", "*.ckpt", "consolidated*.pth")
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "tekken.json")

if TYPE_CHECKING:
    CausalModel = PreTrainedModel
else:
    CausalModel = nn.Module  # at run time it may be a PeftModel, which answers to the same calls

ModelSource = str | Path | nn.Module
"""How a user may give a model: by name, by folder, or as it is in memory."""


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    quantization: Any = None,
    device: torch.device | None = None,
) -> CausalModel:
    """Load a causal language model, in evaluation mode, on the CPU unless it is quantised.

    Attention is eager where there is no accelerator (measured faster there), the model's default elsewhere.

    Args:
        source: In this order: an existing folder (a model; or an adapter, which needs `peft` and comes back
            as a trainable `PeftModel`), `smollm2-135m`, a Hub id `org/name`.
        dtype: Of the weights. Training wants float32 whatever it computes in.
        trust_remote_code: Let a model run its own code.
        quantization: A quantization configuration of transformers.
        device: Where a quantised model goes; None lets transformers choose.

    Raises:
        UsageError: There is no such model, its files are damaged or incomplete, or it is not a causal model.
    """
    place = _resolve(source)
    if base := _adapter_base(place):
        whole = load_model(
            base, dtype=dtype, trust_remote_code=trust_remote_code, quantization=quantization, device=device
        )
        return _load_adapter(place, whole)
    _check_causal(_load_config(place, trust_remote_code), source)
    _refuse_pickles(place)
    _check_files(place, _WEIGHTS, "weights")
    options: dict[str, Any] = {} if torch.accelerator.is_available() else {"attn_implementation": "eager"}
    if quantization is not None:
        options |= {"quantization_config": quantization} | ({"device_map": {"": device}} if device else {})
    with _blaming(source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    model: PreTrainedModel = loaded[0]
    if absent := sorted(loaded[1]["missing_keys"]):
        found = f"{len(absent)} tensors are missing, {absent[0]} for one"
        raise UsageError(f"The weights of {source} must be complete; {found}. Copy or save the folder again.")
    _mend_generation_config(model)
    keep_codes(model)
    return model


def load_as(
    source: str | Path, held: str, *, device: torch.device, trust_remote_code: bool = False
) -> CausalModel:
    """A model as it was held when a record was written of it: its weights then have the recorded hash.

    Args:
        source: As for `load_model`.
        held: `ModelEntry.dtype`. What is no dtype of torch's is read as float32.
        device: Where a model in 4 bits goes; any other stays on the CPU.
        trust_remote_code: Let a model run its own code.

    Raises:
        UsageError: There is no such model, or bitsandbytes cannot hold it.
    """
    return load_model(
        source,
        dtype=getattr(torch, held, torch.float32),
        trust_remote_code=trust_remote_code,
        quantization=four_bit(device, held) if held in FOUR_BIT else None,
        device=device,
    )


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer. One without a pad token pads with its end-of-sequence token.

    Raises:
        UsageError: There is no such model, or no usable tokenizer beside it.
    """
    place = _resolve(source)
    base = _adapter_base(place)
    if base and not _has_files(Path(place), _TOKENIZER_FILES):
        return load_tokenizer(base, trust_remote_code=trust_remote_code)
    _check_files(place, _TOKENIZER_FILES, "a tokenizer")
    with _blaming(source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place, trust_remote_code=trust_remote_code
        )
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"The tokenizer of {source} must have an end-of-sequence token. Set its `eos_token`."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def configured_context(source: str | Path, *, trust_remote_code: bool = False) -> int | None:
    """The model's context in tokens, from its configuration alone; None where that does not say.

    Raises:
        UsageError: There is no such model, or no usable configuration.
    """
    place = _resolve(source)
    if base := _adapter_base(place):
        return configured_context(base, trust_remote_code=trust_remote_code)
    config = _load_config(place, trust_remote_code).get_text_config()
    sizes = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)


def load_config(source: str | Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a causal language model (of an adapter: of its base); no weights are read.

    Raises:
        UsageError: There is no such model, or it is not a causal one.
    """
    place = _resolve(source)
    if base := _adapter_base(place):
        return load_config(base, trust_remote_code=trust_remote_code)
    config = _load_config(place, trust_remote_code)
    _check_causal(config, source)
    return config


def save_model(model: CausalModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model (safetensors) and tokenizer to `folder`, replacing a model that stands there.

    They are written beside it first and then renamed. A failure leaves the old model where it was; a kill
    between the two renames leaves it beside `folder`, as `.<name>.<random>.old`.

    Raises:
        UsageError: `folder` is a file, or holds something that is not a model; the disk is full or fails.
    """
    folder = folder.resolve()
    is_model = folder.is_dir() and _has_files(folder, ("config.json", "adapter_config.json"))
    if folder.exists() and not is_model and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(
            f"{folder} must be free, or hold a model to replace; it holds other files. Name another."
        )
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    with writing("The model", folder):
        fresh.mkdir(parents=True)
        try:
            model.save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
            sync(fresh)
            _replace(folder, fresh)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _replace(folder: Path, fresh: Path) -> None:
    """Move `fresh` to `folder`; what stood there is put back if that fails, deleted once it has succeeded."""
    if not folder.exists():
        fresh.rename(folder)
        return
    old = fresh.with_name(f"{fresh.name}.old")
    folder.rename(old)
    try:
        fresh.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


# --- where a model is ------------------------------------------------------------------------------


def _resolve(source: str | Path) -> Path | str:
    """The folder or the Hub id that a user's name for a model means."""
    name, path = str(source), Path(source).expanduser()
    if not name.strip():
        raise UsageError(f"The model must have a name; found an empty one. {HOW_TO_GET}")
    if path.is_dir():
        return _model_folder(path)
    if path.is_file():
        raise UsageError(f"A model must be a folder; {path} is a file. Name the folder that it was saved in.")
    if name == DEFAULT_MODEL:
        return default_folder()
    if isinstance(source, str) and _HUB_ID.fullmatch(name) and not path.parent.is_dir():
        return name
    known = [DEFAULT_MODEL] if path.parent == Path() else []
    if path.parent.is_dir():
        known += sorted(str(path.with_name(entry.name)) for entry in path.parent.iterdir() if entry.is_dir())
    near = difflib.get_close_matches(str(path), known, n=1)
    fix = f"Did you mean {near[0]}?" if near else HOW_TO_GET
    local = _HUB_ID.fullmatch(name) and path.parent.is_dir()
    why = f"not sought on the Hub as folder {path.parent} exists" if local else "and no Hub id org/name"
    raise UsageError(f"There is no model {name}: no folder of that name, {why}. {fix}")


def _model_folder(folder: Path) -> Path:
    if _has_files(folder, ("config.json", "adapter_config.json")):
        return folder
    inner = sorted(path.parent for path in folder.glob("*/config.json"))
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    fix = f"Did you mean {inner[0]}?" if inner else "Name the folder that `save_pretrained` wrote."
    raise UsageError(f"Model folder {folder} must hold config.json; it holds {found}. {fix}")


def _has_files(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(path.is_file() for pattern in patterns for path in folder.glob(pattern))


def _check_files(place: Path | str, patterns: tuple[str, ...], what: str) -> None:
    if isinstance(place, Path) and not _has_files(place, patterns):
        raise UsageError(
            f"Model folder {place} must hold {what} ({' or '.join(patterns)}); it holds none. "
            "Copy them from where the model came from, or save the folder again."
        )


def _refuse_pickles(place: Path | str) -> None:
    """Refuse weights in a file that may run code when it is read; on the Hub the loader refuses them."""
    if isinstance(place, Path) and not _has_files(place, _WEIGHTS) and _has_files(place, _PICKLES):
        found = next(path.name for kind in _PICKLES for path in sorted(place.glob(kind)))
        raise UsageError(
            f"Model folder {place} must hold its weights as safetensors; it holds {found}, a pickle, which "
            "may run code when it is read. If you trust it, load it once with from_pretrained and write it "
            "with save_pretrained, which gives safetensors; then name that folder."
        )


# --- configurations and adapters -------------------------------------------------------------------


def _load_config(place: Path | str, trust_remote_code: bool) -> PretrainedConfig:
    with _blaming(place):
        config: PretrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    return config


def _check_causal(config: PretrainedConfig, source: str | Path) -> None:
    """Refuse models that cannot continue a text; a model with code of its own is taken at its word."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    declared = list(config.architectures or [])
    names = {*known.values(), *(name for name in declared if name.endswith("ForCausalLM"))}
    causal = config.model_type in known and (not declared or not names.isdisjoint(declared))
    if not causal and not getattr(config, "auto_map", None):
        found = ", ".join(declared) or config.model_type
        raise UsageError(f"{source} must be a causal language model; it is {found}. Name another model.")


def _adapter_base(place: Path | str) -> str | None:
    """What the adapter in a folder adapts; None for a whole model."""
    path = Path(place) / "adapter_config.json"
    if not isinstance(place, Path) or not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise UsageError(
            f"{path} must name its base model in `base_model_name_or_path`; it does not. Add it."
        )
    return base


def _load_adapter(folder: Path | str, base: PreTrainedModel) -> CausalModel:
    try:
        peft: Any = importlib.import_module("peft")
    except ImportError:
        raise UsageError(f"{folder} is an adapter, which needs the package peft: pip install peft.") from None
    _refuse_pickles(folder)
    with _blaming(folder):
        model: CausalModel = peft.PeftModel.from_pretrained(base, folder, is_trainable=True)
        model.eval()
    return model


def _mend_generation_config(model: PreTrainedModel) -> None:
    """Let sampling settings that were published without `do_sample` be saved: some releases refuse to."""
    config: GenerationConfig | None = model.generation_config
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True


@contextlib.contextmanager
def _blaming(source: str | Path) -> Iterator[None]:
    """Turn whatever a loader raises into a `UsageError`: only files and the network can make it fail."""
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UsageError(
                f"{source} must be a model that transformers knows; it brings code of its own. Read that "
                "code, then give --trust-remote-code to let it run."
            ) from error
        local = Path(source).is_dir()
        where = f"Model folder {source}" if local else f"Hub model {source}"
        fix = "Copy or save it again." if local else f"Check name, connection and access. {HOW_TO_GET}"
        raise UsageError(f"{where} must be loadable; it is not: {one_line(error)}. {fix}") from error
