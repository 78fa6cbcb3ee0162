"""Prompts of an exact length: the model's own server counts, we adjust. Pure but for the question it asks.

The server's ``usage.prompt_tokens`` includes the chat template, which is why no tokenizer could do it alone.
"""

from __future__ import annotations

from collections.abc import Callable

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.jobs import PromptOrder, SyntheticOrder
from benchfleet_agent.words import text

FIRST_PROBE_WORDS = 16
MOST_PROBES = 6


def compose(order: SyntheticOrder, seed: str, count: Callable[[str], int | None]) -> tuple[PromptOrder, ...]:
    """Prompts of the wanted length; ``count`` sends a prompt and returns its tokens as the server counts them.

    Where the vocabulary does not let the length be met, the nearest is taken (each request's own count is stored).
    Raises `WorkFailed`: ``unsupported`` when the server does not count, ``invalid_spec`` when the chat template
    alone is longer.
    """
    words = _words(order.token_count, lambda size: count(text(size, f"{seed}/0")))
    return tuple(
        PromptOrder(f"synthetic-{index + 1}", ({"role": "user", "content": text(words, f"{seed}/{index}")},), None)
        for index in range(order.prompt_count)
    )


def _words(wanted: int, count: Callable[[int], int | None]) -> int:
    """How many words make the wanted number of tokens: secant steps, the first rather too short than too long."""
    probes: dict[int, int] = {}
    size = min(FIRST_PROBE_WORDS, wanted)
    for _ in range(MOST_PROBES):
        found = count(size)
        if found is None:
            message = "the server does not count prompt tokens (no usage): prompts of an exact length cannot be made"
            raise WorkFailed(Reason.UNSUPPORTED, message)
        probes[size] = found
        if found == wanted:
            break
        size = max(1, size + (round((wanted - found) / _slope(probes)) or (1 if found < wanted else -1)))
        if size in probes:
            break
    best = min(probes, key=lambda one: abs(probes[one] - wanted))
    if best == 1 and probes[best] > wanted:
        message = f"{wanted} tokens are too few: the chat template and one word take {probes[best]}"
        raise WorkFailed(Reason.INVALID_SPEC, message)
    return best


def _slope(probes: dict[int, int]) -> float:
    """Tokens a word, by the two last probes; by one alone with the template's on top, so it is no less than it is."""
    if len(probes) < 2:
        ((size, tokens),) = probes.items()
        return max(1.0, tokens / size)
    (a, tokens_a), (b, tokens_b) = list(probes.items())[-2:]
    return max(0.1, (tokens_b - tokens_a) / (b - a))
