r"""What Windows' registry says of GPUs and NPUs: names, own memory and vendors by adapter.

DirectX keeps one key per adapter under ``HKLM\SOFTWARE\Microsoft\DirectX`` with the same locally unique
identifier (LUID) as the performance counters; both are new at every start of Windows. Keys of adapters that
are gone stay behind with an older ``LastSeen``. NPUs are no adapters of DirectX; theirs is the device class
ComputeAccelerator.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from benchfleet_agent.probes.windows_engines import luid_text
from benchfleet_agent.probes.windows_nvidia import uuids_of

_DIRECTX = r"SOFTWARE\Microsoft\DirectX"
_ACCELERATORS = r"SYSTEM\CurrentControlSet\Control\Class\{F01A9D53-3FF6-48D2-9F97-C8A7004BE10C}"
_VIDEO_NAMES = ("Description", "AdapterLuid", "DedicatedVideoMemory", "VendorId", "DriverVersion", "LastSeen")
NVIDIA, MICROSOFT = 0x10DE, 0x1414

Key = Mapping[str, Any]
"""Values of one registry key by name."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter as DirectX knows it."""

    luid: str
    name: str
    vendor_id: int
    own_memory_bytes: int | None
    driver_version: str

    @property
    def is_software(self) -> bool:
        """Whether it is one of Windows' own, such as the Microsoft Basic Render Driver."""
        return self.vendor_id == MICROSOFT


@dataclass(frozen=True, slots=True)
class Names:
    """What the registry says of this machine's adapters."""

    adapters: Mapping[str, Adapter]
    """By LUID."""
    npus: tuple[tuple[str, str], ...] = ()
    """(name, driver's version) of each NPU; which adapter it is, the registry does not tell."""
    uuids: Mapping[str, str] = field(default_factory=dict)
    """LUID → UUID of the adapters that NVIDIA's library knows too."""


def parse_names(root: Key, video: Sequence[Key], accelerators: Sequence[Key]) -> Names:
    """Read DirectX' own key, its keys of adapters, and the driver keys of the class ComputeAccelerator."""
    seen = root.get("LastSeen")
    adapters: dict[str, Adapter] = {}
    for key in video:
        luid, name = key.get("AdapterLuid"), key.get("Description")
        stale = isinstance(seen, int) and isinstance(key.get("LastSeen"), int) and key["LastSeen"] != seen
        if not isinstance(luid, int) or not isinstance(name, str) or stale:
            continue
        memory, vendor, version = key.get("DedicatedVideoMemory"), key.get("VendorId"), key.get("DriverVersion")
        adapter = Adapter(
            luid=luid_text(luid >> 32 & 0xFFFFFFFF, luid & 0xFFFFFFFF),
            name=name.strip(),
            vendor_id=vendor if isinstance(vendor, int) else 0,
            own_memory_bytes=memory if isinstance(memory, int) else None,
            driver_version=_version(version) if isinstance(version, int) else "",
        )
        adapters[adapter.luid] = adapter
    npus = {
        (name, str(key.get("DriverVersion") or "")): None
        for key in accelerators
        if isinstance(name := key.get("DriverDesc"), str)
    }
    return Names(adapters, tuple(npus))


def _version(packed: int) -> str:
    """Write a driver's version, four 16-bit numbers in one: ``32.0.15.6590``."""
    return ".".join(str(packed >> shift & 0xFFFF) for shift in (48, 32, 16, 0))


def read_names() -> Names:
    """Read the registry and ask NVML for its GPUs; what cannot be read is left out."""
    if sys.platform != "win32":
        return Names({})
    import winreg

    def values(path: str, names: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
            for name in names:
                with suppress(OSError):
                    found[name] = winreg.QueryValueEx(key, name)[0]
        return found

    def below(path: str, names: Sequence[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
            children = [winreg.EnumKey(key, index) for index in range(winreg.QueryInfoKey(key)[0])]
            for child in children:
                with suppress(OSError):  # some hold keys for the system alone
                    found.append(values(f"{path}\\{child}", names))
        return found

    root: dict[str, Any] = {}
    with suppress(OSError):
        root = values(_DIRECTX, ("LastSeen",))
    names = parse_names(root, below(_DIRECTX, _VIDEO_NAMES), below(_ACCELERATORS, ("DriverDesc", "DriverVersion")))
    of_nvidia = [(luid, each.name) for luid, each in names.adapters.items() if each.vendor_id == NVIDIA]
    return replace(names, uuids=uuids_of(of_nvidia))
