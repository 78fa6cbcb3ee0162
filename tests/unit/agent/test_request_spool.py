"""Requests that an agent had not read when it was killed come out of the spool, once, and only where they belong."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchfleet.v1 import event_pb2, host_pb2, job_pb2
from benchfleet_agent.child import Protocol
from benchfleet_agent.journal import Journal
from benchfleet_agent.load import spooling
from benchfleet_agent.load.process import Events
from benchfleet_agent.load.record import Accounting, RequestRecord, Status
from benchfleet_agent.load.spooling import Spool
from benchfleet_agent.recorder import Recorder, job_started
from benchfleet_agent.recovery import recover_requests
from benchfleet_agent.request_spool import RequestSpool
from fakes.specs import job_spec


def record(request_id: str) -> RequestRecord:
    return RequestRecord(
        request_id=request_id, prompt_id="p", status=Status.OK, end_ns=7, accounting=Accounting.CONSISTENT, text="ä\n"
    )


def fields(request_id: str, round_id: str = "round-1") -> dict[str, Any]:
    return {"round_id": round_id, **record(request_id).to_dict()}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A job that is in its first round and has written down one request."""
    journal = Journal(tmp_path)
    journal.accept("job-1", job_spec(), job_started(host_pb2.Host(), job_spec()))
    recorder = Recorder(journal, "job-1", lambda: None)
    started = event_pb2.RoundStarted(case_id="case-1", round_id="round-1", kind="counted")
    journal.append("job-1", [event_pb2.Event(round_started=started)])
    recorder.request_finished("case-1", "round-1", record("read"))
    return journal


def spooled(journal: Journal, *lines: bytes, job_id: str = "job-1") -> None:
    path = RequestSpool(journal.directory).begin(job_id, "case-1")
    spool = Spool()
    spool.open(path)
    for line in lines:
        spool.write(line)
    spool.close()


def line(request_id: str, round_id: str = "round-1") -> bytes:
    return json.dumps({"event": "request", **fields(request_id, round_id)}).encode() + b"\n"


def requests(journal: Journal) -> list[event_pb2.RequestFinished]:
    events = journal.read("job-1", 0, 1 << 20)
    return [event.request_finished for event in events if event.HasField("request_finished")]


def test_what_the_load_process_tells_is_in_the_spool_before_the_parent_reads_it(tmp_path: Path) -> None:
    path = RequestSpool(tmp_path).begin("job-1", "case-1")
    told: list[str] = []

    class Pipe:
        def send_line(self, line: str) -> None:
            assert line.encode() in path.read_bytes()
            told.append(line)

    events = Events(cast("Protocol", Pipe()))
    events.spool.open(path)
    events.tell(fields("a"))

    held = RequestSpool(tmp_path).read()
    assert held is not None
    assert held.requests == (("round-1", record("a")),)
    assert json.loads(told[0])["event"] == "request"


def test_unread_requests_are_kept_once_and_in_order(journal: Journal) -> None:
    spooled(journal, line("read"), line("b"), line("a"), line("b"))

    assert recover_requests(journal, ["job-1"]) == 2

    assert [one.request_id for one in requests(journal)] == ["read", "b", "a"]
    last = requests(journal)[-1]
    assert (last.case_id, last.round_id, last.text, last.end_ns) == ("case-1", "round-1", "ä\n", 7)
    assert recover_requests(journal, ["job-1"]) == 0
    assert RequestSpool(journal.directory).read() is None


def test_lines_that_are_broken_or_belong_elsewhere_are_left_out(journal: Journal) -> None:
    spooled(
        journal,
        b"\xff{\n",
        b"[1]\n",
        b'{"round_id": "round-1"}\n',
        line("other", "round-9"),
        line("a"),
        line("cut")[:-9],
    )

    assert recover_requests(journal, ["job-1"]) == 1

    assert [one.request_id for one in requests(journal)] == ["read", "a"]


@pytest.mark.parametrize(("job_id", "unfinished"), [("job-1", []), ("job-0", ["job-1"])])
def test_nothing_is_added_to_jobs_that_ended_or_from_others(
    journal: Journal, job_id: str, unfinished: list[str]
) -> None:
    spooled(journal, line("a"), job_id=job_id)

    assert recover_requests(journal, unfinished) == 0
    assert [one.request_id for one in requests(journal)] == ["read"]


def test_a_spool_without_a_readable_first_line_is_nobodys(journal: Journal) -> None:
    RequestSpool(journal.directory).path.write_bytes(line("a"))

    assert recover_requests(journal, ["job-1"]) == 0


def test_a_full_journal_keeps_what_fits(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_bytes=4_000)
    journal.accept("job-1", job_spec(), job_started(host_pb2.Host(), job_spec()))
    started = event_pb2.RoundStarted(case_id="case-1", round_id="round-1", kind="counted")
    journal.append("job-1", [event_pb2.Event(round_started=started)])
    spooled(journal, *(line(f"r{number}") for number in range(100)))

    assert 0 < recover_requests(journal, ["job-1"]) < 100
    journal.finish("job-1", job_pb2.JOB_STATE_FAILED, event_pb2.Event(job_finished=event_pb2.JobFinished()))


def test_a_full_disk_spoils_one_line_and_never_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = RequestSpool(tmp_path).begin("job-1", "case-1")
    spool = Spool()
    spool.open(path)
    full = iter((5, None, OSError(errno.ENOSPC, "full"), None))

    def write(descriptor: int, data: bytes) -> int:
        most = next(full)
        if isinstance(most, OSError):
            raise most
        return os.write(descriptor, data[:most])

    monkeypatch.setattr(spooling, "os", SimpleNamespace(write=write, close=os.close))
    for request_id in ("cut", "lost", "whole"):
        spool.write(line(request_id))

    held = RequestSpool(tmp_path).read()
    assert held is not None
    assert [kept.request_id for _, kept in held.requests] == ["whole"]


@pytest.mark.skipif(sys.platform == "win32", reason="files have no such modes there")
def test_a_new_case_begins_with_an_empty_spool_that_others_cannot_read(tmp_path: Path) -> None:
    spool = RequestSpool(tmp_path)
    spool.begin("job-1", "case-1")
    old = Spool()
    old.open(spool.path)

    path = spool.begin("job-1", "case-2")
    old.write(line("of a load process that outlived its agent"))

    held = spool.read()
    assert held is not None
    assert (held.case_id, held.requests, path.stat().st_mode & 0o777) == ("case-2", (), 0o600)
    spool.end()
    spool.end()
    assert spool.read() is None
