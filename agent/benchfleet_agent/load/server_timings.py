"""What a server itself says a request took: llama.cpp's ``timings`` beside the last chunk's usage. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerTimings:
    """By the server's own clock, so no network and no client is in it. None: it does not say."""

    prefill_s: float | None = None
    decode_s: float | None = None
    prefill_tokens: int | None = None
    """Of the prompt, computed in that time; those from its cache are not among them."""
    decode_tokens: int | None = None


def read_timings(timings: object) -> ServerTimings | None:
    """Read ``timings`` (llama.cpp, tools/server/README.md: ``prompt_ms``, ``predicted_ms``, ``prompt_n``, …)."""
    if not isinstance(timings, dict):
        return None
    found = ServerTimings(
        prefill_s=_seconds(timings.get("prompt_ms")),
        decode_s=_seconds(timings.get("predicted_ms")),
        prefill_tokens=_count(timings.get("prompt_n")),
        decode_tokens=_count(timings.get("predicted_n")),
    )
    return None if found == ServerTimings() else found


def _seconds(milliseconds: object) -> float | None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    # A huge whole number overflows a float; NaN and infinity are no durations.
    usable = 0 <= milliseconds < 1e12 and math.isfinite(milliseconds)
    return milliseconds / 1e3 if usable else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else None
