"""Power of a Mac from interfaces Apple does not document: run in a helper process only, and believed only so far.

The System Management Controller (key ``PSTR``: power of the whole machine) answers a structure of 80 bytes;
IOReport's group ``Energy Model`` counts the GPU's energy. On macOS 27 the CPU's and the memory's channels
stand still, so they are not read. Every value has to pass a test of itself: it moves, and is in a sane
range. The M5 publishes energy in batches some 2.2 s apart.
"""

from __future__ import annotations

import ctypes
import re
import struct
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable
from benchfleet_agent.probes.macos_gpu import describe_accelerators
from benchfleet_agent.probes.macos_iokit import IoKitRegistry, Registry, declare, load_libraries

METRICS = ("system_power_w", "device_energy_mj")
_POWER, _ENERGY = METRICS
SMC = struct.Struct("<I24xIIB3xBBBxI32s")
"""key; version and limits; size, type and attributes of the key; result, status, command, argument; bytes."""
_COMMAND_INFO, _COMMAND_READ = 9, 5
_SMC_SELECTOR = 2
_KEY_POWER, _TYPE_FLOAT = 0x50535452, 0x666C7420  # "PSTR", "flt "
_LOWEST_W, _HIGHEST_W = 0.05, 1_000.0
_STUCK_READINGS = 30
_PATIENCE_NS = 10_000_000_000
_SHORTEST_NS = 3_000_000_000
"""Energy may come in batches: no power is taken over less time than this."""
_MILLIJOULES = {"mJ": 1.0, "uJ": 1e-3, "µJ": 1e-3, "nJ": 1e-6}
_CHANNEL = re.compile(r"(DIE_?\d+[ _])?GPU Energy")
_NO_POWER = "this Mac's controller (SMC) has no reading of the whole machine's power (PSTR)"
_NO_ENERGY = "IOReport has no channel of the GPU's energy on this Mac"
_WAITING = "the GPU's energy counter has not moved yet; it is believed when it does"
_STALLED = "the GPU's energy counter stands still"
_STUCK = "the reading of the machine's power stands still"
_INSANE = "the {what} says {watts:.3g} W, which cannot be"


class SmcKey(NamedTuple):
    """What the controller says of a key."""

    size: int
    kind: int
    """Four letters as one number, e.g. ``flt ``."""


class Channel(NamedTuple):
    """One counter of IOReport's ``Energy Model``."""

    name: str
    unit: str
    value: int


class SocApi(Protocol):
    """The calls. An interface that is missing answers None."""

    def smc(self, request: bytes) -> bytes | None:
        """Send the controller a structure and return its answer."""

    def energy(self) -> Sequence[Channel] | None:
        """Counters of ``Energy Model``."""

    def close(self) -> None:
        """Close what is open."""


def smc_request(key: int, info: SmcKey | None = None) -> bytes:
    """Ask what a key is, or with ``info`` for its value."""
    size, kind = (0, 0) if info is None else info
    return SMC.pack(key, size, kind, 0, 0, 0, _COMMAND_INFO if info is None else _COMMAND_READ, 0, b"")


def parse_smc_key(answer: bytes) -> SmcKey | None:
    """Read the answer to `smc_request` for a key; None: there is no such key."""
    _, size, kind, _, result, *_ = SMC.unpack(answer)
    return SmcKey(size, kind) if result == 0 and size else None


def parse_smc_float(answer: bytes, info: SmcKey) -> float | None:
    """Read the answer to `smc_request` for a value of type ``flt ``; None for any other."""
    *_, result, _, _, _, data = SMC.unpack(answer)
    if result or info.kind != _TYPE_FLOAT or info.size != 4:
        return None
    (value,) = struct.unpack_from("<f", data)
    return float(value)


def gpu_energy_mj(channels: Iterable[Channel]) -> int | None:
    """Return the GPU's energy; chips of several dies count each apart. None: there is no such channel."""
    whole: list[float] = []
    dies: list[float] = []
    for name, unit, value in channels:
        if (match := _CHANNEL.fullmatch(name)) is not None and unit.strip() in _MILLIJOULES and value >= 0:
            (dies if match[1] else whole).append(value * _MILLIJOULES[unit.strip()])
    return int(sum(whole or dies)) if whole or dies else None


@dataclass(slots=True)
class EnergyTest:
    """Believes a counter once it has moved at a sane speed; never falls."""

    reason: str | None = _WAITING
    """Why it is not believed; None when it is."""
    total_mj: int = 0
    _last_mj: int | None = None
    _moved_ns: int = 0

    def add(self, value_mj: int, now_ns: int) -> int | None:
        """Take in a reading; returns the whole since the first one."""
        if self._last_mj is None:
            self._last_mj, self._moved_ns = value_mj, now_ns
        delta_mj = value_mj - self._last_mj
        if delta_mj > 0:
            watts = delta_mj * 1e6 / max(now_ns - self._moved_ns, _SHORTEST_NS)
            if watts > _HIGHEST_W:
                self.reason = _INSANE.format(what="GPU's energy counter", watts=watts)
            else:
                self.total_mj += delta_mj
                self.reason = None
            self._moved_ns = now_ns
        elif self.reason == _WAITING and now_ns - self._moved_ns > _PATIENCE_NS:
            self.reason = _STALLED
        self._last_mj = value_mj
        return self.total_mj if self.reason is None else None


@dataclass(slots=True)
class PowerTest:
    """Believes a gauge while it lies in a sane range and moves."""

    reason: str | None = None
    _last: float | None = None
    _same: int = 0

    def add(self, watts: float) -> float | None:
        """Take in a reading."""
        self._same = self._same + 1 if watts == self._last else 0
        self._last = watts
        if not _LOWEST_W <= watts <= _HIGHEST_W:
            self.reason = _INSANE.format(what="machine's controller", watts=watts)
        else:
            self.reason = _STUCK if self._same >= _STUCK_READINGS else None
        return watts if self.reason is None else None


class MacSocProbe:
    """Power of the whole machine and energy of its GPU. Made for a helper process."""

    probe_id = "macos_soc"
    period_ms = 1_000
    budget_us = 5_000
    verification = "documentation"

    def __init__(
        self,
        api: SocApi | None = None,
        registry: Registry | None = None,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._given, self._given_registry = api, registry
        self._clock = clock
        self._api: SocApi | None = None
        self._key: SmcKey | None = None
        self._devices: tuple[DeviceInfo, ...] = ()
        self._gaps: dict[str, str] = {}
        # Kept when the probe is discovered again within a case: its counter must not fall.
        self._energy_test, self._power_test = EnergyTest(), PowerTest()

    def discover(self) -> None:
        """Open both interfaces; one that is missing is a gap, both are a reason."""
        self.close()
        registry = self._given_registry if self._given_registry is not None else IoKitRegistry()
        self._api = self._given if self._given is not None else SocCalls(registry)
        # The energy is that of Apple's own GPU, of which a Mac has one.
        self._devices = tuple(info for _, info in describe_accelerators(registry) if info.memory_kind == "unified")[:1]
        answer = self._api.smc(smc_request(_KEY_POWER))
        self._key = None if answer is None else parse_smc_key(answer)
        if self._key is None and gpu_energy_mj(self._api.energy() or ()) is None:
            self.close()
            raise Unavailable(f"{_NO_POWER}; {_NO_ENERGY}")

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The GPU whose energy it is."""
        return self._devices

    def gaps(self) -> Mapping[str, str]:
        """What the last reading lacked."""
        return self._gaps

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read the machine's power, and the GPU's energy since the probe was made."""
        if self._api is None:
            raise Unavailable("the probe of the Mac's power was not discovered")
        self._gaps = {}
        readings = [Reading("", (self._read_power(self._api), None))]
        energy_mj = self._read_energy(self._api)
        return [*readings, *(Reading(device.device_id, (None, energy_mj)) for device in self._devices)]

    def _read_power(self, api: SocApi) -> float | None:
        answer = None if self._key is None else api.smc(smc_request(_KEY_POWER, self._key))
        watts = None if answer is None or self._key is None else parse_smc_float(answer, self._key)
        if watts is None:
            self._gaps[_POWER] = _NO_POWER
            return None
        believed = self._power_test.add(watts)
        if self._power_test.reason is not None:
            self._gaps[_POWER] = self._power_test.reason
        return believed

    def _read_energy(self, api: SocApi) -> int | None:
        value_mj = gpu_energy_mj(api.energy() or ())
        if value_mj is None or not self._devices:
            self._gaps[_ENERGY] = _NO_ENERGY
            return None
        believed = self._energy_test.add(value_mj, self._clock())
        if self._energy_test.reason is not None:
            self._gaps[_ENERGY] = self._energy_test.reason
        return believed

    def close(self) -> None:
        """Close the interfaces."""
        api, self._api, self._devices, self._key = self._api, None, (), None
        if api is not None:
            api.close()


class SocCalls:
    """The real interfaces; each is None where it cannot be opened."""

    def __init__(self, registry: Registry) -> None:
        """Open them. Raises `Unavailable` where this is no macOS."""
        self._iokit, self._foundation = load_libraries()
        self._connection = 0
        self._report: Any = None
        self._subscription: Any = None
        self._channels: Any = None
        self._key: Any = None
        self._open_smc(registry)
        try:
            self._open_report()
        except (OSError, AttributeError):  # another macOS: the channel is a gap
            self._subscription = None

    def _open_smc(self, registry: Registry) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_uint32
        size = ctypes.POINTER(ctypes.c_size_t)
        declare(
            self._iokit,
            {
                "IOServiceOpen": ([number, number, number, ctypes.POINTER(number)], ctypes.c_int),
                "IOServiceClose": ([number], ctypes.c_int),
                "IOConnectCallStructMethod": ([number, number, pointer, ctypes.c_size_t, pointer, size], ctypes.c_int),
            },
        )
        task = number.in_dll(ctypes.CDLL("/usr/lib/libSystem.B.dylib"), "mach_task_self_")
        for service in registry.services("AppleSMC"):
            # Apple silicon shows several; only the endpoint of keys answers.
            connection = number()
            if self._iokit.IOServiceOpen(service, task, 0, ctypes.byref(connection)):
                continue
            self._connection = connection.value
            if self.smc(smc_request(_KEY_POWER)) is not None:
                return
            self._close_smc()

    def _close_smc(self) -> None:
        connection, self._connection = self._connection, 0
        if connection:
            self._iokit.IOServiceClose(connection)

    def smc(self, request: bytes) -> bytes | None:
        """Send the controller a structure."""
        answer, size = ctypes.create_string_buffer(SMC.size), ctypes.c_size_t(SMC.size)
        if not self._connection or self._iokit.IOConnectCallStructMethod(
            self._connection, _SMC_SELECTOR, request, len(request), answer, ctypes.byref(size)
        ):
            return None
        return answer.raw

    def _open_report(self) -> None:
        if sys.platform != "darwin":
            return
        pointer, number = ctypes.c_void_p, ctypes.c_uint64
        report = ctypes.CDLL("/usr/lib/libIOReport.dylib")
        declare(
            report,
            {
                "IOReportCopyChannelsInGroup": ([pointer, pointer, number, number, number], pointer),
                "IOReportCreateSubscription": (
                    [pointer, pointer, ctypes.POINTER(pointer), number, pointer],
                    pointer,
                ),
                "IOReportCreateSamples": ([pointer, pointer, pointer], pointer),
                "IOReportChannelGetChannelName": ([pointer], pointer),
                "IOReportChannelGetUnitLabel": ([pointer], pointer),
                "IOReportSimpleGetIntegerValue": ([pointer, ctypes.c_int], ctypes.c_int64),
            },
        )
        declare(
            self._foundation,
            {
                "CFDictionaryCreateMutableCopy": ([pointer, ctypes.c_long, pointer], pointer),
                "CFDictionaryGetValue": ([pointer, pointer], pointer),
                "CFArrayGetCount": ([pointer], ctypes.c_long),
                "CFArrayGetValueAtIndex": ([pointer, ctypes.c_long], pointer),
                "CFStringGetCString": ([pointer, ctypes.c_char_p, ctypes.c_long, ctypes.c_uint32], ctypes.c_bool),
            },
        )
        self._report = report
        group = report.IOReportCopyChannelsInGroup(self._text("Energy Model"), None, 0, 0, 0)
        if not group:
            return
        self._channels = self._foundation.CFDictionaryCreateMutableCopy(None, 0, group)
        self._foundation.CFRelease(group)
        out = pointer()
        self._subscription = report.IOReportCreateSubscription(None, self._channels, ctypes.byref(out), 0, None)
        self._key = self._text("IOReportChannels")

    def _text(self, text: str) -> Any:
        return self._foundation.CFStringCreateWithCString(None, text.encode(), 0x08000100)

    def _string(self, reference: Any) -> str:
        buffer = ctypes.create_string_buffer(256)
        if not reference or not self._foundation.CFStringGetCString(reference, buffer, len(buffer), 0x08000100):
            return ""
        return buffer.value.decode("utf-8", "replace")

    def energy(self) -> Sequence[Channel] | None:
        """Read the counters of ``Energy Model``."""
        if not self._subscription or self._report is None:
            return None
        report, foundation = self._report, self._foundation
        samples = report.IOReportCreateSamples(self._subscription, self._channels, None)
        if not samples:
            return None
        try:
            found: list[Channel] = []
            array = foundation.CFDictionaryGetValue(samples, self._key)
            for index in range(foundation.CFArrayGetCount(array) if array else 0):
                item = foundation.CFArrayGetValueAtIndex(array, index)
                name = self._string(report.IOReportChannelGetChannelName(item))
                if _CHANNEL.fullmatch(name):
                    unit = self._string(report.IOReportChannelGetUnitLabel(item))
                    found.append(Channel(name, unit, report.IOReportSimpleGetIntegerValue(item, 0)))
            return found
        finally:
            foundation.CFRelease(samples)

    def close(self) -> None:
        """Close what is open."""
        self._close_smc()
        for reference in (self._subscription, self._channels):
            if reference:
                self._foundation.CFRelease(reference)
        self._subscription = self._channels = None
