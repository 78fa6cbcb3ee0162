"""What agents hold: listed and given up while they run and after, bounded, and repaired when the disk damaged it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchfleet.v1 import event_pb2, host_pb2, job_pb2
from benchfleet_agent.journal import Journal
from benchfleet_agent.recorder import job_started
from fakes.specs import job_spec
from integration.conftest import BIN, AgentProcess, Benchfleet, clean_environment, wait_until

pytestmark = pytest.mark.slow

MakeAgent = Callable[..., AgentProcess]
RUN = ("run", "--model", "tiny-random", "--rounds", "2", "--max-tokens", "4")


def _agent(agent: AgentProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The agent's own command line, on its data."""
    done = subprocess.run(
        [str(BIN / "benchfleet-agent"), *arguments, "--data-dir", str(agent.data_dir), "--config", str(agent.config)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def _held(agent: AgentProcess) -> list[dict[str, Any]]:
    done = _agent(agent, "jobs", "--format", "json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def _detached(benchfleet: Benchfleet, agent: AgentProcess) -> dict[str, Any]:
    """A job that ended and that nobody fetched."""
    done = benchfleet(*RUN, "--host", f"solo={agent.address}", "--detach")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: _held(agent)[0]["state"] == "finished", 60, "the job ended")
    return _held(agent)[0]


def _fill(directory: Path, job_id: str, size: int) -> None:
    """An ended job of another time, about so large."""
    journal = Journal(directory)
    journal.accept(job_id, job_spec(), job_started(host_pb2.Host(), job_spec()))
    journal.append(job_id, [event_pb2.Event(progress_reported=event_pb2.ProgressReported(message="x" * size))])
    finished = event_pb2.JobFinished(state=job_pb2.JOB_STATE_FINISHED)
    journal.finish(job_id, job_pb2.JOB_STATE_FINISHED, event_pb2.Event(job_finished=finished))
    journal.close()


def test_held_jobs_are_listed_and_given_up_while_the_agent_runs_and_after(
    make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent()
    first = _detached(benchfleet, agent)
    table = _agent(agent, "jobs").stdout
    unsure = _agent(agent, "jobs", "--release", first["job_id"])
    kept = _held(agent)
    released = _agent(agent, "jobs", "--release", first["job_id"][:-1], "--yes")
    after = _held(agent)
    second = _detached(benchfleet, agent)
    agent.stop()
    at_rest = _held(agent)
    released_at_rest = _agent(agent, "jobs", "--release-ended", "--yes")

    assert first["event_count"] > 5
    assert first["size_bytes"] > 1_000
    assert first["job_id"] in table
    assert "of 8.0 GiB held" in table
    assert unsure.returncode == 2
    assert "lost for good" in unsure.stderr
    assert "--yes" in unsure.stderr
    assert kept == [first]
    assert (released.returncode, after) == (0, [])
    assert at_rest == [second]
    assert (released_at_rest.returncode, _held(agent)) == (0, [])


def test_a_job_that_fills_the_journal_ends_with_what_it_has_and_the_next_is_refused(
    make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent(start=False)
    agent.config.write_text(f'{agent.config.read_text()}[journal]\nmax_bytes = "1 MiB"\n')
    _fill(agent.data_dir, "old-1", 975_000)
    agent.start()

    filling = benchfleet(*RUN, "--rounds", "2000", "--host", f"solo={agent.address}")
    jobs = benchfleet.rows("SELECT state, failure_reason FROM jobs")
    requests = benchfleet.rows("SELECT count(*) FROM requests WHERE status = 'ok'")
    agent.stop()
    _fill(agent.data_dir, "old-2", 50_000)
    agent.start()
    refused = benchfleet(*RUN, "--host", f"solo={agent.address}")
    doctor = _agent(agent, "doctor")
    released = _agent(agent, "jobs", "--release", "old-1", "--yes")
    done = benchfleet(*RUN, "--host", f"solo={agent.address}")

    assert filling.returncode == 1, filling.stderr
    assert jobs == [("failed", "journal_full")]
    assert requests[0][0] > 10
    assert refused.returncode == 4
    assert "journal.max_bytes allows" in refused.stderr
    assert "benchfleet-agent jobs --release" in refused.stderr
    assert "error: the journal holds" in doctor.stdout
    assert released.returncode == 0, released.stderr
    assert done.returncode == 0, done.stderr


def test_what_a_damaged_journal_lost_is_told_to_everyone_and_the_rest_is_fetched(
    make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent()
    held = _detached(benchfleet, agent)
    agent.stop()
    with sqlite3.connect(agent.data_dir / "journal.sqlite") as db:
        body = event_pb2.Event(request_finished=event_pb2.RequestFinished()).SerializeToString()
        for sequence, found in db.execute("SELECT sequence, body FROM events").fetchall():
            if event_pb2.Event.FromString(found).HasField("request_finished"):
                db.execute("UPDATE events SET body = ? WHERE sequence = ?", (body, sequence))
                break
    db.close()
    agent.start()

    hosts = json.loads(benchfleet("doctor", f"solo={agent.address}", "--format", "json").stdout)
    collected = benchfleet("collect", "--host", f"solo={agent.address}")
    (job,) = benchfleet.rows("SELECT state, failure_reason, failure_message FROM jobs")
    (requests,) = benchfleet.rows("SELECT count(*) FROM requests")

    assert "the journal was damaged" in agent.log()
    assert "the journal was damaged" in json.dumps(hosts)
    assert "the journal was damaged" in _agent(agent, "doctor").stdout
    assert collected.returncode in (0, 1), collected.stderr
    assert job[:2] == ("failed", "events_released")
    assert f"lost ({sequence})" in job[2]
    assert requests[0] == 3 * 4 - 1  # a warm-up round and two of four prompts
    assert _held(agent) == []
    assert held["event_count"] > sequence
