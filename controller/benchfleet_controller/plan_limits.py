"""What a plan's values may be. Pure; the agent holds the same limits and refuses what gets past these.

A check says what is wrong in words that follow the name of the key, flag or variable: ``rounds must lie …``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from benchfleet_controller.capacity import Limits
from benchfleet_controller.plan import (
    ALL_DEVICES,
    ARRIVALS,
    DEFAULT_ROUNDS,
    DEVICES,
    PAGE_CACHES,
    PATHS,
    PREFIX_CACHES,
    Deadlines,
    Plan,
)
from benchfleet_controller.prompts import MAXIMUM_TOKENS

MAXIMUM_CONCURRENCY = 256
MAXIMUM_ROUNDS = 10_000
MAXIMUM_RATE_PER_S = 10_000
MAXIMUM_OPEN_LOOP_REQUESTS = 100_000
FEWEST_ROUNDS_OF_AN_INTERVAL = 3
DEFAULT_REQUEST_S = 600
"""What agents take for a request whose deadline is not given."""
MAXIMUM_CASES = 1_000
MAXIMUM_PROMPT_BYTES = 12 << 20
"""All prompts of a plan together: they travel in one message to each host, and messages have a limit."""


def problems_of(field: str, value: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a field's value: where in it (such as ``[1]``, else empty) and what."""
    check = _CHECKS.get(field)
    if check is None:
        return
    if not isinstance(value, tuple):
        if problem := check(value):
            yield "", problem
        return
    if not value:
        yield "", "must not be empty; name at least one, or leave it out"
    for index, one in enumerate(value):
        if problem := check(one):
            yield f"[{index}]", problem
        elif one in value[:index]:
            yield f"[{index}]", f"names {shown(one)} a second time; name it once"


def _between(low: float, high: float, unit: str = "") -> Callable[[Any], str]:
    return lambda value: "" if low <= value <= high else f"must lie between {low} and {high}{unit}, not {shown(value)}"


def _above(low: float, high: float, unit: str = "") -> Callable[[Any], str]:
    return lambda value: (
        "" if low < value <= high else f"must be above {low:g} and at most {high:g}{unit}, not {shown(value)}"
    )


def _text(longest: int) -> Callable[[Any], str]:
    def check(value: str) -> str:
        if value.strip() and value.isprintable() and len(value) <= longest:
            return ""
        return f"must be 1 to {longest} characters, none of them a control character, not {shown(value)}"

    return check


def _device(value: str) -> str:
    if value in (*DEVICES, ALL_DEVICES):
        return ""
    near = difflib.get_close_matches(value.lower(), DEVICES, n=1)
    return f"must be cpu, gpu, npu or all, not {shown(value)}" + (f"; did you mean {near[0]}?" if near else "")


def _url(value: str) -> str:
    if "@" in value:  # not repeated: it would show a password
        return "must not carry credentials; give the agent's environment BENCHFLEET_ENDPOINT_API_KEY instead"
    scheme, separator, rest = value.partition("://")
    if not value.isprintable() or " " in value or (separator and (scheme.lower() not in ("http", "https") or not rest)):
        return f"must be a URL such as http://127.0.0.1:8080/v1, not {shown(value)}"
    return "" if value else "must not be empty; give a URL such as http://127.0.0.1:8080/v1"


def _one_of(words: tuple[str, ...]) -> Callable[[Any], str]:
    return lambda value: "" if value in words else f"must be {' or '.join(words)}, not {shown(value)}"


def _limits(value: str) -> str:
    try:
        Limits.parse(value)
    except ValueError as error:
        return f"makes no sense: {error}"
    return ""


_SECONDS = _above(0, 86_400, " seconds")
_AWAITED = ("require_ac", "cool_temperature_c", "maximum_background_ratio")
_CHECKS: dict[str, Callable[[Any], str]] = {
    "name": _text(200),
    "models": _text(300),
    "devices": _device,
    "runtimes": _text(100),
    "endpoint_url": _url,
    "rounds": _between(1, MAXIMUM_ROUNDS),
    "blocks": _between(1, 100),
    "warmup_rounds": _between(0, MAXIMUM_ROUNDS),
    "concurrencies": _between(1, MAXIMUM_CONCURRENCY),
    "max_tokens": _between(1, MAXIMUM_TOKENS),
    "temperature": _between(0, 2),
    "top_p": _above(0, 1),
    "seed": _between(-(1 << 63), (1 << 63) - 1),
    "rates": _above(0, MAXIMUM_RATE_PER_S, " requests/s"),
    "arrival": _one_of(ARRIVALS),
    "round_duration_s": _SECONDS,
    "minimum_duration_s": _SECONDS,
    "interval_ratio": _between(0.001, 0.5),
    "maximum_rounds": _between(1, MAXIMUM_ROUNDS),
    "prompt_token_counts": _between(1, MAXIMUM_TOKENS),
    "prompt_count": _between(1, 1000),
    "prefix_cache": _one_of(PREFIX_CACHES),
    "page_cache": _one_of(PAGE_CACHES),
    "idle_pause_s": _SECONDS,
    "idle_baseline_s": _between(0, 3_600, " seconds"),
    "paths": _one_of(PATHS),
    "keep_warm_period_s": _above(0, 3_600, " seconds"),
    "cool_temperature_c": _between(20, 120, " °C"),
    "maximum_background_ratio": _between(0, 1),
    "wait_s": _SECONDS,
    "goodput": _limits,
} | {field.name: _SECONDS for field in fields(Deadlines)}


def contradictions(chosen: Mapping[str, Any]) -> Iterator[str]:
    """What excludes each other in what was given, by field; values are fine one by one."""
    yield from _of_rounds(chosen)
    yield from _of_deadlines(chosen)
    if chosen.get("arrival") is not None and not chosen.get("rates"):
        yield "an arrival spacing is for an open loop; add a rate"
    for rate in chosen.get("rates") or ():
        if rate * (chosen.get("round_duration_s") or 0) > MAXIMUM_OPEN_LOOP_REQUESTS:
            most = MAXIMUM_OPEN_LOOP_REQUESTS
            yield f"{rate:g} requests/s make more than {most} requests a round; shorten the rounds"
    if chosen.get("wait_s") is not None and not any(chosen.get(name) is not None for name in _AWAITED):
        yield "a longest wait is for conditions; add one, such as --require-ac"
    if "direct" in chosen.get("paths", ()) and chosen.get("rates"):
        yield "a rate is for the path http; leave direct out"
    if ALL_DEVICES in chosen.get("devices", ()) and len(chosen["devices"]) > 1:
        yield "all names every device already; leave the others out"
    if chosen.get("prompt_token_counts") and chosen.get("prompt_sets"):
        yield "prompts and lengths of synthetic prompts exclude each other; give one"
    if chosen.get("prompt_count") is not None and not chosen.get("prompt_token_counts"):
        yield "a number of prompts is for synthetic ones; add their length with prompt_tokens"
    if chosen.get("deterministic"):
        if chosen.get("temperature") or chosen.get("top_p", 1) != 1:
            yield "deterministic means temperature 0 and top_p 1; leave them out"
        if chosen.get("round_duration_s") is not None:
            yield "deterministic rounds send every prompt once; leave the round's duration out"
    limits = Limits.parse(chosen["goodput"]) if chosen.get("goodput") else None
    if limits and chosen.get("stream") is False and (limits.ttft_s is not None or limits.tpot_s is not None):
        yield "limits of ttft or tpot need streamed answers; leave --no-stream out or limit e2e only"


def _of_rounds(chosen: Mapping[str, Any]) -> Iterator[str]:
    stops = [name for name in ("minimum_duration_s", "interval_ratio") if chosen.get(name) is not None]
    rounds, most = chosen.get("rounds", DEFAULT_ROUNDS), chosen.get("maximum_rounds")
    if most is not None and not stops:
        yield "a maximum of rounds is for rounds that stop by themselves; add a minimum duration or an interval"
    if most is not None and most < rounds:
        yield f"at most {most} rounds contradict the {rounds} rounds asked for; raise the one or lower the other"
    if chosen.get("interval_ratio") is not None and rounds < FEWEST_ROUNDS_OF_AN_INTERVAL:
        yield f"an interval needs at least {FEWEST_ROUNDS_OF_AN_INTERVAL} rounds, not {rounds}"
    if chosen.get("blocks", 1) > rounds:
        yield f"{chosen['blocks']} blocks need as many rounds at least; {rounds} are asked for"
    if chosen.get("blocks", 1) > 1 and stops:
        yield "blocks split a fixed number of rounds; leave the minimum duration and the interval out"


def _of_deadlines(chosen: Mapping[str, Any]) -> Iterator[str]:
    whole = chosen.get("request_s", DEFAULT_REQUEST_S)
    for name, what in (("first_token_s", "a first token"), ("token_s", "each token")):
        limit = chosen.get(name)
        if limit is None:
            continue
        if chosen.get("stream") is False:
            yield f"a deadline for {what} needs streamed answers; leave --no-stream or the deadline out"
        if limit > whole:
            yield f"{limit:g} s for {what} is more than {whole:g} s for the whole request; lower it or raise the other"


def overlong(plan: Plan, context_length: int) -> str:
    """Why a plan's prompts and answers do not fit into a model's context; empty: as far as is known, they do."""
    for prompts in plan.prompt_sets:
        asked = max([plan.max_tokens, *(prompt.max_tokens or 0 for prompt in prompts.prompts)])
        length = (prompts.token_count or 1) + asked
        if length > context_length:
            what = f"prompts of {prompts.token_count} tokens and " if prompts.token_count else ""
            return (
                f"{what}answers of up to {asked} tokens do not fit into its context of {context_length}; "
                "lower --max-tokens or the prompts"
            )
    return ""


def excesses(plan: Plan) -> Iterator[str]:
    """What is too much of a plan whose values are fine one by one."""
    loads = len(plan.concurrencies) * max(1, len(plan.rates)) * len(plan.paths) * plan.blocks
    cases = len(plan.runtimes) * len(plan.models) * len(plan.devices) * len(plan.prompt_sets) * loads
    if cases > MAXIMUM_CASES:
        yield (
            f"the plan makes {cases} cases on each host (runtimes × models × devices × prompt sets × load), "
            f"more than {MAXIMUM_CASES}; split it"
        )
    texts = (m.content for prompts in plan.prompt_sets for prompt in prompts.prompts for m in prompt.messages)
    if (total := sum(len(text.encode()) for text in texts)) > MAXIMUM_PROMPT_BYTES:
        yield (
            f"the prompts hold {total / 2**20:.1f} MiB of text, more than the {MAXIMUM_PROMPT_BYTES >> 20} MiB "
            "a job may carry; split the plan"
        )


def shown(value: Any) -> str:
    """The value for a message: short, and with control characters made visible."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
