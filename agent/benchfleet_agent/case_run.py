"""One case, in order: resolve, baseline, prepare, load, warm up, rounds, unload. Runs on the job's thread.

Whatever goes wrong ends the case with a reason and never the job; only a journal that cannot be written
(`JournalFull`) and a cancelled job pass through.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet_agent.child import Child, ChildGone, ChildTimeout
from benchfleet_agent.jobs import CaseOrder, Outcome, PromptOrder, case_outcome
from benchfleet_agent.journal import JournalFull
from benchfleet_agent.load.record import RequestRecord, Status
from benchfleet_agent.probes import Targets
from benchfleet_agent.recorder import Recorder
from benchfleet_agent.runtimes import Endpoint, Placement, Runtime, Session
from benchfleet_agent.sampler import Label, Sampler

CLOSE_S = 25.0
OPEN_S = 60.0
UNLOAD_S = 60.0
CRASH_GRACE_S = 2.0
"""How long requests in flight may take to notice that their server is gone."""
_TELLTALE = {Reason.CONNECTION_FAILED, Reason.STREAM_TRUNCATED, Reason.BAD_RESPONSE}
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
        self._load: Child | None = None
        self._unload_ns: int | None = None
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
            self._order.case_id, outcome, self._unload_ns, self._sampler.unmeasured(), self._sampler.dropped - dropped
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
        self._phase("baseline")
        session = runtime.open(model, placement)
        with self._lock:
            self._session = session
        self._stop_if_cancelled()
        self._phase("prepare")
        session.prepare(lambda message, fraction: recorder.progress(order.case_id, message, fraction))
        self._stop_if_cancelled()

        self._phase("load")
        recorder.progress(order.case_id, f"loading {model.variant}", None)
        load = self._start_load_process()
        start_ns = time.perf_counter_ns()
        with self._watching(session):
            loaded = session.load(order.load_s)
        end_ns = time.perf_counter_ns()
        opened = self._open(load, loaded.endpoint)
        components = {**runtime.describe().components, **opened["versions"]}
        self._sampler.set_targets(Targets(session.process_ids(), load.pid))
        self._phase("loaded")
        recorder.model_loaded(order.case_id, start_ns, end_ns, loaded, components, opened["stamp_source"])

        counted: list[Failure | None] = []
        for index in range(order.warmup_rounds + order.rounds):
            warmup = index < order.warmup_rounds
            ended = self._round(session, load, index, warmup)
            if not warmup:
                counted += ended
        self._phase("unload")
        load.stop(5.0)
        with contextlib.suppress(WorkFailed):  # the measurements are complete; a failing unload does not spoil them
            self._unload_ns = session.unload(UNLOAD_S)
        self._phase("after")
        return case_outcome(counted)

    def _round(self, session: Session, load: Child, index: int, warmup: bool) -> list[Failure | None]:
        order, recorder = self._order, self._recorder
        round_id = str(uuid.uuid4())
        recorder.round_started(order.case_id, round_id, index, warmup)
        self._phase("warmup" if warmup else "round", round_id)
        self._send(load, {"do": "round", "round_id": round_id, "requests": _requests(order.prompts, index)})
        ended: list[Failure | None] = []
        while True:
            event = self._receive(session, load)
            if event["event"] == "request":
                record = RequestRecord.from_dict(event)
                recorder.request_finished(order.case_id, round_id, record)
                ended.append(_failure(record))
                if record.status is Status.FAILED and record.reason in _TELLTALE:
                    self._expose_crash(session)
            elif event["event"] == "round_finished":
                self._phase("loaded")
                failed = sum(failure is not None for failure in ended)
                recorder.round_finished(order.case_id, round_id, event, len(ended), failed)
                return ended
            else:
                raise _load_failure(event)

    def _receive(self, session: Session, load: Child) -> dict[str, Any]:
        """The load process's next event, while the runtime is alive and nobody cancelled."""
        while True:
            self._stop_if_cancelled()
            if self._recorder.problem is not None:
                raise self._recorder.problem
            try:
                return load.receive(0.5)
            except ChildTimeout:
                self._check(session, load)
            except ChildGone as error:
                self._stop_if_cancelled()
                raise WorkFailed(Reason.LOAD_PROCESS_CRASHED, str(error)) from None

    def _check(self, session: Session, load: Child) -> None:
        """Raise when the runtime is gone, after recording the requests that died with it."""
        try:
            session.check()
        except WorkFailed:
            deadline = time.monotonic() + CRASH_GRACE_S
            with contextlib.suppress(ChildTimeout, ChildGone):
                while (left := deadline - time.monotonic()) > 0:
                    event = load.receive(left)
                    if event["event"] != "request":
                        break
                    record = RequestRecord.from_dict(event)
                    self._recorder.request_finished(self._order.case_id, event["round_id"], record)
            raise

    def _expose_crash(self, session: Session) -> None:
        """A broken connection may be a dead runtime; its process ends a moment after its sockets."""
        deadline = time.monotonic() + CRASH_GRACE_S / 4
        while time.monotonic() < deadline:
            session.check()
            time.sleep(0.05)

    def _start_load_process(self) -> Child:
        load = Child(
            "load process",
            [sys.executable, "-m", "benchfleet_agent.load"],
            log_path=self._log_dir / "load.log",
        )
        with self._lock:
            self._load = load
        return load

    def _open(self, load: Child, endpoint: Endpoint) -> dict[str, Any]:
        order = self._order
        self._send(
            load,
            {
                "do": "open",
                "base_url": endpoint.base_url,
                "api_key": endpoint.api_key,
                "model": endpoint.model,
                "stream": order.stream,
                "max_tokens": order.max_tokens,
                "temperature": order.temperature,
                "top_p": order.top_p,
                "seed": order.seed,
                "concurrency": order.concurrency,
                "request_timeout_s": order.request_s,
                "first_token_timeout_s": order.first_token_s,
                "token_timeout_s": order.token_s,
            },
        )
        try:
            event = load.receive(OPEN_S)
        except (ChildGone, ChildTimeout) as error:
            self._stop_if_cancelled()
            raise WorkFailed(Reason.LOAD_PROCESS_CRASHED, str(error)) from None
        if event["event"] != "opened":
            raise _load_failure(event)
        return event

    def _send(self, load: Child, message: dict[str, Any]) -> None:
        try:
            load.send(message)
        except ChildGone as error:
            self._stop_if_cancelled()
            raise WorkFailed(Reason.LOAD_PROCESS_CRASHED, str(error)) from None

    @contextlib.contextmanager
    def _watching(self, session: Session) -> Iterator[None]:
        """Point the sampler at the runtime's processes while `Session.load` blocks this thread."""
        done = threading.Event()
        load_pid = self._load.pid if self._load else None

        def watch() -> None:
            known: tuple[int, ...] = ()
            while not done.wait(0.05):
                if (found := session.process_ids()) != known:
                    known = found
                    self._sampler.set_targets(Targets(found, load_pid))

        thread = threading.Thread(target=watch, name="load-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _phase(self, phase: str, round_id: str = "") -> None:
        self._sampler.set_label(Label(self._order.case_id, round_id, phase))

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


def _requests(prompts: tuple[PromptOrder, ...], round_index: int) -> list[dict[str, Any]]:
    """A round's requests: all prompts, starting with another one each round, so that none is always first."""
    shift = round_index % len(prompts)
    rotated = prompts[shift:] + prompts[:shift]
    return [
        {
            "request_id": str(uuid.uuid4()),
            "prompt_id": prompt.prompt_id,
            "messages": list(prompt.messages),
            **({"max_tokens": prompt.max_tokens} if prompt.max_tokens else {}),
        }
        for prompt in rotated
    ]


def _failure(record: RequestRecord) -> Failure | None:
    if record.status is Status.OK:
        return None
    return Failure(record.reason or Reason.INTERNAL, record.message or "")


def _load_failure(event: dict[str, Any]) -> WorkFailed:
    try:
        reason = Reason(event.get("reason", ""))
    except ValueError:
        reason = Reason.INTERNAL
    return WorkFailed(reason, f"the load process could not go on: {event.get('message', event)}")
