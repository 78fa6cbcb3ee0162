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


TOLD: dict[Code, tuple[str, str]] = {
    Code.FEW_ROUNDS: ("fewer than 3 counted rounds: too few for an interval", "more `--rounds`"),
    Code.FEW_REQUESTS: ("too few requests for a 95th percentile", "20 counted requests at least"),
    Code.NO_WARMUP: ("no warm-up round: first-time costs are in the results", "`--warmup 1`"),
    Code.REQUESTS_FAILED: ("some requests failed, and are in no latency", "read the reasons"),
    Code.DEVICE_CONTRADICTED: (
        "what was observed denies the declared device; comparisons leave the case out",
        "check driver and execution provider with `benchfleet doctor`",
    ),
    Code.DEVICE_UNPROVEN: ("nothing proves that the accelerator did the work", "do not take it for its speed yet"),
    Code.VARIANT_UNKNOWN: ("the exact variant is unknown", "name the model by its variant id"),
    Code.TOKENS_ESTIMATED: ("token counts are estimated from the text", "compare rates only within one model"),
    Code.TOKENS_SOURCE_MIXED: ("token counts come from several sources", "compare times instead of rates"),
    Code.TOKENS_HIDDEN: ("tokens were counted that were never sent", "decode rates are over visible tokens"),
    Code.SEVERAL_TOKENS_PER_CHUNK: ("chunks held several tokens", "trust rates, not the gaps between tokens"),
    Code.CHUNKS_COALESCED: ("chunks arrived together with others", "trust TTFT and whole answers, not the gaps"),
    Code.CHUNKS_AND_TOKENS_DIFFER: ("chunks and counted tokens do not agree", "take the decode rate with care"),
    Code.NOT_STREAMED: ("answers came in one piece: no TTFT, ITL or decode rate", "`--stream`, and a server that does"),
    Code.PROMPTS_CACHED: ("prompt tokens came from a prefix cache", "prompts without a common beginning"),
    Code.PREFIX_CACHE_ALLOWED: ("prefix caches were allowed to help", "read TTFT as that of repeated prompts"),
    Code.PROMPT_LENGTH_DIFFERS: ("the server counted other prompt lengths than asked for", "name the counted length"),
    Code.PAGE_CACHE_NOT_DROPPED: ("the model's files were in memory before the load", "do not call the load cold"),
    Code.REQUESTS_LATE: ("an open loop's requests went out late", "more `--concurrency`, or a lower rate"),
    Code.RATE_NOT_REACHED: ("fewer requests were answered than were asked for", "lower the rate"),
    Code.INSTRUMENT_COARSE: ("the agent's stamps are coarse against the value", "trust no smaller difference"),
    Code.CERTIFICATE_MISSING: ("the agent could not measure its own stamps", "run again on a quieter machine"),
    Code.INTERVAL_NOT_REACHED: ("`--until-within` was not reached", "more `--max-rounds`, or longer rounds"),
    Code.REMOTE_ENDPOINT: ("the server is on another machine than the agent", "run an agent there"),
    Code.READINGS_DROPPED: ("telemetry readings were dropped to stay on time", "sample less often"),
    Code.CLIENT_BUSY: ("the load process used most of a core", "lower the concurrency"),
    Code.SWAPPED: ("the host began to swap", "a smaller model, or more free memory"),
    Code.ON_BATTERY: ("it ran on battery", "plug it in; `--require-ac`"),
    Code.HOST_CHANGED: ("the host changed between runs", "differences may come from that"),
    Code.MACHINE_SHARED: ("hosts that are one machine ran at the same time", "run them in turn"),
    Code.AGENTS_DIFFER: ("agents have different versions", "upgrade all to one"),
    Code.HOST_PROBLEM: ("the agent reported a problem of its host", "as it says"),
    Code.SUSPENDED: ("the machine slept during rounds, which spoils them", "keep it awake and run again"),
    Code.POWER_CHANGED: ("it changed between mains and battery, which spoils rounds", "keep it plugged in"),
    Code.THROTTLED: ("heat or power slowed it down in rounds", "`--wait-until-cool`, or call it the speed under load"),
    Code.BACKGROUND_LOAD: ("other programs used the processors", "close them; `--max-background-load`"),
    Code.MEMORY_PRESSURE: ("memory was scarce in rounds", "a smaller model, or more free memory"),
    Code.LOW_POWER_MODE: ("the system saved power", "switch to the performance plan"),
    Code.TELEMETRY_STALLED: ("no readings came for seconds", "times stand; memory and energy have a hole"),
    Code.HIGH_SPREAD: ("rounds lie more than 10 % of their mean apart", "`show --outliers`; more rounds"),
    Code.DRIVERS_DIFFER: ("one kind of device has different drivers", "install one version"),
    Code.DOES_NOT_FIT: ("the forecast of memory was wrong", "look at swap and memory pressure"),
    Code.ENERGY_DISAGREES: ("an energy counter and power over time differ by more than 10 %", "a meter at the plug"),
    Code.FORECAST_OFF: (
        "the measured peak of memory is far from the forecast",
        "tell the model's true size and context",
    ),
    Code.MODEL_UNLOADED: ("the runtime unloaded the model in a pause", "`--keep-warm 60`, or a longer idle time there"),
}
"""What each warning means and what to do about it, in general; `check` says both with numbers and fitting the plan."""
