"""Whether two groups gave the same answers, and where they first part. Pure.

Greedy answers of one model should not depend on the host, the device or the day; where they do, speeds may still be
compared but not taken for the same work. Callers give answers to the same input only: prompt and prefix.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from benchfleet_controller import stats

AROUND = 20
"""Characters shown on each side of where two answers part."""


class Key(NamedTuple):
    """What makes two requests the same question at the same point of a case."""

    prompt_id: str
    round_index: int
    position: int
    """Place in its round, from 0."""
    prefix: str = ""
    """The words put before the prompt: they are part of the question."""

    @property
    def question(self) -> tuple[str, str]:
        """What was asked, wherever in the case."""
        return self.prompt_id, self.prefix


@dataclass(frozen=True, slots=True)
class Answer:
    """One ok answer."""

    key: Key
    text: str
    pieces: tuple[int, ...] | None = None
    """Characters of each token-bearing chunk; None: not streamed."""
    sha256: str | None = None
    """Digest of reasoning and text together; None: the text alone decides."""
    output_tokens: int | None = None
    finish_reason: str | None = None

    def tokens(self) -> tuple[str, ...] | None:
        """The text cut into tokens; None where chunks are not known to be one token each.

        They are when there are as many as output tokens, not counting the stop token, which has no text.
        """
        if self.pieces is None or self.output_tokens is None or sum(self.pieces) != len(self.text):
            return None
        unseen = self.output_tokens - len(self.pieces)
        if unseen not in ((0, 1) if self.finish_reason == "stop" else (0,)):
            return None
        return tuple(self.text[start:end] for start, end in pairwise(accumulate(self.pieces, initial=0)))

    def same_as(self, other: Answer) -> bool:
        """Whether both say the same: by digest where both have one, else by text."""
        if self.sha256 is not None and other.sha256 is not None:
            return self.sha256 == other.sha256
        return self.text == other.text


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the two answers of one pair first differ."""

    key: Key
    token: int | None
    """Index of the first token that differs, from 0; None: chunks of an answer are not known to be tokens."""
    character: int | None
    """Index of the first character that differs, or where the shorter answer ends; None: only the reasoning differs."""
    left: str
    """20 characters on each side of that place."""
    right: str
    left_finish: str | None
    right_finish: str | None


@dataclass(frozen=True, slots=True)
class Equality:
    """How often two groups gave the same answer."""

    pairs: int
    equal: int
    share: float | None
    """``equal``/``pairs``; None: there are none."""
    interval: stats.Interval | None
    """95 % Wilson interval of the share, with distinct prompts and not pairs as the number of independent trials:
    answers to one prompt repeat one another."""
    first_divergences: tuple[Divergence, ...]
    """One for each unequal pair, by key."""
    why: str
    """Why nothing could be paired; empty otherwise."""


@dataclass(frozen=True, slots=True)
class Unrepeatable:
    """A prompt to which one group gave more than one answer."""

    prompt_id: str
    answers: int
    distinct: int


@dataclass(frozen=True, slots=True)
class Repeatability:
    """Whether one group answers alike each time it is asked the same."""

    prompts: int
    """Prompts answered more than once."""
    pairs: int
    """All pairs of answers to one prompt."""
    equal: int
    share: float | None
    """``equal``/``pairs``; None: no prompt was answered twice."""
    unrepeatable: tuple[Unrepeatable, ...]


def equality(left: Iterable[Answer], right: Iterable[Answer]) -> Equality:
    """Compare two groups, pairing answers of the same key (where a key comes several times: in the order given)."""
    sides = (_by_key(left), _by_key(right))
    pairs = [
        pair
        for key in sorted(sides[0].keys() & sides[1].keys())
        for pair in zip(sides[0][key], sides[1][key], strict=False)
    ]
    apart = tuple(_divergence(one, other) for one, other in pairs if not one.same_as(other))
    if not pairs:
        return Equality(0, 0, None, None, (), _why_unpaired(*sides))
    equal, prompts = len(pairs) - len(apart), len({one.key.question for one, _ in pairs})
    interval = stats.share_interval(equal * prompts / len(pairs), prompts)
    return Equality(len(pairs), equal, equal / len(pairs), interval, apart, "")


def repeatability(answers: Iterable[Answer]) -> Repeatability:
    """Compare the answers of one group with each other, prompt by prompt."""
    prompts: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        prompts[answer.key.question].append(answer)
    pairs = equal = repeated = 0
    unrepeatable = []
    for (prompt_id, _), given in prompts.items():
        hashed = all(answer.sha256 is not None for answer in given)
        counts = Counter(answer.sha256 if hashed else answer.text for answer in given)
        pairs += _pairs(len(given))
        equal += sum(map(_pairs, counts.values()))
        repeated += len(given) > 1
        if len(counts) > 1:
            unrepeatable.append(Unrepeatable(prompt_id, len(given), len(counts)))
    return Repeatability(repeated, pairs, equal, equal / pairs if pairs else None, tuple(unrepeatable))


def _pairs(n: int) -> int:
    return n * (n - 1) // 2


def _by_key(answers: Iterable[Answer]) -> dict[Key, list[Answer]]:
    found: dict[Key, list[Answer]] = defaultdict(list)
    for answer in answers:
        found[answer.key].append(answer)
    return found


def _divergence(left: Answer, right: Answer) -> Divergence:
    character: int | None = None
    token: int | None = None
    if left.text != right.text:
        character = _first_difference(left.text, right.text)
        tokens = left.tokens(), right.tokens()
        if tokens[0] is not None and tokens[1] is not None:
            token = _first_difference(tokens[0], tokens[1])
    around = slice(max((character or 0) - AROUND, 0), (character or 0) + AROUND)
    shown = ("", "") if character is None else (left.text[around], right.text[around])
    return Divergence(left.key, token, character, *shown, left.finish_reason, right.finish_reason)


def _first_difference(left: Sequence[str], right: Sequence[str]) -> int:
    """Index of the first difference; the shorter one's length where it is the beginning of the other."""
    differing = (i for i, (one, other) in enumerate(zip(left, right, strict=False)) if one != other)
    return next(differing, min(len(left), len(right)))


def _why_unpaired(left: dict[Key, list[Answer]], right: dict[Key, list[Answer]]) -> str:
    for side, answers in (("left", left), ("right", right)):
        if not answers:
            return f"there are no answers on the {side}"
    prompts = tuple({key.prompt_id for key in side} for side in (left, right))
    if prompts[0].isdisjoint(prompts[1]):
        return f"no prompt in common: {_some(prompts[0])} on the left, {_some(prompts[1])} on the right"
    if {key.question for key in left}.isdisjoint(key.question for key in right):
        return "the same prompts, but after other words on each side: only deterministic runs begin them alike"
    return "no prompt in the same place of the same round on both sides: were rounds or the order of prompts others?"


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
