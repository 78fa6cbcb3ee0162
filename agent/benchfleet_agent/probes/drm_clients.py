"""What processes use of GPUs and NPUs, as Linux' DRM drivers tell it in ``/proc/<pid>/fdinfo``.

Format and meaning are those of the kernel's documentation, "DRM client usage stats"
(https://docs.kernel.org/gpu/drm-usage-stats.html). A client is one opening of a device; the same one may
show up under several descriptors and processes and counts once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchfleet_agent.probes.sysfs import read_text

_LIST_PERIOD_NS = 1_000_000_000
_LIST_SHARE = 1_000
"""Descriptors are listed again after this many times the time the last listing took (0.1 % of one core)."""
_DEVICES = ("/dev/dri/", "/dev/accel/")
_UNITS = {"": 1, "ns": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

RUNTIME_BUSY = "device_runtime_busy_ns"
RUNTIME_MEMORY = "device_memory_runtime_bytes"
NO_RUNTIME = "no process of the runtime runs on this host"
FOREIGN = "the descriptors of the runtime's processes may not be listed: run the agent as the same user or as root"
NO_ENGINE_TIME = "this version of the driver does not tell the engine time of single processes"
NO_MEMORY = "this version of the driver does not tell the memory of single processes"
KFD = "ROCm's compute queues (/dev/kfd) are missing from the kernel's account of engine time"


@dataclass(frozen=True, slots=True)
class Client:
    """One opening of a device, as one ``fdinfo`` file has it."""

    driver: str
    address: str
    """PCI address of the device; empty: no PCI device."""
    client_id: str
    engine_ns: Mapping[str, int]
    """Kind of engine → time it worked for the client."""
    engine_cycles: Mapping[str, tuple[int, int]]
    """Kind of engine → (cycles it worked for the client, cycles that passed); drivers that count no time."""
    memory_bytes: Mapping[str, int]
    """Region → memory the client holds there: resident if told, else all of it."""


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What the processes looked at use of one device. None: its driver does not tell."""

    busy_ns: int | None
    """Time of all engines together, so it can grow faster than the clock; it never falls."""
    memory_bytes: Mapping[str, int] | None
    """Region → bytes; memory that clients share counts once for each."""


@dataclass(frozen=True, slots=True)
class DrmUse:
    """One reading."""

    devices: Mapping[str, DeviceUse] = field(default_factory=dict)
    """By PCI address; a device that no process opened is missing."""
    uses_kfd: bool = False
    """Whether a process opened AMD's compute interface, whose queues no DRM client accounts for."""
    problem: str | None = None
    """Why nothing, or not everything, can be told."""


def runtime_use(
    use: DrmUse, address: str, regions: tuple[str, ...], *, idle_is_silent: bool = False
) -> tuple[int | None, int | None, dict[str, str]]:
    """Return (engine time in ns, memory in bytes, reasons by metric) of the processes on one device.

    ``regions`` are beginnings of the names of those that count. A device that no process opened was used for
    0 ns. ``idle_is_silent``: the driver lists no engine before it was used.
    """
    if use.problem is not None:
        return None, None, dict.fromkeys((RUNTIME_BUSY, RUNTIME_MEMORY), use.problem)
    device = use.devices.get(address, DeviceUse(0, {}))
    gaps: dict[str, str] = {}
    busy_ns = 0 if device.busy_ns is None and idle_is_silent else device.busy_ns
    if busy_ns is None:
        gaps[RUNTIME_BUSY] = NO_ENGINE_TIME
    if device.memory_bytes is None:
        gaps[RUNTIME_MEMORY] = NO_MEMORY
        return busy_ns, None, gaps
    return busy_ns, sum(size for name, size in device.memory_bytes.items() if name.startswith(regions)), gaps


def parse_fdinfo(text: str) -> Client | None:
    """Read one ``fdinfo`` file; None where it is no DRM client's."""
    driver = address = client_id = ""
    engines: dict[str, int] = {}
    busy: dict[str, int] = {}
    passed: dict[str, int] = {}
    # Later kinds win: older amdgpu has only "memory", its name for resident.
    sizes: dict[str, dict[str, int]] = {"total": {}, "memory": {}, "resident": {}}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if not key.startswith("drm-"):
            continue
        value = value.strip()
        kind, _, name = key[4:].partition("-")
        if kind == "driver":
            driver = value
        elif kind == "pdev":
            address = value.lower()
        elif key == "drm-client-id":
            client_id = value
        elif (number := _number(value)) is None:
            continue
        elif kind == "engine" and not name.startswith("capacity-"):
            engines[name] = number
        elif kind == "cycles":
            busy[name] = number
        elif key.startswith("drm-total-cycles-"):
            passed[key[17:]] = number
        elif kind in sizes and name:
            sizes[kind][name] = number
    if not driver:
        return None
    cycles = {name: (count, passed[name]) for name, count in busy.items() if name in passed}
    return Client(driver, address, client_id, engines, cycles, sizes["total"] | sizes["memory"] | sizes["resident"])


def _number(value: str) -> int | None:
    """Return nanoseconds, cycles or bytes; None for what is no number in a unit known here."""
    digits, _, unit = value.partition(" ")
    return int(digits) * _UNITS[unit] if digits.isdecimal() and unit in _UNITS else None


@dataclass(slots=True)
class _Account:
    """Engine time of one client so far. Kept when the client closes: what it did stays done."""

    engine_ns: dict[str, int] = field(default_factory=dict)
    cycles: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # at (own, passed, clock in ns)
    told: bool = False

    def add(self, client: Client, now_ns: int) -> None:
        """Take a new reading in; a value below an earlier one is left until it has caught up."""
        self.told |= bool(client.engine_ns or client.engine_cycles)
        for name, value in client.engine_ns.items():
            self.engine_ns[name] = max(value, self.engine_ns.get(name, 0))
        for name, (own, passed) in client.engine_cycles.items():
            before = self.cycles.get(name)
            if before is None or passed < before[1]:  # new, or the device's counter began afresh
                self.cycles[name] = (own, passed, now_ns)
            elif own >= before[0] and passed > before[1]:
                share = (own - before[0]) / (passed - before[1])
                worked_ns = round(share * (now_ns - before[2]))
                self.engine_ns[name] = self.engine_ns.get(name, 0) + worked_ns
                self.cycles[name] = (own, passed, now_ns)


class DrmClients:
    """The DRM clients of process trees.

    Listing all descriptors of a process costs, so that is done once a second; between, only the known
    clients' files are read. A client counted in cycles begins at 0 when it is first seen.
    """

    def __init__(
        self,
        root: Path,
        tree: Callable[[Sequence[int]], Sequence[int]],
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._proc = root / "proc"
        self._tree = tree
        self._clock = clock
        self._roots: tuple[int, ...] = ()
        self._files: list[Path] = []
        self._accounts: dict[tuple[str, str], _Account] = {}
        self._uses_kfd = False
        self._problem: str | None = None
        self._list_due_ns = 0

    def read(self, roots: tuple[int, ...], *, relist: bool = False) -> DrmUse:
        """Read what the trees under ``roots`` use of every device."""
        if roots != self._roots:
            self._roots, self._accounts, self._list_due_ns = roots, {}, 0
        if not roots:
            return DrmUse(problem=NO_RUNTIME)
        if relist or self._clock() >= self._list_due_ns:
            self._list()
        seen: dict[tuple[str, str], Client] = {}
        for path in self._files:
            try:
                client = parse_fdinfo(read_text(path))
            except OSError:  # closed since
                continue
            if client is not None:
                key = (client.address, client.client_id or str(path))
                seen[key] = client
                self._accounts.setdefault(key, _Account()).add(client, self._clock())
        addresses = {address for address, _ in self._accounts}
        return DrmUse({address: self._use(address, seen) for address in addresses}, self._uses_kfd, self._problem)

    def _use(self, address: str, seen: Mapping[tuple[str, str], Client]) -> DeviceUse:
        accounts = [account for (of, _), account in self._accounts.items() if of == address]
        clients = [client for (of, _), client in seen.items() if of == address]
        told = any(account.told for account in accounts)
        regions: dict[str, int] = {}
        for client in clients:
            for name, size in client.memory_bytes.items():
                regions[name] = regions.get(name, 0) + size
        return DeviceUse(
            busy_ns=sum(sum(account.engine_ns.values()) for account in accounts) if told else None,
            memory_bytes=regions if regions or not clients else None,
        )

    def _list(self) -> None:
        start = self._clock()
        self._files, self._uses_kfd, self._problem = [], False, None
        for pid in dict.fromkeys((*self._roots, *self._tree(self._roots))):
            directory = f"{self._proc}/{pid}/fd"
            try:
                with os.scandir(directory) as entries:
                    names = [entry.name for entry in entries]
            except PermissionError:
                self._problem = FOREIGN
                continue
            except OSError:  # it ended
                continue
            for name in names:
                try:
                    target = os.readlink(f"{directory}/{name}")  # noqa: PTH115 - there may be thousands
                except OSError:  # closed since
                    continue
                if target.startswith(_DEVICES):
                    self._files.append(self._proc / str(pid) / "fdinfo" / name)
                self._uses_kfd |= target == "/dev/kfd"
        end = self._clock()
        self._list_due_ns = end + max(_LIST_PERIOD_NS, _LIST_SHARE * (end - start))
