"""One case, in order: resolve, baseline, prepare, load, warm up, rounds, idle, unload. Runs on the job's thread.

Whatever goes wrong ends the case with a reason and never the job; only a journal that cannot be written
(`JournalFull`) and a cancelled job pass through.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet_agent import page_cache
from benchfleet_agent.direct_link import DirectLink
from benchfleet_agent.forecasting import forecast_case, refuse_unfit, with_smaller
from benchfleet_agent.jobs import CaseOrder, Outcome, PromptOrder, SyntheticOrder, case_outcome
from benchfleet_agent.journal import JournalFull
from benchfleet_agent.load.record import RequestRecord, Status
from benchfleet_agent.load_link import LoadLink, watch
from benchfleet_agent.probes import Targets
from benchfleet_agent.recorder import Recorder
from benchfleet_agent.rounds import RoundResult, rate_failure
from benchfleet_agent.runtimes import Loaded, Model, Placement, Runtime, Session
from benchfleet_agent.sampler import Label, Sampler
from benchfleet_agent.synthetic import compose

CLOSE_S = 25.0
UNLOAD_S = 60.0
Load = LoadLink | DirectLink
_log = logging.getLogger(__name__)


class CaseRun:
    """Carries out one case; `cancel` may come from another thread."""

    def __init__(
        self, order: CaseOrder, recorder: Recorder, sampler: Sampler, cancelled: threading.Event, log_dir: Path
    ) -> None:
        self._order = order
        self._recorder = recorder
        self._sampler = sampler
        self._cancelled = cancelled
        self._log_dir = log_dir
        self._session: Session | None = None
        self._load: Load | None = None
        self._unload_ns: int | None = None
        self._unmeasured: dict[str, str] = {}
        self._round_count = 0
        self._lock = threading.Lock()

    def carry_out(self, find_runtime: Callable[[CaseOrder], Runtime], placement: Placement) -> Outcome:
        """Run the case and record its end. Raises `JournalFull` when that cannot be written."""
        dropped = self._sampler.dropped
        try:
            outcome = self._run(find_runtime, placement)
        except WorkFailed as error:
            outcome = Outcome("failed", error.failure)
        except (JournalFull, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  (a bug here must cost one case, not the job)
            _log.exception("case %s", self._order.case_id)
            outcome = Outcome("failed", Failure(Reason.INTERNAL, f"{type(error).__name__}: {error}"))
        finally:
            self._close()
        if self._cancelled.is_set():
            outcome = Outcome("skipped", Failure(Reason.CANCELLED, "the job was cancelled"))
        self._recorder.case_finished(
            self._order.case_id,
            outcome,
            self._unload_ns,
            self._sampler.unmeasured() | self._unmeasured,
            self._sampler.dropped - dropped,
        )
        return outcome

    def cancel(self) -> None:
        """End the case soon: kills its children."""
        with self._lock:
            session, load = self._session, self._load
        if session is not None:
            session.kill()
        if load is not None:
            load.kill()

    def _run(self, find_runtime: Callable[[CaseOrder], Runtime], placement: Placement) -> Outcome:
        order, recorder = self._order, self._recorder
        try:
            runtime = find_runtime(order)
            model = runtime.resolve(order.model, order.device)
        except WorkFailed:
            recorder.case_started(order.case_id, None, order.runtime)
            raise
        recorder.case_started(order.case_id, model, order.runtime)
        if order.path == "direct" and "direct" not in runtime.describe().capabilities:
            message = f"runtime {runtime.name} answers over HTTP only; leave out `path` or choose foundry"
            raise WorkFailed(Reason.UNSUPPORTED, message)
        if unfit := self._unfit(runtime, model, None):
            return unfit
        self._phase("baseline")
        session = runtime.open(model, placement)
        with self._lock:
            self._session = session
        self._stop_if_cancelled()
        self._phase("prepare")
        session.prepare(lambda message, fraction: recorder.progress(order.case_id, message, fraction))
        self._stop_if_cancelled()
        if unfit := self._unfit(runtime, model, session):
            return unfit
        cached_ratio = self._page_cache(session)

        self._phase("load")
        recorder.progress(order.case_id, f"loading {model.variant}", None)
        load = self._start_load(session)
        start_ns = time.perf_counter_ns()
        with watch(session, lambda found: self._sampler.set_targets(Targets(found, load.pid))):
            loaded = self._load_model(session, runtime, model)
        end_ns = time.perf_counter_ns()
        opened = load.open(loaded.endpoint, order, session.directory())
        components = {**runtime.describe().components, **opened["versions"]}
        self._sampler.set_targets(Targets(session.process_ids(), load.pid))
        self._phase("loaded")
        recorder.model_loaded(
            order.case_id, start_ns, end_ns, loaded, components, opened["stamp_source"], cached_ratio, order.path
        )
        outcome = _with_provider(self._rounds(session, load), model, loaded)
        self._phase("unload")
        load.stop(5.0)
        with contextlib.suppress(WorkFailed):  # the measurements are complete; a failing unload does not spoil them
            self._unload_ns = session.unload(UNLOAD_S)
        self._phase("after")
        return outcome

    def _rounds(self, session: Session, load: Load) -> Outcome:
        """Warm up, count rounds until there are enough, then the request after a pause."""
        order = self._order
        prompts = order.prompts
        if isinstance(prompts, SyntheticOrder):
            prompts = self._compose(prompts, session, load)
        for _ in range(order.warmup_rounds):
            self._round(session, load, "warmup", prompts, self._pace())
        counted: list[RequestRecord] = []
        results: list[RoundResult] = []
        while not order.stop.enough(results):
            records, duration_s = self._round(session, load, "counted", prompts, self._pace())
            counted += records
            results.append(_result(records, duration_s))
        if order.idle_pause_s is not None:
            self._pause(session, order.idle_pause_s)
            self._round(session, load, "idle", prompts[:1], {})
        return self._outcome(counted)

    def _outcome(self, counted: Sequence[RequestRecord]) -> Outcome:
        order = self._order
        outcome = case_outcome([_failure(record) for record in counted])
        if order.rate_per_s is not None and outcome.status == "succeeded":
            late = [_seconds(r.scheduled_ns, r.start_ns) for r in counted if r.scheduled_ns and r.start_ns]
            latency = [_seconds(r.start_ns, r.done_ns) for r in counted if r.start_ns and r.done_ns]
            if failure := rate_failure(late, latency, order.rate_per_s, order.concurrency):
                return Outcome("failed", failure)
        return outcome

    def _round(
        self, session: Session, load: Load, kind: str, prompts: Sequence[PromptOrder], pace: dict[str, Any]
    ) -> tuple[list[RequestRecord], float]:
        """Carry out one round and record it; its requests and its duration in seconds."""
        order, recorder = self._order, self._recorder
        round_id, index = str(uuid.uuid4()), self._round_count
        self._round_count += 1
        recorder.round_started(order.case_id, round_id, index, kind)
        self._phase("round" if kind == "counted" else "warmup", round_id)
        records: list[RequestRecord] = []

        def take(record: RequestRecord) -> None:
            recorder.request_finished(order.case_id, round_id, record)
            records.append(record)

        command = {"round_id": round_id, "requests": _requests(prompts, index), **pace}
        if not order.allow_prefix_cache:
            # Another run's words must differ too, unless answers are to be compared with that run's.
            seed = f"{order.seed}" if order.deterministic else order.case_id
            command["prefix_seed"] = f"{seed}/{kind}/{index}"
        finished = load.round(command, session, take)
        self._phase("loaded")
        failed = sum(record.status is Status.FAILED for record in records)
        recorder.round_finished(order.case_id, round_id, finished, len(records), failed)
        return records, _seconds(finished["start_ns"], finished["end_ns"])

    def _pace(self) -> dict[str, Any]:
        """How the requests of a round follow each other: fields of the load process's ``round``."""
        order = self._order
        pace: dict[str, Any] = {"duration_s": order.round_duration_s}
        if order.rate_per_s is not None:
            # By the plan's seed, so that every host gets the same arrivals.
            seed = f"{order.seed}/{self._round_count}"
            pace |= {
                "rate_per_s": order.rate_per_s,
                "arrival": "poisson" if order.poisson else "constant",
                "seed": seed,
            }
        return pace

    def _compose(self, asked: SyntheticOrder, session: Session, load: Load) -> tuple[PromptOrder, ...]:
        self._recorder.progress(self._order.case_id, f"composing prompts of {asked.token_count} tokens", None)

        def count(text: str) -> int | None:
            probe = PromptOrder("calibration", ({"role": "user", "content": text},), 1)
            records, _ = self._round(session, load, "calibration", [probe], {})
            if records[0].status is Status.FAILED and records[0].reason is not Reason.EMPTY_ANSWER:
                raise WorkFailed(records[0].reason or Reason.INTERNAL, records[0].message or "")
            return records[0].prompt_tokens

        return compose(asked, f"{self._order.seed}", count)

    def _page_cache(self, session: Session) -> float | None:
        """Drop the model's files if asked; the share of them that the page cache holds, None: not known."""
        order, directory = self._order, session.directory()
        if directory is None:
            self._unmeasured["page_cache_ratio"] = "where the runtime keeps the model's files is not known"
            return None
        files = page_cache.files_of(directory)
        if order.drop_page_cache:
            try:
                page_cache.drop(files)
            except (WorkFailed, OSError) as error:
                self._recorder.progress(order.case_id, f"the page cache is kept: {error}", None)
        ratio = page_cache.resident_ratio(files)
        if ratio is None:
            self._unmeasured["page_cache_ratio"] = "this system does not tell which pages of a file are in memory"
        return ratio

    def _pause(self, session: Session, seconds: float) -> None:
        """Leave the runtime alone, but notice its end and a cancelled job."""
        self._recorder.progress(self._order.case_id, f"idle for {seconds:g} s", None)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._cancelled.wait(min(left, 0.5))
            self._interrupted()
            session.check()

    def _unfit(self, runtime: Runtime, model: Model, session: Session | None) -> Outcome | None:
        """Forecast whether the model fits: before its files are fetched (no session) and once they are here.

        The last forecast of a case is recorded. An outcome when the case is to be left out for it.
        """
        order = self._order
        found = forecast_case(order, model, session.directory() if session else None)
        skip = order.skip_unfit and found.fits is False
        if session is not None or skip:
            self._recorder.fit_forecasted(order.case_id, found)
        return Outcome("skipped", refuse_unfit(found, model, runtime).failure) if skip else None

    def _load_model(self, session: Session, runtime: Runtime, model: Model) -> Loaded:
        try:
            return session.load(self._order.load_s)
        except WorkFailed as error:
            raise with_smaller(error, model, runtime) from None

    def _start_load(self, session: Session) -> Load:
        direct = self._order.path == "direct"
        load = DirectLink.of(session, self._interrupted) if direct else LoadLink(self._log_dir, self._interrupted)
        with self._lock:
            self._load = load
        return load

    def _phase(self, phase: str, round_id: str = "") -> None:
        self._sampler.set_label(Label(self._order.case_id, round_id, phase))

    def _interrupted(self) -> None:
        self._stop_if_cancelled()
        if self._recorder.problem is not None:
            raise self._recorder.problem

    def _stop_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise WorkFailed(Reason.CANCELLED, "the job was cancelled")

    def _close(self) -> None:
        with self._lock:
            session, load = self._session, self._load
        if load is not None:
            load.kill()
        if session is not None:
            session.close(CLOSE_S)
        self._sampler.set_targets(Targets())


def _with_provider(outcome: Outcome, model: Model, loaded: Loaded) -> Outcome:
    """Say that the model ran on another provider than was asked for, unless something worse is said already."""
    asked, actual = model.execution_provider, loaded.execution_provider
    if outcome.failure is not None or not asked or not actual or asked == actual:
        return outcome
    message = f"{model.variant} is made for {asked} but ran on {actual}; check the device's driver and provider"
    return Outcome(outcome.status, Failure(Reason.EP_MISMATCH, message))


def _requests(prompts: Sequence[PromptOrder], round_index: int) -> list[dict[str, Any]]:
    """A round's requests: all prompts, starting with another one each round, so that none is always first."""
    shift = round_index % len(prompts)
    return [
        {
            "request_id": str(uuid.uuid4()),
            "prompt_id": prompt.prompt_id,
            "messages": list(prompt.messages),
            **({"max_tokens": prompt.max_tokens} if prompt.max_tokens else {}),
        }
        for prompt in (*prompts[shift:], *prompts[:shift])
    ]


def _result(records: Sequence[RequestRecord], duration_s: float) -> RoundResult:
    """A round's means, as `StopRule` wants them; rates by chunks, which is near enough to decide when to stop."""
    ok = [record for record in records if record.status is Status.OK]
    first = [record.token_ns[0] / 1e9 for record in ok if record.token_ns]
    gaps = sum(len(record.token_ns) - 1 for record in ok if record.token_ns)
    decode_s = sum(record.token_ns[-1] - record.token_ns[0] for record in ok if record.token_ns) / 1e9
    latency = [_seconds(r.start_ns, r.done_ns) for r in ok if r.start_ns and r.done_ns]
    return RoundResult(
        duration_s=duration_s,
        ttft_s=statistics.fmean(first) if first else None,
        tokens_per_s=gaps / decode_s if decode_s > 0 else None,
        e2e_s=statistics.fmean(latency) if latency else None,
    )


def _seconds(start_ns: int | None, end_ns: int | None) -> float:
    return ((end_ns or 0) - (start_ns or 0)) / 1e9


def _failure(record: RequestRecord) -> Failure | None:
    if record.status is Status.OK:
        return None
    return Failure(record.reason or Reason.INTERNAL, record.message or "")
