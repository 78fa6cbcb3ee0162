"""The conditions of a host that nobody samples: for `GetHost`, between jobs."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence

from benchfleet_agent.host_state import HostState, Latest
from benchfleet_agent.host_state.readers import HostStates, ReadFacts
from benchfleet_agent.probes import BrokenProbe, Probe, Targets, Value, make_probe

OLDEST_NS = 60_000_000_000
"""A share of processor time over longer than this says nothing about now."""
WINDOW_S = 0.3
_log = logging.getLogger(__name__)


class HostAtRest:
    """States read when asked for, by probes of its own. GPUs are left asleep. Safe from several threads."""

    def __init__(
        self,
        probes: Sequence[Probe] | None = None,
        read_facts: ReadFacts | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._probes = cheap_probes() if probes is None else tuple(probes)
        self._discovered: set[str] = set()
        self._sleep = sleep
        self._lock = threading.Lock()
        self._targets = Targets()
        self._states = HostStates(self._read, lambda: self._targets, read_facts, clock_ns=clock_ns)

    def state(self, *, measuring: bool) -> HostState:
        """The state now; while a job is ``measuring``, whose processes are not told apart here, without background.

        Takes `WINDOW_S` when the state before is missing or too old to tell the background by.
        """
        with self._lock:
            # The pretended process makes readings of a job incomparable, with each other and with those around it.
            self._targets = Targets(load_pid=0) if measuring else Targets()
            if measuring:
                return self._states.take()
            age_ns = self._states.age_ns
            state = self._states.take()
            if age_ns is None or age_ns > OLDEST_NS or state.background_cpu_ratio is None:
                self._sleep(WINDOW_S)
                state = self._states.take()
            return state

    def _read(self) -> Latest:
        found: dict[str, Value] = {}
        for probe in self._probes:
            try:
                if probe.probe_id not in self._discovered:
                    probe.discover()
                    self._discovered.add(probe.probe_id)
                for reading in probe.read(Targets()):
                    if not reading.device_id:
                        found |= dict(zip(probe.metrics(), reading.values, strict=True))
            except Exception as error:  # noqa: BLE001 - one source less, never a host that cannot be asked
                self._discovered.discard(probe.probe_id)
                _log.debug("probe %s: %s", probe.probe_id, error)
        return {"": found}


def cheap_probes(platform: str = sys.platform) -> tuple[Probe, ...]:
    """The probes of the host itself that start no helper."""
    system = make_probe("system:SystemProbe")
    if platform == "linux":
        return system, make_probe("cpu:CpuProbe"), make_probe("power_supply:PowerSupplyProbe")
    if platform == "win32":
        return system, make_probe("windows_power:WindowsPowerProbe")
    if platform == "darwin":
        from benchfleet_agent.probes.macos_power import MacPowerProbe

        return system, MacPowerProbe(soc=BrokenProbe("macos_soc", "not asked"))
    return (system,)
