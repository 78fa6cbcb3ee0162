"""The NVIDIA probe on a real card: run by hand with ``pytest -m live tests/live/test_nvidia_card.py``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from benchfleet_agent.probes import Targets, Unavailable, checked
from benchfleet_agent.probes.nvidia import METRICS, NvidiaProbe
from live.cuda_load import CudaLoad

pytestmark = pytest.mark.live

OURS = Targets((os.getpid(),))
GIB = 1 << 30
LOAD_S = 5.0


@pytest.fixture
def probe() -> Iterator[NvidiaProbe]:
    probe = NvidiaProbe()
    try:
        probe.discover()
    except Unavailable as error:
        pytest.skip(str(error))
    yield probe
    probe.close()


def test_every_metric_is_read_or_has_a_reason(probe: NvidiaProbe) -> None:
    readings, faults = checked(METRICS, probe.read_at_edge(OURS))
    assert faults == {}
    gaps = probe.gaps()
    for reading in readings:
        for name, value in zip(METRICS, reading.values, strict=True):
            known = value is not None or name in gaps or f"{name}@{reading.device_id}" in gaps
            assert known, f"{name} of {reading.device_id} is empty for no reason"


def test_a_card_has_memory_or_shares_the_hosts(probe: NvidiaProbe) -> None:
    for device in probe.devices():
        assert device.display_name
        if device.memory_kind == "dedicated" and device.memory_bytes is not None:
            assert 2**30 < device.memory_bytes < 2**40
        if device.memory_bandwidth_bytes_per_s is not None:
            assert 1e10 < device.memory_bandwidth_bytes_per_s < 1e14


def test_figures_lie_where_they_can(probe: NvidiaProbe) -> None:
    for reading in probe.read_at_edge(OURS):
        value = dict(zip(METRICS, reading.values, strict=True))
        assert value["device_busy_ratio"] is None or 0 <= value["device_busy_ratio"] <= 1
        assert value["device_power_w"] is None or 1 < value["device_power_w"] < 2_000
        assert value["device_temperature_c"] is None or 5 < value["device_temperature_c"] < 120
        assert value["device_clock_hz"] is None or 5e7 < value["device_clock_hz"] < 5e9


def test_counters_grow_and_energy_agrees_with_power(probe: NvidiaProbe) -> None:
    energy, power = METRICS.index("device_energy_mj"), METRICS.index("device_power_w")
    before = {reading.device_id: reading.values for reading in probe.read_at_edge(OURS)}
    begun = time.perf_counter()
    powers: dict[str, list[float]] = {}
    while time.perf_counter() - begun < 10:
        for reading in probe.read(OURS):
            if (value := reading.values[power]) is not None:
                powers.setdefault(reading.device_id, []).append(float(value))
        time.sleep(0.1)
    duration_s = time.perf_counter() - begun
    for reading in probe.read_at_edge(OURS):
        start, end = before[reading.device_id][energy], reading.values[energy]
        if start is None or end is None or reading.device_id not in powers:
            continue
        counted_w = (end - start) / 1e3 / duration_s
        sampled_w = sum(powers[reading.device_id]) / len(powers[reading.device_id])
        assert counted_w == pytest.approx(sampled_w, rel=0.25)


def test_a_tick_stays_within_its_budget(probe: NvidiaProbe) -> None:
    costs = []
    for _ in range(50):
        begun = time.perf_counter_ns()
        probe.read(OURS)
        costs.append((time.perf_counter_ns() - begun) / 1e3)
    assert sorted(costs)[len(costs) // 2] <= probe.budget_us


def values_of(probe: NvidiaProbe, device_id: str, *, edge: bool) -> dict[str, Any]:
    readings = probe.read_at_edge(OURS) if edge else probe.read(OURS)
    found = {reading.device_id: reading.values for reading in readings}
    assert device_id in found, f"CUDA's first GPU {device_id} is not among {sorted(found)}"
    return dict(zip(METRICS, found[device_id], strict=True))


def test_a_known_load_shows_in_memory_use_power_and_energy(probe: NvidiaProbe) -> None:
    """One GiB held and written over and over; on a card that nothing else uses."""
    before: dict[str, dict[str, Any]] = {
        reading.device_id: dict(zip(METRICS, reading.values, strict=True)) for reading in probe.read_at_edge(OURS)
    }
    try:
        load = CudaLoad(GIB)
    except OSError as error:
        pytest.skip(f"no CUDA: {error}")
    with load:
        time.sleep(1.5)  # past the window that figures of use and power are means over
        idle, start, begun = before[load.device_id], values_of(probe, load.device_id, edge=True), time.perf_counter()
        seen = []
        while time.perf_counter() - begun < LOAD_S:
            seen.append(values_of(probe, load.device_id, edge=False))
            time.sleep(0.1)
        end, duration_s = values_of(probe, load.device_id, edge=True), time.perf_counter() - begun
    gaps = probe.gaps()

    def told(name: str) -> bool:
        return name not in gaps and f"{name}@{load.device_id}" not in gaps

    if told("device_memory_used_bytes"):
        # The context takes some hundred MiB besides.
        assert GIB <= end["device_memory_used_bytes"] - idle["device_memory_used_bytes"] < 2.5 * GIB
    if told("device_memory_runtime_bytes"):
        assert GIB <= end["device_memory_runtime_bytes"] < 2.5 * GIB
    assert sum(one["device_busy_ratio"] for one in seen) / len(seen) > 0.8
    name = "device_power_w" if told("device_power_w") else "device_power_average_w"
    power_w = sum(one[name] for one in seen) / len(seen)
    assert power_w > idle[name] + 5
    if told("device_energy_mj"):
        counted_w = (end["device_energy_mj"] - start["device_energy_mj"]) / 1e3 / duration_s
        assert counted_w > idle[name] + 5
        assert counted_w == pytest.approx(power_w, rel=0.15)
