from __future__ import annotations

import pytest

from benchfleet_controller.levels import MOST_LEVELS, levels


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1,2,4", (1, 2, 4)), ("1..32", (1, 2, 4, 8, 16, 32)), ("1..20", (1, 2, 4, 8, 16, 20)), ("8, 2..4", (8, 2, 4))],
)
def test_lists_stay_as_they_are_and_ranges_double_up_to_their_end(text: str, expected: tuple[int, ...]) -> None:
    assert levels(text, int) == expected


def test_ranges_of_fractions_double_too() -> None:
    assert levels("0.5..4", float) == (0.5, 1.0, 2.0, 4.0)


@pytest.mark.parametrize("text", ["", "a", "1..", "..4", "4..1", "0..8", "1..2..3", "1,,2", "1.5"])
def test_what_is_no_level_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        levels(text, int)


def test_a_range_without_end_is_cut() -> None:
    assert len(levels("0.0000001..1e300", float)) <= MOST_LEVELS + 1
