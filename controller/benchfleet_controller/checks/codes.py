"""The closed list of warnings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """Every warning there is."""

    FEW_ROUNDS = "few_rounds"
    FEW_REQUESTS = "few_requests"
    NO_WARMUP = "no_warmup"
    REQUESTS_FAILED = "requests_failed"
    DEVICE_CONTRADICTED = "device_contradicted"
    DEVICE_UNPROVEN = "device_unproven"
    VARIANT_UNKNOWN = "variant_unknown"
    TOKENS_ESTIMATED = "tokens_estimated"
    TOKENS_SOURCE_MIXED = "tokens_source_mixed"
    TOKENS_HIDDEN = "tokens_hidden"
    SEVERAL_TOKENS_PER_CHUNK = "several_tokens_per_chunk"
    CHUNKS_COALESCED = "chunks_coalesced"
    CHUNKS_AND_TOKENS_DIFFER = "chunks_and_tokens_differ"
    NOT_STREAMED = "not_streamed"
    PROMPTS_CACHED = "prompts_cached"
    PREFIX_CACHE_ALLOWED = "prefix_cache_allowed"
    PROMPT_LENGTH_DIFFERS = "prompt_length_differs"
    PAGE_CACHE_NOT_DROPPED = "page_cache_not_dropped"
    REQUESTS_LATE = "requests_late"
    RATE_NOT_REACHED = "rate_not_reached"
    INSTRUMENT_COARSE = "instrument_coarse"
    CERTIFICATE_MISSING = "certificate_missing"
    INTERVAL_NOT_REACHED = "interval_not_reached"
    REMOTE_ENDPOINT = "remote_endpoint"
    READINGS_DROPPED = "readings_dropped"
    CLIENT_BUSY = "client_busy"
    SWAPPED = "swapped"
    ON_BATTERY = "on_battery"
    HOST_CHANGED = "host_changed"
    MACHINE_SHARED = "machine_shared"
    AGENTS_DIFFER = "agents_differ"
    HOST_PROBLEM = "host_problem"
    SUSPENDED = "suspended"
    POWER_CHANGED = "power_changed"
    THROTTLED = "throttled"
    BACKGROUND_LOAD = "background_load"
    MEMORY_PRESSURE = "memory_pressure"
    LOW_POWER_MODE = "low_power_mode"
    TELEMETRY_STALLED = "telemetry_stalled"
    HIGH_SPREAD = "high_spread"
    DRIVERS_DIFFER = "drivers_differ"
    DOES_NOT_FIT = "does_not_fit"
    ENERGY_DISAGREES = "energy_disagrees"
    FORECAST_OFF = "forecast_off"
    MODEL_UNLOADED = "model_unloaded"


@dataclass(frozen=True, slots=True)
class Warned:
    """One warning: about what, what it is, and what to do."""

    code: Code
    subject: str
    message: str
    advice: str


Warn = Callable[[Code, str, str], Warned]
"""Makes a warning about a case: code, message, advice."""
