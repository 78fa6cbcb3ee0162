"""After a killed agent: requests that had ended, and that its load process noted, go into the journal."""

from __future__ import annotations

import logging
from collections.abc import Collection

from benchfleet.v1 import event_pb2
from benchfleet_agent.journal import Journal, JournalFull
from benchfleet_agent.recorder import request_to_proto
from benchfleet_agent.request_spool import RequestSpool, Spooled

PART_BYTES = 1 << 20
_log = logging.getLogger(__name__)


def recover_requests(journal: Journal, unfinished: Collection[str]) -> int:
    """Write down what the spool has and the journal has not, of a job that is unfinished; empties the spool.

    Returns how many requests that were. A full disk ends it early, as it would have ended the job.
    """
    spool = RequestSpool(journal.directory)
    held = spool.read()
    written = _write(journal, held) if held is not None and held.job_id in unfinished else 0
    spool.end()
    return written


def _write(journal: Journal, held: Spooled) -> int:
    rounds, known = _seen(journal, held.job_id)
    written = 0
    try:
        for round_id, record in held.requests:
            if round_id in rounds and record.request_id not in known:
                known.add(record.request_id)
                request = request_to_proto(held.case_id, round_id, record)
                journal.append(held.job_id, [event_pb2.Event(request_finished=request)])
                written += 1
    except JournalFull as error:
        _log.warning("not all finished requests of job %s could be kept: %s", held.job_id, error)
    if written:
        _log.warning("%d requests of job %s that the killed agent had not read are kept", written, held.job_id)
    return written


def _seen(journal: Journal, job_id: str) -> tuple[set[str], set[str]]:
    """Rounds that were begun, and requests that ended, as the journal has them."""
    rounds: set[str] = set()
    requests: set[str] = set()
    sequence = 0
    while events := journal.read(job_id, sequence, PART_BYTES):
        for event in events:
            if event.HasField("round_started"):
                rounds.add(event.round_started.round_id)
            elif event.HasField("request_finished"):
                requests.add(event.request_finished.request_id)
        sequence = events[-1].sequence
    return rounds, requests
