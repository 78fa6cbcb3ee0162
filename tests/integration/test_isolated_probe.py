"""A probe in its own process: what crashes or hangs there is noticed, ended and started again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from benchfleet_agent.probes import Probe, Targets, Unavailable, describe
from benchfleet_agent.probes.isolated import HelperFailed, IsolatedProbe
from fakes.unruly_probe import Unruly

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the crash is a POSIX signal")

S = 1_000_000_000
TARGETS = Targets((os.getpid(),), 42)


class Clock:
    now = 100 * S

    def __call__(self) -> int:
        return self.now


class Unit:
    """An isolated probe with the wish of its inner one and the clock its restarts go by."""

    def __init__(self, wish: Path) -> None:
        self.wish = wish
        self.clock = Clock()
        self.wish.write_text("")
        self.probe = IsolatedProbe(
            "fakes.unruly_probe:Unruly", read_deadline_s=0.5, discover_deadline_s=20, clock=self.clock
        )

    def pid(self) -> int:
        value = self.probe.read(TARGETS)[0].values[0]
        assert isinstance(value, int)
        return value


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unit:
    monkeypatch.setenv("BENCHFLEET_UNRULY", str(tmp_path / "wish"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    return Unit(tmp_path / "wish")


def test_it_speaks_as_the_probe_inside(unit: Unit, capfd: pytest.CaptureFixture[str]) -> None:
    probe: Probe = unit.probe
    assert (probe.probe_id, probe.period_ms, probe.metrics()) == ("unruly", 100, Unruly().metrics())
    (description,) = describe([probe], patience_s=30)
    assert description.available, description.reason
    assert description.devices == Unruly().devices()
    assert description.gaps == {"device_clock_hz": "not told"}
    assert description.verification == "recorded output"
    assert description.reading["device_power_w@gpu-0"] == 3.0, "read three times, then at an edge"
    assert "noise" not in capfd.readouterr().out


def test_it_reads_in_another_process_which_ends_with_it(unit: Unit) -> None:
    unit.probe.discover()
    pid = unit.pid()
    assert pid != os.getpid()
    assert unit.probe.read(TARGETS)[0].values[1] == 42.0
    unit.probe.close()
    assert not psutil.pid_exists(pid)
    unit.probe.close()


@pytest.mark.parametrize(("wish", "how"), [("crash at read", "killed by signal 11"), ("hang at read", "within 0.5 s")])
def test_a_crash_or_hang_is_noticed_and_started_again_later_each_time(unit: Unit, wish: str, how: str) -> None:
    unit.probe.discover()
    pid = unit.pid()
    unit.wish.write_text(wish)
    with pytest.raises(HelperFailed, match=how):
        unit.probe.read(TARGETS)
    assert not psutil.pid_exists(pid)
    with pytest.raises(HelperFailed, match="started again later"):
        unit.probe.read(TARGETS)
    unit.clock.now += S
    with pytest.raises(HelperFailed, match=how):
        unit.probe.read(TARGETS)
    unit.wish.write_text("")
    unit.clock.now += S
    with pytest.raises(HelperFailed, match="started again later"):
        unit.probe.discover()
    unit.clock.now += S
    assert unit.pid() not in {pid, os.getpid()}
    unit.probe.close()


def test_a_crash_while_looking_for_the_source(unit: Unit) -> None:
    unit.wish.write_text("crash at discover")
    (description,) = describe([unit.probe], patience_s=30)
    assert not description.available
    assert "the helper of the probe unruly was lost: it was killed by signal 11" in (description.reason or "")


def test_what_the_inner_probe_raises_is_told_and_ends_nothing(unit: Unit) -> None:
    unit.wish.write_text("unavailable at discover")
    with pytest.raises(Unavailable, match="install one"):
        unit.probe.discover()
    unit.wish.write_text("")
    unit.probe.discover()
    pid = unit.pid()
    unit.wish.write_text("raise at read")
    with pytest.raises(RuntimeError, match="OSError: the driver fell over"):
        unit.probe.read(TARGETS)
    unit.wish.write_text("")
    assert unit.pid() == pid
    unit.probe.close()
