"""The command ``benchfleet-agent jobs``: what the journal holds, and giving it up."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from typing import Any

from benchfleet.addresses import is_loopback, join_address, split_address
from benchfleet.quantities import quantity
from benchfleet.transport import CHANNEL_OPTIONS
from benchfleet.v1 import job_pb2
from benchfleet_agent.config import AgentConfig
from benchfleet_agent.journal import HeldJob, Journal, JournalDamaged, JournalFull, JournalInUse
from benchfleet_agent.journal_file import Contents, Serving, read_contents

EXIT_USAGE = 2
EXIT_UNABLE = 4
CALL_S = 10.0
_HEADINGS = ("job", "run", "state", "started", "events", "size", "held by")


class _Refused(Exception):
    """Nothing was released; says what to do."""


def carry_out(options: argparse.Namespace, config: AgentConfig) -> int:
    """List the jobs held, or release some; returns the exit code. Listing changes nothing."""
    try:
        contents = read_contents(config.data_dir)
        if options.release is None and not options.release_ended:
            print(as_json(contents.jobs) if options.format == "json" else as_table(contents, config))
            return 0
        chosen = _chosen(contents.jobs, options.release)
        if not chosen:
            print("no job that ended is held")
            return 0
        if not options.yes and not _confirmed(chosen):
            return EXIT_USAGE
        if contents.serving is None:
            _release_here(config, chosen)
        else:
            _release_there(config, contents.serving, chosen)
    except _Refused as error:
        return _complain(str(error), EXIT_USAGE)
    except (JournalDamaged, JournalFull, JournalInUse, OSError) as error:
        return _complain(str(error), EXIT_UNABLE)
    print(f"released: {', '.join(job.job_id for job in chosen)}")
    return 0


def as_json(jobs: Sequence[HeldJob]) -> str:
    """The jobs with stable keys."""
    rows: list[dict[str, Any]] = [
        {
            "job_id": job.job_id,
            "run_id": job.run_id,
            "state": _state(job),
            "started": _moment(job).isoformat().replace("+00:00", "Z"),
            "event_count": job.last_sequence,
            "size_bytes": job.size_bytes,
            "held_by": job.held_by,
        }
        for job in jobs
    ]
    return json.dumps(rows, indent=2)


def as_table(contents: Contents, config: AgentConfig) -> str:
    """The jobs for people, oldest first, and what they take together."""
    if not contents.jobs:
        return "no job is held"
    rows = [_HEADINGS] + [
        (
            _plain(job.job_id),
            _plain(job.run_id),
            _state(job),
            f"{_moment(job):%Y-%m-%d %H:%M:%S}Z",
            str(job.last_sequence),
            quantity(job.size_bytes, "bytes"),
            _plain(job.held_by),
        )
        for job in contents.jobs
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    bound = config.journal.max_bytes
    of = "" if bound is None else f" of {quantity(bound, 'bytes')}"
    total = quantity(sum(job.size_bytes for job in contents.jobs), "bytes")
    return "\n".join([*lines, f"{total}{of} held; `benchfleet collect` fetches what ended"])


def _chosen(jobs: Sequence[HeldJob], wanted: str | None) -> list[HeldJob]:
    if wanted is None:
        return [job for job in jobs if job.ended]
    found = [job for job in jobs if job.job_id == wanted] or [job for job in jobs if job.job_id.startswith(wanted)]
    if len(found) != 1:
        how_many = "several jobs here answer" if found else "no job here answers"
        raise _Refused(f"{how_many} to {wanted!r}; `benchfleet-agent jobs` lists them")
    if not found[0].ended:
        raise _Refused(
            f"job {found[0].job_id} has not ended; end it with `benchfleet cancel {found[0].run_id}`. "
            "If its agent was killed, start the agent: it ends the job"
        )
    return found


def _confirmed(chosen: Sequence[HeldJob]) -> bool:
    for job in chosen:
        size = quantity(job.size_bytes, "bytes")
        print(
            f"job {_plain(job.job_id)} of run {_plain(job.run_id)}: {job.last_sequence} events, {size}", file=sys.stderr
        )
    print(
        "no controller has said that it stored this; what is not in a controller's database is lost for good. "
        "`benchfleet collect` would fetch it first.",
        file=sys.stderr,
    )
    if not sys.stdin.isatty():
        _complain("nothing was released: nobody can be asked here; add --yes", EXIT_USAGE)
        return False
    print("release? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _release_here(config: AgentConfig, chosen: Sequence[HeldJob]) -> None:
    journal = Journal(config.data_dir)
    try:
        for job in chosen:
            journal.release(job.job_id)
        journal.shrink()
    finally:
        journal.close()


def _release_there(config: AgentConfig, serving: Serving, chosen: Sequence[HeldJob]) -> None:
    """Ask the agent that runs: only it may write."""
    if config.credentials() is not None:
        raise _Refused(
            f"the agent (process {serving.pid}) runs and takes orders from certified controllers only; "
            "stop it, release, and start it again"
        )
    import grpc

    from benchfleet.v1 import agent_service_pb2 as pb
    from benchfleet.v1 import agent_service_pb2_grpc

    with grpc.insecure_channel(reachable(serving.address), options=CHANNEL_OPTIONS) as channel:
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
        try:
            for job in chosen:
                request = pb.ReleaseJobEventsRequest(job_id=job.job_id, committed_sequence=job.last_sequence)
                stub.ReleaseJobEvents(request, timeout=CALL_S)
        except grpc.RpcError as error:
            raise OSError(
                f"the agent (process {serving.pid}, {serving.address}) did not release: {error.details()}; "
                "stop it, release, and start it again"
            ) from None


def reachable(address: str) -> str:
    """Where this machine reaches an agent that listens on an address."""
    host, port = split_address(address)
    if is_loopback(host):
        return address
    return join_address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104 - read, not bound


def _state(job: HeldJob) -> str:
    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def _moment(job: HeldJob) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(job.accepted_unix_ns // 10**9, datetime.UTC)


def _plain(text: str) -> str:
    """Names come from controllers: nothing in them reaches the terminal as a command."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _complain(message: str, code: int) -> int:
    print(f"benchfleet-agent: {message}", file=sys.stderr)
    return code
