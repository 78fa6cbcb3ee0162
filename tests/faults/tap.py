"""A reader beside the controller: follows a job's events over the same wire and counts them, keeping nothing back.

It never releases, so it changes nothing; it stands for a second controller, and knows the agent's last sequence.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field

import grpc

from benchfleet.transport import CHANNEL_OPTIONS
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import agent_service_pb2_grpc, event_pb2

_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
"""Each channel finds out for itself whether the agent is back: it must be there before a controller gives jobs back."""


@dataclass(slots=True)
class Seen:
    """What came of one job."""

    sequences: list[int] = field(default_factory=list)
    samples: int = 0
    requests: list[event_pb2.RequestFinished] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    """Sequences of requests by the digest of their answer."""
    ended: bool = False

    @property
    def gapless(self) -> bool:
        """1, 2, 3, … each once."""
        return self.sequences == list(range(1, len(self.sequences) + 1))


class Tap:
    """Follows every job that an agent shows, over broken connections, until `close`."""

    def __init__(self, address: str) -> None:
        self.jobs: dict[str, Seen] = {}
        self._address = address
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._closed.set()
        self._thread.join(20)

    def _follow(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(grpc.RpcError), grpc.insecure_channel(self._address, options=_OPTIONS) as channel:
                stub = agent_service_pb2_grpc.AgentServiceStub(channel)
                while not self._closed.is_set():
                    for job in stub.ListJobs(pb.ListJobsRequest(), timeout=2).jobs:
                        seen = self.jobs.setdefault(job.job_id, Seen())
                        if not seen.ended:
                            self._read(stub, job.job_id, seen)
                    time.sleep(0.02)
            time.sleep(0.02)

    def _read(self, stub: agent_service_pb2_grpc.AgentServiceStub, job_id: str, seen: Seen) -> None:
        committed = seen.sequences[-1] if seen.sequences else 0
        call = stub.StreamJobEvents(pb.StreamJobEventsRequest(job_id=job_id, committed_sequence=committed), timeout=5)
        for response in call:
            for event in response.events:
                seen.sequences.append(event.sequence)
                if event.HasField("samples_recorded"):
                    seen.samples += len(event.samples_recorded.sample_ns)
                if event.HasField("request_finished"):
                    seen.requests.append(event.request_finished)
                    seen.places[event.request_finished.answer_sha256] = event.sequence
                seen.ended = seen.ended or event.HasField("job_finished")
            if self._closed.is_set():
                call.cancel()
                return
