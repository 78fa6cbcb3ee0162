from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from benchfleet.v1 import event_pb2, host_pb2, job_pb2
from benchfleet_agent.journal import Journal, JournalDamaged, JournalFull, JournalInUse
from benchfleet_agent.recorder import job_started
from fakes.specs import job_spec


def _event(text: str = "x") -> event_pb2.Event:
    return event_pb2.Event(progress_reported=event_pb2.ProgressReported(message=text))


def _last() -> event_pb2.Event:
    return event_pb2.Event(job_finished=event_pb2.JobFinished(state=job_pb2.JOB_STATE_FINISHED))


def _accept(journal: Journal, job_id: str = "job-1") -> None:
    journal.accept(job_id, job_spec(), job_started(host_pb2.Host(), job_spec()))


def test_events_are_numbered_from_one_without_gaps_and_stamped(tmp_path: Path) -> None:
    journal = Journal(tmp_path, clock_ns=lambda: 7, wall_clock_ns=lambda: 1_000_000_000)
    _accept(journal)

    assert journal.append("job-1", [_event("a"), _event("b")]) == 3
    events = journal.read("job-1", 0, 1 << 20)

    assert [event.sequence for event in events] == [1, 2, 3]
    assert {event.event_ns for event in events} == {7}
    assert events[0].event_time.ToSeconds() == 1
    assert events[2].progress_reported.message == "b"


def test_reading_goes_on_after_the_committed_sequence_in_bounded_batches(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    _accept(journal)
    journal.append("job-1", [_event("y" * 1000) for _ in range(10)])

    first = journal.read("job-1", 1, 2_500)

    assert [event.sequence for event in first] == [2, 3, 4]
    assert [event.sequence for event in journal.read("job-1", 4, 1 << 20)] == list(range(5, 12))


def test_a_journal_keeps_everything_over_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    _accept(journal)
    journal.append("job-1", [_event()])
    journal.close()

    again = Journal(tmp_path)

    (job,) = again.jobs()
    assert (job.job_id, job.last_sequence, job.ended) == ("job-1", 2, False)
    assert len(again.read("job-1", 0, 1 << 20)) == 2


def test_the_last_event_ends_the_job_in_the_same_transaction(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    _accept(journal)

    journal.finish("job-1", job_pb2.JOB_STATE_FINISHED, _last())

    job = journal.job("job-1")
    assert job is not None
    assert (job.ended, job.last_sequence) == (True, 2)


def test_a_released_job_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    _accept(journal)
    journal.finish("job-1", job_pb2.JOB_STATE_FINISHED, _last())

    journal.release("job-1")

    assert journal.jobs() == []
    assert journal.first_sequence("job-1") == 0


def test_a_second_agent_on_the_same_directory_is_told_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path)

    with pytest.raises(JournalInUse, match="another agent is using"):
        Journal(tmp_path)
    journal.close()


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"not a database at all, but long enough to be read as one" * 100)

    with pytest.raises(JournalDamaged, match="not a readable journal"):
        Journal(tmp_path)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    _accept(journal)
    journal.append("job-1", [_event("honest")])
    journal.close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute("UPDATE events SET body = ? WHERE sequence = 2", (_event("forged").SerializeToString(),))
    db.close()

    with pytest.raises(JournalDamaged, match="event 2 of job job-1 is damaged"):
        Journal(tmp_path).read("job-1", 0, 1 << 20)


def test_a_full_disk_keeps_what_is_there_and_still_takes_the_last_event(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    _accept(journal)
    db = journal._db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count={pages + 2}")  # SQLite's own "disk is full"

    with pytest.raises(JournalFull, match="free some space"):
        journal.append("job-1", [_event("z" * 100_000)])
    journal.append("job-1", [_event("small")])

    assert [event.sequence for event in journal.read("job-1", 0, 1 << 20)] == [1, 2]
    assert (tmp_path / "reserve").stat().st_size == 1 << 20
