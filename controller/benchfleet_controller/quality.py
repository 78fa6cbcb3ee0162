"""How good an answer is, told by what the prompt's author expects of it. Pure.

An *aspect* is a phrase that a good answer mentions, or ``/pattern/``, a regular expression it matches. The score of an
answer is the share of the prompt's aspects it has. That is no measure of eloquence: it finds answers that miss the
point, and does so the same way every time. `judge` asks a model instead.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EXPECTED = "expected"
"""The scorer's name for scores by aspects."""
MAXIMUM_PATTERN = 1_000


class AspectError(Exception):
    """An aspect that cannot be looked for; says which and why."""


@dataclass(frozen=True, slots=True)
class Score:
    """One answer's score, 0 to 1, with what decided it; None: why it has none."""

    value: float | None
    found: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    reason: str | None = None


def score(text: str, aspects: Sequence[str]) -> Score:
    """The share of aspects that an answer has. Raises `AspectError`."""
    if not aspects:
        return Score(None, reason="the prompt names nothing that is expected")
    plain = _plain(text)
    found = tuple(aspect for aspect in aspects if _has(text, plain, aspect))
    missing = tuple(aspect for aspect in aspects if aspect not in found)
    return Score(len(found) / len(aspects), found, missing)


def expected_of(plan: Mapping[str, Any] | None) -> dict[tuple[str, str], tuple[str, ...]]:
    """Aspects by (prompt set, prompt) of a run's plan as stored; empty: the plan names none, or there is no plan."""
    return dict(_expected(plan)) if plan else {}


def check_aspects(aspects: Sequence[str]) -> None:
    """Raise `AspectError` for the first one that cannot be looked for."""
    for aspect in aspects:
        _pattern(aspect)


def _expected(plan: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], tuple[str, ...]]]:
    for prompts in plan.get("prompt_sets") or ():
        for prompt in prompts.get("prompts") or ():
            if aspects := tuple(prompt.get("expected") or ()):
                yield (prompts["name"], prompt["prompt_id"]), aspects


def _has(text: str, plain: str, aspect: str) -> bool:
    pattern = _pattern(aspect)
    if pattern is not None:
        return pattern.search(text) is not None
    wanted = _plain(aspect)
    # Whole words, where the phrase begins and ends with one: "no" is not in "know".
    start = r"(?<!\w)" if wanted[:1].isalnum() else ""
    end = r"(?!\w)" if wanted[-1:].isalnum() else ""
    return re.search(start + re.escape(wanted) + end, plain) is not None


def _pattern(aspect: str) -> re.Pattern[str] | None:
    """The regular expression of ``/pattern/``; None: a phrase."""
    if len(aspect) < 3 or not (aspect.startswith("/") and aspect.endswith("/")):
        if not aspect.strip():
            raise AspectError("an expected aspect is empty")
        return None
    if len(aspect) > MAXIMUM_PATTERN:
        raise AspectError(f"the expected pattern {aspect[:40]}… is longer than {MAXIMUM_PATTERN} characters")
    try:
        return re.compile(aspect[1:-1], re.IGNORECASE)
    except re.error as error:
        raise AspectError(f"the expected pattern {aspect} is no regular expression: {error}") from None


def _plain(text: str) -> str:
    """Case, compatibility forms and the kind of blank do not matter."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
