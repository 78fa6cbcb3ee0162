from __future__ import annotations

import pytest

from benchfleet_agent.idle_baseline import is_metered, leave_alone


def test_a_host_is_metered_when_some_source_gives_a_value() -> None:
    assert is_metered({"": {"cpu_package_energy_uj": 1}})
    assert is_metered({"": {"host_available_bytes": 1}, "gpu0": {"device_power_average_w": 0.0}})
    assert not is_metered({"": {"battery_discharge_w": None, "host_cpu_busy_ns": 1}})
    assert not is_metered({})


def test_the_wait_lasts_as_asked_and_ends_with_the_case() -> None:
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    def check() -> None:
        if now > 3:
            raise RuntimeError("cancelled")

    leave_alone(1.7, wait, check, lambda: now)
    assert now == pytest.approx(1.7)
    with pytest.raises(RuntimeError, match="cancelled"):
        leave_alone(100, wait, check, lambda: now)
    assert now < 4
