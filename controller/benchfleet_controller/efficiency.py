"""How near a case comes to what its machine can do: decoding against memory, prefill against arithmetic. Pure.

For each token of one request every weight is read once, so decoding moves at least tokens/s × the model's size; the
share of the machine's bandwidth that this takes tells how far the runtime is from the limit. The KV cache, which is
read too, is left out: shares are lower bounds. With several requests at once weights are read once for several tokens,
so shares are told of concurrency 1 only. Prefill takes about 2 operations for each weight and token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NEAR = 0.6
"""Share from which memory is what bounds decoding: a plain read reaches about 0.8 of what is measured here."""
FAR = 0.25
SMALL_BYTES = 1_000_000_000
"""Below, what is done besides reading weights (sampling, calls, threads waiting for each other) weighs as much."""

_BITS = (
    (re.compile(r"(?<![a-z0-9])(?:u?int4|i4|q4|4[-_]?bit|awq|w4a16|nf4)", re.IGNORECASE), 4.5),
    (re.compile(r"(?<![a-z0-9])(?:u?int8|i8|q8|8[-_]?bit|fp8|w8a8)", re.IGNORECASE), 8.5),
    (re.compile(r"(?<![a-z0-9])(?:fp16|f16|bf16|float16)", re.IGNORECASE), 16.0),
    (re.compile(r"(?<![a-z0-9])(?:fp32|f32|float32)", re.IGNORECASE), 32.0),
)
"""Bits of a weight by what names of variants say; block formats carry about half a bit of scales."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the limits, 0 to 1 and beyond where caches help; None: unknown, and ``reason`` says why."""

    decode_ratio: float | None = None
    prefill_ratio: float | None = None
    sentence: str | None = None
    reason: str | None = None


def efficiency(case: Mapping[str, Any], limits: Mapping[str, Any] | None, bandwidth: float | None) -> Efficiency:
    """Of a row of ``case_results``; ``limits`` are the host's, ``bandwidth`` that of the device (bytes/s)."""
    on_cpu = case.get("device") == "cpu"
    whose = "this host's" if on_cpu else "this device's"
    if on_cpu:
        bandwidth = (limits or {}).get("memory_bandwidth_bytes_per_s") or None
    size, rate = case.get("size_bytes"), case.get("decode_tokens_per_s")
    why = _why_not(case, size, rate, bandwidth, on_cpu=on_cpu)
    prefill = _prefill(case, limits) if on_cpu else None
    if why is not None or not size or not rate or not bandwidth:
        return Efficiency(None, prefill, None, why)
    share = rate * size / bandwidth
    return Efficiency(share, prefill, _sentence(share, whose, size))


def _sentence(share: float, whose: str, size: int) -> str:
    if share > 1.1:
        why = "its weights stay in the caches" if size < SMALL_BYTES else "measure the limit again"
        return f"decodes at {share:.0%} of {whose} memory limit: {why}"
    if share >= NEAR:
        return f"memory-bound at {share:.0%} of {whose} limit"
    if share >= FAR:
        return f"decodes at {share:.0%} of {whose} memory limit"
    why = "check the execution provider" if size >= SMALL_BYTES else "a model this small is bound by other work"
    return f"far below {whose} memory limit ({share:.0%}): {why}"


def _why_not(
    case: Mapping[str, Any], size: int | None, rate: float | None, bandwidth: float | None, *, on_cpu: bool
) -> str | None:
    if case.get("device") is None:
        return "the device is unknown"
    if case.get("remote"):
        return "the endpoint is on another machine"
    if (case.get("concurrency") or 1) != 1 or case.get("request_rate_per_s") is not None:
        return "with several requests at once weights are read once for several tokens"
    if not size:
        return "the model's size is unknown"
    if not rate:
        return "no decode rate was measured"
    if bandwidth:
        return None
    if on_cpu:
        return "the host's memory bandwidth is not measured: `benchfleet doctor HOST --measure` does it"
    return "the device's memory bandwidth is unknown"


def _prefill(case: Mapping[str, Any], limits: Mapping[str, Any] | None) -> float | None:
    most = (limits or {}).get("compute_flop_per_s")
    parameters, rate = (
        parameters_of(case.get("size_bytes"), case.get("quantisation") or case.get("variant")),
        case.get("prefill_tokens_per_s"),
    )
    if not most or not rate or parameters is None or (case.get("concurrency") or 1) != 1 or case.get("remote"):
        return None
    return float(2 * parameters * rate / most)


def parameters_of(size_bytes: int | None, variant: str | None) -> float | None:
    """Weights of a model, from its size and what its quantisation or its variant's name says of their bits; None: it
    does not say.
    """
    for pattern, bits in _BITS:
        if size_bytes and variant and pattern.search(variant):
            return size_bytes * 8 / bits
    return None
