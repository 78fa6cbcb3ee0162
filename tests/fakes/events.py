"""A job's events as an agent would journal them, built in a few words; all times are given in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchfleet.v1 import event_pb2, host_pb2, job_pb2
from benchfleet_controller.store import Store, condensed

S = 1_000_000_000


def commit_events(store: Store, job_id: str, events: Sequence[event_pb2.Event]) -> int:
    """Store events of one job, condensed at once when it has ended; returns its committed sequence."""
    moved = store.commit_many({job_id: events})
    if events and events[-1].HasField("job_finished"):
        store._write(lambda connection: condensed.keep(connection, [job_id]))
    return moved[job_id]


def host(host_id: str = "h1", **fields: Any) -> host_pb2.Host:
    """A host with a GPU and 4 logical processors."""
    values: dict[str, Any] = {
        "host_id": host_id,
        "machine_id": f"m-{host_id}",
        "hostname": f"{host_id}.lab",
        "agent_version": "0.1.0",
        "os_name": "Linux",
        "os_version": "6.1",
        "architecture": "x86_64",
        "cpu_model": "Test CPU",
        "logical_core_count": 4,
        "memory_bytes": 8 << 30,
        "devices": [host_pb2.Device(device_id="gpu0", kind="gpu", display_name="Test GPU", driver_version="1.0")],
    }
    return host_pb2.Host(**(values | fields))


class JobEvents:
    """Collects events, numbered from 1; the clock starts at 0 s."""

    def __init__(self, job_id: str = "j1") -> None:
        self.job_id = job_id
        self.events: list[event_pb2.Event] = []

    def add(self, **kind: Any) -> event_pb2.Event:
        event = event_pb2.Event(sequence=len(self.events) + 1, event_ns=len(self.events), **kind)
        event.event_time.FromSeconds(1_700_000_000 + len(self.events))
        self.events.append(event)
        return event

    def job_started(self, spec: job_pb2.JobSpec, on: host_pb2.Host | None = None) -> None:
        self.add(job_started=event_pb2.JobStarted(host=on or host(), spec=spec))

    def case_started(self, case_id: str, **model: Any) -> None:
        values = {"alias": "tiny", "variant": "tiny-cpu:1", "device": "cpu", "execution_provider": "CPU"} | model
        self.add(case_started=event_pb2.CaseStarted(case_id=case_id, model=host_pb2.ModelVariant(**values)))

    def progress(self, case_id: str) -> None:
        self.add(progress_reported=event_pb2.ProgressReported(case_id=case_id, message="loading"))

    def loaded(self, case_id: str, load_s: float = 0.5, ep: str = "CPU") -> None:
        loaded = event_pb2.ModelLoaded(case_id=case_id, start_ns=0, end_ns=S, load_duration_ns=int(load_s * S))
        loaded.actual_execution_provider = ep
        self.add(model_loaded=loaded)

    def round(
        self, case_id: str, round_id: str, index: int, start_s: float, end_s: float,
        requests: Sequence[event_pb2.RequestFinished], *, warmup: bool = False,
    ) -> None:  # fmt: skip
        start, end = int(start_s * S), int(end_s * S)
        self.add(
            round_started=event_pb2.RoundStarted(
                case_id=case_id, round_id=round_id, round_index=index, warmup=warmup, start_ns=start
            )
        )
        for request in requests:
            request.case_id, request.round_id = case_id, round_id
            self.add(request_finished=request)
        failed = sum(request.status != "ok" for request in requests)
        self.add(
            round_finished=event_pb2.RoundFinished(
                case_id=case_id, round_id=round_id, start_ns=start, end_ns=end, load_cpu_ns=1000,
                request_count=len(requests), failed_count=failed,
            )
        )  # fmt: skip

    def samples(
        self, case_id: str, round_id: str, phase: str, times_s: Sequence[float], *, device_id: str = "",
        probe_id: str = "p", **columns: Sequence[float | None],
    ) -> None:  # fmt: skip
        message = event_pb2.SamplesRecorded(
            case_id=case_id, round_id=round_id, phase=phase, probe_id=probe_id, device_id=device_id,
            sample_ns=[int(t * S) for t in times_s], cost_us=[5] * len(times_s),
        )  # fmt: skip
        for metric, values in columns.items():
            column = message.columns.add(metric=metric, absent=[i for i, v in enumerate(values) if v is None])
            given = [v or 0 for v in values]
            if metric.endswith(("_ratio", "_w", "_c", "_hz")):
                column.doubles.extend(given)
            else:
                column.integers.extend(int(v) for v in given)
        self.add(samples_recorded=message)

    def case_finished(self, case_id: str, status: str = "succeeded", **fields: Any) -> None:
        self.add(case_finished=event_pb2.CaseFinished(case_id=case_id, status=status, **fields))

    def job_finished(self, state: int = job_pb2.JOB_STATE_FINISHED, **fields: Any) -> None:
        self.add(job_finished=event_pb2.JobFinished(state=state, **fields))  # type: ignore[arg-type]


def ok_request(
    request_id: str, start_s: float, offsets_s: Sequence[float], end_s: float, *, tokens: int | None = None,
    prompt_tokens: int = 10, **fields: Any,
) -> event_pb2.RequestFinished:  # fmt: skip
    """An answer whose chunks arrived ``offsets_s`` after its start; one token each unless ``tokens`` says otherwise."""
    count = len(offsets_s) if tokens is None else tokens
    values: dict[str, Any] = {
        "request_id": request_id,
        "prompt_id": "p1",
        "status": "ok",
        "http_status": 200,
        "start_ns": int(start_s * S),
        "done_ns": int(end_s * S),
        "end_ns": int(end_s * S),
        "token_offset_ns": [round(offset * S) for offset in offsets_s],
        "prompt_token_count": prompt_tokens,
        "output_token_count": count,
        "visible_token_count": count,
        "tokens_source": "usage",
        "accounting": "consistent",
        "finish_reason": "stop",
        "text": "answer",
        "stamp_source": "socket",
    }
    values |= fields
    return event_pb2.RequestFinished(**{name: value for name, value in values.items() if value is not None})


def failed_request(request_id: str, start_s: float, reason: str = "http_error") -> event_pb2.RequestFinished:
    return event_pb2.RequestFinished(
        request_id=request_id, prompt_id="p1", status="failed", start_ns=int(start_s * S), end_ns=int(start_s * S) + 1,
        failure=event_pb2.Failure(reason=reason, message="HTTP 500"), accounting="incomplete",
    )  # fmt: skip


def spec(*case_ids: str, run_id: str = "r1", **fields: Any) -> job_pb2.JobSpec:
    sampling = job_pb2.SamplingSpec(max_tokens=16, temperature=0.0, top_p=1.0, seed=42)
    values: dict[str, Any] = {
        "runtime": "foundry", "model": "tiny", "prompt_set": "default", "round_count": 2, "warmup_round_count": 1,
        "concurrency": 1, "stream": True, "sampling": sampling,
    }  # fmt: skip
    cases = [job_pb2.CaseSpec(case_id=case_id, **(values | fields)) for case_id in case_ids]
    return job_pb2.JobSpec(run_id=run_id, held_by="me@here", cases=cases)
