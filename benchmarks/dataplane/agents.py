"""Simulated agents: one process that serves many of them, each on a port of its own, each with one running job.

    python -m benchmarks.dataplane.agents --count 100 --seconds 20 [--tls DIR]

Prints a JSON line with the ports and jobs, serves until its stdin closes. Each job sends one message of ten readings a
second, as a real agent's sampler does, staggered so that not all speak at once. Events are kept, so that a broken
stream is asked again from where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from benchfleet import CONTRACT_REVISION
from benchfleet.tls import CredentialFiles, server_credentials
from benchfleet.transport import SERVER_OPTIONS
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import agent_service_pb2_grpc, event_pb2, host_pb2, job_pb2

READINGS = 10
METRICS = (
    "host_cpu_busy_ns", "host_cpu_total_ns", "host_available_bytes", "host_swap_used_bytes", "runtime_rss_bytes",
    "runtime_anon_bytes", "runtime_file_bytes", "runtime_cpu_ns", "runtime_process_count", "load_rss_bytes",
    "load_cpu_ns", "agent_rss_bytes", "agent_cpu_ns",
)  # fmt: skip


def samples(case_id: str, second: int) -> event_pb2.SamplesRecorded:
    """A second of telemetry."""
    first = second * 1_000_000_000
    return event_pb2.SamplesRecorded(
        case_id=case_id,
        phase="round",
        probe_id="system",
        sample_ns=[first + 100_000_000 * index for index in range(READINGS)],
        cost_us=[300] * READINGS,
        columns=[
            event_pb2.SampleColumn(metric=name, integers=[first // 7 + place * 1_000_003 + i for i in range(READINGS)])
            for place, name in enumerate(METRICS)
        ],
    )


def job_events(job_id: str, host_id: str) -> list[event_pb2.Event]:
    """What comes before the samples."""
    case_id = f"case-{job_id}"
    case = job_pb2.CaseSpec(case_id=case_id, runtime="foundry", model="m", prompt_set="p", round_count=1, concurrency=1)
    spec = job_pb2.JobSpec(run_id="simulated", held_by="benchmark", cases=[case])
    host = host_pb2.Host(host_id=host_id, machine_id=host_id, hostname=host_id, agent_version="0", os_name="Linux")
    started = event_pb2.Event(job_started=event_pb2.JobStarted(host=host, spec=spec))
    return [started, event_pb2.Event(case_started=event_pb2.CaseStarted(case_id=case_id))]


class Simulated(agent_service_pb2_grpc.AgentServiceServicer):
    """Many agents at once, told apart by the job that is asked for."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._events: dict[str, list[event_pb2.Event]] = {}

    async def GetHost(self, request: pb.GetHostRequest, context: Any) -> pb.GetHostResponse:  # noqa: N802
        response = pb.GetHostResponse(host=host_pb2.Host(host_id="simulated"), contract_revision=CONTRACT_REVISION)
        response.answer_time.GetCurrentTime()
        return response

    async def StreamJobEvents(  # noqa: N802
        self, request: pb.StreamJobEventsRequest, context: Any
    ) -> AsyncIterator[pb.StreamJobEventsResponse]:
        job_id = request.job_id
        if job_id not in self._events:
            self._events[job_id] = []
            self._append(job_id, *job_events(job_id, f"host-{job_id}"))
        sent = request.committed_sequence
        start = time.perf_counter() + int(job_id.removeprefix("job-")) % 100 / 100
        while True:
            events = self._events[job_id]
            if sent < len(events):
                yield pb.StreamJobEventsResponse(events=events[sent:])
                sent = len(events)
            second = len(events) - 2
            if second > self._seconds:
                return
            await asyncio.sleep(max(0.0, start + second - time.perf_counter()))
            if second < self._seconds:
                self._append(job_id, event_pb2.Event(samples_recorded=samples(f"case-{job_id}", second)))
            else:
                finished = event_pb2.JobFinished(state=job_pb2.JOB_STATE_FINISHED)
                self._append(job_id, event_pb2.Event(job_finished=finished))

    async def ReleaseJobEvents(  # noqa: N802
        self, request: pb.ReleaseJobEventsRequest, context: Any
    ) -> pb.ReleaseJobEventsResponse:
        return pb.ReleaseJobEventsResponse()

    def _append(self, job_id: str, *events: event_pb2.Event) -> None:
        for event in events:
            event.sequence = len(self._events[job_id]) + 1
            event.event_ns = time.perf_counter_ns()
            event.event_time.GetCurrentTime()
            self._events[job_id].append(event)


async def serve(count: int, seconds: int, tls: Path | None) -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    service = Simulated(seconds)  # type: ignore[abstract]  # what is not simulated is not called
    agent_service_pb2_grpc.add_AgentServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call,unused-ignore]
    ports = []
    for _ in range(count):
        if tls:  # a set of credentials tells only its first port when there is nothing new
            credentials = server_credentials(CredentialFiles.host(tls), print)
            ports.append(server.add_secure_port("127.0.0.1:0", credentials))
        else:
            ports.append(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    print(json.dumps(ports), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--tls", type=Path)
    given = parser.parse_args()
    asyncio.run(serve(given.count, given.seconds, given.tls))
