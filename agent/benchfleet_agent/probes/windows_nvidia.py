"""Which of Windows' adapters is which of NVML's GPUs: both have figures of one device, under names of their own.

NVML knows a GPU by its UUID and its place on the PCI bus, Windows by its LUID, for which the graphics kernel
tells the place on the bus too (D3DKMTQueryAdapterInfo, KMTQAITYPE_ADAPTERADDRESS, of d3dkmthk.h).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchfleet_agent.probes.nvml_library import load, text

_ADAPTER_ADDRESS = 6
Place = tuple[int, int]
"""(bus, device) on the PCI bus."""


class NvmlGpu(NamedTuple):
    """A GPU as NVML knows it."""

    uuid: str
    name: str
    place: Place


class OpenAdapterFromLuid(ctypes.Structure):
    """D3DKMT_OPENADAPTERFROMLUID."""

    _fields_ = (("luid_low", ctypes.c_uint32), ("luid_high", ctypes.c_int32), ("adapter", ctypes.c_uint32))


class QueryAdapterInfo(ctypes.Structure):
    """D3DKMT_QUERYADAPTERINFO."""

    _fields_ = (
        ("adapter", ctypes.c_uint32),
        ("kind", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_uint32),
    )


class AdapterAddress(ctypes.Structure):
    """D3DKMT_ADAPTERADDRESS."""

    _fields_ = (("bus", ctypes.c_uint32), ("device", ctypes.c_uint32), ("function", ctypes.c_uint32))


def same_gpus(
    adapters: Mapping[str, str], gpus: Sequence[NvmlGpu], place_of: Callable[[str], Place | None]
) -> dict[str, str]:
    """Return LUID → UUID of the adapters (LUID → name) that are GPUs of NVML's.

    The place on the bus decides; where Windows does not tell it, a name that only one of each side has.
    """
    by_place = {gpu.place: gpu.uuid for gpu in gpus}
    found: dict[str, str] = {}
    for luid, name in adapters.items():
        place = place_of(luid)
        if place is not None:
            if place in by_place:
                found[luid] = by_place[place]
            continue
        named = [gpu.uuid for gpu in gpus if gpu.name == name]
        if len(named) == 1 and list(adapters.values()).count(name) == 1:
            found[luid] = named[0]
    return found


def nvml_gpus(nvml: Any = None) -> list[NvmlGpu]:
    """Ask NVML for its GPUs; none where it does not answer, for whatever reason."""
    try:
        nvml = nvml if nvml is not None else load()
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - the probe of NVIDIA's GPUs says why; here it only means that there are none
        return []
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [_gpu(nvml, handle) for handle in handles]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> NvmlGpu:
    pci = nvml.nvmlDeviceGetPciInfo(handle)
    uuid, name = text(nvml.nvmlDeviceGetUUID(handle)), text(nvml.nvmlDeviceGetName(handle))
    return NvmlGpu(uuid, name, (int(pci.bus), int(pci.device)))


def place_of(luid: str, gdi: Any = None) -> Place | None:
    """Ask Windows' graphics kernel where on the PCI bus an adapter is; None: it does not tell."""
    if gdi is None:
        if sys.platform != "win32":
            return None
        try:
            gdi = ctypes.WinDLL("gdi32.dll")
        except OSError:
            return None
    high, low = (int(half, 16) for half in luid.split("_"))
    opened = OpenAdapterFromLuid(low, high)
    try:
        if gdi.D3DKMTOpenAdapterFromLuid(ctypes.byref(opened)):
            return None
        try:
            address = AdapterAddress()
            data = ctypes.cast(ctypes.pointer(address), ctypes.c_void_p)
            query = QueryAdapterInfo(opened.adapter, _ADAPTER_ADDRESS, data, ctypes.sizeof(address))
            refused = gdi.D3DKMTQueryAdapterInfo(ctypes.byref(query))
            return None if refused else (address.bus, address.device)
        finally:
            # D3DKMT_CLOSEADAPTER is the handle alone.
            gdi.D3DKMTCloseAdapter(ctypes.byref(ctypes.c_uint32(opened.adapter)))
    except AttributeError:
        return None


def uuids_of(adapters: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return LUID → UUID for adapters of NVIDIA's, given as (LUID, name); asks nobody where there are none."""
    known = dict(adapters)
    return same_gpus(known, nvml_gpus(), place_of) if known else {}
