"""What is said about a journal, and `benchfleet-agent jobs`."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchfleet.v1 import event_pb2, host_pb2, job_pb2
from benchfleet_agent.__main__ import main
from benchfleet_agent.config import AgentConfig, JournalConfig
from benchfleet_agent.held_jobs import as_table, reachable
from benchfleet_agent.journal import HeldJob, Journal
from benchfleet_agent.journal_file import Contents, Repair
from benchfleet_agent.journal_upkeep import find_problems
from benchfleet_agent.recorder import job_started
from fakes.specs import job_spec

DAY_NS = 86_400 * 10**9
NOW_NS = 20_000 * DAY_NS


def _job(job_id: str = "job-1", *, days: float = 0, size: int = 1_000, ended: bool = True) -> HeldJob:
    state = job_pb2.JOB_STATE_FINISHED if ended else job_pb2.JOB_STATE_RUNNING
    return HeldJob(job_id, "run-1", "me@here", b"", state, 7, NOW_NS - int(days * DAY_NS), size)


def _told(contents: Contents, config: JournalConfig | None = None) -> list[tuple[str, str]]:
    problems = find_problems(contents, config or JournalConfig(), NOW_NS)
    assert all(problem.advice for problem in problems)
    return [(problem.severity, problem.message) for problem in problems]


def test_a_journal_that_holds_little_and_new_jobs_is_no_problem() -> None:
    assert _told(Contents((_job(days=29), _job("job-2", days=400, ended=False)))) == []


def test_ended_jobs_that_nobody_fetched_for_long_are_told_with_their_size_and_age() -> None:
    jobs = (_job(days=45, size=2 << 20), _job("job-2", days=31, size=1 << 20), _job("job-3"))

    ((severity, message),) = _told(Contents(jobs))

    assert severity == "warning"
    assert message.startswith("2 ended jobs are held for more than 30 days (3.0 MiB), the oldest since 2024-08-20")
    assert _told(Contents(jobs), JournalConfig(max_age_days=None)) == []
    assert _told(Contents(jobs), JournalConfig(max_age_days=40))[0][1].startswith("1 ended job is held")


def test_a_journal_without_room_for_another_job_is_an_error() -> None:
    full, nearly = Contents((_job(size=15_001),)), Contents((_job(size=15_000),))

    ((severity, message),) = _told(full, JournalConfig(max_bytes=16_000))

    assert severity == "error"
    assert "holds 14.6 KiB of 15.6 KiB (journal.max_bytes in agent.toml): no job is accepted" in message
    assert _told(nearly, JournalConfig(max_bytes=16_000)) == []
    assert _told(full, JournalConfig(max_bytes=None)) == []


def test_repairs_are_told_for_thirty_days_and_more_than_three_in_short() -> None:
    old = Repair(NOW_NS - 31 * DAY_NS, "job-0", "3", "old damage")
    new = [Repair(NOW_NS - DAY_NS, f"job-{number}", "after 5", "damage") for number in range(1, 6)]

    told = [message for _, message in _told(Contents(repairs=(*new, old)))]

    assert told[0] == "2024-10-03: damage (job job-1, events after 5)"
    assert told[3:] == ["2 more losses by damage of the journal are on record"]
    assert _told(Contents(repairs=(Repair(NOW_NS, "", "", "a log was cut"),)))[0][1] == "2024-10-04: a log was cut"


def test_the_table_has_what_one_needs_to_decide_and_no_control_characters() -> None:
    job = HeldJob("job-1", "run-1", "a\x1b[31mb", b"", job_pb2.JOB_STATE_FAILED, 12, NOW_NS, 3 << 20)

    lines = as_table(Contents((job,)), AgentConfig()).splitlines()

    assert lines[0].split() == ["job", "run", "state", "started", "events", "size", "held", "by"]
    assert lines[1].split() == ["job-1", "run-1", "failed", "2024-10-04", "00:00:00Z", "12", "3.0", "MiB", "a?[31mb"]
    assert lines[2] == "3.0 MiB of 8.0 GiB held; `benchfleet collect` fetches what ended"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with two ended jobs and one that a killed agent left."""
    journal = Journal(tmp_path)
    for job_id in ("alpha-1", "alpha-2", "beta-1"):
        journal.accept(job_id, job_spec(), job_started(host_pb2.Host(), job_spec()))
    for job_id in ("alpha-1", "alpha-2"):
        finished = event_pb2.Event(job_finished=event_pb2.JobFinished(state=job_pb2.JOB_STATE_FINISHED))
        journal.finish(job_id, job_pb2.JOB_STATE_FINISHED, finished)
    journal.close()
    return tmp_path


def _jobs(data_dir: Path, *arguments: str) -> int:
    return main(["jobs", "--data-dir", str(data_dir), *arguments])


def _left(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert _jobs(data_dir, "--format", "json") == 0
    return [row["job_id"] for row in json.loads(capsys.readouterr().out)]


def test_jobs_are_listed_with_stable_keys(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _jobs(data_dir, "--format", "json") == 0
    row = json.loads(capsys.readouterr().out)[0]

    assert list(row) == ["job_id", "run_id", "state", "started", "event_count", "size_bytes", "held_by"]
    assert (row["state"], row["event_count"], row["size_bytes"] > 50) == ("finished", 2, True)


def test_nothing_held_is_said_also_where_no_agent_ever_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _jobs(tmp_path) == 0
    assert capsys.readouterr().out == "no job is held\n"
    assert list(tmp_path.iterdir()) == []


def test_one_job_or_all_that_ended_are_released_when_that_is_meant(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _jobs(data_dir, "--release", "alpha-1", "--yes") == 0
    assert _left(data_dir, capsys) == ["alpha-2", "beta-1"]
    assert _jobs(data_dir, "--release-ended", "--yes") == 0
    assert _left(data_dir, capsys) == ["beta-1"]
    assert _jobs(data_dir, "--release-ended", "--yes") == 0
    assert "no job that ended is held" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("alpha", "several jobs here answer to 'alpha'"),
        ("gamma", "no job here answers to 'gamma'"),
        ("beta-1", "job beta-1 has not ended; end it with `benchfleet cancel"),
    ],
)
def test_a_job_that_is_not_one_or_not_over_is_not_released(
    data_dir: Path, wanted: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _jobs(data_dir, "--release", wanted, "--yes") == 2
    assert said in capsys.readouterr().err
    assert len(_left(data_dir, capsys)) == 3


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 2), ("\n", 2, 3), ("no\n", 2, 3), ("", 2, 3)])
def test_a_person_is_asked_and_told_what_is_lost(
    data_dir: Path,
    answer: str,
    code: int,
    left: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reading, writing = os.pipe()
    os.write(writing, answer.encode())
    os.close(writing)
    with os.fdopen(reading) as terminal:
        monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("sys.stdin", terminal)
        assert _jobs(data_dir, "--release", "alpha-2") == code

    assert "job alpha-2 of run" in (asked := capsys.readouterr().err)
    assert "lost for good" in asked
    assert len(_left(data_dir, capsys)) == left


@pytest.fixture
def serving(data_dir: Path) -> Iterator[Path]:
    """A data directory that an agent has open; it says that it serves where nobody answers."""
    journal = Journal(data_dir)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        journal.serve(f"0.0.0.0:{unused.getsockname()[1]}")
        yield data_dir
    journal.close()


def test_an_agent_that_does_not_answer_keeps_what_it_holds(serving: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _jobs(serving, "--release", "alpha-1", "--yes") == 4
    assert f"the agent (process {os.getpid()}, 0.0.0.0:" in (said := capsys.readouterr().err)
    assert "stop it, release, and start it again" in said
    assert len(_left(serving, capsys)) == 3


def test_an_agent_with_a_certificate_takes_no_orders_from_its_host(
    serving: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(AgentConfig, "credentials", lambda config: object())

    assert _jobs(serving, "--release", "alpha-1", "--yes") == 2
    assert "takes orders from certified controllers only; stop it" in capsys.readouterr().err
    assert len(_left(serving, capsys)) == 3


@pytest.mark.parametrize(
    ("listens", "reached"),
    [
        ("127.0.0.1:5", "127.0.0.1:5"),
        ("0.0.0.0:5", "127.0.0.1:5"),
        ("[::]:5", "[::1]:5"),
        ("192.168.1.5:5", "192.168.1.5:5"),
    ],
)
def test_an_agent_that_listens_everywhere_is_reached_on_this_machine(listens: str, reached: str) -> None:
    assert reachable(listens) == reached


def test_a_file_that_is_no_journal_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"nothing that SQLite would read" * 100)

    assert _jobs(tmp_path) == 4
    assert "is not a readable journal" in capsys.readouterr().err
