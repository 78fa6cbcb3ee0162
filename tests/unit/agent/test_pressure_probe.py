"""Pressure counters from made-up trees, and from this machine where its kernel counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Targets, Unavailable
from benchfleet_agent.probes.pressure import METRICS, PressureProbe, parse_pressure

# Recorded on Linux 6.18.
CPU = """\
some avg10=0.05 avg60=0.49 avg300=1.18 total=1995796747
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
"""


def test_the_total_of_some_is_read() -> None:
    assert parse_pressure(CPU) == 1_995_796_747


@pytest.mark.parametrize(
    "text", ["", "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n", "some avg10=0.0 total=-5\n", "some total="]
)
def test_what_is_no_total_is_not_read(text: str) -> None:
    assert parse_pressure(text) is None


def tree(root: Path, **texts: str) -> PressureProbe:
    (root / "proc/pressure").mkdir(parents=True)
    for name, text in texts.items():
        (root / "proc/pressure" / name).write_text(text)
    return PressureProbe(root)


def test_each_counter_is_read_and_a_missing_one_has_a_reason(tmp_path: Path) -> None:
    probe = tree(tmp_path, cpu=CPU, memory=CPU.replace("1995796747", "12"))
    probe.discover()
    (reading,) = probe.read(Targets())
    assert reading.values == (1_995_796_747, 12, None)
    assert set(probe.gaps()) == {"host_io_pressure_us"}
    probe.close()


def test_a_kernel_that_does_not_count_is_a_reason_with_advice(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="psi=1"):
        tree(tmp_path).discover()


def test_another_operating_system_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="only Linux"):
        PressureProbe(tmp_path).discover()


def test_this_machine_if_its_kernel_counts() -> None:
    probe = PressureProbe()
    try:
        probe.discover()
    except Unavailable as error:
        pytest.skip(str(error))
    first, second = (probe.read(Targets())[0].values for _ in range(2))
    for before, after in zip(first, second, strict=True):
        assert before is not None
        assert after is not None
        assert before <= after


def test_the_metrics_are_in_the_registry() -> None:
    assert set(METRICS) <= set(BY_NAME)
