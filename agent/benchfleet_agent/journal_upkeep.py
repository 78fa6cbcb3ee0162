"""What is to be said about a journal: repairs, a bound that is reached, jobs that nobody fetches."""

from __future__ import annotations

import datetime

from benchfleet.failures import Failure, Reason
from benchfleet.quantities import quantity
from benchfleet.v1 import host_pb2, job_pb2
from benchfleet_agent.config import JournalConfig
from benchfleet_agent.journal import ROOM_RATIO, Journal
from benchfleet_agent.journal_file import Contents, Repair
from benchfleet_agent.journal_repair import loss_message
from benchfleet_agent.recorder import finish_job

REPAIRS_SHOWN_DAYS = 30
MOST_REPAIRS = 3
"""Of more, only the number is told."""
_DAY_NS = 86_400 * 10**9
FETCH = "fetch them with `benchfleet collect`, or give them up with `benchfleet-agent jobs --release-ended` on the host"


def close_damaged(journal: Journal) -> list[str]:
    """End the jobs that were running when the journal was damaged, saying so; returns their ids."""
    contents = journal.contents()
    lost = {repair.job_id: repair.lost for repair in contents.repairs}
    closed = [job.job_id for job in contents.jobs if not job.ended and job.job_id in lost]
    for job_id in closed:
        failure = Failure(Reason.AGENT_RESTARTED, loss_message(lost[job_id]))
        finish_job(journal, job_id, job_pb2.JOB_STATE_FAILED, failure)
    return closed


def find_problems(contents: Contents, config: JournalConfig, now_unix_ns: int) -> list[host_pb2.HostProblem]:
    """What controllers and people should know. Pure."""
    return [*_repairs(contents, now_unix_ns), *_bound(contents, config), *_age(contents, config, now_unix_ns)]


def _repairs(contents: Contents, now_unix_ns: int) -> list[host_pb2.HostProblem]:
    recent = [one for one in contents.repairs if now_unix_ns - one.unix_ns < REPAIRS_SHOWN_DAYS * _DAY_NS]
    problems = [
        host_pb2.HostProblem(
            severity="warning",
            message=f"{_day(repair.unix_ns)}: {_told(repair)}",
            advice=f"check this host's disk; this is told for {REPAIRS_SHOWN_DAYS} days",
        )
        for repair in recent[:MOST_REPAIRS]
    ]
    if len(recent) > MOST_REPAIRS:
        more = f"{len(recent) - MOST_REPAIRS} more losses by damage of the journal are on record"
        problems.append(host_pb2.HostProblem(severity="warning", message=more, advice="check this host's disk"))
    return problems


def _told(repair: Repair) -> str:
    events = f", events {repair.lost}" if repair.lost else ""
    return f"{repair.message}{f' (job {repair.job_id}{events})' if repair.job_id else ''}"


def _bound(contents: Contents, config: JournalConfig) -> list[host_pb2.HostProblem]:
    held = sum(job.size_bytes for job in contents.jobs)
    if config.max_bytes is None or held <= config.max_bytes * (1 - ROOM_RATIO):
        return []
    message = (
        f"the journal holds {quantity(held, 'bytes')} of {quantity(config.max_bytes, 'bytes')} (journal.max_bytes in "
        "agent.toml): no job is accepted"
    )
    return [host_pb2.HostProblem(severity="error", message=message, advice=FETCH)]


def _age(contents: Contents, config: JournalConfig, now_unix_ns: int) -> list[host_pb2.HostProblem]:
    days = config.max_age_days
    if days is None:
        return []
    old = [job for job in contents.jobs if job.ended and now_unix_ns - job.accepted_unix_ns > days * _DAY_NS]
    if not old:
        return []
    what = "1 ended job is" if len(old) == 1 else f"{len(old)} ended jobs are"
    size = quantity(sum(job.size_bytes for job in old), "bytes")
    message = (
        f"{what} held for more than {days:g} days ({size}), the oldest "
        f"since {_day(min(job.accepted_unix_ns for job in old))}: no controller has fetched them"
    )
    advice = f"{FETCH}; until then they stay, however old they are"
    return [host_pb2.HostProblem(severity="warning", message=message, advice=advice)]


def _day(unix_ns: int) -> str:
    return f"{datetime.datetime.fromtimestamp(unix_ns / 1e9, datetime.UTC):%Y-%m-%d}"
