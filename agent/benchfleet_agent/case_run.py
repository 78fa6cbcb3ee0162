"""One case, in order: resolve, baseline, prepare, load, warm up, rounds, idle, unload. Runs on the job's thread.

Whatever goes wrong ends the case with a reason and never the job; only a journal that cannot be written
(`JournalFull`) and a cancelled job pass through.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet_agent import evidence, kernel_log, page_cache
from benchfleet_agent.case_rounds import CaseRounds, Load
from benchfleet_agent.conditions import Conditions, unmeasurable
from benchfleet_agent.device_libraries import device_libraries
from benchfleet_agent.direct_link import DirectLink
from benchfleet_agent.forecasting import forecast_case, refuse_unfit, with_smaller
from benchfleet_agent.host_state.readers import HostStates
from benchfleet_agent.idle_baseline import is_metered, leave_alone
from benchfleet_agent.jobs import CaseOrder, Outcome
from benchfleet_agent.journal import JournalFull
from benchfleet_agent.load_link import LoadLink, watch
from benchfleet_agent.probes import Targets
from benchfleet_agent.recorder import Recorder
from benchfleet_agent.runtimes import Loaded, Model, Placement, Runtime, Session, is_remote
from benchfleet_agent.sampler import Label, Sampler

CLOSE_S = 25.0
UNLOAD_S = 60.0
_log = logging.getLogger(__name__)


class CaseRun:
    """Carries out one case; `cancel` may come from another thread."""

    def __init__(
        self,
        order: CaseOrder,
        recorder: Recorder,
        sampler: Sampler,
        cancelled: threading.Event,
        log_dir: Path,
        conditions: Conditions | None = None,
        idle_baseline_s: float = 0.0,
    ) -> None:
        self._order = order
        self._recorder = recorder
        self._sampler = sampler
        self._cancelled = cancelled
        self._log_dir = log_dir
        self._conditions = conditions
        self._idle_baseline_s = idle_baseline_s
        self._targets = Targets()
        self._states = HostStates(sampler.latest, lambda: self._targets)
        self._session: Session | None = None
        self._load: Load | None = None
        self._runs: tuple[Model, Runtime] | None = None
        self._unload_ns: int | None = None
        self._unmeasured: dict[str, str] = {}
        self._evidence: tuple[str, ...] = ()
        self._lock = threading.Lock()

    def carry_out(self, find_runtime: Callable[[CaseOrder], Runtime], placement: Placement) -> Outcome:
        """Run the case and record its end. Raises `JournalFull` when that cannot be written."""
        dropped, oom_kills, begin_ns = self._sampler.dropped, evidence.read_oom_kills(), time.perf_counter_ns()
        self._recorder.memory.begin()
        try:
            outcome = self._run(find_runtime, placement)
        except WorkFailed as error:
            outcome = self._explained(Outcome("failed", error.failure), error, oom_kills, begin_ns)
        except (JournalFull, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  (a bug here must cost one case, not the job)
            _log.exception("case %s", self._order.case_id)
            outcome = Outcome("failed", Failure(Reason.INTERNAL, f"{type(error).__name__}: {error}"))
        finally:
            self._close()
        if self._cancelled.is_set():
            outcome = Outcome("skipped", Failure(Reason.CANCELLED, "the job was cancelled"))
        elif outcome.failure is not None and self._runs is not None:
            outcome = Outcome(outcome.status, with_smaller(outcome.failure, *self._runs))
        self._recorder.case_finished(
            self._order.case_id,
            outcome,
            self._unload_ns,
            self._sampler.unmeasured() | self._unmeasured,
            self._sampler.dropped - dropped,
            self._evidence,
        )
        self._recorder.end_spool()
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
        self._runs = model, runtime
        if order.path == "direct" and "direct" not in runtime.describe().capabilities:
            message = f"runtime {runtime.name} answers over HTTP only; leave out `path` or choose foundry"
            raise WorkFailed(Reason.UNSUPPORTED, message)
        if unfit := self._unfit(runtime, model, None):
            return unfit
        session = runtime.open(model, placement)
        with self._lock:
            self._session = session
        self._begin_baseline(session)
        self._require_measurable(model)
        if not is_remote(runtime):
            self._leave_alone("before the load", lambda: None)
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
        with watch(session, lambda found: self._look_at(Targets(found, load.pid))):
            loaded = session.load(order.load_s)
        end_ns = time.perf_counter_ns()
        opened = load.open(loaded.endpoint, order, session.directory())
        components = {**runtime.describe().components, **opened["versions"]}
        self._look_at(Targets(session.process_ids(), load.pid))
        self._phase("loaded")
        libraries = device_libraries(session.process_ids())
        recorder.model_loaded(
            order.case_id,
            start_ns,
            end_ns,
            loaded,
            components,
            opened["stamp_source"],
            cached_ratio,
            order.path,
            libraries,
        )
        if not loaded.endpoint.remote:
            self._leave_alone("with the model loaded", session.check)
        outcome = _with_provider(self._rounds(runtime, model, session, load, loaded), model, loaded)
        self._phase("unload")
        load.stop(5.0)
        with contextlib.suppress(WorkFailed):  # the measurements are complete; a failing unload does not spoil them
            self._unload_ns = session.unload(UNLOAD_S)
        self._phase("after")
        return outcome

    def _rounds(self, runtime: Runtime, model: Model, session: Session, load: Load, loaded: Loaded) -> Outcome:
        def is_loaded() -> bool | None:
            # A runtime that did not say it before would not say it now.
            return None if model.loaded is None else runtime.resolve(model.variant, self._order.device).loaded

        rounds = CaseRounds(
            self._order,
            self._recorder,
            session,
            load,
            self._states,
            phase=self._phase,
            interrupted=self._interrupted,
            wait=self._cancelled.wait,
            conditions=self._conditions,
            runtime_seen=loaded.endpoint.remote or bool(self._targets.runtime_pids),
            is_loaded=is_loaded,
        )
        return rounds.carry_out()

    def _explained(self, outcome: Outcome, error: WorkFailed, oom_kills: evidence.OomKills, begin_ns: int) -> Outcome:
        """The outcome of a failure with what speaks for it, while that can still be read."""
        if self._cancelled.is_set() or outcome.failure is None or outcome.failure.reason not in evidence.CRASHES:
            return outcome
        self._sampler.flush()
        outcome, self._evidence = evidence.explain(
            outcome,
            evidence.ended_child(error),
            oom_kills,
            evidence.read_oom_kills(),
            self._recorder.memory.before(outcome.failure.reason),
            time.perf_counter_ns(),
            kernel_log.oom_kills(begin_ns),
            self._targets.runtime_pids,
        )
        return outcome

    def _begin_baseline(self, session: Session) -> None:
        """Label what comes before the load; a runtime that is there already is looked at from here on."""
        if running := session.process_ids():
            self._look_at(Targets(running))
        else:
            self._unmeasured["ram_baseline_bytes"] = "no process of the runtime was known before the load"
        self._phase("baseline")

    def _leave_alone(self, when: str, check: Callable[[], None]) -> None:
        """Let the host idle, where that tells its power: what it uses then is no part of the work."""
        seconds = self._idle_baseline_s
        if not seconds or not is_metered(self._sampler.latest()):
            return
        self._recorder.progress(self._order.case_id, f"idle for {seconds:g} s {when}: measuring idle power", None)

        def ended() -> None:
            self._interrupted()
            check()

        leave_alone(seconds, self._cancelled.wait, ended, time.monotonic)

    def _require_measurable(self, model: Model) -> None:
        """Refuse conditions that this host cannot tell. Raises `WorkFailed` ``unsupported``."""
        state = self._states.take()  # also the state before the first round's
        if self._conditions is None:
            return
        counts = "host_cpu_busy_ns" in self._sampler.latest().get("", {})
        device = self._order.device or model.device
        if missing := unmeasurable(self._conditions, state, device, counts_processor_time=counts):
            raise WorkFailed(Reason.UNSUPPORTED, missing)

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

    def _unfit(self, runtime: Runtime, model: Model, session: Session | None) -> Outcome | None:
        """Forecast whether the model fits: before its files are fetched (no session) and once they are here.

        The last forecast of a case is recorded. An outcome when the case is to be left out for it.
        """
        order = self._order
        directory = session.directory() if session else None
        found = forecast_case(order, model, directory, remote=is_remote(runtime))
        skip = order.skip_unfit and found.fits is False
        if session is not None or skip:
            self._recorder.fit_forecasted(order.case_id, found)
        return Outcome("skipped", refuse_unfit(found, model, runtime)) if skip else None

    def _start_load(self, session: Session) -> Load:
        load: Load
        if self._order.path == "direct":
            load = DirectLink.of(session, self._interrupted)
        else:
            load = LoadLink(self._log_dir, self._interrupted, self._recorder.begin_spool(self._order.case_id))
        with self._lock:
            self._load = load
        return load

    def _phase(self, phase: str, round_id: str = "") -> None:
        self._sampler.set_label(Label(self._order.case_id, round_id, phase))

    def _look_at(self, targets: Targets) -> None:
        self._targets = targets
        self._sampler.set_targets(targets)

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
        self._look_at(Targets())


def _with_provider(outcome: Outcome, model: Model, loaded: Loaded) -> Outcome:
    """Say that the model ran on another provider than was asked for, unless something worse is said already."""
    asked, actual = model.execution_provider, loaded.execution_provider
    if outcome.failure is not None or not asked or not actual or asked == actual:
        return outcome
    message = f"{model.variant} is made for {asked} but ran on {actual}; check the device's driver and provider"
    return Outcome(outcome.status, Failure(Reason.EP_MISMATCH, message))
