"""Several callers follow jobs of one real agent: each is served to the end, and none keeps the others out."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchfleet.failures import Reason
from benchfleet.tls import CredentialFiles, server_credentials
from benchfleet.transport import CHANNEL_OPTIONS, SERVER_OPTIONS, failure_of
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import agent_service_pb2_grpc, event_pb2, host_pb2, job_pb2
from benchfleet_agent import service
from benchfleet_agent.access import AccessControl, AccessPolicy, Revocations
from benchfleet_agent.config import AgentConfig
from benchfleet_agent.executor import Runtimes
from benchfleet_agent.followers import MOST_OF_A_CALLER
from benchfleet_agent.journal import Journal
from benchfleet_agent.recorder import finish_job, job_started
from benchfleet_controller.certificates import new_key
from fakes.specs import job_spec
from integration.conftest import AgentProcess, free_port, wait_until
from integration.test_tls import NOW, Lab

pytestmark = pytest.mark.slow

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


def held(directory: Path) -> int:
    """Events in a journal that an agent has open."""
    with contextlib.closing(sqlite3.connect(directory / "journal.sqlite")) as db:
        return int(db.execute("SELECT count(*) FROM events").fetchone()[0])


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

        wait_until(lambda: not held(agent.data_dir), 10, "the job is forgotten")
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


def test_a_connection_that_is_old_is_verified_anew_and_whoever_follows_notices_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "TLS_SERVER_OPTIONS", [*SERVER_OPTIONS, ("grpc.max_connection_age_ms", 300)])
    lab, key = Lab(tmp_path / "certs"), new_key()
    files = CredentialFiles.host(tmp_path / "tls")
    lab.authority.write_bundle(files, lab.authority.issue_host("lab-1", [], key.public_key(), NOW, 9), key)
    journal = Journal(tmp_path / "agent")
    journal.accept("job", job_spec(), job_started(host_pb2.Host(), job_spec()))
    handshakes: list[None] = []
    looked = CredentialFiles.stamp

    def look(self: CredentialFiles) -> tuple[tuple[int, int, int], ...]:
        handshakes.append(None)
        return looked(self)

    monkeypatch.setattr(CredentialFiles, "stamp", look)

    async def follow_for_a_while() -> list[int]:
        access = AccessControl(AccessPolicy(), Revocations(files.revocations))
        agent = service.AgentService(journal, Runtimes(AgentConfig(data_dir=tmp_path)), host_pb2.Host, tmp_path)
        port = free_port()
        server = await service.start_server(agent, f"127.0.0.1:{port}", server_credentials(files, print), access)
        credentials = CredentialFiles.controller(lab.directory).read().channel()
        options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", "lab-1")]
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            stub: Any = agent_service_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
            stream = stub.StreamJobEvents(pb.StreamJobEventsRequest(job_id="job"), timeout=30)
            responses = aiter(stream)
            found = [event.sequence for event in (await anext(responses)).events]
            begun = len(handshakes)
            while len(handshakes) == begun:
                await stub.GetJob(pb.GetJobRequest(job_id="job"), timeout=10)
            finish_job(journal, "job", job_pb2.JOB_STATE_FINISHED, None)
            agent._notify()
            found += [event.sequence async for message in responses for event in message.events]
        await server.stop(0)
        return found

    assert asyncio.run(follow_for_a_while()) == [1, 2]
    journal.close()
