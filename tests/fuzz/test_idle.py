"""An agent that measures nothing, and callers that want it to do what it must not."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import grpc
import pytest

from benchfleet.failures import Reason
from benchfleet.transport import failure_of
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet_agent.followers import MAXIMUM_STREAMS
from benchfleet_agent.jobs import MAXIMUM_TEXT
from fakes.specs import case_spec, job_spec
from fuzz.conftest import Target, connected, flood
from fuzz.test_requests import send_specs
from integration.conftest import wait_until

METADATA = "http://169.254.169.254/latest/meta-data"
SPEC_BYTES = 4 << 20


def test_a_server_that_is_not_allowed_is_never_asked_and_no_job_accepted(idle: Target) -> None:
    spec = job_spec(case_spec(), case_spec("case-2", runtime="endpoint", endpoint_url=METADATA))
    with pytest.raises(grpc.RpcError) as caught:
        idle.stub.StartJob(pb.StartJobRequest(job_id="elsewhere", spec=spec))
    failed = failure_of(caught.value)
    assert failed is not None
    assert failed[0].reason is Reason.ENDPOINT_NOT_ALLOWED
    assert 'allow = ["http://127.0.0.1:*"' in failed[0].message
    assert not idle.stub.ListJobs(pb.ListJobsRequest()).jobs
    for request in (pb.ResolveModelRequest, pb.PullModelRequest, pb.RemoveModelRequest, pb.UnloadModelRequest):
        asked = request(runtime="endpoint", endpoint_url=METADATA, model="m")
        name = request.__name__.removesuffix("Request")
        assert idle.judge(name, asked) is grpc.StatusCode.FAILED_PRECONDITION


def test_of_a_flood_of_jobs_one_is_accepted(idle: Target) -> None:
    assert flood(idle, 100) == {grpc.StatusCode.OK: 1, grpc.StatusCode.ABORTED: 99}


def test_jobs_that_make_no_sense_are_refused_when_there_is_none_to_wait_for(idle: Target) -> None:
    send_specs(idle, 40)


def test_readers_that_do_not_read_cost_little_memory_and_keep_no_call_out(idle: Target) -> None:
    spec = idle.spec(0.1)
    longest = spec.prompt_sets.add(name="unused").prompts.add(prompt_id="long")
    for _ in range(SPEC_BYTES // MAXIMUM_TEXT):
        longest.messages.add(role="user", content="x" * MAXIMUM_TEXT)
    idle.stub.StartJob(pb.StartJobRequest(job_id="large", spec=spec))
    idle.events("large")
    before = idle.resident_bytes()
    with contextlib.ExitStack() as stack:
        streams = []
        for _ in range(100):
            stub = stack.enter_context(connected(idle))
            stream = stub.StreamJobEvents(pb.StreamJobEventsRequest(job_id="large"), timeout=60)
            stack.callback(stream.cancel)
            streams.append(stream)
            if len(streams) <= MAXIMUM_STREAMS:
                stream.initial_metadata()  # it has begun, and nobody reads on
        assert {ending(stream) for stream in streams[MAXIMUM_STREAMS:]} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert idle.judge("GetHost", pb.GetHostRequest()) is grpc.StatusCode.OK
        assert idle.resident_bytes() - before < 5 * MAXIMUM_STREAMS * SPEC_BYTES
    asked = pb.StreamJobEventsRequest(job_id="large")
    wait_until(lambda: idle.judge("StreamJobEvents", asked) is grpc.StatusCode.OK, 20, "the places are free again")


def test_a_server_that_does_not_answer_keeps_nobody_from_following_a_job(idle: Target) -> None:
    job_id = idle.start_job()
    count = len(idle.events(job_id))
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(32) as callers:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        asked = pb.ResolveModelRequest(runtime="endpoint", endpoint_url=url, model="m")
        waiting = [callers.submit(idle.call, "ResolveModel", asked.SerializeToString(), 2) for _ in range(32)]
        assert wait(waiting, 0.3).done == set()
        assert idle.stub.GetHost(pb.GetHostRequest(), timeout=5).host.hostname
        follow = pb.StreamJobEventsRequest(job_id=job_id)
        assert sum(len(one.events) for one in idle.stub.StreamJobEvents(follow, timeout=1)) == count
        idle.stub.CancelJob(pb.CancelJobRequest(job_id=job_id), timeout=2)
    assert {one.result() for one in waiting} <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.NOT_FOUND}


def ending(stream: Any) -> grpc.StatusCode | None:
    """How a stream ended, after as much as it sent; None: it sends."""
    try:
        next(stream)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()  # type: ignore[attr-defined,unused-ignore]
        return code
    return None
