"""The kernel's account of DRM clients: recorded and documented files, and made-up process trees."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchfleet_agent.probes.drm_clients import (
    FOREIGN,
    NO_ENGINE_TIME,
    NO_MEMORY,
    NO_RUNTIME,
    DeviceUse,
    DrmClients,
    DrmUse,
    parse_fdinfo,
    runtime_use,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the trees need symbolic links")

S = 1_000_000_000
GPU = "0000:00:02.0"

# As proc_pid_fdinfo(5) shows it.
I915 = """\
pos:	0
flags:	02100002
mnt_id:	26
ino:	284
drm-driver:	i915
drm-client-id:	39
drm-pdev:	0000:00:02.0
drm-total-system0:	6044 KiB
drm-shared-system0:	0
drm-active-system0:	0
drm-resident-system0:	6044 KiB
drm-purgeable-system0:	1688 KiB
drm-total-stolen-system0:	0
drm-resident-stolen-system0:	0
drm-engine-render:	346249 ns
drm-engine-copy:	0 ns
drm-engine-capacity-video:	2
drm-engine-video:	100 ns
"""

XE = """\
drm-driver:	xe
drm-client-id:	{client}
drm-pdev:	0000:00:02.0
drm-total-gtt:	192 KiB
drm-resident-gtt:	192 KiB
drm-total-vram0:	24 MiB
drm-resident-vram0:	23992 KiB
drm-cycles-rcs:	{rcs}
drm-total-cycles-rcs:	{total}
drm-cycles-ccs:	{ccs}
drm-total-cycles-ccs:	{total}
drm-engine-capacity-ccs:	4
"""

AMDGPU_OLD = """\
drm-driver:	amdgpu
drm-client-id:	8
drm-pdev:	0000:03:00.0
pasid:	32785
drm-memory-vram:	544428 KiB
drm-memory-gtt: 	22528 KiB
amd-requested-vram:	544428 KiB
drm-engine-gfx:	39456116802 ns
"""


def test_a_client_counted_in_time() -> None:
    client = parse_fdinfo(I915)
    assert client is not None
    assert (client.driver, client.address, client.client_id) == ("i915", GPU, "39")
    assert client.engine_ns == {"render": 346249, "copy": 0, "video": 100}
    assert client.engine_cycles == {}
    assert client.memory_bytes == {"system0": 6044 * 1024, "stolen-system0": 0}


def test_a_client_counted_in_cycles() -> None:
    client = parse_fdinfo(XE.format(client=3, rcs=7, ccs=0, total=100))
    assert client is not None
    assert client.engine_cycles == {"rcs": (7, 100), "ccs": (0, 100)}
    assert client.engine_ns == {}
    assert client.memory_bytes == {"gtt": 192 * 1024, "vram0": 23992 * 1024}


def test_older_amdgpu_names_resident_memory_otherwise() -> None:
    client = parse_fdinfo(AMDGPU_OLD)
    assert client is not None
    assert client.memory_bytes == {"vram": 544428 * 1024, "gtt": 22528 * 1024}
    assert client.engine_ns == {"gfx": 39456116802}


def test_total_memory_stands_in_where_resident_is_not_told() -> None:
    text = "drm-driver: amdxdna_accel_driver\ndrm-pdev: 0000:C4:00.1\ndrm-total-memory: 4 KiB\n"
    client = parse_fdinfo(text)
    assert client is not None
    assert client.memory_bytes == {"memory": 4096}
    assert client.address == "0000:c4:00.1"


@pytest.mark.parametrize("line", ["drm-engine-render: -5 ns", "drm-engine-render: 5 %", "drm-engine-render: nan ns"])
def test_garbage_is_left_out(line: str) -> None:
    client = parse_fdinfo(f"drm-driver: i915\n{line}\n")
    assert client is not None
    assert client.engine_ns == {}


def test_other_descriptors_are_no_clients() -> None:
    assert parse_fdinfo("pos:\t0\nflags:\t02\neventfd-count: 0\n") is None


class Machine:
    """Process trees under a made-up /proc, and a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = S
        self.listed = 0
        self.children: tuple[int, ...] = ()
        self.clients = DrmClients(root, self.tree, lambda: self.now)

    def tree(self, roots: Sequence[int]) -> Sequence[int]:
        self.listed += 1
        return self.children

    def open(self, pid: int, fd: int, text: str = "", target: str = "/dev/dri/renderD128") -> None:
        for directory in ("fd", "fdinfo"):
            (self.root / "proc" / str(pid) / directory).mkdir(parents=True, exist_ok=True)
        link = self.root / "proc" / str(pid) / "fd" / str(fd)
        if not link.is_symlink():
            os.symlink(target, link)
        self.say(pid, fd, text)

    def say(self, pid: int, fd: int, text: str) -> None:
        (self.root / "proc" / str(pid) / "fdinfo" / str(fd)).write_text(text)

    def end(self, pid: int) -> None:
        for path in sorted((self.root / "proc" / str(pid)).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def gpu(self, roots: tuple[int, ...] = (1,), *, relist: bool = False) -> DeviceUse:
        return self.clients.read(roots, relist=relist).devices[GPU]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_client_seen_through_several_descriptors_and_processes_counts_once(machine: Machine) -> None:
    machine.open(1, 5, I915)
    machine.open(1, 6, I915)
    machine.open(2, 5, I915)
    machine.open(2, 9, I915.replace("39", "40"))
    machine.open(2, 10, "drm-driver: nothing to see", target="/home/user/file")
    machine.children = (2,)
    assert machine.gpu() == DeviceUse(2 * 346349, {"system0": 2 * 6044 * 1024, "stolen-system0": 0})


def test_descriptors_are_listed_once_a_second_and_at_edges(machine: Machine) -> None:
    machine.open(1, 5, I915)
    for _ in range(5):
        machine.gpu()
    assert machine.listed == 1
    machine.open(1, 6, I915.replace("39", "40"))
    assert machine.gpu().busy_ns == 346349
    assert machine.gpu(relist=True).busy_ns == 2 * 346349
    machine.now += S
    machine.gpu()
    assert machine.listed == 3


def test_what_a_closed_client_did_stays_counted_and_its_memory_is_free(machine: Machine) -> None:
    machine.open(1, 5, I915)
    machine.open(2, 5, I915.replace("39", "40"))
    machine.children = (2,)
    machine.gpu()
    machine.end(2)
    use = machine.gpu(relist=True)
    assert use.busy_ns == 2 * 346349
    assert use.memory_bytes == {"system0": 6044 * 1024, "stolen-system0": 0}
    machine.open(2, 5, I915.replace("39", "40"))  # the same client again
    assert machine.gpu(relist=True).busy_ns == 2 * 346349


def test_engine_time_never_falls(machine: Machine) -> None:
    machine.open(1, 5, I915)
    machine.gpu()
    machine.say(1, 5, I915.replace("346249", "300000"))
    assert machine.gpu().busy_ns == 346349
    machine.say(1, 5, I915.replace("346249", "400000"))
    assert machine.gpu().busy_ns == 400100


def test_cycles_become_time_by_their_share_of_those_that_passed(machine: Machine) -> None:
    machine.open(1, 5, XE.format(client=3, rcs=1000, ccs=0, total=10_000))
    assert machine.gpu().busy_ns == 0
    machine.now += S // 2
    machine.say(1, 5, XE.format(client=3, rcs=3000, ccs=500, total=20_000))
    assert machine.gpu().busy_ns == (0.2 + 0.05) * S / 2
    machine.now += S // 2
    machine.say(1, 5, XE.format(client=3, rcs=3000, ccs=10_500, total=30_000))
    assert machine.gpu().busy_ns == 0.125 * S + 0.5 * S


def test_cycles_that_fall_count_once_they_have_caught_up(machine: Machine) -> None:
    busy_ns = []
    for rcs, total in ((1000, 10_000), (900, 11_000), (1500, 12_000)):
        machine.open(1, 5, XE.format(client=3, rcs=rcs, ccs=0, total=total))
        busy_ns.append(machine.gpu().busy_ns)
        machine.now += S
    assert busy_ns == [0, 0, S // 2]  # 500 of 2,000 cycles in 2 s


def test_cycles_that_begin_afresh_add_nothing(machine: Machine) -> None:
    machine.open(1, 5, XE.format(client=3, rcs=1000, ccs=0, total=10_000))
    machine.gpu()
    for total, rcs in ((500, 10), (1500, 510)):
        machine.now += S
        machine.say(1, 5, XE.format(client=3, rcs=rcs, ccs=0, total=total))
        use = machine.gpu()
    assert use.busy_ns == S // 2


def test_other_roots_begin_afresh(machine: Machine) -> None:
    machine.open(1, 5, I915)
    machine.open(7, 5, I915.replace("39", "40").replace("346249", "900"))
    machine.gpu()
    assert machine.gpu((7,)).busy_ns == 1000
    assert machine.clients.read(()).problem == NO_RUNTIME


def test_another_users_process_is_a_problem_not_a_zero(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.open(1, 5, I915)

    def refuse(path: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "scandir", refuse)
    use = machine.clients.read((1,))
    assert use.problem == FOREIGN
    busy, memory, gaps = runtime_use(use, GPU, ("system",))
    assert (busy, memory) == (None, None)
    assert set(gaps.values()) == {FOREIGN}


def test_a_device_nobody_opened_was_used_for_nothing(machine: Machine) -> None:
    machine.open(1, 5, "", target="/dev/null")
    assert runtime_use(machine.clients.read((1,)), GPU, ("",)) == (0, 0, {})


def test_what_the_driver_does_not_tell_has_a_reason(machine: Machine) -> None:
    machine.open(1, 5, f"drm-driver: xe\ndrm-pdev: {GPU}\ndrm-client-id: 1\n")
    use = machine.clients.read((1,))
    busy, memory, gaps = runtime_use(use, GPU, ("vram",))
    assert (busy, memory) == (None, None)
    assert set(gaps.values()) == {NO_ENGINE_TIME, NO_MEMORY}
    assert runtime_use(use, GPU, ("vram",), idle_is_silent=True)[0] == 0


def test_amds_compute_interface_is_noticed(machine: Machine) -> None:
    machine.open(1, 5, AMDGPU_OLD)
    assert not machine.clients.read((1,)).uses_kfd
    machine.open(1, 6, "", target="/dev/kfd")
    assert machine.clients.read((1,), relist=True).uses_kfd


def test_only_the_regions_asked_for_count() -> None:
    use = DrmUse({GPU: DeviceUse(5, {"vram0": 10, "vram1": 20, "gtt": 400})})
    assert runtime_use(use, GPU, ("vram",)) == (5, 30, {})
    assert runtime_use(use, GPU, ("vram", "gtt")) == (5, 430, {})
