"""Damaged journals: what is intact is kept, what is lost is said."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from benchfleet.failures import Reason
from benchfleet.v1 import event_pb2, host_pb2, job_pb2
from benchfleet_agent.journal import Journal, JournalDamaged
from benchfleet_agent.journal_log import examine_log
from benchfleet_agent.journal_repair import LOST_EVENT
from benchfleet_agent.journal_upkeep import close_damaged
from benchfleet_agent.recorder import job_started
from fakes.specs import job_spec

EVERYTHING = 1 << 30


def _event(text: str = "x") -> event_pb2.Event:
    return event_pb2.Event(progress_reported=event_pb2.ProgressReported(message=text))


def _write(directory: Path, *, events: int = 8, size: int = 100, end: bool = True, job_id: str = "job-1") -> None:
    """One job of ``events`` events in all, closed cleanly."""
    journal = Journal(directory)
    journal.accept(job_id, job_spec(), job_started(host_pb2.Host(hostname="lab1"), job_spec()))
    for index in range(2, events + (not end)):
        journal.append(job_id, [_event(f"{index} " + "y" * size)])
    if end:
        finished = event_pb2.JobFinished(state=job_pb2.JOB_STATE_FINISHED)
        journal.finish(job_id, job_pb2.JOB_STATE_FINISHED, event_pb2.Event(job_finished=finished))
    journal.close()


def _forge(directory: Path, *statements: str) -> None:
    with sqlite3.connect(directory / "journal.sqlite") as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def _texts(journal: Journal, job_id: str = "job-1") -> list[str]:
    events = journal.read(job_id, 0, EVERYTHING)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return [
        event.progress_reported.message.split()[0] or "-" for event in events[1:] if event.progress_reported.message
    ]


def test_a_sound_journal_is_opened_as_it_is(tmp_path: Path) -> None:
    _write(tmp_path)

    journal = Journal(tmp_path)

    assert journal.contents().repairs == ()
    assert not list(tmp_path.glob("damaged-*"))
    journal.close()


def test_in_place_of_a_damaged_event_stands_that_it_is_lost_and_the_job_did_not_finish(tmp_path: Path) -> None:
    _write(tmp_path)
    _forge(tmp_path, "UPDATE events SET body = x'00ff' WHERE sequence IN (3, 5, 6)")

    journal = Journal(tmp_path, wall_clock_ns=lambda: 1_700_000_000 * 10**9)
    events = journal.read("job-1", 0, EVERYTHING)
    (repair,) = journal.contents().repairs
    (job,) = journal.jobs()

    assert _texts(journal) == ["2", "lost:", "4", "lost:", "lost:", "7"]
    assert events[2].progress_reported.message == LOST_EVENT
    assert (job.state, job.last_sequence, job.ended) == (job_pb2.JOB_STATE_FAILED, 8, True)
    assert events[-1].job_finished.state == job_pb2.JOB_STATE_FAILED
    assert events[-1].job_finished.failure.reason == Reason.EVENTS_RELEASED.value
    assert "lost (3, 5-6)" in events[-1].job_finished.failure.message
    assert (repair.job_id, repair.lost, repair.unix_ns) == ("job-1", "3, 5-6", 1_700_000_000 * 10**9)
    assert "event 3 of job job-1 is not what was written" in repair.message
    assert str(tmp_path / "damaged-20231114T221320Z") in repair.message
    journal.close()
    kept = sqlite3.connect(tmp_path / "damaged-20231114T221320Z" / "journal.sqlite")
    assert kept.execute("SELECT count(*) FROM events WHERE body = x'00ff'").fetchone() == (3,)
    kept.close()


def test_what_was_fetched_before_the_damage_stays_fetched(tmp_path: Path) -> None:
    _write(tmp_path, job_id="fetched", events=5)
    with contextlib.closing(Journal(tmp_path)) as journal:
        journal.release("fetched")
    _write(tmp_path)
    _forge(tmp_path, "UPDATE events SET body = x'00ff' WHERE sequence = 3")

    with contextlib.closing(Journal(tmp_path)) as journal:
        assert len(journal.contents().repairs) == 1
        assert journal.released_at("fetched") == 5


def test_a_job_that_is_here_is_offered_whatever_a_damaged_journal_says(tmp_path: Path) -> None:
    _write(tmp_path)
    _forge(
        tmp_path,
        "UPDATE events SET body = x'00ff' WHERE sequence = 3",
        "INSERT INTO released (job_id, last_sequence) VALUES ('job-1', 8)",
    )

    with contextlib.closing(Journal(tmp_path)) as journal:
        assert [job.job_id for job in journal.jobs()] == ["job-1"]


def test_a_repair_stays_on_record_and_is_not_made_again(tmp_path: Path) -> None:
    _write(tmp_path)
    _forge(tmp_path, "UPDATE events SET body = x'00' WHERE sequence = 3")
    Journal(tmp_path).close()

    journal = Journal(tmp_path)
    once = journal.contents().repairs
    journal.close()
    _forge(tmp_path, "UPDATE events SET body = x'00' WHERE sequence = 4")
    again = Journal(tmp_path)

    assert [repair.lost for repair in once] == ["3"]
    assert [repair.lost for repair in again.contents().repairs] == ["4", "3"]
    again.close()


def test_a_job_whose_end_is_lost_is_ended_with_a_failure_that_says_so(tmp_path: Path) -> None:
    _write(tmp_path)
    _forge(tmp_path, "DELETE FROM events WHERE sequence >= 7")

    journal = Journal(tmp_path)
    closed = close_damaged(journal)
    (job,) = journal.jobs()
    last = journal.read("job-1", 0, EVERYTHING)[-1].job_finished

    assert closed == ["job-1"]
    assert _texts(journal) == ["2", "3", "4", "5", "6", "lost:"]
    assert (job.state, job.last_sequence) == (job_pb2.JOB_STATE_FAILED, 8)
    assert last.failure.reason == Reason.AGENT_RESTARTED.value
    assert "events of this job are lost (7-8)" in last.failure.message
    assert close_damaged(journal) == []
    journal.close()


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE jobs SET spec = x'ff'",
        "UPDATE jobs SET last_sequence = 5",
        "UPDATE jobs SET last_sequence = 9000000000",
        "UPDATE jobs SET state = 1",
        "UPDATE jobs SET state = 77",
        "UPDATE jobs SET run_id = 'other'",
        "DELETE FROM jobs",
    ],
)
def test_a_job_is_known_by_its_events_when_its_entry_is_damaged(tmp_path: Path, forgery: str) -> None:
    _write(tmp_path)
    before = Journal(tmp_path)
    (job,) = before.jobs()
    events = before.read("job-1", 0, EVERYTHING)
    before.close()
    _forge(tmp_path, forgery)

    journal = Journal(tmp_path)
    (after,) = journal.jobs()
    (repair,) = journal.contents().repairs

    assert (after.run_id, after.held_by, after.spec, after.state, after.last_sequence, after.size_bytes) == (
        (job.run_id, job.held_by, job.spec, job.state, job.last_sequence, job.size_bytes)
    )
    assert journal.read("job-1", 0, EVERYTHING) == events
    assert "no event of a job was lost" in repair.message
    journal.close()


def test_a_job_without_its_first_event_goes_on_with_what_was_asked(tmp_path: Path) -> None:
    _write(tmp_path)
    _forge(tmp_path, "DELETE FROM events WHERE sequence = 1")

    journal = Journal(tmp_path)

    assert journal.read("job-1", 0, EVERYTHING)[0].job_started.spec == job_spec()
    assert [repair.lost for repair in journal.contents().repairs] == ["1"]
    journal.close()


def test_a_job_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    _write(tmp_path)
    _write(tmp_path, job_id="job-2")
    _forge(tmp_path, "UPDATE events SET body = x'00' WHERE job_id = 'job-1'")

    journal = Journal(tmp_path)

    assert [job.job_id for job in journal.jobs()] == ["job-2"]
    assert [(repair.job_id, repair.lost) for repair in journal.contents().repairs] == [("job-1", "everything")]
    journal.close()


def test_a_repair_that_was_interrupted_before_its_last_step_is_finished(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "journal.sqlite").rename(tmp_path / "journal.repaired.sqlite")

    journal = Journal(tmp_path)

    assert [job.last_sequence for job in journal.jobs()] == [8]
    journal.close()


def test_an_empty_file_is_what_a_killed_first_start_leaves(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"")

    journal = Journal(tmp_path)

    assert journal.jobs() == []
    assert journal.contents().repairs == ()
    journal.close()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_flipped_or_cut_what_is_handed_out_was_written_or_is_said_to_be_lost(
    tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    _write(tmp_path, events=60, size=draw.choice((20, 300, 3_000)), end=draw.random() < 0.5)
    path = tmp_path / "journal.sqlite"
    raw = bytearray(path.read_bytes())
    if seed % 4 == 0:
        del raw[-draw.randint(1, len(raw) // 3) :]
    else:
        for _ in range(draw.choice((1, 3, 64))):
            raw[draw.randrange(len(raw))] ^= draw.randint(1, 255)
    path.write_bytes(raw)

    try:
        journal = Journal(tmp_path)
    except JournalDamaged:
        return  # it says so, and touches nothing
    close_damaged(journal)
    repairs = journal.contents().repairs
    for job in journal.jobs():
        texts = _texts(journal, job.job_id)
        lost = [text for text in texts if text == "lost:"]
        assert [text for text in texts if text != "lost:"] == [str(n) for n in range(2, 61) if str(n) in texts]
        assert bool(lost) <= bool([repair for repair in repairs if repair.job_id == job.job_id and repair.lost])
        assert len(texts) >= 58 or any(repair.job_id == job.job_id for repair in repairs)
    assert journal.jobs() or repairs
    journal.close()


def _killed(directory: Path, events: int = 30) -> Path:
    """What an agent killed while a job runs leaves: most of it is in the write-ahead log."""
    journal = Journal(directory / "live")
    journal.accept("job-1", job_spec(), job_started(host_pb2.Host(), job_spec()))
    for index in range(2, events + 1):
        journal.append("job-1", [_event(str(index))])
    shutil.copytree(directory / "live", directory / "killed")
    journal.close()
    (directory / "killed" / "journal.sqlite-shm").unlink()
    return directory / "killed"


def test_the_log_of_a_killed_agent_is_whole(tmp_path: Path) -> None:
    killed = _killed(tmp_path)

    assert examine_log((killed / "journal.sqlite-wal").read_bytes()) is None
    journal = Journal(killed)
    assert [job.last_sequence for job in journal.jobs()] == [30]
    assert journal.contents().repairs == ()
    journal.close()


FRAME = 24 + 4096


def _flip(*places: int) -> Callable[[bytearray], None]:
    def damage(log: bytearray) -> None:
        for place in places:
            log[place] ^= 1

    return damage


def _cut(log: bytearray) -> None:
    del log[-5_000:]


@pytest.mark.parametrize("damage", [_flip(-10), _flip(-10, -5_000, -9_000), _cut])
def test_a_log_whose_end_is_lost_ends_the_job_that_was_being_written_and_says_so(
    tmp_path: Path, damage: Callable[[bytearray], None]
) -> None:
    killed = _killed(tmp_path)
    path = killed / "journal.sqlite-wal"
    log = bytearray(path.read_bytes())
    damage(log)
    path.write_bytes(log)

    journal = Journal(killed)
    repairs = journal.contents().repairs
    closed = close_damaged(journal)

    assert "may be lost" in repairs[0].message
    for job in journal.jobs():
        assert closed == [job.job_id] == [repair.job_id for repair in repairs]
        assert job.last_sequence < 31
        assert repairs[0].lost == f"after {job.last_sequence - 1}"
        assert job.state == job_pb2.JOB_STATE_FAILED
        assert "lost (after" in journal.read(job.job_id, 0, EVERYTHING)[-1].job_finished.failure.message
    journal.close()


@pytest.mark.parametrize("place", [5, 20, 28, 32 + 5 * FRAME + 4, 32 + 5 * FRAME + 10, 32 + 8 * FRAME + 20, 90_000])
def test_what_follows_damage_within_the_log_is_kept(tmp_path: Path, place: int) -> None:
    killed = _killed(tmp_path)
    path = killed / "journal.sqlite-wal"
    log = bytearray(path.read_bytes())
    log[place] ^= 1
    path.write_bytes(log)

    journal = Journal(killed)
    (repair,) = journal.contents().repairs

    assert [job.last_sequence for job in journal.jobs()] == [30]
    assert len(_texts(journal)) == 29
    assert "no event of a job was lost" in repair.message
    assert close_damaged(journal) == []
    assert bytes(log) in [file.read_bytes() for file in killed.glob("damaged-*/journal.sqlite-wal")]
    journal.close()


def test_frames_of_an_earlier_log_are_no_damage(tmp_path: Path) -> None:
    killed = _killed(tmp_path)
    log = bytearray((killed / "journal.sqlite-wal").read_bytes())
    log[len(log) - FRAME + 8] ^= 1  # another salt: what was there before the log began anew

    assert examine_log(bytes(log)) is None
    assert examine_log(bytes(log[:-100])) is None
    assert examine_log(bytes(log[: 32 + FRAME + 24])) is None  # killed between a frame's header and its page
    assert examine_log(b"") is None


def test_a_log_with_a_damaged_header_is_mended_without_losing_a_page(tmp_path: Path) -> None:
    log = (_killed(tmp_path) / "journal.sqlite-wal").read_bytes()
    damaged = bytearray(log)
    damaged[5] ^= 1

    found = examine_log(bytes(damaged))

    assert found is not None
    assert (found.bad_frames, found.cut) == (0, False)
    assert found.mended is not None
    assert _pages(found.mended) == _pages(log)
    assert examine_log(found.mended) is None


def _pages(log: bytes) -> list[bytes]:
    return [log[start + 24 : start + FRAME] for start in range(32, len(log), FRAME)]
