"""``proc_pid_rusage`` from made-up structures: versions, processes that end, and those of other users."""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Sequence

import pytest

from benchfleet_agent.probes import Targets, Unavailable
from benchfleet_agent.probes.macos_process import SIZES, V4, V6, MacProcessProbe, ProcessUse, parse_usage

# The fields after the UUID in the order of <sys/resource.h>, struct rusage_info_v6 of macOS 14.
FIELDS = [
    "user_time",
    "system_time",
    "pkg_idle_wkups",
    "interrupt_wkups",
    "pageins",
    "wired_size",
    "resident_size",
    "phys_footprint",
    "proc_start_abstime",
    "proc_exit_abstime",
    "child_user_time",
    "child_system_time",
    "child_pkg_idle_wkups",
    "child_interrupt_wkups",
    "child_pageins",
    "child_elapsed_abstime",
    "diskio_bytesread",
    "diskio_byteswritten",
    "cpu_time_qos_default",
    "cpu_time_qos_maintenance",
    "cpu_time_qos_background",
    "cpu_time_qos_utility",
    "cpu_time_qos_legacy",
    "cpu_time_qos_user_initiated",
    "cpu_time_qos_user_interactive",
    "billed_system_time",
    "serviced_system_time",
    "logical_writes",
    "lifetime_max_phys_footprint",
    "instructions",
    "cycles",
    "billed_energy",
    "serviced_energy",
    "interval_max_phys_footprint",
    "runnable_time",
    "flags",
    "user_ptime",
    "system_ptime",
    "pinstructions",
    "pcycles",
    "energy_nj",
    "penergy_nj",
    "secure_time_in_system",
    "secure_ptime_in_system",
    "neural_footprint",
    "lifetime_max_neural_footprint",
    "interval_max_neural_footprint",
]
V4_FIELDS = FIELDS[: FIELDS.index("flags")]
RESERVED = 9
RUNTIME, CHILD = 4245, 4300
MIB = 2**20


def usage(version: int = V6, **fields: int) -> bytes:
    names = FIELDS if version == V6 else V4_FIELDS
    numbers = [fields.get(name, 0) for name in names] + [0] * (RESERVED if version == V6 else 0)
    return b"\xaa" * 16 + struct.pack(f"<{len(numbers)}Q", *numbers)


class FakeRusage:
    """Fields by process id; a number of an error instead is raised."""

    def __init__(self, processes: dict[int, dict[str, int] | int], newest: int = V6) -> None:
        self.processes: dict[int, dict[str, int] | int] = {os.getpid(): {}, **processes}
        self.newest = newest

    def usage(self, pid: int, version: int) -> bytes:
        if version > self.newest:
            raise OSError(errno.EINVAL, "Invalid argument")
        found = self.processes.get(pid, errno.ESRCH)
        if isinstance(found, int):
            raise OSError(found, os.strerror(found))
        return usage(version, **found)


def process(energy_nj: int, highest_mib: int, start: int = 7) -> dict[str, int]:
    return {
        "energy_nj": energy_nj,
        "phys_footprint": highest_mib * MIB // 2,
        "lifetime_max_phys_footprint": highest_mib * MIB,
        "neural_footprint": 3 * MIB,
        "proc_start_abstime": start,
        "user_time": 5,
    }


class Bench:
    def __init__(self, api: FakeRusage) -> None:
        self.api = api
        self.now_s = 0.0
        self.children: Sequence[int] = ()
        self.probe = MacProcessProbe(api, clock=lambda: int(self.now_s * 1e9), tree=lambda _: self.children)
        self.probe.discover()

    def values(self, *roots: int) -> tuple[object, ...]:
        self.now_s += 2
        (reading,) = self.probe.read(Targets(roots or (RUNTIME,)))
        return reading.values


def test_structures_have_the_documented_sizes() -> None:
    assert SIZES == {V4: len(usage(V4)), V6: len(usage(V6))} == {4: 296, 6: 464}


@pytest.mark.parametrize(("version", "energy_nj"), [(V6, 123), (V4, None)])
def test_fields_lie_at_the_documented_offsets(version: int, energy_nj: int | None) -> None:
    numbers = {name: 1_000 + index for index, name in enumerate(FIELDS)}
    data = usage(version, **{**numbers, "energy_nj": 123})
    expected = ProcessUse(
        start=numbers["proc_start_abstime"],
        footprint_bytes=numbers["phys_footprint"],
        highest_bytes=numbers["lifetime_max_phys_footprint"],
        energy_nj=energy_nj,
        neural_bytes=numbers["neural_footprint"] if version == V6 else None,
        user_time=numbers["user_time"],
    )
    assert parse_usage(data, version) == expected


def test_a_structure_cut_short_is_refused() -> None:
    with pytest.raises(struct.error):
        parse_usage(usage(V4), V6)


def test_energy_and_footprints_are_summed_over_the_tree() -> None:
    bench = Bench(FakeRusage({RUNTIME: process(1_000, 300), CHILD: process(50, 40), 1: process(9_999, 9)}))
    bench.children = (CHILD,)
    assert bench.values() == (1_050, 170 * MIB, 340 * MIB, 6 * MIB)
    assert not bench.probe.gaps()


def test_energy_does_not_fall_when_a_process_ends_or_its_id_comes_back() -> None:
    bench = Bench(FakeRusage({RUNTIME: process(1_000, 300), CHILD: process(50, 40)}))
    bench.children = (CHILD,)
    bench.values()
    bench.api.processes[CHILD] = errno.ESRCH
    assert bench.values() == (1_050, 150 * MIB, 300 * MIB, 3 * MIB)
    bench.api.processes[CHILD] = process(3, 10, start=99)
    assert bench.values() == (1_053, 155 * MIB, 310 * MIB, 6 * MIB)


def test_another_runtime_begins_an_account_of_its_own() -> None:
    bench = Bench(FakeRusage({RUNTIME: process(1_000, 300), CHILD: process(50, 40)}))
    bench.values(RUNTIME)
    assert bench.values(CHILD) == (50, 20 * MIB, 40 * MIB, 3 * MIB)


def test_macos_before_13_has_footprints_but_no_energy() -> None:
    bench = Bench(FakeRusage({RUNTIME: process(1_000, 300)}, newest=V4))
    assert bench.values() == (None, 150 * MIB, 300 * MIB, None)
    assert "before 13" in bench.probe.gaps()["runtime_energy_nj"]
    assert "before 13" in bench.probe.gaps()["runtime_neural_bytes"]


def test_energy_that_stays_0_while_the_cpu_works_is_unknown() -> None:
    bench = Bench(FakeRusage({RUNTIME: process(0, 300)}))
    assert bench.values() == (None, 150 * MIB, 300 * MIB, 3 * MIB)
    assert "not accounted" in bench.probe.gaps()["runtime_energy_nj"]


@pytest.mark.parametrize(("number", "reason"), [(errno.EPERM, "runtime's user"), (errno.EIO, "proc_pid_rusage failed")])
def test_a_process_that_may_not_be_read_makes_the_sums_unknown(number: int, reason: str) -> None:
    bench = Bench(FakeRusage({RUNTIME: process(1_000, 300), CHILD: number}))
    bench.children = (CHILD,)
    assert bench.values() == (None,) * 4
    assert reason in bench.probe.gaps()["runtime_energy_nj"]
    assert reason in bench.probe.gaps()["runtime_footprint_highest_bytes"]


def test_no_runtime_and_one_that_ended_are_reasons() -> None:
    bench = Bench(FakeRusage({}))
    (reading,) = bench.probe.read(Targets())
    assert reading.values == (None,) * 4
    assert "no process of the runtime runs" in bench.probe.gaps()["runtime_energy_nj"]
    assert bench.values() == (None,) * 4
    assert "left" in bench.probe.gaps()["runtime_energy_nj"]


def test_a_call_that_refuses_the_agent_itself_makes_the_probe_unavailable() -> None:
    probe = MacProcessProbe(FakeRusage({os.getpid(): errno.EPERM}))
    with pytest.raises(Unavailable, match="its own use"):
        probe.discover()
    with pytest.raises(Unavailable, match="not discovered"):
        probe.read(Targets())


@pytest.mark.skipif(sys.platform == "darwin", reason="there the call is")
def test_elsewhere_the_probe_says_only_on_macos() -> None:
    with pytest.raises(Unavailable, match="only on macOS"):
        MacProcessProbe().discover()
