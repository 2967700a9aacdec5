"""What a user types -> plain values: KEY=VALUE pairs, lists, a YAML file. Knows no verb and runs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from expunge.errors import UsageError

FLAGS = {
    "model", "forget", "retain", "holdout", "data", "output", "output_dir", "resume", "overwrite",
    "control", "original", "reference", "cache", "prompt_field", "response_field", "kind", "claimed",
    "reporter", "source", "notes", "evaluate", "benchmark", "options", "redact", "trust_remote_code",
    "after", "forgotten", "neighbours", "tokenizer", "methods", "seeds", "grid",
}  # fmt: skip
"""What a flag or the verb says, and a setting therefore may not."""


def given(assignments: list[str] | None, config: Path | None, **flags: Any) -> dict[str, Any]:
    """A YAML file, over it KEY=VALUE pairs, over these the flags that were given; values are YAML scalars."""
    found = (_read_config(config) if config else {}) | pairs(assignments, "--set", "learning_rate=1e-5")
    for key in found:
        if key in FLAGS:
            raise UsageError(f"--set and --config must not name {key}; give it as --{key.replace('_', '-')}.")
    if not isinstance(method := found.get("method", ""), str):
        raise UsageError(f"`method` must be one name; got {method!r}. See expunge list methods.")
    return found | {key: value for key, value in flags.items() if value is not None}


def pairs(assignments: list[str] | None, flag: str, example: str) -> dict[str, Any]:
    """KEY=VALUE pairs; values are YAML scalars."""
    split = [_pair(pair, f"{flag} {example}") for pair in assignments or []]
    return {key: _scalar(value) for key, value in split}


def _pair(text: str, example: str) -> tuple[str, str]:
    """KEY=VALUE; hyphens in a key are underscores, but those in METHOD:KEY's method stay."""
    key, found, value = text.partition("=")
    if not found or not key:
        flag = example.partition(" ")[0]
        raise UsageError(f"{flag} must be KEY=VALUE; got {text!r}. For example {example}.")
    method, colon, name = key.strip().rpartition(":")
    return f"{method}{colon}{name.replace('-', '_')}", value


def grid(assignments: list[str] | None) -> dict[str, list[Any]]:
    """KEY=V1,V2 pairs -> the values of each key."""
    found: dict[str, list[Any]] = {}
    for pair in assignments or []:
        key, values = _pair(pair, "--grid learning_rate=1e-5,3e-5")
        if key in found:
            raise UsageError(f"--grid must name {key} once; give all its values with commas between.")
        found[key] = [_scalar(value) for value in listed(values)]
    return found


def listed(text: str) -> list[str]:
    """Words with commas between."""
    return [word.strip() for word in text.split(",") if word.strip()]


def whole(text: str, flag: str) -> int:
    """A whole number, or one message."""
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{flag} must be whole numbers with commas between; got {text!r}.") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config must be a readable file; {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config must be YAML; {path}: {str(error).splitlines()[0]}.") from None
    if not isinstance(loaded, dict):
        raise UsageError(f"--config must hold KEY: VALUE lines; {path} holds {type(loaded).__name__}.")
    return {str(k).replace("-", "_"): _number(v) for k, v in loaded.items()}


def _scalar(text: str) -> Any:
    try:
        return _number(yaml.safe_load(text))
    except yaml.YAMLError:
        return text


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-5 as a string."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
