"""Callers in numbers, and callers that ask for what is not there, on a real agent that measures meanwhile."""

from __future__ import annotations

import contextlib
import socket
import sys

import grpc
import pytest

from benchfleet.v1 import agent_service_pb2 as pb
from fuzz.conftest import Target, connected, flood

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How an HTTP/2 client begins (RFC 9113, section 3.4), with empty settings."""
SLACK_BYTES = 64 << 20
METADATA = "http://169.254.169.254/latest/meta-data"


def test_what_is_asked_of_jobs_that_are_not_there_or_not_so_far(attacked: Target) -> None:
    job_id = attacked.steady_job
    for unknown in ("", "nobody", "../journal", "\0", "%"):
        assert attacked.judge("GetJob", pb.GetJobRequest(job_id=unknown)) is grpc.StatusCode.NOT_FOUND
        assert attacked.judge("CancelJob", pb.CancelJobRequest(job_id=unknown)) is grpc.StatusCode.NOT_FOUND
        request = pb.StreamJobEventsRequest(job_id=unknown)
        assert attacked.judge("StreamJobEvents", request) is grpc.StatusCode.NOT_FOUND
        for sequence in (-(2**63), -1, 0, 2**63 - 1):
            given_back = pb.ReleaseJobEventsRequest(job_id=unknown, committed_sequence=sequence)
            assert attacked.judge("ReleaseJobEvents", given_back) is grpc.StatusCode.OK
    for sequence in (-(2**63), -1, 1_000_000_000, 2**63 - 1):
        request = pb.StreamJobEventsRequest(job_id=job_id, committed_sequence=sequence)
        assert attacked.judge("StreamJobEvents", request) is grpc.StatusCode.OUT_OF_RANGE
    for sequence in (-(2**63), -1, 0):
        given_back = pb.ReleaseJobEventsRequest(job_id=job_id, committed_sequence=sequence)
        assert attacked.judge("ReleaseJobEvents", given_back) is grpc.StatusCode.OK
    assert attacked.judge("GetJob", pb.GetJobRequest(job_id=job_id)) is grpc.StatusCode.OK


def test_a_flood_of_jobs_is_refused_while_one_runs(attacked: Target) -> None:
    assert flood(attacked, 300) == {grpc.StatusCode.ABORTED: 300}


@pytest.mark.skipif(sys.platform == "win32", reason="a process may not hold so many sockets there")
def test_a_thousand_idle_connections_keep_nobody_out(attacked: Target) -> None:
    host, _, port = attacked.agent.address.rpartition(":")
    with contextlib.ExitStack() as stack:
        for number in range(1_000):
            connection = stack.enter_context(socket.create_connection((host, int(port)), 10))
            if number % 2:
                connection.sendall(PREFACE if number % 4 == 1 else b"\x16\x03\x01 no HTTP at all")
        with connected(attacked) as stub:
            assert stub.GetHost(pb.GetHostRequest(), timeout=10).running_job_id
        attacked.weigh()
