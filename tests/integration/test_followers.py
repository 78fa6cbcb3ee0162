"""Several callers follow jobs of one real agent: each is served to the end, and none keeps the others out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchfleet.failures import Reason
from benchfleet.tls import CredentialFiles
from benchfleet.transport import CHANNEL_OPTIONS, failure_of
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import agent_service_pb2_grpc, event_pb2, host_pb2, job_pb2
from benchfleet_agent.followers import MOST_OF_A_CALLER
from benchfleet_agent.journal import Journal
from benchfleet_agent.recorder import job_started
from fakes.specs import job_spec
from integration.conftest import AgentProcess, wait_until
from integration.test_tls import Lab

MakeAgent = Callable[..., AgentProcess]
EVENTS = 40
NARROW = [("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]


def fill(directory: Path) -> None:
    """An ended job of about 10 MB, more than any buffer on the way holds."""
    journal = Journal(directory)
    journal.accept("large", job_spec(), job_started(host_pb2.Host(), job_spec()))
    event = event_pb2.Event(progress_reported=event_pb2.ProgressReported(message="x" * 250_000))
    journal.append("large", [event] * (EVENTS - 2))
    finished = event_pb2.JobFinished(state=job_pb2.JOB_STATE_FINISHED)
    journal.finish("large", job_pb2.JOB_STATE_FINISHED, event_pb2.Event(job_finished=finished))
    journal.close()


def follow(stub: Any, committed: int = 0) -> Any:
    return stub.StreamJobEvents(pb.StreamJobEventsRequest(job_id="large", committed_sequence=committed), timeout=60)


def sequences(stream: Any) -> list[int]:
    return [event.sequence for message in stream for event in message.events]


def refusal_of(stream: Any) -> tuple[grpc.StatusCode, Reason, dict[str, str]]:
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    failed = failure_of(caught.value)
    assert failed is not None
    return caught.value.code(), failed[0].reason, failed[1]  # type: ignore[attr-defined,unused-ignore]


def test_a_slow_follower_is_served_to_the_end_of_a_job_that_another_gave_back(make_agent: MakeAgent) -> None:
    agent = make_agent(start=False)
    fill(agent.data_dir)
    agent.start()
    with contextlib.ExitStack() as stack:
        slow, quick = (
            agent_service_pb2_grpc.AgentServiceStub(  # type: ignore[no-untyped-call,unused-ignore]
                stack.enter_context(grpc.insecure_channel(agent.address, [*CHANNEL_OPTIONS, *NARROW]))
            )
            for _ in range(2)
        )
        behind = follow(slow)
        first = [event.sequence for event in next(behind).events]

        assert sequences(follow(quick)) == list(range(1, EVENTS + 1))
        for _ in range(2):
            quick.ReleaseJobEvents(pb.ReleaseJobEventsRequest(job_id="large", committed_sequence=EVENTS), timeout=10)
        assert not quick.ListJobs(pb.ListJobsRequest(), timeout=10).jobs
        assert first + sequences(behind) == list(range(1, EVENTS + 1))

        def forgotten() -> bool:
            with contextlib.suppress(grpc.RpcError):
                quick.GetJob(pb.GetJobRequest(job_id="large"), timeout=10)
                return False
            return True

        wait_until(forgotten, 10, "the job is forgotten")
        left = {"first_available_sequence": str(EVENTS + 1)}
        assert refusal_of(follow(quick, 3)) == (grpc.StatusCode.OUT_OF_RANGE, Reason.EVENTS_RELEASED, left)
        assert sequences(follow(quick, EVENTS)) == []


def test_a_reader_who_takes_all_the_places_it_can_does_not_keep_the_owner_out(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    agent, lab = make_agent(start=False), Lab(tmp_path / "certs")
    agent.config.write_text(agent.config.read_text() + '[access]\nrun = ["anna@laptop"]\nread = ["*"]\n')
    files = lab.host(agent, "lab-1")
    fill(agent.data_dir)
    agent.start()
    assert files.present()
    with contextlib.ExitStack() as stack:

        def stub(directory: str) -> Any:
            credentials = CredentialFiles.controller(Path(directory)).read().channel()
            options = [*CHANNEL_OPTIONS, *NARROW, ("grpc.ssl_target_name_override", "lab-1")]
            channel = stack.enter_context(grpc.secure_channel(agent.address, credentials, options))
            return agent_service_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call,unused-ignore]

        reader = lab.another_controller("reader")
        idle = []
        for _ in range(MOST_OF_A_CALLER):
            idle.append(follow(stub(reader)))
            next(idle[-1])

        assert refusal_of(follow(stub(reader)))[:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.HOST_BUSY)
        assert sequences(follow(stub(str(lab.directory)))) == list(range(1, EVENTS + 1))
        for stream in idle:
            stream.cancel()
