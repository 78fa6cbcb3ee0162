"""What the operating system tells of a host's conditions and no probe samples: one thin reader per system."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchfleet_agent.host_state import Facts, HostState, Latest, Reading, state_between
from benchfleet_agent.probes import Targets
from benchfleet_agent.probes.sysfs import names_in, number_of, text_of

SELF_SCALING_DRIVERS = frozenset({"intel_pstate", "amd-pstate-epp"})
"""Under these, ``powersave`` is the usual governor and goes up to full speed (kernel.org, admin-guide/pm)."""

ReadFacts = Callable[[], Facts]


class HostStates:
    """The states of a host, one after the other; each says what happened since the one before.

    ``targets`` are the processes whose processor time is our own. One thread at a time.
    """

    def __init__(
        self,
        latest: Callable[[], Latest],
        targets: Callable[[], Targets] = Targets,
        read_facts: ReadFacts | None = None,
        *,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._latest = latest
        self._targets = targets
        self._read_facts = read_facts or facts_reader()
        self._clock_ns = clock_ns
        self._before: Reading | None = None

    @property
    def age_ns(self) -> int | None:
        """How long ago the state before was read; None: there was none."""
        return None if self._before is None else self._clock_ns() - self._before.at_ns

    def take(self) -> HostState:
        """Read the state now."""
        now = Reading(self._clock_ns(), self._latest(), self._read_facts(), self._targets())
        before, self._before = self._before, now
        return state_between(before, now)

    def anew(self) -> HostStates:
        """Another series of the same host, without a state before."""
        return HostStates(self._latest, self._targets, self._read_facts, clock_ns=self._clock_ns)


def facts_reader(platform: str = sys.platform) -> ReadFacts:
    """The reader for an operating system; one that cannot be had says nothing."""
    if platform == "linux":
        return LinuxFacts().read
    with contextlib.suppress(Exception):  # a library that is missing costs these facts, never the agent
        if platform == "win32":
            from benchfleet_agent.host_state.windows import WindowsFacts

            return WindowsFacts().read
        if platform == "darwin":
            from benchfleet_agent.host_state.macos import MacFacts

            return MacFacts().read
    return Facts


class LinuxFacts:
    """Facts from ``/sys``: cpufreq and ACPI's platform profile (kernel.org, admin-guide/pm and ABI documents)."""

    def __init__(self, root: Path = Path("/"), asleep_ns: Callable[[], int | None] | None = None) -> None:
        self._root = root
        self._asleep_ns = asleep_ns or linux_asleep_ns

    def read(self) -> Facts:
        """Read all; some hundred microseconds on a machine of many processors."""
        directory = self._root / "sys/devices/system/cpu/cpufreq"
        policies = [directory / name for name in names_in(directory, r"policy\d+")]
        governors = sorted({text for policy in policies if (text := text_of(policy / "scaling_governor"))})
        drivers = {text_of(policy / "scaling_driver") for policy in policies}
        limits = [khz for policy in policies if (khz := number_of(policy / "cpuinfo_max_freq", lowest=1)) is not None]
        profile = text_of(self._root / "sys/firmware/acpi/platform_profile")
        return Facts(
            power_plan=", ".join([profile, *governors] if profile else governors),
            low_power_mode=linux_low_power_mode(profile, governors, self_scaling=bool(drivers & SELF_SCALING_DRIVERS)),
            cpu_clock_limit_hz=max(limits) * 1e3 if limits else None,
            asleep_ns=self._asleep_ns(),
            has_battery=self._has_battery(),
        )

    def _has_battery(self) -> bool | None:
        if not (self._root / "sys").is_dir():
            return None
        directory = self._root / "sys/class/power_supply"
        supplies = [directory / name for name in names_in(directory)]
        # "Device": the battery of a mouse or a headset.
        return any(text_of(path / "type") == "Battery" and text_of(path / "scope") != "Device" for path in supplies)


def linux_low_power_mode(profile: str, governors: list[str], *, self_scaling: bool) -> bool | None:
    """Whether the system saves power on request; None: it has neither a platform profile nor a governor."""
    if profile:
        return profile == "low-power"
    if not governors:
        return None
    return "powersave" in governors and not self_scaling


def linux_asleep_ns() -> int | None:
    """Time the machine slept since it started: ``CLOCK_BOOTTIME`` counts it, ``CLOCK_MONOTONIC`` does not.

    See clock_gettime(2).
    """
    if sys.platform != "linux":
        return None
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
