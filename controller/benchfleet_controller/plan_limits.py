"""What a plan's values may be. Pure; the agent holds the same limits and refuses what gets past these.

A check says what is wrong in words that follow the name of the key, flag or variable: ``rounds must lie …``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from benchfleet_controller.plan import DEVICES, Deadlines, Plan
from benchfleet_controller.prompts import MAXIMUM_TOKENS

MAXIMUM_CONCURRENCY = 256
MAXIMUM_ROUNDS = 10_000
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
    if value in DEVICES:
        return ""
    near = difflib.get_close_matches(value.lower(), DEVICES, n=1)
    return f"must be cpu, gpu or npu, not {shown(value)}" + (f"; did you mean {near[0]}?" if near else "")


def _url(value: str) -> str:
    if "@" in value:  # not repeated: it would show a password
        return "must not carry credentials; give the agent's environment BENCHFLEET_ENDPOINT_API_KEY instead"
    scheme, separator, rest = value.partition("://")
    if not value.isprintable() or " " in value or (separator and (scheme.lower() not in ("http", "https") or not rest)):
        return f"must be a URL such as http://127.0.0.1:8080/v1, not {shown(value)}"
    return "" if value else "must not be empty; give a URL such as http://127.0.0.1:8080/v1"


_SECONDS = _above(0, 86_400, " seconds")
_CHECKS: dict[str, Callable[[Any], str]] = {
    "name": _text(200),
    "models": _text(300),
    "devices": _device,
    "runtimes": _text(100),
    "endpoint_url": _url,
    "rounds": _between(1, MAXIMUM_ROUNDS),
    "warmup_rounds": _between(0, MAXIMUM_ROUNDS),
    "concurrencies": _between(1, MAXIMUM_CONCURRENCY),
    "max_tokens": _between(1, MAXIMUM_TOKENS),
    "temperature": _between(0, 2),
    "top_p": _above(0, 1),
    "seed": _between(-(1 << 63), (1 << 63) - 1),
} | {field.name: _SECONDS for field in fields(Deadlines)}


def excesses(plan: Plan) -> Iterator[str]:
    """What is too much of a plan whose values are fine one by one."""
    cases = len(plan.runtimes) * len(plan.models) * len(plan.devices) * len(plan.prompt_sets) * len(plan.concurrencies)
    if cases > MAXIMUM_CASES:
        yield (
            f"the plan makes {cases} cases on each host (runtimes × models × devices × prompt sets × concurrency), "
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
