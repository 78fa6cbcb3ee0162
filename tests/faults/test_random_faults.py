"""Random faults against real processes: nothing that was answered is lost, nothing is stored twice.

One suite runs for all tests of this file, two trials at a time; `python -m tests.faults` runs longer ones.
"""

from __future__ import annotations

import os
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("these faults are POSIX signals", allow_module_level=True)

from faults.kinds import KINDS, Kind
from faults.suite import Result, Suite, table

TRIALS = int(os.environ.get("FAULT_TRIALS", "30"))
"""Each injects one to four faults; every kind comes at least once."""
SEED = int(os.environ.get("FAULT_SEED", "1"))


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    suite = Suite(SEED)
    found = suite.run(TRIALS)
    print(f"seed {SEED}\n{table(found)}")
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_fault_loses_nothing_and_doubles_nothing(kind: Kind, results: dict[str, Result]) -> None:
    result = results[kind.name]
    if result.not_run:
        pytest.skip(f"not run: {result.not_run}")
    if result.gap and not result.tally.kept:
        pytest.xfail(result.gap)
    assert result.trials > 0
    assert (result.tally.lost, result.tally.twice, result.tally.wrong) == (0, 0, 0), "\n".join(result.tally.problems)


@pytest.mark.timeout(600)
def test_all_together_lose_nothing(results: dict[str, Result]) -> None:
    tallies = [result.tally for result in results.values() if not result.gap]

    assert sum(tally.lost for tally in tallies) == 0
    assert sum(tally.twice for tally in tallies) == 0
    assert sum(tally.expected for tally in tallies) == sum(tally.stored for tally in tallies) > 500
