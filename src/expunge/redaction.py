"""Records without their words: what `--redact` leaves of a sample.

A plain hash of a short text (a phone number) is found by trying all of them. The hashes here are made under
a key that is drawn for one record and thrown away: equal texts of one record have equal hashes, and that is
all they tell.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from expunge.record import Sample

REDACTED = (
    "Redacted: prompts, responses and generations are shown as their length and a hash under a key that was "
    "thrown away. Equal hashes on this page are equal texts."
)
"""What a reader of a redacted record must know."""


def redacted(samples: Sequence[Sample]) -> list[Sample]:
    """The same samples, every text replaced; measured numbers stay."""
    key = secrets.token_bytes(32)
    return [
        sample.model_copy(
            update={
                "prompt": hidden(sample.prompt, key),
                "response": hidden(sample.response, key),
                "generations": {stage: hidden(text, key) for stage, text in sample.generations.items()},
            }
        )
        for sample in samples
    ]


def hidden(text: str, key: bytes) -> str:
    """A text's stand-in: its length in characters, and a hash under a key.

    Example:
        >>> hidden("555-0147", b"key")
        '[8 characters, fc3a2a3f]'
    """
    digest = hmac.new(key, text.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:8]
    return f"[{len(text)} characters, {digest}]"
