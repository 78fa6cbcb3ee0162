"""Whether a model will fit in memory, told from sizes alone before it is loaded. Pure.

Need = fixed + factor × weights + KV cache, where

    KV cache = 2 · layers · KV heads · head size · bytes · (prompt + answer) · concurrency

(a key and a value in every layer for each token of each request in flight; ONNX Runtime GenAI reserves them for
prompt and answer when a request begins). Fixed part and factor are measured for Foundry Local on the CPU and nowhere
else: for any other the need is what it must be at least, the weights and the cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchfleet_agent.runtimes import Model

CPU_FIXED_BYTES = 73_000_000
"""Resident size of a Foundry Local child (SDK 2.2.1, Linux x86-64) that holds a model of 0.7 MB."""
CPU_WEIGHTS_FACTOR = 1.9
"""Resident bytes for each byte of weights, beyond that: 245 MB after loading SmolLM2-135M, int4, 90.8 MB of files.
ONNX Runtime keeps int4 weights a second time, packed for the processor's instructions."""
RAM, VRAM = "ram", "vram"
KV_BYTES = {RAM: 4, VRAM: 2}
"""Bytes of a number in the KV cache: CPU builds compute in single precision, GPU builds in half."""
DOUBT = 1.3
"""Where nothing but weights and cache is counted, a need so close below what is free is left undecided."""
MOST_SUGGESTIONS = 3
MOST_BYTES = 1 << 62
"""What a configuration can claim at most: it must stay a number of the wire."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one token takes in the KV cache."""

    layers: int
    kv_heads: int
    head_size: int

    def bytes_per_token(self, number_bytes: int) -> int:
        """Bytes of a token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * number_bytes


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a model needs and what there is, in bytes; None: not known."""

    memory: str
    """`RAM` or `VRAM`."""
    required_bytes: int | None
    kv_cache_bytes: int | None
    available_bytes: int | None
    fits: bool | None
    basis: str
    """How the need was computed, or why it was not, for people."""


def unknown(memory: str, available_bytes: int | None, why: str) -> Forecast:
    """The forecast of what cannot be forecast."""
    return Forecast(memory, None, None, available_bytes, None, why)


def forecast(
    memory: str,
    *,
    weights_bytes: int | None,
    shape: CacheShape | None,
    tokens: int,
    concurrency: int,
    available_bytes: int | None,
    measured: bool = True,
    placed: bool = True,
) -> Forecast:
    """Tell whether weights of that size fit; ``tokens`` are a request's, prompt and answer together.

    ``measured``: the runtime's own overhead in `RAM` is known. ``placed``: the weights are sure to go to that memory;
    else too little of it decides nothing.
    """
    if weights_bytes is None:
        return unknown(memory, available_bytes, "the runtime does not say how large the model is")
    cache = min(MOST_BYTES, shape.bytes_per_token(KV_BYTES[memory]) * tokens * concurrency) if shape else None
    if memory == RAM and measured:
        need = CPU_FIXED_BYTES + round(CPU_WEIGHTS_FACTOR * weights_bytes) + (cache or 0)
        how = f"{_mb(CPU_FIXED_BYTES)} + {CPU_WEIGHTS_FACTOR:g} × {_mb(weights_bytes)} of weights (measured: SmolLM2)"
    else:
        need = weights_bytes + (cache or 0)
        how = f"{_mb(weights_bytes)} of weights, at least"
    if cache is None:
        how += "; its KV cache is not known before it is here"
    else:
        how += f" + {_mb(cache)} of KV cache for {concurrency} × {tokens} tokens"
    need = min(MOST_BYTES, need)
    fits = _fits(need, available_bytes, certain=memory == RAM and measured)
    if fits is False and not placed:
        fits, how = None, f"{how}; the server may put them into another memory"
    return Forecast(memory, need, cache, available_bytes, fits, how)


def smaller(model: Model, offered: Iterable[Model], spare: float = 1.0) -> list[str]:
    """Variants to try instead: of the same alias first, then others, the largest below the model's size × ``spare``."""
    if model.size_bytes is None:
        return []
    limit = model.size_bytes * spare
    fitting = [
        one
        for one in offered
        if one.size_bytes is not None
        and one.size_bytes < limit
        and one.variant != model.variant
        and "test" not in one.capabilities
    ]
    fitting.sort(key=lambda one: (one.alias != model.alias, -(one.size_bytes or 0)))
    return [one.variant for one in fitting[:MOST_SUGGESTIONS]]


def advice(suggestions: Iterable[str]) -> str:
    """What to do about a model that does not fit."""
    named = ", ".join(suggestions)
    return f"smaller ones here: {named}" if named else "free memory, or choose a smaller model"


def does_not_fit(variant: str, found: Forecast, suggestions: Iterable[str]) -> str:
    """The message of a case that is left out."""
    return (
        f"{variant} needs about {_mb(found.required_bytes or 0)} of {found.memory.upper()} and "
        f"{_mb(found.available_bytes or 0)} are free ({found.basis}); {advice(suggestions)}"
    )


def spare_of(found: Forecast) -> float:
    """Which share of the model's size would fit, as far as the forecast goes."""
    if not found.required_bytes or found.available_bytes is None:
        return 1.0
    return min(1.0, found.available_bytes / found.required_bytes)


def _fits(need: int, available_bytes: int | None, *, certain: bool) -> bool | None:
    if available_bytes is None:
        return None
    if need > available_bytes:
        return False
    return True if certain or need * DOUBT <= available_bytes else None


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"
