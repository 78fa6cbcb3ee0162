"""A Mac's GPU from recordings of ``ioreg``: statistics, clients that come and go, and drivers that say little."""

from __future__ import annotations

import ctypes
import plistlib
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from benchfleet_agent.probes import Targets, Unavailable
from benchfleet_agent.probes.macos_gpu import (
    METRICS,
    ClientTimes,
    MacGpuProbe,
    Statistics,
    parse_creator,
    parse_statistics,
    parse_usage,
)
from benchfleet_agent.probes.macos_iokit import IoKitRegistry, RecordedRegistry, load_libraries

RUNTIME, CHILD, WINDOWS = 4245, 4300, 587
M4 = {
    "In use system memory (driver)": 0,
    "Alloc system memory": 1574862848,
    "Tiler Utilization %": 20,
    "recoveryCount": 0,
    "Renderer Utilization %": 19,
    "TiledSceneBytes": 1605632,
    "Device Utilization %": 21,
    "SplitSceneCount": 0,
    "In use system memory": 351141888,
}


def client(number: int, pid: int, *times: int, name: str = "python3.12") -> dict[str, Any]:
    usage = [{"API": "Metal", "accumulatedGPUTime": time, "lastSubmittedTime": 1} for time in times]
    return {
        "IOObjectClass": "AGXDeviceUserClient",
        "IORegistryEntryID": number,
        "IOUserClientCreator": f"pid {pid}, {name}",
        "AppUsage": usage,
    }


def accelerator(*clients: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "IOObjectClass": "AGXAcceleratorG16G",
        "IORegistryEntryID": 0x10000050B,
        "PerformanceStatistics": M4,
        "model": "Apple M4",
        "gpu-core-count": 10,
        "IORegistryEntryChildren": list(clients),
        **changes,
    }


def recorded(*accelerators: dict[str, Any]) -> RecordedRegistry:
    return RecordedRegistry({"IOAccelerator": plistlib.dumps(list(accelerators))})


class Bench:
    """A probe over a recording that can be replaced, with its clock and the runtime's children."""

    def __init__(self, *accelerators: dict[str, Any]) -> None:
        self.now_s = 0.0
        self.children: Sequence[int] = ()
        self.registry = recorded(*accelerators)
        self.probe = MacGpuProbe(self.registry, clock=lambda: int(self.now_s * 1e9), tree=lambda _: self.children)
        self.probe.discover()

    def now(self, *accelerators: dict[str, Any]) -> None:
        self.registry.__init__({"IOAccelerator": plistlib.dumps(list(accelerators))})  # type: ignore[misc]

    def values(self, targets: Targets | None = None, device: int = 0) -> dict[str, object]:
        self.now_s += 2
        readings = self.probe.read(targets or Targets((RUNTIME,)))
        return dict(zip(METRICS, readings[device].values, strict=True))


def test_an_apple_gpu_has_a_name_and_one_memory_with_the_cpu() -> None:
    (device,) = Bench(accelerator()).probe.devices()
    assert (device.device_id, device.display_name) == ("AGXAcceleratorG16G", "Apple M4 GPU (10 cores)")
    assert (device.kind, device.memory_kind, device.memory_bytes) == ("gpu", "unified", None)


def test_statistics_become_use_and_memory() -> None:
    bench = Bench(accelerator(client(1, WINDOWS, 5_000)))
    assert bench.values() == {
        "device_busy_ratio": 0.21,
        "device_memory_used_bytes": 351141888,
        "device_shared_memory_bytes": 1574862848,
        "device_runtime_busy_ns": 0,
    }
    assert not bench.probe.gaps()


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        (M4, Statistics(0.21, 351141888, 1574862848)),
        ({"GPU Activity(%)": 64, "vramUsedBytes": 2**31}, Statistics(0.64, None, None)),
        ({"Device Utilization %": 101, "In use system memory": -5}, Statistics(None, None, None)),
        ({"Device Utilization %": True, "Alloc system memory": 2**60}, Statistics(None, None, None)),
        ({"Device Utilization %": "21"}, Statistics(None, None, None)),
        (None, Statistics(None, None, None)),
    ],
)
def test_missing_and_absurd_statistics_are_unknown(properties: object, expected: Statistics) -> None:
    assert parse_statistics(properties) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pid 4245, python3.12", 4245),
        ("pid 587, Window, Server", 587),
        ("pid 12", 12),
        ("pid x, a", None),
        ("pid 12a, b", None),
        ("", None),
        (None, None),
        (b"pid 1, a", None),
    ],
)
def test_the_creator_of_a_client_is_read(text: object, expected: int | None) -> None:
    assert parse_creator(text) == expected


def test_time_of_a_client_is_summed_by_interface() -> None:
    usage = [
        {"API": "Metal", "accumulatedGPUTime": 5},
        {"API": "Metal", "accumulatedGPUTime": 7},
        {"API": "OpenGL", "accumulatedGPUTime": 0},
        {"API": "CL", "accumulatedGPUTime": -1},
        {"API": "CL"},
        "noise",
    ]
    assert parse_usage(usage) == {"Metal": 12, "OpenGL": 0}
    assert parse_usage(None) is None


def test_only_the_runtimes_clients_count_with_its_children() -> None:
    bench = Bench(accelerator(client(1, WINDOWS, 9_000), client(2, RUNTIME, 100, 20), client(3, CHILD, 3)))
    assert bench.values()["device_runtime_busy_ns"] == 120
    bench.children = (CHILD,)
    assert bench.values()["device_runtime_busy_ns"] == 123


def test_the_counter_never_falls_when_clients_and_queues_vanish() -> None:
    bench = Bench(accelerator(client(2, RUNTIME, 100, 20), client(3, RUNTIME, 50)))
    assert bench.values()["device_runtime_busy_ns"] == 170
    bench.now(accelerator(client(2, RUNTIME, 110)))
    assert bench.values()["device_runtime_busy_ns"] == 170
    bench.now(accelerator(client(2, RUNTIME, 115), client(4, RUNTIME, 30)))
    assert bench.values()["device_runtime_busy_ns"] == 205
    bench.probe.discover()
    bench.now(accelerator())
    assert bench.values()["device_runtime_busy_ns"] == 205


def test_a_queue_that_vanished_loses_only_its_own_new_time() -> None:
    times = ClientTimes()
    for value in (100, 40, 60):
        times.add(1, {"Metal": value})
    assert times.total_ns == 120


def test_a_client_without_account_makes_the_runtimes_time_unknown() -> None:
    silent = client(2, RUNTIME)
    del silent["AppUsage"]
    bench = Bench(accelerator(silent))
    assert bench.values()["device_runtime_busy_ns"] is None
    assert "GPU time of single processes" in bench.probe.gaps()["device_runtime_busy_ns"]


def test_without_a_runtime_the_device_alone_is_read() -> None:
    bench = Bench(accelerator(client(2, RUNTIME, 100)))
    assert bench.values(Targets())["device_runtime_busy_ns"] is None
    assert "no process of the runtime" in bench.probe.gaps()["device_runtime_busy_ns"]


def test_an_intel_mac_has_two_gpus_with_reasons_for_what_they_do_not_tell() -> None:
    intel = accelerator(
        IOObjectClass="IntelAccelerator",
        IORegistryEntryID=1,
        model=b"Intel(R) UHD Graphics 630\0",
        PerformanceStatistics={},
    )
    amd = accelerator(
        IOObjectClass="AMDRadeonX6000_AMDNavi14GraphicsAccelerator",
        IORegistryEntryID=2,
        model=b"AMD Radeon Pro 5500M",
        PerformanceStatistics={"GPU Activity(%)": 64},
    )
    del intel["gpu-core-count"], amd["gpu-core-count"]
    bench = Bench(intel, amd)
    assert [device.display_name for device in bench.probe.devices()] == [
        "Intel(R) UHD Graphics 630",
        "AMD Radeon Pro 5500M",
    ]
    assert bench.values(device=1)["device_busy_ratio"] == 0.64
    gaps = bench.probe.gaps()
    assert "device_busy_ratio@IntelAccelerator" in gaps
    assert "Apple's own GPUs do" in gaps["device_memory_used_bytes"]


def test_equal_gpus_are_told_apart() -> None:
    devices = Bench(accelerator(), accelerator(IORegistryEntryID=2)).probe.devices()
    assert [device.device_id for device in devices] == ["AGXAcceleratorG16G", "AGXAcceleratorG16G#2"]


def test_no_accelerator_is_unavailable_also_when_it_goes_away() -> None:
    with pytest.raises(Unavailable, match="virtual machine"):
        MacGpuProbe(RecordedRegistry({"IOAccelerator": b""})).discover()
    bench = Bench(accelerator())
    bench.now()
    with pytest.raises(Unavailable, match="gone"):
        bench.values()
    bench.probe.close()
    with pytest.raises(Unavailable, match="not discovered"):
        bench.values()


def test_a_recording_that_is_no_property_list_is_refused() -> None:
    with pytest.raises(ValueError, match="IOAccelerator is no property list"):
        RecordedRegistry({"IOAccelerator": b"+-o AGXAcceleratorG16G  <class AGXAcceleratorG16G>"})


class FakeKit:
    """IOKit and Core Foundation over plain objects: counts what is held."""

    def __init__(self, entries: dict[int, tuple[str, dict[str, object], list[int]]]) -> None:
        self.entries = entries
        self.iterators: dict[int, list[int]] = {}
        self.objects: dict[int, Any] = {}
        self.buffers: list[Any] = []
        self.held = 0

    def _iterator(self, entries: list[int], out: Any) -> int:
        self.held += 1
        out._obj.value = 1_000 + len(self.iterators)
        self.iterators[out._obj.value] = list(entries)
        return 0

    def _create(self, value: object) -> int:
        self.held += 1
        self.objects[10_000 + len(self.objects)] = value
        return 10_000 + len(self.objects) - 1

    def IOServiceMatching(self, name: bytes) -> bytes:  # noqa: N802
        return name

    def IOServiceGetMatchingServices(self, port: int, matching: bytes, out: Any) -> int:  # noqa: N802
        return self._iterator([n for n, (kind, _, _) in self.entries.items() if kind.encode() == matching], out)

    def IORegistryEntryGetChildIterator(self, entry: int, plane: bytes, out: Any) -> int:  # noqa: N802
        assert plane == b"IOService"
        return self._iterator(self.entries[entry][2], out)

    def IOIteratorNext(self, iterator: int) -> int:  # noqa: N802
        entry = self.iterators[iterator].pop(0) if self.iterators[iterator] else 0
        self.held += bool(entry)
        return entry

    def IOObjectRelease(self, number: int) -> int:  # noqa: N802
        self.held -= 1
        return 0

    def IOObjectGetClass(self, entry: int, name: Any) -> int:  # noqa: N802
        name.value = self.entries[entry][0].encode()
        return 0

    def IORegistryEntryGetRegistryEntryID(self, entry: int, out: Any) -> int:  # noqa: N802
        out._obj.value = entry
        return 0

    def CFStringCreateWithCString(self, allocator: None, text: bytes, encoding: int) -> str:  # noqa: N802
        return text.decode()

    def IORegistryEntryCreateCFProperty(self, entry: int, key: str, allocator: None, options: int) -> int:  # noqa: N802
        value = self.entries[entry][1].get(key)
        return 0 if value is None else self._create(value)

    def CFPropertyListCreateData(self, allocator: None, value: int, form: int, options: int, error: None) -> int:  # noqa: N802
        assert form == 200
        return self._create(plistlib.dumps(self.objects[value], fmt=plistlib.FMT_BINARY))

    def CFDataGetBytePtr(self, data: int) -> int:  # noqa: N802
        self.buffers.append(ctypes.create_string_buffer(self.objects[data]))
        return ctypes.addressof(self.buffers[-1])

    def CFDataGetLength(self, data: int) -> int:  # noqa: N802
        return len(self.objects[data])

    def CFRelease(self, number: int) -> None:  # noqa: N802
        self.held -= 1


def test_iokit_is_read_through_property_lists_and_everything_is_released() -> None:
    kit = FakeKit(
        {
            1: ("IOAccelerator", {"PerformanceStatistics": M4, "model": "Apple M4", "gpu-core-count": 10}, [2]),
            2: (
                "AGXDeviceUserClient",
                {"IOUserClientCreator": f"pid {RUNTIME}, a", "AppUsage": [{"accumulatedGPUTime": 77}]},
                [],
            ),
        }
    )
    probe = MacGpuProbe(IoKitRegistry(kit, kit), tree=lambda _: ())
    probe.discover()
    assert probe.devices()[0].display_name == "Apple M4 GPU (10 cores)"
    (reading,) = probe.read(Targets((RUNTIME,)))
    assert reading.values == (0.21, 351141888, 1574862848, 77)
    assert kit.held == 0


@pytest.mark.skipif(sys.platform == "darwin", reason="there IOKit is")
def test_elsewhere_the_probe_says_only_on_macos() -> None:
    with pytest.raises(Unavailable, match="only on macOS"):
        MacGpuProbe().discover()
    with pytest.raises(Unavailable, match="only on macOS"):
        load_libraries()
