"""A real agent that somebody attacks while it measures: the attack must cost the measurement nothing."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from benchfleet.transport import CHANNEL_OPTIONS
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import agent_service_pb2_grpc, event_pb2, job_pb2
from fakes import openai_server
from fakes.specs import case_spec, job_spec
from integration.conftest import AgentProcess, free_port, wait_until

SERVICE = pb.DESCRIPTOR.services_by_name["AgentService"]
CALLS = sorted(method.name for method in SERVICE.methods)
STREAMS = {"PullModel", "StreamJobEvents"}
MODEL = "steady"
JOB_S = 1.0
"""How long a job that is to end by itself sends requests; its start and end come on top."""
STEADY_S = 3_600.0
"""How long the job that must not notice would go on."""
UNDISTURBED = 10
"""Requests of that job before the first attack."""
MOST_SLOWDOWN = 4.0
"""Of its median answer: loose, for attackers, server and job share the machine's cores."""
MOST_RESIDENT_BYTES = 400 << 20
SENSIBLE = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""What a refused call may end with; INTERNAL and UNKNOWN are the agent's own mistakes."""


@dataclass
class Target:
    """The agent under attack, and a server for its jobs."""

    agent: AgentProcess
    server_url: str
    channel: grpc.Channel
    steady_job: str = ""
    """The job that must not notice."""
    steady: list[event_pb2.Event] = field(default_factory=list)

    @property
    def stub(self) -> Any:
        return agent_service_pb2_grpc.AgentServiceStub(self.channel)

    def call(self, name: str, data: bytes, timeout_s: float = 20) -> grpc.StatusCode:
        """Send raw bytes as a call's request and say how it ended."""
        kind = self.channel.unary_stream if name in STREAMS else self.channel.unary_unary
        send: Any = kind(f"/{SERVICE.full_name}/{name}")
        try:
            answer = send(data, timeout=timeout_s)
            for _ in answer if name in STREAMS else ():
                pass
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()  # type: ignore[attr-defined,unused-ignore]
            return code
        return grpc.StatusCode.OK

    def judge(self, name: str, request: Any) -> grpc.StatusCode:
        """Send a request and see that it is answered, or refused for a sensible reason."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        code = self.call(name, data)
        assert code is grpc.StatusCode.OK or code in SENSIBLE, (name, code, data[:500])
        return code

    def weigh(self) -> None:
        resident = self.resident_bytes()
        assert resident < MOST_RESIDENT_BYTES, f"the agent holds {resident >> 20} MiB"

    def resident_bytes(self) -> int:
        assert self.agent.process is not None
        return int(psutil.Process(self.agent.process.pid).memory_info().rss)

    def spec(self, duration_s: float) -> job_pb2.JobSpec:
        """A job that sends requests one after the other for so long."""
        case = case_spec("steady-1", MODEL, runtime="endpoint", endpoint_url=self.server_url, warmup_round_count=0)
        case.stop.minimum_duration_s = duration_s
        case.stop.maximum_round_count = 10_000
        spec = job_spec(case)
        spec.skip_certificate, spec.idle_baseline_s = True, 0
        return spec

    def start_job(self, duration_s: float = JOB_S) -> str:
        """Start such a job; its id."""
        job_id = str(uuid.uuid4())
        self.stub.StartJob(pb.StartJobRequest(job_id=job_id, spec=self.spec(duration_s)), timeout=20)
        return job_id

    def steady_events(self) -> list[event_pb2.Event]:
        """All events of the steady job up to now."""
        asked = pb.GetJobRequest(job_id=self.steady_job)
        last = self.stub.GetJob(asked, timeout=20).job.last_sequence
        begin = pb.StreamJobEventsRequest(job_id=self.steady_job, committed_sequence=len(self.steady))
        stream = self.stub.StreamJobEvents(begin, timeout=60)
        while len(self.steady) < last:
            self.steady += next(stream).events
        stream.cancel()
        return self.steady

    def require_steady(self, more: int) -> None:
        """Wait until the steady job has had so many more requests answered, each well."""
        before = len(answers(self.steady_events()))
        wait_until(lambda: len(answers(self.steady_events())) >= before + more, 30, "the steady job goes on")
        assert self.stub.GetHost(pb.GetHostRequest(), timeout=20).running_job_id == self.steady_job

    def events(self, job_id: str) -> list[event_pb2.Event]:
        """All events, to the job's last."""
        found: list[event_pb2.Event] = []
        for message in self.stub.StreamJobEvents(pb.StreamJobEventsRequest(job_id=job_id), timeout=60):
            found += message.events
        return found

    def end_jobs(self) -> None:
        """Cancel and forget whatever an attack started."""
        for job in self.stub.ListJobs(pb.ListJobsRequest(), timeout=20).jobs:
            if job.state == job_pb2.JOB_STATE_RUNNING:
                self.stub.CancelJob(pb.CancelJobRequest(job_id=job.job_id), timeout=20)
                self.events(job.job_id)
            self.stub.ReleaseJobEvents(
                pb.ReleaseJobEventsRequest(job_id=job.job_id, committed_sequence=2**62), timeout=20
            )
        wait_until(lambda: not self.stub.GetHost(pb.GetHostRequest(), timeout=20).running_job_id, 30, "it is idle")


def flood(target: Target, count: int) -> dict[grpc.StatusCode, int]:
    """Many callers start jobs at once; how often which status came back."""
    spec = target.spec(60)

    def start(number: int) -> grpc.StatusCode:
        return target.judge("StartJob", pb.StartJobRequest(job_id=f"flood-{number}", spec=spec))

    with ThreadPoolExecutor(32) as callers:
        return dict(Counter(callers.map(start, range(count))))


@contextlib.contextmanager
def connected(target: Target) -> Iterator[Any]:
    """A connection of its own, which takes little before it is read."""
    narrow = [("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0)]
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1), *narrow]
    with grpc.insecure_channel(target.agent.address, options) as channel:
        yield agent_service_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call,unused-ignore]


@pytest.fixture(scope="session")
def steady_server() -> Iterator[str]:
    """A server that answers quickly and always alike."""
    command = [sys.executable, str(openai_server.__file__), "--model", MODEL]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # it ends with its stdin
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        yield f"http://127.0.0.1:{port}/v1"
        process.kill()


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory, steady_server: str) -> Iterator[Target]:
    data_dir = tmp_path_factory.mktemp("attacked")
    models = data_dir / "models"
    models.mkdir()
    config = data_dir / "agent.toml"
    config.write_text(f"model_roots = [{json.dumps(str(models))}]\n[runtime.foundry]\noffline = true\n")
    agent = AgentProcess(data_dir, config, f"127.0.0.1:{free_port()}")
    agent.start()
    with grpc.insecure_channel(agent.address, CHANNEL_OPTIONS) as channel:
        yield Target(agent, steady_server, channel)
    agent.kill()


@pytest.fixture(scope="module")
def steady(target: Target) -> Iterator[Target]:
    """The agent with a job on it, undisturbed at first, which a module's attacks must not disturb."""
    target.steady_job, target.steady = target.start_job(STEADY_S), []
    target.require_steady(UNDISTURBED)
    calm = seconds(target.steady)
    yield target
    found = seconds(target.steady_events())[len(calm) :]
    assert [event.sequence for event in target.steady] == list(range(1, len(target.steady) + 1))
    assert statistics.median(found) < MOST_SLOWDOWN * statistics.median(calm)
    _see_to(target)


@pytest.fixture
def attacked(steady: Target) -> Iterator[Target]:
    """That agent during one attack, after which its job must still run and go on."""
    yield steady
    steady.require_steady(2)


@pytest.fixture
def idle(target: Target) -> Iterator[Target]:
    """The agent with nothing to do."""
    yield target
    _see_to(target)


def _see_to(target: Target) -> None:
    """That an attack left neither jobs nor memory behind, nor anything in a log that does not belong there."""
    target.weigh()
    target.end_jobs()
    logs = [target.agent.data_dir / "agent.log", *(target.agent.data_dir / "logs").rglob("*.log")]
    for path in logs:
        text = path.read_text(errors="replace")
        assert "Traceback" not in text, _last(path)
        assert not {"\x1b", "\u202e", "\x07"} & set(text), path


def answers(events: list[event_pb2.Event]) -> list[event_pb2.RequestFinished]:
    """The requests that ended, all of them well."""
    found = [event.request_finished for event in events if event.HasField("request_finished")]
    assert {request.status for request in found} <= {"ok"}, found
    return found


def seconds(events: list[event_pb2.Event]) -> list[float]:
    """What the requests took."""
    return [(request.done_ns - request.start_ns) / 1e9 for request in answers(events)]


def _last(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")[-3_000:]
    return ""
