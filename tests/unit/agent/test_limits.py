"""What the machine can do at most: kept while it is the same machine, and never an exception."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest

from benchfleet_agent.limits import FILE, Limits, read_limits
from benchfleet_agent.limits_measurement import array_bytes, thread_counts

GOOD = {"memory_bandwidth_bytes_per_s": 2e10, "compute_flop_per_s": 1e11, "thread_count": 2, "method": "made up"}


def limits(tmp_path: Path, code: str, *, cpus: tuple[int, ...] = (), deadline_s: float = 30.0) -> Limits:
    """Limits whose measurement is a line of Python; each call adds a line to ``calls``."""
    counted = f"open({str(tmp_path / 'calls')!r}, 'a').write('x\\n'); {code}"
    return Limits(
        tmp_path, cpus, command=(sys.executable, "-c", counted), clock=lambda: 1_700_000_000.0, deadline_s=deadline_s
    )


def calls(tmp_path: Path) -> int:
    return len((tmp_path / "calls").read_text().splitlines())


def test_a_measurement_is_kept_and_made_again_only_when_asked(tmp_path: Path) -> None:
    made = limits(tmp_path, f"print({json.dumps(json.dumps(GOOD))})")
    assert made.current() is None
    first = made.measure()
    assert (first.memory_bandwidth_bytes_per_s, first.compute_flop_per_s, first.thread_count) == (2e10, 1e11, 2)
    assert (first.method, first.failure, first.measure_time.ToSeconds()) == ("made up", "", 1_700_000_000)
    assert made.measure() == first == made.current()
    assert calls(tmp_path) == 1
    assert made.measure(refresh=True) == first
    assert calls(tmp_path) == 2


def test_another_machine_or_other_processors_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"print({json.dumps(json.dumps(GOOD))})"
    limits(tmp_path, code).measure()
    assert limits(tmp_path, code, cpus=(0,)).current() is None
    monkeypatch.setattr(platform, "node", lambda: "another")
    assert limits(tmp_path, code).current() is None


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; sys.exit('out of luck')", "out of luck"),
        ("print('nonsense')", "Expecting value"),
        ("print('[1]')", "printed no object"),
        ("print('{}')", "thread_count"),
        (f"print({json.dumps(json.dumps(GOOD | {'compute_flop_per_s': -1}))})", "compute_flop_per_s is -1.0"),
        ("import nosuchmodule", "pip install 'benchfleet[agent]'"),
    ],
)
def test_a_failure_is_told_and_not_kept(tmp_path: Path, code: str, why: str) -> None:
    made = limits(tmp_path, code)
    assert why in made.measure().failure
    assert made.current() is None


def test_a_measurement_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    assert "within 0.5 s" in limits(tmp_path, "import time; time.sleep(60)", deadline_s=0.5).measure().failure


@pytest.mark.parametrize("text", ["", "{", "[]", '{"machine": "x"}', '{"thread_count": []}'])
def test_a_damaged_file_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert Limits(tmp_path).current() is None


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="memory_bandwidth_bytes_per_s is nan"):
        read_limits(GOOD | {"memory_bandwidth_bytes_per_s": float("nan")})


def test_arrays_outgrow_caches_and_leave_memory_to_others() -> None:
    assert array_bytes(64 << 30, 4) * 2 * 4 == 1 << 30
    assert array_bytes(2 << 30, 4) * 2 * 4 == 256 << 20
    assert array_bytes(0, 64) == 1 << 20
    assert (thread_counts(1), thread_counts(8)) == ((1,), (8, 4))
