"""A probe that reads as told, a clock that stands still, and a sampler that is ticked by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable
from benchfleet_agent.sampler import SampleBatch, Sampler

S = 1_000_000_000


class FakeClock:
    def __init__(self) -> None:
        self.now = 5 * S

    def __call__(self) -> int:
        return self.now


class FakeProbe:
    """Reads how often it was read; takes as long, and fails, as told."""

    budget_us = 1_000

    def __init__(
        self,
        clock: FakeClock,
        *,
        probe_id: str = "fake",
        period_ms: int = 100,
        took_us: int = 200,
        metrics: tuple[str, ...] = ("device_energy_mj", "device_power_w"),
        device_ids: tuple[str, ...] = ("gpu-0",),
    ) -> None:
        self.clock, self.probe_id, self.period_ms, self.took_us = clock, probe_id, period_ms, took_us
        self._metrics, self._device_ids = metrics, device_ids
        self.unavailable: str | None = None
        self.broken = False
        self.read_ns: list[int] = []
        self.discovered = self.closed = 0
        self.targets: list[Targets] = []
        self.during: Callable[[], None] = lambda: None
        self.during_discover: Callable[[], None] = lambda: None
        self.instead: Sequence[Any] | None = None

    def discover(self) -> None:
        self.discovered += 1
        self.during_discover()
        if self.unavailable:
            raise Unavailable(self.unavailable)

    def metrics(self) -> tuple[str, ...]:
        return self._metrics

    def devices(self) -> tuple[DeviceInfo, ...]:
        return tuple(DeviceInfo(name, "gpu", "Fake") for name in self._device_ids)

    def read(self, targets: Targets) -> Sequence[Reading]:
        self.read_ns.append(self.clock.now)
        self.targets.append(targets)
        self.clock.now += self.took_us * 1_000
        self.during()
        if self.broken:
            raise RuntimeError("the driver fell over")
        if self.instead is not None:
            return self.instead
        count = len(self.read_ns)
        return [Reading(name, (count, None, *(None,) * (len(self._metrics) - 2))) for name in self._device_ids]

    def close(self) -> None:
        self.closed += 1


class Bench:
    """A sampler whose thread never runs: the test ticks it and moves the clock."""

    def __init__(self, *probes: FakeProbe, clock: FakeClock, fast_period_ms: int = 100) -> None:
        self.clock = clock
        self.batches: list[SampleBatch] = []
        self.sampler = Sampler(
            probes,
            self.batches.append,
            fast_period_ms=fast_period_ms,
            clock=clock,
            wait=lambda stopping, _: stopping.wait(),
        )
        self.sampler._run = lambda generation: None  # type: ignore[method-assign]
        self.sampler._run_watch = lambda: None  # type: ignore[method-assign]
        self.sampler.start()

    def run(self, duration_ns: int) -> None:
        end = self.clock.now + duration_ns
        while (due := self.sampler.tick()) < end:
            self.clock.now = max(self.clock.now, due)
        self.clock.now = max(self.clock.now, end)


class Gate:
    """A driver that does not answer until it is told to."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.open.wait(20)
