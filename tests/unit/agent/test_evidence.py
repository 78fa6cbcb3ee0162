from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet_agent.child import ChildGone
from benchfleet_agent.evidence import (
    LastMemory,
    MemoryTrail,
    OomKills,
    ended_child,
    exit_words,
    explain,
    oom_files,
    parse_cgroups,
    parse_oom_kills,
    read_oom_kills,
)
from benchfleet_agent.jobs import Outcome
from benchfleet_agent.kernel_log import OomKill
from benchfleet_agent.sample_batch import Label, SampleBatch

MIB = 1 << 20
CRASHED = Outcome("failed", Failure(Reason.RUNTIME_CRASHED, "the runtime is gone"))
KILLED = ChildGone("foundry child", -9, "")
NONE_STRUCK = OomKills(2, 5)


def told(
    outcome: Outcome = CRASHED, gone: ChildGone | None = KILLED, before: OomKills = NONE_STRUCK,
    now: OomKills = NONE_STRUCK, memory: LastMemory | None = None, killed: Sequence[OomKill] = (),
) -> tuple[Outcome, tuple[str, ...]]:  # fmt: skip
    return explain(outcome, gone, before, now, memory, 10_000_000_000, killed, (4711,))


@pytest.mark.parametrize(("pid", "reason"), [(4711, Reason.OUT_OF_MEMORY), (99, Reason.RUNTIME_CRASHED)])
def test_the_kernels_log_proves_which_process_it_was(pid: int, reason: Reason) -> None:
    said = f"Out of memory: Killed process {pid} (ollama) total-vm:9000kB"
    outcome, lines = told(gone=None, killed=[OomKill(pid, "ollama", said)])
    assert outcome.failure is not None
    assert outcome.failure.reason is reason
    assert lines == (f"the kernel's log: {said}",)


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="names of signals")


@POSIX
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "was killed by signal 9 (SIGKILL)"),
        (-11, "was killed by signal 11 (SIGSEGV)"),
        (-200, "was killed by signal 200"),
        (0, "exited with code 0"),
        (139, "exited with code 139"),
        (0xC0000005, "ended with status 0xC0000005 (access violation)"),
        (0xC0001234, "ended with status 0xC0001234"),
    ],
)
def test_the_end_of_a_process_is_told_in_words(code: int, words: str) -> None:
    assert exit_words(code) == words


@POSIX
def test_a_kill_that_nothing_explains_stays_a_crash() -> None:
    outcome, lines = told(memory=LastMemory(9_500_000_000, 1500 * MIB, None, 200 * MIB))

    assert outcome == CRASHED
    assert lines == (
        "the runtime's process was killed by signal 9 (SIGKILL)",
        "0.5 s before this was noticed the runtime held 1,500 MiB and 200 MiB of the machine's memory were free",
    )


def test_a_kill_while_the_killer_struck_in_the_control_group_is_out_of_memory() -> None:
    outcome, lines = told(now=OomKills(3, 6))

    assert outcome.failure == Failure(Reason.OUT_OF_MEMORY, "memory ran out: the runtime is gone")
    assert "the kernel's out-of-memory killer ended a process of the agent's control group" in lines


def test_a_kill_while_the_killer_struck_somewhere_else_is_no_proof() -> None:
    outcome, lines = told(now=OomKills(2, 7))

    assert outcome == CRASHED
    assert "the kernel's out-of-memory killer ended 2 processes on this machine" in lines


def test_without_a_control_group_the_machines_count_decides() -> None:
    outcome, _ = told(before=OomKills(None, 5), now=OomKills(None, 6))

    assert outcome.failure is not None
    assert outcome.failure.reason is Reason.OUT_OF_MEMORY


def test_a_process_that_ended_otherwise_was_not_killed_for_memory() -> None:
    assert told(gone=ChildGone("foundry child", -11, ""), now=OomKills(3, 6))[0] == CRASHED
    assert told(gone=None, now=OomKills(3, 6))[0] == CRASHED


def test_windows_says_itself_that_memory_ran_out() -> None:
    outcome, _ = told(gone=ChildGone("foundry child", 0xC000012D, ""), before=OomKills(), now=OomKills())

    assert outcome.failure is not None
    assert outcome.failure.reason is Reason.OUT_OF_MEMORY


def test_a_message_that_says_it_already_is_kept() -> None:
    said = Outcome("failed", Failure(Reason.RUNTIME_CRASHED, "killed, so memory ran out"))

    outcome, _ = told(said, now=OomKills(3, 6))

    assert outcome.failure == Failure(Reason.OUT_OF_MEMORY, "killed, so memory ran out")


@POSIX
def test_a_dead_load_process_is_called_that() -> None:
    crashed = Outcome("failed", Failure(Reason.LOAD_PROCESS_CRASHED, "gone"))

    assert told(crashed)[1][0] == "the load process was killed by signal 9 (SIGKILL)"


@pytest.mark.parametrize(
    "outcome",
    [Outcome("succeeded"), Outcome("failed", Failure(Reason.MODEL_NOT_FOUND, "no such model"))],
)
def test_where_nothing_crashed_there_is_no_evidence(outcome: Outcome) -> None:
    assert told(outcome, now=OomKills(3, 6)) == (outcome, ())


def fail(*, suppressed: bool) -> None:
    try:
        raise KILLED
    except ChildGone as error:
        failure = WorkFailed(Reason.RUNTIME_CRASHED, "gone")
        if suppressed:
            raise failure from None
        raise failure from error


def test_the_child_behind_a_failure_is_found_however_it_was_raised() -> None:
    for suppressed in (True, False):
        with pytest.raises(WorkFailed) as raised:
            fail(suppressed=suppressed)
        assert ended_child(raised.value) is KILLED
    assert ended_child(WorkFailed(Reason.INTERNAL, "alone")) is None


def batch(times: list[int], **columns: list[int | float | None]) -> SampleBatch:
    return SampleBatch(Label("case-1", "", "loaded"), "system", "", times, [1] * len(times), columns)


def test_memory_is_that_of_the_newest_reading_with_the_process_alive() -> None:
    trail = MemoryTrail()
    trail.note(batch([1, 2], runtime_rss_bytes=[10, 11], load_rss_bytes=[5, 5], host_available_bytes=[90, 89]))
    trail.note(
        batch(
            [3, 4, 5], runtime_rss_bytes=[12, None, None], load_rss_bytes=[5, 6, None], host_available_bytes=[7, 99, 99]
        )
    )
    trail.note(batch([6], host_available_bytes=[100]))

    assert trail.before(Reason.RUNTIME_CRASHED) == LastMemory(3, 12, 5, 7)
    assert trail.before(Reason.LOAD_PROCESS_CRASHED) == LastMemory(4, None, 6, 99)


def test_a_case_does_not_inherit_the_memory_of_the_one_before() -> None:
    trail = MemoryTrail()
    trail.note(batch([1], runtime_rss_bytes=[10]))
    trail.begin()

    assert trail.before(Reason.RUNTIME_CRASHED) is None


V1 = "4:memory:/agents/one\n3:cpuset:/\n1:cpu,cpuacct:/x\n0::/\n"


def test_control_groups_of_both_versions_are_read() -> None:
    assert parse_cgroups(V1) == {"memory": "/agents/one", "cpuset": "/", "cpu": "/x", "cpuacct": "/x", "": "/"}
    assert parse_cgroups("0::/user.slice/a:b.scope\n") == {"": "/user.slice/a:b.scope"}
    assert parse_cgroups("garbage") == {}


def test_the_counters_lie_where_each_version_keeps_them() -> None:
    root = Path("/")
    assert [str(path) for path in oom_files({"memory": "/agents/one"}, root)] == [
        "/sys/fs/cgroup/memory/agents/one/memory.oom_control",
        "/sys/fs/cgroup/memory/memory.oom_control",
    ]
    assert str(oom_files({"": "/user.slice"}, root)[0]) == "/sys/fs/cgroup/user.slice/memory.events"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n", 2),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 4", 4),
        ("pgpgin 1\noom_kill 7\nnuma_hit 3\n", 7),
        ("oom_kill_disable 0\nunder_oom 0\n", None),
        ("", None),
    ],
    ids=["version 2", "version 1", "vmstat", "before Linux 4.13", "no file"],
)
def test_kills_are_counted_in_all_three_formats(text: str, count: int | None) -> None:
    assert parse_oom_kills(text) == count


def test_in_a_container_the_top_of_the_mount_is_the_containers_own(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/docker/0123\n")
    (tmp_path / "proc/vmstat").write_text("oom_kill 9\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.events").write_text("oom_kill 1\n")
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("2147483648\n")

    assert read_oom_kills(tmp_path) == OomKills(1, 9, 2 << 30)
    assert read_oom_kills(tmp_path / "windows") == OomKills()


@pytest.mark.parametrize(("file", "text"), [("memory.max", "max"), ("memory.limit_in_bytes", "9223372036854771712")])
def test_a_control_group_without_a_limit_says_so_in_its_own_way(tmp_path: Path, file: str, text: str) -> None:
    group = tmp_path / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/\n")
    (group / "memory.oom_control").write_text("oom_kill 0\n")
    (group / file).write_text(f"{text}\n")

    assert read_oom_kills(tmp_path) == OomKills(0, None, None)


def test_the_limit_of_a_control_group_is_told_next_to_what_the_machine_had() -> None:
    _, lines = told(now=OomKills(3, 6, 2 << 30))

    assert lines[-1] == "the agent's control group may use 2,048 MiB"
