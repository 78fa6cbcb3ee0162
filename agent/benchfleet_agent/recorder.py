"""From what happens in a job to its events: the one place that fills event messages."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchfleet.failures import Failure
from benchfleet.v1 import event_pb2, host_pb2, job_pb2
from benchfleet_agent.evidence import MemoryTrail
from benchfleet_agent.fit import Forecast
from benchfleet_agent.host_state import HostState
from benchfleet_agent.instrument import Certificate
from benchfleet_agent.jobs import Outcome
from benchfleet_agent.journal import Journal, JournalFull
from benchfleet_agent.load.record import RequestRecord, Status
from benchfleet_agent.request_spool import RequestSpool
from benchfleet_agent.runtimes import Loaded, Model
from benchfleet_agent.sampler import SampleBatch

PROGRESS_PERIOD_NS = 500_000_000

_MOMENTS = (
    "start_ns", "sent_ns", "headers_ns", "first_byte_ns", "role_ns", "first_reasoning_ns", "first_content_ns",
    "last_content_ns", "finish_ns", "usage_ns", "done_ns", "connect_duration_ns", "http_status", "scheduled_ns",
)  # fmt: skip
_COUNTS = {
    "prompt_tokens": "prompt_token_count",
    "cached_prompt_tokens": "cached_prompt_token_count",
    "output_tokens": "output_token_count",
    "visible_tokens": "visible_token_count",
    "reasoning_tokens": "reasoning_token_count",
    "hidden_tokens": "hidden_token_count",
    "server_prefill_tokens": "server_prefill_token_count",
    "server_decode_tokens": "server_decode_token_count",
}
_DURATIONS = ("server_prefill_s", "server_decode_s")


class Recorder:
    """Writes one job's events to the journal and tells whoever follows. Safe from several threads."""

    def __init__(
        self,
        journal: Journal,
        job_id: str,
        changed: Callable[[], None],
        *,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._journal = journal
        self._job_id = job_id
        self._changed = changed
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._progress: tuple[str, int] | None = None
        self.memory = MemoryTrail()
        """How memory stood at last, of the samples that went through here."""
        self.problem: BaseException | None = None
        """The first failure to write samples, which happens on another thread; the job ends with it."""

    def certificate(self, certificate: Certificate) -> None:
        """The agent measured itself under one load."""
        fields = {field.name: getattr(certificate, field.name) for field in dataclasses.fields(certificate)}
        self._append(event_pb2.Event(certificate_recorded=event_pb2.CertificateRecorded(**fields)))

    def certificate_failed(self, failure: Failure) -> None:
        """The agent could not measure itself; the job goes on."""
        message = event_pb2.CertificateRecorded(failure=failure.to_proto())
        self._append(event_pb2.Event(certificate_recorded=message))

    def case_started(self, case_id: str, model: Model | None, runtime: str) -> None:
        """A case begins."""
        variant = model_to_proto(model, runtime) if model else None
        self._append(event_pb2.Event(case_started=event_pb2.CaseStarted(case_id=case_id, model=variant)))

    def progress(self, case_id: str, message: str, fraction: float | None) -> None:
        """Something to show; at most two a second of the same kind reach the journal."""
        now = self._clock_ns()
        kind = message.split(":", 1)[0]
        done = fraction is not None and fraction >= 1
        if self._progress and self._progress[0] == kind and now - self._progress[1] < PROGRESS_PERIOD_NS and not done:
            return
        self._progress = (kind, now)
        reported = event_pb2.ProgressReported(case_id=case_id, message=message, fraction=fraction)
        self._append(event_pb2.Event(progress_reported=reported))

    def fit_forecasted(self, case_id: str, found: Forecast) -> None:
        """Whether the model will fit, told before it is loaded."""
        fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        self._append(event_pb2.Event(fit_forecasted=event_pb2.FitForecasted(case_id=case_id, **fields)))

    def model_loaded(
        self,
        case_id: str,
        start_ns: int,
        end_ns: int,
        loaded: Loaded,
        components: dict[str, str],
        stamp_source: str,
        page_cache_ratio: float | None,
        path: str = "http",
        device_libraries: Sequence[str] = (),
    ) -> None:
        """The model is ready."""
        message = event_pb2.ModelLoaded(
            case_id=case_id,
            start_ns=start_ns,
            end_ns=end_ns,
            load_duration_ns=loaded.load_ns,
            actual_execution_provider=loaded.execution_provider,
            remote=loaded.endpoint.remote,
            components=components,
            stamp_source=stamp_source,
            page_cache_ratio=page_cache_ratio,
            path=path,
            device_libraries=device_libraries,
        )
        self._append(event_pb2.Event(model_loaded=message))

    def round_started(
        self,
        case_id: str,
        round_id: str,
        round_index: int,
        kind: str,
        state: HostState,
        *,
        model_unloaded: bool | None = None,
    ) -> None:
        """A round begins under these conditions; only those of the kind ``counted`` count.

        ``model_unloaded``: whether the runtime had unloaded the model in the pause before; None: nobody asked it.
        """
        message = event_pb2.RoundStarted(
            case_id=case_id,
            round_id=round_id,
            round_index=round_index,
            warmup=kind != "counted",
            start_ns=self._clock_ns(),
            kind=kind,
            host_state=state.to_proto(),
            model_unloaded=model_unloaded,
        )
        self._append(event_pb2.Event(round_started=message))

    def request_finished(self, case_id: str, round_id: str, record: RequestRecord) -> None:
        """A request ended."""
        message = request_to_proto(case_id, round_id, record)
        self._append(event_pb2.Event(request_finished=message))

    def round_finished(
        self,
        case_id: str,
        round_id: str,
        finished: dict[str, int | None],
        requests: int,
        failed: int,
        state: HostState,
    ) -> None:
        """A round ended; ``finished`` holds the load process's figures."""
        message = event_pb2.RoundFinished(
            case_id=case_id,
            round_id=round_id,
            start_ns=finished["start_ns"] or 0,
            end_ns=finished["end_ns"] or 0,
            load_cpu_ns=finished["cpu_ns"] or 0,
            load_rss_bytes=finished["rss_bytes"],
            request_count=requests,
            failed_count=failed,
            host_state=state.to_proto(),
        )
        self._append(event_pb2.Event(round_finished=message))

    def samples(self, batch: SampleBatch) -> None:
        """Telemetry; called by the sampler's thread, so a failure is kept for the job's thread to find."""
        self.memory.note(batch)
        try:
            self._append(event_pb2.Event(samples_recorded=batch.to_proto()))
        except Exception as error:  # noqa: BLE001  (whatever it is, the job's thread raises it)
            self.problem = self.problem or error

    def case_finished(
        self,
        case_id: str,
        outcome: Outcome,
        unload_ns: int | None,
        unmeasured: dict[str, str],
        dropped: int,
        evidence: Sequence[str] = (),
    ) -> None:
        """A case ended; ``evidence`` speaks for its failure."""
        message = event_pb2.CaseFinished(
            case_id=case_id,
            status=outcome.status,
            failure=outcome.failure.to_proto() if outcome.failure else None,
            unload_duration_ns=unload_ns,
            unmeasured=unmeasured,
            dropped_reading_count=dropped,
            evidence=evidence,
        )
        self._append(event_pb2.Event(case_finished=message))

    def job_finished(self, state: job_pb2.JobState.ValueType, failure: Failure | None) -> None:
        """The job ended; nothing may follow."""
        finish_job(self._journal, self._job_id, state, failure)
        self._changed()

    def begin_spool(self, case_id: str) -> Path:
        """Where the case's load process notes finished requests, until `end_spool`. Raises `JournalFull`."""
        try:
            return RequestSpool(self._journal.directory).begin(self._job_id, case_id)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise JournalFull(f"the disk of {self._journal.directory} is full; free some and run again") from None
            raise

    def end_spool(self) -> None:
        """All that the case's load process noted is in the journal, or given up with it."""
        RequestSpool(self._journal.directory).end()

    def _append(self, *events: event_pb2.Event) -> None:
        with self._lock:
            self._journal.append(self._job_id, events)
        self._changed()


def job_started(host: host_pb2.Host, spec: job_pb2.JobSpec) -> event_pb2.Event:
    """The first event of a job."""
    return event_pb2.Event(job_started=event_pb2.JobStarted(host=host, spec=spec))


def finish_job(journal: Journal, job_id: str, state: job_pb2.JobState.ValueType, failure: Failure | None) -> None:
    """Write the last event of a job."""
    message = event_pb2.JobFinished(state=state, failure=failure.to_proto() if failure else None)
    journal.finish(job_id, state, event_pb2.Event(job_finished=message))


def model_to_proto(model: Model, runtime: str) -> host_pb2.ModelVariant:
    """A variant for the wire."""
    return host_pb2.ModelVariant(
        alias=model.alias,
        variant=model.variant,
        runtime=runtime,
        device=model.device,
        execution_provider=model.execution_provider,
        size_bytes=model.size_bytes,
        license=model.license,
        context_length=model.context_length,
        capabilities=model.capabilities,
        cached=model.cached,
        loaded=model.loaded,
        quantisation=model.quantisation,
    )


def request_to_proto(case_id: str, round_id: str, record: RequestRecord) -> event_pb2.RequestFinished:
    """A request's record for the wire."""
    message = event_pb2.RequestFinished(
        case_id=case_id,
        round_id=round_id,
        request_id=record.request_id,
        prompt_id=record.prompt_id,
        status=record.status.value,
        end_ns=record.end_ns,
        token_offset_ns=record.token_ns,
        coalesced_chunk_count=record.coalesced_chunks,
        tokens_source=record.tokens_source or "",
        accounting=record.accounting.value,
        finish_reason=record.finish_reason or "",
        text=_encodable(record.text),
        reasoning_text=_encodable(record.reasoning_text),
        stamp_source=record.stamp_source or "",
        position=record.position,
        prompt_prefix=record.prompt_prefix,
        answer_sha256=answer_sha256(record),
        piece_length=record.piece_lengths,
        other_length=record.other_lengths,
    )
    if record.status is not Status.OK and record.reason is not None:
        message.failure.CopyFrom(Failure(record.reason, _encodable(record.message or "")).to_proto())
    for name in (*_MOMENTS, *_DURATIONS):
        _set(message, name, getattr(record, name))
    for name, field in _COUNTS.items():
        _set(message, field, getattr(record, name))
    return message


def answer_sha256(record: RequestRecord) -> str:
    """Digest of the answer, reasoning and text told apart by a zero byte; empty when there was none."""
    if not record.text and not record.reasoning_text:
        return ""
    return hashlib.sha256(f"{record.reasoning_text}\0{record.text}".encode("utf-8", "replace")).hexdigest()


def _set(message: event_pb2.RequestFinished, field: str, value: float | None) -> None:
    if value is not None:
        setattr(message, field, value)


def _encodable(text: str) -> str:
    """Replace lone surrogates, which JSON may carry and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode("utf-8")


__all__: Sequence[str] = ("Recorder", "finish_job", "job_started", "model_to_proto", "request_to_proto")
