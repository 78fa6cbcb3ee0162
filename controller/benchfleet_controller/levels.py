"""Load levels from text: ``1,2,4`` as they are, ``1..32`` doubling from one end to the other. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

MOST_LEVELS = 64
_Number = TypeVar("_Number", int, float)


def levels(text: str, number: Callable[[str], _Number]) -> tuple[_Number, ...]:
    """The levels a text names, in its order. Raises ValueError for what is no number or no range."""
    found: list[_Number] = []
    for part in text.split(","):
        first, dots, last = (word.strip() for word in part.partition(".."))
        low = number(first)
        if not dots:
            found.append(low)
            continue
        high = number(last)
        if not 0 < low < high:
            raise ValueError(f"{part.strip()} is no range from low to high")
        level = low
        while level < high and len(found) < MOST_LEVELS:
            found.append(level)
            level *= 2
        found.append(high)
    return tuple(found)
