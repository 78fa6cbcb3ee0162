"""What is killed loses nothing that had finished, and nothing is stored twice. Real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import duckdb
import pytest

from integration.conftest import AgentProcess, Benchfleet, wait_until

pytestmark = pytest.mark.slow

if sys.platform == "win32":
    pytest.skip("these faults are POSIX signals", allow_module_level=True)

MakeAgent = Callable[..., AgentProcess]
SPAWNED = True
"""Commands are processes of their own here."""

LONG_RUN = ("run", "--model", "tiny-random", "--rounds", "5000", "--warmup", "1", "--max-tokens", "8")


class Running:
    """A `benchfleet run` whose progress is read along."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait(self, timeout_s: float = 60) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return code


def _start_until_rounds(agent: AgentProcess, benchfleet: Benchfleet, *more: str) -> Running:
    """A long run that has stored some finished requests."""
    running = Running(benchfleet.start(*LONG_RUN, "--host", f"solo={agent.address}", *more))
    wait_until(lambda: _more_than_eight(benchfleet), 90, f"requests are stored; {agent.log()}")
    return running


def _more_than_eight(benchfleet: Benchfleet) -> bool:
    """Whether more than eight requests are stored."""
    try:
        return bool(benchfleet.rows("SELECT count(*) FROM requests")[0][0] > 8)
    except duckdb.Error:
        return False  # the controller has the file, or has not made it or its tables yet


def _gapless_once(benchfleet: Benchfleet) -> None:
    """Every event of the journal is stored exactly once: rounds and requests agree, ids are unique."""
    (doubled,) = benchfleet.rows("SELECT count(*) - count(DISTINCT request_id) FROM requests")[0]
    (double_rounds,) = benchfleet.rows("SELECT count(*) - count(DISTINCT round_id) FROM rounds")[0]
    wrong = benchfleet.rows(
        "SELECT r.round_id FROM rounds r LEFT JOIN requests q USING (round_id) WHERE r.end_ns IS NOT NULL "
        "GROUP BY r.round_id, r.requests HAVING count(q.request_id) <> r.requests"
    )
    (double_samples,) = benchfleet.rows(
        "SELECT count(*) - count(DISTINCT (phase, round_id, probe_id, device_id, sample_ns)) FROM samples"
    )[0]
    assert (doubled, double_rounds, wrong, double_samples) == (0, 0, [], 0)


def test_a_killed_agent_keeps_every_finished_request_and_closes_the_job(
    make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent()
    running = _start_until_rounds(agent, benchfleet)
    children = agent.child_pids("benchfleet_agent")
    before = benchfleet.rows("SELECT count(*) FROM requests")[0][0]

    agent.kill()
    agent.start()

    assert running.wait() != 0
    assert "Traceback" not in running.text
    assert benchfleet.rows("SELECT state, failure_reason FROM jobs") == [("failed", "agent_restarted")]
    assert benchfleet.rows("SELECT count(*) FROM requests")[0][0] >= before
    _gapless_once(benchfleet)
    assert children
    wait_until(lambda: not any(_alive(pid) for pid in children), 10, "the dead agent's children end")
    again = benchfleet("run", "--model", "tiny-random", "--rounds", "1", "--host", f"solo={agent.address}")
    assert again.returncode == 0, again.stderr


def test_a_killed_controller_loses_nothing_and_collect_fetches_each_event_once(
    make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent()
    running = _start_until_rounds(agent, benchfleet)

    running.process.kill()
    running.wait()
    before = benchfleet.rows("SELECT count(*) FROM requests")[0][0]
    cancelled = benchfleet("cancel", "last")

    assert cancelled.returncode == 0, cancelled.stderr
    assert benchfleet.rows("SELECT state, released FROM jobs") == [("cancelled", True)]
    assert benchfleet.rows("SELECT count(*) FROM requests")[0][0] > before
    _gapless_once(benchfleet)
    nothing_left = benchfleet("collect")
    assert (nothing_left.returncode, "hold nothing" in nothing_left.stderr) == (0, True)


def test_collect_adopts_jobs_of_another_database(make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    agent = make_agent()
    running = _start_until_rounds(agent, benchfleet)
    running.process.kill()
    running.wait()
    benchfleet.database.unlink()

    def stop_when_more_has_come() -> None:
        wait_until(lambda: _more_than_eight(benchfleet), 90, "requests were collected")
        agent.signal(signal.SIGTERM)

    stopper = threading.Thread(target=stop_when_more_has_come)
    stopper.start()
    done = benchfleet("collect", "--host", f"solo={agent.address}")
    stopper.join()

    assert "Traceback" not in done.stderr
    assert benchfleet.rows("SELECT host_name FROM jobs") == [("solo",)]
    assert benchfleet.rows("SELECT count(*) FROM requests")[0][0] > 8
    _gapless_once(benchfleet)


def test_a_killed_runtime_fails_its_case_and_the_next_case_runs(make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    agent = make_agent()
    running = _start_until_rounds(agent, benchfleet, "--concurrency", "1,2")
    (victim,) = agent.child_pids("foundry_child") or agent.child_pids("foundry")

    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: "runtime" in running.text and "killed by signal 9" in running.text, 30, running.text)
    wait_until(lambda: "case 2/2" in running.text, 60, f"the next case runs; {running.text}")
    running.process.send_signal(signal.SIGINT)
    running.wait()
    benchfleet("cancel", "last")

    by_reason = benchfleet.rows("SELECT case_index, status, reason FROM cases ORDER BY case_index")
    assert by_reason[0] == (0, "failed", "runtime_crashed")
    assert by_reason[1][2] == "cancelled"
    assert benchfleet.rows("SELECT count(*) FROM requests WHERE status = 'failed' AND reason IS NULL") == [(0,)]
    _gapless_once(benchfleet)


def test_a_killed_load_process_fails_its_case_with_its_own_reason(
    make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent()
    running = _start_until_rounds(agent, benchfleet)
    (victim,) = agent.load_pids()

    os.kill(victim, signal.SIGKILL)

    assert running.wait() == 1
    assert benchfleet.rows("SELECT status, reason FROM cases") == [("failed", "load_process_crashed")]
    _gapless_once(benchfleet)


def test_ctrl_c_leaves_the_job_running_and_says_how_to_fetch_it(make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    agent = make_agent()
    running = _start_until_rounds(agent, benchfleet)

    running.process.send_signal(signal.SIGINT)

    assert running.wait() == 130
    assert "benchfleet collect" in running.text
    assert "Traceback" not in running.text
    busy = benchfleet("run", "--model", "tiny-random", "--host", f"solo={agent.address}")
    assert busy.returncode == 4
    assert "it runs job" in busy.stderr
    assert benchfleet.rows("SELECT count(*) FROM runs") == [(1,)]
    assert benchfleet("cancel", "last").returncode == 0


def test_a_frozen_agent_is_found_out_and_goes_on_when_it_wakes(make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    agent = make_agent()
    running = _start_until_rounds(agent, benchfleet)

    agent.signal(signal.SIGSTOP)
    threading.Event().wait(3.0)
    agent.signal(signal.SIGCONT)
    before = benchfleet.rows("SELECT max(committed_sequence) FROM jobs")[0][0]

    def went_on() -> bool:
        try:
            return bool(benchfleet.rows("SELECT max(committed_sequence) FROM jobs")[0][0] > before)
        except duckdb.Error:
            return False

    wait_until(went_on, 60, "events arrive again")
    running.process.send_signal(signal.SIGINT)
    running.wait()
    benchfleet("cancel", "last")
    _gapless_once(benchfleet)


def _alive(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
