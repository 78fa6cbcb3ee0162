"""Host states, conditions, keep-warm requests and evidence, with real processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import grpc
import pytest

from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import agent_service_pb2_grpc
from benchfleet_agent.evidence import parse_oom_kills
from fakes.dialects import serving
from fakes.dialects.ollama import FakeOllama
from integration.conftest import AgentProcess, Benchfleet, wait_until

pytestmark = pytest.mark.slow

if sys.platform == "win32":
    pytest.skip("what is killed here is killed by POSIX signals", allow_module_level=True)

MakeAgent = Callable[..., AgentProcess]

RUN = ("run", "--model", "tiny-random", "--rounds", "2", "--warmup", "1", "--max-tokens", "8")
BUSY = "while True: pass"


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    """Other programs that keep every processor busy."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def states(benchfleet: Benchfleet) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    rows = benchfleet.rows("SELECT state_before, state_after FROM rounds ORDER BY start_ns")
    return [(json.loads(before), json.loads(after)) for before, after in rows]


def kinds(benchfleet: Benchfleet) -> dict[str, int]:
    """How many rounds of each kind are stored; none while the controller holds the file."""
    try:
        return dict(benchfleet.rows("SELECT kind, count(*) FROM rounds GROUP BY kind"))
    except duckdb.Error:
        return {}


def test_a_host_says_what_it_is_like_when_asked(make_agent: MakeAgent) -> None:
    agent = make_agent()

    with grpc.insecure_channel(agent.address) as channel:
        get_host: Callable[..., pb.GetHostResponse] = agent_service_pb2_grpc.AgentServiceStub(channel).GetHost
        found = [get_host(pb.GetHostRequest()).host.state for _ in range(2)]

    for state in found:
        assert state.available_bytes > 0
        assert state.HasField("background_cpu_ratio")
        assert 0 <= state.background_cpu_ratio <= 1
    assert found[1].suspended_ns == 0


def test_every_round_says_what_the_host_was_like(make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    agent = make_agent()

    done = benchfleet(*RUN, "--host", f"solo={agent.address}")

    assert done.returncode == 0, done.stderr
    found = states(benchfleet)
    assert len(found) == 3
    for before, after in found:
        assert before["available_bytes"] > 0
        assert after["available_bytes"] > 0
        assert after["suspended_ns"] == 0


def test_a_busy_machine_fails_the_case_in_time_and_requests_that_keep_warm_meanwhile_never_count(
    make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent()
    flags = ("--max-background-load", "5%", "--condition-timeout", "4", "--keep-warm", "1")

    with busy_machine():
        done = benchfleet(*RUN, "--host", f"solo={agent.address}", *flags)

    assert done.returncode == 1, done.stderr
    assert "waiting for the host: other programs to use at most 5% of the processors" in done.stderr
    ((status, reason, message),) = benchfleet.rows("SELECT status, reason, message FROM cases")
    assert (status, reason) == ("failed", "background_load")
    assert "end other programs" in message
    found = benchfleet.rows(
        "SELECT r.kind, max(q.output_tokens), bool_and(q.warmup) FROM requests q JOIN rounds r USING (round_id) "
        "GROUP BY r.kind ORDER BY r.kind"
    )
    assert found == [("keepwarm", 1, True), ("warmup", 8, True)]
    (case,) = benchfleet.show()
    assert (case["requests"], case["output_tokens_per_s"]) == (0, None)


def test_a_condition_that_the_host_cannot_tell_is_refused_before_anything_is_loaded(
    make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent()
    done = benchfleet(*RUN, "--host", f"solo={agent.address}", "--wait-until-cool", "45")
    ((status, reason, message, loaded_ns),) = benchfleet.rows(
        "SELECT status, reason, message, load_start_ns FROM cases"
    )
    if status == "succeeded" or reason == "too_hot":
        pytest.skip("this machine tells its temperature")

    assert done.returncode == 1
    assert (status, reason, loaded_ns) == ("failed", "unsupported", None)
    assert "temperature" in message


def test_a_model_that_the_runtime_unloads_in_a_pause_is_told_before_it_is_asked_again(
    make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent, server = make_agent(), FakeOllama("m:1", vram_ratio=0.0)
    flags = ("--rounds", "1", "--warmup", "0", "--max-tokens", "4", "--idle-pause", "6")

    with serving(server) as url:
        running = benchfleet.start(
            "run", "--host", f"solo={agent.address}", "--endpoint", url, "--model", "m:1", *flags
        )
        assert running.stderr is not None
        while "idle for 6 s" not in running.stderr.readline():
            assert running.poll() is None
        server.loaded.clear()
        _, errors = running.communicate(timeout=60)

    assert running.returncode == 0, errors
    assert "the runtime unloaded the model within 6 s: the next request loads it again" in errors


def test_a_killed_runtime_leaves_evidence(make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    agent = make_agent()
    running = benchfleet.start(
        "run", "--model", "tiny-random", "--rounds", "5000", "--max-tokens", "8", "--host", f"solo={agent.address}"
    )
    wait_until(lambda: kinds(benchfleet).get("counted", 0) > 1, 90, f"rounds are stored; {agent.log()}")
    (victim,) = agent.child_pids("foundry_child") or agent.child_pids("foundry")

    os.kill(victim, signal.SIGKILL)
    running.communicate(timeout=60)

    ((status, reason, text),) = benchfleet.rows("SELECT status, reason, evidence FROM cases")
    assert (status, reason) == ("failed", "runtime_crashed")
    exit_told, memory = json.loads(text)
    assert exit_told == "the runtime's process was killed by signal 9 (SIGKILL)"
    held = r"the runtime held \d+ MiB and the load process held \d+ MiB"
    assert re.search(rf"{held} and [\d,]+ MiB of the machine's memory were free", memory)


def test_a_killed_load_process_leaves_evidence(make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    agent = make_agent()
    running = benchfleet.start(
        "run", "--model", "tiny-random", "--rounds", "5000", "--max-tokens", "8", "--host", f"solo={agent.address}"
    )
    wait_until(lambda: kinds(benchfleet).get("counted", 0) > 1, 90, f"rounds are stored; {agent.log()}")
    (victim,) = agent.load_pids()

    os.kill(victim, signal.SIGKILL)
    running.communicate(timeout=60)

    ((reason, text),) = benchfleet.rows("SELECT reason, evidence FROM cases")
    assert reason == "load_process_crashed"
    assert json.loads(text)[0] == "the load process was killed by signal 9 (SIGKILL)"


@dataclass(frozen=True)
class MemoryGroup:
    """A control group of its own."""

    path: Path
    limit: str
    usage: str
    events: str

    def kills(self) -> int | None:
        return parse_oom_kills((self.path / self.events).read_text())

    def squeeze(self) -> None:
        """Leave less than is in use, which a group that is asked for more memory answers with a kill."""
        used = int((self.path / self.usage).read_text())
        for limit in (used * 9 // 10, used):
            with contextlib.suppress(OSError):  # what cannot be freed now stays
                (self.path / self.limit).write_text(f"{limit}")


@pytest.fixture
def memory_group() -> Iterator[MemoryGroup]:
    name = f"benchfleet-test-{os.getpid()}"
    mount = Path("/sys/fs/cgroup")
    old = (mount / "memory").is_dir()
    if old:
        group = MemoryGroup(
            mount / "memory" / name, "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control"
        )
    else:
        group = MemoryGroup(mount / name, "memory.max", "memory.current", "memory.events")
    try:
        group.path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not (group.path / group.limit).exists():
            pytest.skip("no memory controller")
        yield group
    finally:
        for pid in (group.path / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda: not (group.path / "cgroup.procs").read_text(), 10, "the group is empty")
        group.path.rmdir()


def test_a_runtime_ended_by_the_out_of_memory_killer_is_told_apart_from_a_crash(
    memory_group: MemoryGroup, make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent()
    assert agent.process is not None
    (memory_group.path / "cgroup.procs").write_text(f"{agent.process.pid}")
    running = benchfleet.start(
        "run", "--model", "tiny-random", "--rounds", "5000", "--max-tokens", "64", "--host", f"solo={agent.address}"
    )
    wait_until(lambda: kinds(benchfleet).get("counted", 0) > 1, 90, f"rounds are stored; {agent.log()}")
    (victim,) = agent.child_pids("foundry_child") or agent.child_pids("foundry")
    Path(f"/proc/{victim}/oom_score_adj").write_text("1000")

    def struck() -> bool:
        memory_group.squeeze()
        return bool(memory_group.kills())

    wait_until(struck, 60, "memory runs out")
    (memory_group.path / memory_group.limit).write_text("-1" if memory_group.limit.endswith("bytes") else "max")
    running.communicate(timeout=60)

    ((reason, text),) = benchfleet.rows("SELECT reason, evidence FROM cases")
    assert reason == "out_of_memory"
    assert "the kernel's out-of-memory killer ended a process of the agent's control group" in json.loads(text)
