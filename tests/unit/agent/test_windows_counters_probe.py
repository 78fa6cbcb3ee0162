"""Windows' performance counters from recorded names of instances: adapters, engines, processes, and what is wrong."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Reading, Targets, Unavailable
from benchfleet_agent.probes.windows_adapters import Adapter, Names, parse_names
from benchfleet_agent.probes.windows_counters import (
    ADAPTER_DEDICATED,
    ADAPTER_SHARED,
    ENGINE,
    METRICS,
    PROCESS_DEDICATED,
    PROCESS_SHARED,
    WindowsCountersProbe,
)
from benchfleet_agent.probes.windows_engines import Engine, EngineTimes, is_npu, parse_engine, parse_memory
from benchfleet_agent.probes.windows_nvidia import (
    AdapterAddress,
    NvmlGpu,
    OpenAdapterFromLuid,
    Place,
    QueryAdapterInfo,
    nvml_gpus,
    place_of,
    same_gpus,
)
from benchfleet_agent.probes.windows_pdh import (
    NO_DATA,
    FileTime,
    Instance,
    PdhError,
    PdhQuery,
    RawCounter,
    RawCounterItem,
    load_pdh,
    meaning,
)
from fakes.pdh import FakePdh, Values

RTX, ARC, BOOST, BASIC = (f"0x00000000_0x000{end}" for end in ("131C8", "12D1A", "128A6", "13164"))
GIB, MIB = 2**30, 2**20
S = 10_000_000  # a second in the counters' 100 ns
RUNTIME, CHILD, DWM = 4321, 4400, 1212

LAPTOP = Names(
    {
        RTX: Adapter(RTX, "NVIDIA GeForce RTX 4070 Laptop GPU", 0x10DE, 8 * GIB, "32.0.15.6590"),
        ARC: Adapter(ARC, "Intel(R) Arc(TM) Graphics", 0x8086, 128 * MIB, "32.0.101.6647"),
        BASIC: Adapter(BASIC, "Microsoft Basic Render Driver", 0x1414, 0, "10.0.26100.1"),
    },
    (("Intel(R) AI Boost", "32.0.100.3717"),),
)


def engine(pid: int, luid: str, number: int, kind: str) -> str:
    return f"pid_{pid}_luid_{luid}_phys_0_eng_{number}_engtype_{kind}"


def memory(luid: str, pid: int | None = None) -> str:
    return ("" if pid is None else f"pid_{pid}_") + f"luid_{luid}_phys_0"


def laptop() -> FakePdh:
    """A laptop with a GPU of its own, graphics in the processor and an NPU; the desktop runs on the graphics."""
    return FakePdh(
        {
            ENGINE: {
                engine(DWM, ARC, 0, "3D"): 36_000 * S,
                engine(DWM, ARC, 6, "Neural"): 0,
                engine(RUNTIME, RTX, 0, "3D"): 0,
                engine(RUNTIME, RTX, 8, "Compute_0"): 5 * S,
            },
            ADAPTER_DEDICATED: {memory(RTX): 6 * GIB, memory(ARC): 0, memory(BOOST): 0, memory(BASIC): 0},
            ADAPTER_SHARED: {memory(RTX): 300 * MIB, memory(ARC): 2 * GIB, memory(BOOST): GIB, memory(BASIC): 0},
            PROCESS_DEDICATED: {memory(RTX, RUNTIME): 5 * GIB, memory(ARC, DWM): 0, memory(BOOST, RUNTIME): 0},
            PROCESS_SHARED: {memory(RTX, RUNTIME): 200 * MIB, memory(BOOST, RUNTIME): GIB, memory(ARC, DWM): GIB},
        }
    )


class Bench:
    """A probe over a fake library, with its clock and the runtime's children in the test's hands."""

    def __init__(self, pdh: FakePdh, names: Names = LAPTOP) -> None:
        self.pdh = pdh
        self.now_s = 0.0
        self.children: Sequence[int] = ()
        self.probe = WindowsCountersProbe(
            pdh, clock=lambda: int(self.now_s * 1e9), tree=lambda _: self.children, names=lambda: names
        )
        self.probe.discover()

    def values(self, luid: str, targets: Targets | None = None, after_s: float = 0.5) -> dict[str, object]:
        self.now_s += after_s
        readings: dict[str, Reading] = {
            reading.device_id: reading for reading in self.probe.read(targets or Targets((RUNTIME,)))
        }
        return dict(zip(METRICS, readings[luid].values, strict=True))

    def set(self, path: str, values: Values) -> None:
        self.pdh.counters[path] = {**self.pdh.counters[path], **values}

    def drop(self, path: str, name: str) -> None:
        self.pdh.counters[path] = {key: value for key, value in self.pdh.counters[path].items() if key != name}


def test_structures_have_the_documented_sizes_and_offsets() -> None:
    assert ctypes.sizeof(FileTime) == 8
    assert ctypes.sizeof(RawCounter) == 40
    offsets = {name: getattr(RawCounter, name).offset for name, _ in RawCounter._fields_}
    assert offsets == {"status": 0, "timestamp": 4, "first_value": 16, "second_value": 24, "multi_count": 32}
    assert (ctypes.sizeof(RawCounterItem), RawCounterItem.raw.offset) == (48, 8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "pid_1234_luid_0x00000000_0x0000C1B3_phys_0_eng_0_engtype_3D",
            (1234, Engine("0x00000000_0x0000C1B3", 0, 0, "3D")),
        ),
        (
            "pid_10644_luid_0x00000000_0x0000d351_phys_1_eng_12_engtype_high priority compute",
            (10644, Engine("0x00000000_0x0000D351", 1, 12, "high priority compute")),
        ),
        ("pid_4_luid_0x00000001_0x00005C30_phys_0_eng_3_engtype_", (4, Engine("0x00000001_0x00005C30", 0, 3, ""))),
        ("pid_4_luid_0x00000001_0x00005C30_phys_0_eng_3_engtype", (4, Engine("0x00000001_0x00005C30", 0, 3, ""))),
        ("_Total", None),
        ("", None),
        ("pid__luid_0x0_0x0_phys_0_eng_0_engtype_3D", None),
        ("pid_12_luid_0x00000000_0xC1B3G_phys_0_eng_0_engtype_3D", None),
        ("luid_0x00000000_0x0000C1B3_phys_0", None),
    ],
)
def test_names_of_engines_are_read_and_malformed_ones_left_out(name: str, expected: object) -> None:
    assert parse_engine(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("luid_0x00000000_0x0000C1B3_phys_0", (None, "0x00000000_0x0000C1B3")),
        ("pid_77_luid_0x00000000_0x0000C1B3_phys_0", (77, "0x00000000_0x0000C1B3")),
        ("pid_77_luid_0x00000000_0x0000C1B3_phys_0#1", None),
        ("luid_phys_0", None),
    ],
)
def test_names_of_memories_are_read_and_malformed_ones_left_out(name: str, expected: object) -> None:
    assert parse_memory(name) == expected


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"Compute"}, True),
        ({"Neural"}, True),
        ({"Compute_0", "Copy"}, True),
        ({"3D", "Neural", "Compute", "Copy"}, False),
        ({"Copy"}, False),
        ({"Compute_0", "VideoDecode"}, False),
        (set(), False),
    ],
)
def test_an_npu_computes_and_draws_nothing(kinds: set[str], expected: bool) -> None:
    assert is_npu(kinds) is expected


def test_a_hybrid_laptop_shows_gpu_graphics_and_npu_by_name_and_no_software_adapter() -> None:
    devices = {device.device_id: device for device in Bench(laptop()).probe.devices()}
    assert set(devices) == {RTX, ARC, BOOST}
    assert (devices[RTX].kind, devices[RTX].memory_kind, devices[RTX].memory_bytes) == ("gpu", "dedicated", 8 * GIB)
    assert (devices[ARC].kind, devices[ARC].memory_kind, devices[ARC].memory_bytes) == ("gpu", "shared", None)
    assert (devices[BOOST].kind, devices[BOOST].display_name) == ("npu", "Intel(R) AI Boost")
    assert devices[BOOST].driver_version == "32.0.100.3717"


def test_a_gpu_that_nvml_knows_goes_by_its_uuid_and_is_described_there() -> None:
    bench = Bench(laptop(), replace(LAPTOP, uuids={RTX: "GPU-5c0e"}))
    assert {device.device_id for device in bench.probe.devices()} == {ARC, BOOST}
    values = bench.values("GPU-5c0e")
    assert values["device_memory_runtime_bytes"] == 5 * GIB
    assert values["device_memory_used_bytes"] is None
    assert not bench.probe.gaps()
    bench.set(PROCESS_DEDICATED, {memory(RTX, RUNTIME): 14 * GIB})
    assert bench.values("GPU-5c0e")["device_memory_runtime_bytes"] is None
    assert "device_memory_runtime_bytes@GPU-5c0e" in bench.probe.gaps()


GEFORCE = "NVIDIA GeForce RTX 4090"


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({"A": (1, 0), "B": (2, 0)}, {"A": "GPU-1", "B": "GPU-2"}),
        ({"A": (2, 0), "B": (9, 0)}, {"A": "GPU-2"}),
        ({"A": None, "B": None}, {}),
    ],
)
def test_equal_gpus_are_joined_by_their_place_on_the_bus(
    places: dict[str, Place | None], expected: dict[str, str]
) -> None:
    gpus = [NvmlGpu("GPU-1", GEFORCE, (1, 0)), NvmlGpu("GPU-2", GEFORCE, (2, 0))]
    assert same_gpus({"A": GEFORCE, "B": GEFORCE}, gpus, places.__getitem__) == expected


def test_without_a_place_a_name_that_is_unique_joins() -> None:
    gpus = [NvmlGpu("GPU-1", GEFORCE, (1, 0)), NvmlGpu("GPU-2", "NVIDIA RTX A2000", (2, 0))]
    assert same_gpus({"A": "NVIDIA RTX A2000", "B": "another"}, gpus, lambda _: None) == {"A": "GPU-2"}


class FakeGdi:
    """The graphics kernel: answers with a place, or refuses one of the calls."""

    def __init__(self, refused: str = "") -> None:
        self.refused, self.opened = refused, 0

    def D3DKMTOpenAdapterFromLuid(self, argument: Any) -> int:  # noqa: N802
        assert (argument._obj.luid_high, argument._obj.luid_low) == (0, 0x131C8)
        self.opened += self.refused != "open"
        argument._obj.adapter = 0x40000000
        return -1 if self.refused == "open" else 0

    def D3DKMTQueryAdapterInfo(self, argument: Any) -> int:  # noqa: N802
        query = argument._obj
        assert (query.adapter, query.kind, query.size) == (0x40000000, 6, 12)
        address = ctypes.cast(query.data, ctypes.POINTER(AdapterAddress)).contents
        address.bus, address.device = 3, 1
        return -1 if self.refused == "query" else 0

    def D3DKMTCloseAdapter(self, argument: Any) -> int:  # noqa: N802
        self.opened -= argument._obj.value == 0x40000000
        return 0


@pytest.mark.parametrize(("refused", "expected"), [("", (3, 1)), ("open", None), ("query", None)])
def test_windows_is_asked_for_the_place_of_an_adapter(refused: str, expected: Place | None) -> None:
    gdi = FakeGdi(refused)
    assert place_of(RTX, gdi) == expected
    assert gdi.opened == 0


def test_the_kernels_structures_have_the_documented_sizes() -> None:
    assert (ctypes.sizeof(OpenAdapterFromLuid), ctypes.sizeof(AdapterAddress)) == (12, 12)
    assert (ctypes.sizeof(QueryAdapterInfo), QueryAdapterInfo.data.offset, QueryAdapterInfo.size.offset) == (24, 8, 16)


def test_nvml_is_asked_for_its_gpus_and_its_silence_means_none() -> None:
    class Error(Exception):
        pass

    def refuse() -> None:
        raise Error

    pci = SimpleNamespace(bus=1, device=0)
    nvml = SimpleNamespace(
        NVMLError=Error,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetPciInfo=lambda handle: pci,
        nvmlDeviceGetUUID=lambda handle: b"GPU-1",
        nvmlDeviceGetName=lambda handle: GEFORCE,
    )
    assert nvml_gpus(nvml) == [NvmlGpu("GPU-1", GEFORCE, (1, 0))]
    nvml.nvmlDeviceGetCount = refuse
    assert nvml_gpus(nvml) == []
    nvml.nvmlInit = refuse
    assert nvml_gpus(nvml) == []


def test_without_a_registry_adapters_have_numbers_and_are_told_by_their_engines() -> None:
    pdh = laptop()
    pdh.counters[ENGINE] = {**pdh.counters[ENGINE], engine(RUNTIME, BOOST, 0, "Neural"): 0}
    devices = {device.device_id: device for device in Bench(pdh, Names({})).probe.devices()}
    assert {luid: device.kind for luid, device in devices.items()} == {
        RTX: "gpu",
        ARC: "gpu",
        BOOST: "npu",
        BASIC: "gpu",
    }
    assert devices[BOOST].display_name == f"NPU {BOOST}"
    assert devices[RTX].memory_kind == ""


def test_an_npu_shows_when_it_is_first_used() -> None:
    bench = Bench(laptop(), Names(LAPTOP.adapters))
    assert {device.kind for device in bench.probe.devices()} == {"gpu"}
    bench.set(ENGINE, {engine(RUNTIME, BOOST, 0, "Compute"): S})
    assert bench.values(BOOST)["device_busy_ns"] == 1_000_000_000
    assert [device.kind for device in bench.probe.devices() if device.device_id == BOOST] == ["npu"]


def test_a_compute_only_gpu_of_nvidia_is_no_npu() -> None:
    pdh = FakePdh({ENGINE: {engine(RUNTIME, RTX, 0, "Compute_0"): 0}, ADAPTER_DEDICATED: {memory(RTX): GIB}})
    (device,) = Bench(pdh).probe.devices()
    assert device.kind == "gpu"


def test_engine_time_is_the_busiest_engine_for_everyone_and_all_engines_for_the_runtime() -> None:
    bench = Bench(laptop())
    assert bench.values(RTX)["device_busy_ns"] == 0
    bench.set(ENGINE, {engine(RUNTIME, RTX, 0, "3D"): S // 10, engine(RUNTIME, RTX, 8, "Compute_0"): 5 * S + S // 4})
    values = bench.values(RTX)
    assert values["device_busy_ns"] == 250_000_000
    assert values["device_runtime_busy_ns"] == 350_000_000
    bench.set(ENGINE, {engine(DWM, RTX, 8, "Compute_0"): S // 4, engine(RUNTIME, RTX, 8, "Compute_0"): 5 * S + S // 2})
    values = bench.values(RTX)
    assert values["device_busy_ns"] == 250_000_000 + 500_000_000  # one engine, two processes
    assert values["device_runtime_busy_ns"] == 600_000_000


def test_counters_do_not_fall_when_processes_end_or_the_probe_is_discovered_again() -> None:
    bench = Bench(laptop())
    bench.children = (CHILD,)
    bench.set(ENGINE, {engine(CHILD, RTX, 8, "Compute_0"): S // 2})
    before = bench.values(RTX)
    bench.drop(ENGINE, engine(CHILD, RTX, 8, "Compute_0"))
    bench.children = ()
    bench.drop(ENGINE, engine(DWM, ARC, 0, "3D"))
    assert bench.values(RTX) == before
    bench.probe.close()
    bench.probe.discover()
    assert bench.values(RTX) == before
    bench.set(ENGINE, {engine(CHILD, RTX, 8, "Compute_0"): S // 10})  # opened again: it counts from 0
    after = bench.values(RTX)
    assert after["device_runtime_busy_ns"] == before["device_runtime_busy_ns"] + 100_000_000  # type: ignore[operator]


def test_an_instance_that_was_invalid_for_a_moment_is_not_counted_twice() -> None:
    bench = Bench(laptop())
    name = engine(DWM, ARC, 0, "3D")
    bench.set(ENGINE, {name: (0xC0000BBA, 0)})
    bench.values(ARC)
    bench.set(ENGINE, {name: 36_000 * S + S // 10})
    assert bench.values(ARC)["device_busy_ns"] == 0
    bench.set(ENGINE, {name: 36_000 * S + S // 5})
    assert bench.values(ARC)["device_busy_ns"] == 100_000_000
    assert not bench.probe.gaps()


def test_a_count_that_jumps_back_is_unknown_with_the_reason() -> None:
    bench = Bench(laptop())
    name = engine(RUNTIME, ARC, 6, "Neural")
    for value in (0, 2_870 * S, 1_490 * S):
        bench.set(ENGINE, {name: value})
        values = bench.values(ARC)
    assert (values["device_busy_ns"], values["device_runtime_busy_ns"]) == (None, None)
    assert "jumps" in bench.probe.gaps()[f"device_busy_ns@{ARC}"]
    assert bench.values(RTX)["device_busy_ns"] == 0


def test_a_long_packet_booked_at_its_end_counts() -> None:
    times = EngineTimes()
    times.add({engine(1, RTX, 0, "Compute"): 0}, 0, lambda _: True)
    times.add({engine(1, RTX, 0, "Compute"): 14 * S}, 1_000_000_000, lambda _: True)
    assert (times.busiest_ns[RTX], times.broken(RTX)) == (14_000_000_000, frozenset())


def test_memory_of_a_gpu_of_its_own_and_of_devices_that_share_the_hosts() -> None:
    bench = Bench(laptop())
    rtx = bench.values(RTX)
    assert rtx["device_memory_used_bytes"] == 6 * GIB
    assert rtx["device_shared_memory_bytes"] == 300 * MIB
    assert rtx["device_memory_runtime_bytes"] == 5 * GIB
    boost = bench.values(BOOST)
    assert (boost["device_memory_used_bytes"], boost["device_memory_runtime_bytes"]) == (GIB, GIB)
    assert bench.values(ARC)["device_memory_runtime_bytes"] == 0  # the desktop's is not the runtime's


def test_a_process_with_more_memory_than_everyone_together_is_unknown() -> None:
    bench = Bench(laptop())
    bench.set(PROCESS_DEDICATED, {memory(RTX, RUNTIME): 14 * GIB})
    assert bench.values(RTX)["device_memory_runtime_bytes"] is None
    assert "more for the runtime" in bench.probe.gaps()[f"device_memory_runtime_bytes@{RTX}"]
    bench.set(PROCESS_DEDICATED, {memory(RTX, DWM): 14 * GIB, memory(RTX, RUNTIME): GIB})
    assert bench.values(RTX)["device_memory_runtime_bytes"] == GIB  # absurd figures of others do no harm


@pytest.mark.parametrize("value", [-1, 2**63 - 1])
def test_absurd_memory_is_unknown(value: int) -> None:
    bench = Bench(laptop())
    bench.set(ADAPTER_DEDICATED, {memory(RTX): value})
    assert bench.values(RTX)["device_memory_used_bytes"] is None
    assert f"device_memory_used_bytes@{RTX}" in bench.probe.gaps()


def test_without_a_runtime_only_the_adapters_are_read() -> None:
    bench = Bench(laptop())
    values = bench.values(RTX, Targets())
    assert (values["device_runtime_busy_ns"], values["device_memory_runtime_bytes"]) == (None, None)
    assert values["device_memory_used_bytes"] == 6 * GIB
    assert "no process of the runtime" in bench.probe.gaps()["device_runtime_busy_ns"]


def test_missing_counters_are_gaps_with_windows_status() -> None:
    pdh = laptop()
    del pdh.counters[ENGINE], pdh.counters[PROCESS_DEDICATED]
    bench = Bench(pdh)
    values = bench.values(RTX)
    assert (values["device_busy_ns"], values["device_memory_runtime_bytes"]) == (None, None)
    assert "0xC0000BB8" in bench.probe.gaps()["device_busy_ns"]
    assert values["device_memory_used_bytes"] == 6 * GIB


def test_without_any_gpu_counters_the_probe_is_unavailable_with_advice() -> None:
    pdh = FakePdh({})
    with pytest.raises(Unavailable, match=r"WDDM 2\.0 or newer.*lodctr /R.*0xC0000BB8"):
        Bench(pdh)
    assert pdh.open_queries == 0


def test_without_adapters_the_probe_is_unavailable() -> None:
    pdh = FakePdh({ENGINE: {}, ADAPTER_DEDICATED: {}})
    pdh.collect_status = NO_DATA
    with pytest.raises(Unavailable, match="no GPU and no NPU"):
        Bench(pdh)
    assert pdh.open_queries == 0


def test_a_collection_that_fails_is_unavailable_and_reading_goes_on_afterwards() -> None:
    bench = Bench(laptop())
    bench.pdh.collect_status = 0xC0000BBC
    with pytest.raises(Unavailable, match="handle is invalid"):
        bench.values(RTX)
    bench.pdh.collect_status = 0
    assert bench.values(RTX)["device_memory_used_bytes"] == 6 * GIB


def test_reading_before_discovery_and_after_closing_is_refused() -> None:
    bench = Bench(laptop())
    bench.probe.close()
    bench.probe.close()
    assert bench.pdh.open_queries == 0
    with pytest.raises(Unavailable, match="not discovered"):
        bench.values(RTX)


def test_the_buffer_is_asked_for_once_and_again_only_when_it_became_too_small() -> None:
    pdh = FakePdh({ENGINE: {"a": 1}})
    query = PdhQuery(pdh, [ENGINE])
    for _ in range(3):
        query.collect()
        assert query.instances(ENGINE) == [Instance("a", 1)]
    assert pdh.size_calls == 1
    pdh.counters[ENGINE] = {f"instance {index}": index for index in range(100)}
    query.collect()
    assert [instance.value for instance in query.instances(ENGINE)] == list(range(100))
    assert pdh.size_calls == 3  # too small; then the size; then it fits


def test_a_buffer_that_never_fits_ends_in_an_error() -> None:
    pdh = FakePdh({ENGINE: {"a": 1}})
    query = PdhQuery(pdh, [ENGINE])
    pdh.array_status = 0x800007D2
    query.collect()
    with pytest.raises(PdhError, match="0x800007D2"):
        query.instances(ENGINE)


def test_a_status_is_told_in_words_and_number() -> None:
    assert meaning(0xC0000BDB).startswith("access was denied")
    assert "unknown reason (PDH status 0x12345678)" in meaning(0x12345678)


def test_the_registry_gives_names_and_leaves_out_adapters_that_are_gone() -> None:
    names = parse_names(
        {"LastSeen": 133_000},
        [
            {
                "AdapterLuid": 0x131C8,
                "Description": "NVIDIA GeForce RTX 4070 Laptop GPU",
                "DedicatedVideoMemory": 8 * GIB,
                "VendorId": 0x10DE,
                "DriverVersion": 32 << 48 | 15 << 16 | 6590,
                "LastSeen": 133_000,
            },
            {"AdapterLuid": 0x153FE, "Description": "An eGPU of last week", "LastSeen": 132_000},
            {"AdapterLuid": 0x1_0001_2D1A, "Description": "Adapter of a long uptime"},
            {"Description": "no LUID"},
            {"AdapterLuid": 7},
        ],
        [{"DriverDesc": "Intel(R) AI Boost", "DriverVersion": "32.0.100.3717"}, {}],
    )
    assert set(names.adapters) == {RTX, "0x00000001_0x00012D1A"}
    assert names.adapters[RTX] == LAPTOP.adapters[RTX]
    assert names.npus == LAPTOP.npus


@pytest.mark.skipif(sys.platform == "win32", reason="there pdh.dll is")
def test_elsewhere_the_probe_says_only_on_windows() -> None:
    with pytest.raises(Unavailable, match="only on Windows"):
        WindowsCountersProbe().discover()
    with pytest.raises(Unavailable, match="only on Windows"):
        load_pdh()


def test_its_metrics_are_declared() -> None:
    assert set(METRICS) <= set(BY_NAME)
