"""Random faults against real processes: nothing that was answered is lost, nothing is stored twice.

One suite runs for all tests of this file; `python -m tests.faults` runs longer ones.
"""

from __future__ import annotations

import os
import random
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("these faults are POSIX signals", allow_module_level=True)

from faults.kinds import KINDS, Kind
from faults.suite import Result, Suite, table

TRIALS = int(os.environ.get("FAULT_TRIALS", "60"))
"""At most; every kind comes at least once. Each injects one to four faults."""
ENOUGH_S = float(os.environ.get("FAULT_SECONDS", "90"))
"""After so long none begins but what every kind must come once for."""
WORKERS = int(os.environ.get("FAULT_WORKERS", "4"))
"""Trials side by side: most of their time is waiting."""
SEED = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(1 << 20))


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> dict[str, Result]:
    """All trials, told while they run, also when everything passes."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nFAULT_SEED={SEED}", flush=True)
        found = Suite(SEED, enough_s=ENOUGH_S).run(TRIALS, workers=WORKERS)
        print(f"\nFAULT_SEED={SEED}\n{table(found)}", flush=True)
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
    assert result.tally.faults > 0
    assert (result.tally.lost, result.tally.twice, result.tally.wrong) == (0, 0, 0), "\n".join(result.tally.problems)


@pytest.mark.timeout(600)
def test_all_together_lose_nothing(results: dict[str, Result]) -> None:
    tallies = [result.tally for result in results.values() if not result.gap]

    assert sum(tally.lost for tally in tallies) == 0
    assert sum(tally.twice for tally in tallies) == 0
    assert sum(tally.expected for tally in tallies) == sum(tally.stored for tally in tallies) > 500
