"""Where the demonstration keeps its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchfleet_controller import demo
from benchfleet_controller.cli import main


@pytest.mark.parametrize(
    ("arguments", "database"),
    [(("--db", "given.duckdb"), Path("given.duckdb")), ((), Path("told.duckdb"))],
)
def test_an_option_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], database: Path
) -> None:
    asked: list[Any] = []

    def run_demo(*given: Any) -> int:
        asked.append(given[-1])
        return 0

    monkeypatch.setattr(demo, "run_demo", run_demo)
    monkeypatch.setenv("BENCHFLEET_DB", "told.duckdb")
    assert main(["demo", *arguments]) == 0
    assert asked == [database]
    monkeypatch.delenv("BENCHFLEET_DB")
    assert main(["demo"]) == 0
    assert asked[-1] is None  # beside the report
