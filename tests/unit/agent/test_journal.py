from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from benchfleet.failures import Reason
from benchfleet.v1 import event_pb2, host_pb2, job_pb2
from benchfleet_agent import journal as journal_module
from benchfleet_agent.journal import Journal, JournalDamaged, JournalFull, JournalInUse
from benchfleet_agent.journal_file import Contents, Serving, read_contents
from benchfleet_agent.recorder import job_started
from fakes.specs import job_spec


def _event(text: str = "x") -> event_pb2.Event:
    return event_pb2.Event(progress_reported=event_pb2.ProgressReported(message=text))


def _last(message: str = "") -> event_pb2.Event:
    finished = event_pb2.JobFinished(state=job_pb2.JOB_STATE_FINISHED)
    finished.failure.message = message
    return event_pb2.Event(job_finished=finished)


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


def test_an_event_that_is_damaged_while_the_agent_runs_is_not_handed_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    _accept(journal)
    journal.append("job-1", [_event("honest")])
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute("UPDATE events SET body = ? WHERE sequence = 2", (_event("forged").SerializeToString(),))
    db.close()

    with pytest.raises(JournalDamaged, match="event 2 of job job-1 is damaged on disk; restart the agent"):
        journal.read("job-1", 0, 1 << 20)
    journal.close()


def test_a_job_that_would_pass_the_bound_keeps_what_is_there_and_still_takes_its_last_event(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_bytes=10_000)
    _accept(journal)

    with pytest.raises(JournalFull, match=r"of the 9\.8 KiB that journal\.max_bytes allows; fetch ended jobs") as full:
        journal.append("job-1", [_event("y" * 5_000), _event("z" * 5_000)])
    journal.append("job-1", [_event("w" * 9_000)])
    journal.finish("job-1", job_pb2.JOB_STATE_FAILED, _last("e" * 2_000))

    assert full.value.reason is Reason.JOURNAL_FULL
    assert [event.sequence for event in journal.read("job-1", 0, 1 << 20)] == [1, 2, 3]


def test_no_job_is_accepted_when_a_sixteenth_of_the_bound_is_all_that_is_left_until_one_is_released(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path, max_bytes=16_000)
    _accept(journal)
    journal.append("job-1", [_event("y" * 15_000)])
    journal.finish("job-1", job_pb2.JOB_STATE_FINISHED, _last())

    with pytest.raises(JournalFull, match="benchfleet-agent jobs --release JOB") as full:
        _accept(journal, "job-2")
    assert [job.job_id for job in journal.jobs()] == ["job-1"]
    journal.release("job-1")
    _accept(journal, "job-2")

    assert full.value.reason is Reason.JOURNAL_FULL
    assert [job.job_id for job in journal.jobs()] == ["job-2"]


def test_each_job_says_how_many_bytes_it_holds_also_after_a_restart_and_a_refused_write(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_bytes=20_000)
    _accept(journal)
    _accept(journal, "job-2")
    small = journal.jobs()[1].size_bytes
    journal.append("job-1", [_event("y" * 5_000)])
    with pytest.raises(JournalFull):
        journal.append("job-1", [_event("z" * 50_000)])
    sizes = {job.job_id: job.size_bytes for job in journal.jobs()}
    journal.close()
    again = Journal(tmp_path)

    assert small == sizes["job-2"] < 1_000
    assert sizes["job-1"] == sum(len(event.SerializeToString()) for event in again.read("job-1", 0, 1 << 20))
    assert {job.job_id: job.size_bytes for job in again.jobs()} == sizes
    assert again.jobs()[0].to_proto().size_bytes == sizes["job-1"]
    again.close()


def test_others_read_what_is_held_while_the_agent_writes_and_after_it_stopped(tmp_path: Path) -> None:
    assert read_contents(tmp_path) == Contents()
    journal = Journal(tmp_path)
    _accept(journal)
    journal.serve("127.0.0.1:50551")

    beside = read_contents(tmp_path)
    journal.append("job-1", [_event()])
    journal.close()
    after = read_contents(tmp_path)

    assert beside.serving == Serving(os.getpid(), "127.0.0.1:50551")
    assert [job.last_sequence for job in beside.jobs] == [1]
    assert after.serving is None
    assert [(job.job_id, job.last_sequence, job.ended) for job in after.jobs] == [("job-1", 2, False)]


def test_reading_a_journal_that_a_killed_agent_left_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "live")
    _accept(journal)
    shutil.copytree(tmp_path / "live", tmp_path / "killed")
    journal.close()
    before = (tmp_path / "killed" / "journal.sqlite-wal").read_bytes()

    contents = read_contents(tmp_path / "killed")

    assert [job.job_id for job in contents.jobs] == ["job-1"]
    assert (tmp_path / "killed" / "journal.sqlite-wal").read_bytes() == before


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


def _ended(journal: Journal, job_id: str = "job-1", size: int = 1) -> None:
    _accept(journal, job_id)
    journal.append(job_id, [_event("y" * size)])
    journal.finish(job_id, job_pb2.JOB_STATE_FINISHED, _last())


def test_a_job_given_back_is_listed_nowhere_and_still_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    _ended(journal)

    journal.give_back("job-1")

    assert (journal.jobs(), journal.contents().jobs, read_contents(tmp_path).jobs) == ([], (), ())
    assert len(journal.read("job-1", 0, 1 << 20)) == 3
    journal.release("job-1")
    assert (journal.job("job-1"), journal.read("job-1", 0, 1 << 20), journal.released_at("job-1")) == (None, [], 3)


def test_a_job_given_back_makes_room_and_outlives_no_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_bytes=20_000)
    _ended(journal, "job-1", 15_000)
    journal.give_back("job-1")

    _ended(journal, "job-2", 15_000)
    gone = journal.job("job-1")
    journal.give_back("job-2")
    journal.close()
    again = Journal(tmp_path)

    assert (gone, again.job("job-2"), again.read("job-2", 0, 1 << 20)) == (None, None, [])
    assert (again.released_at("job-1"), again.released_at("job-2"), again.released_at("job-3")) == (3, 3, None)


def test_a_released_id_may_be_used_again_and_old_ones_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MOST_TOMBSTONES", 2)
    journal = Journal(tmp_path)
    for job_id in ("a", "b", "c", "a"):
        _ended(journal, job_id)
        assert [job.job_id for job in journal.jobs()] == [job_id]
        journal.release(job_id)

    assert [journal.released_at(job_id) for job_id in ("a", "b", "c")] == [3, None, 3]
