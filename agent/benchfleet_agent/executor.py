"""The one job that runs: a thread that carries out its cases, and the handle to cancel it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet.v1 import job_pb2
from benchfleet_agent import instrument
from benchfleet_agent.case_run import CaseRun
from benchfleet_agent.config import AgentConfig, ConfigError
from benchfleet_agent.endpoint_policy import EndpointPolicy
from benchfleet_agent.jobs import CaseOrder, JobOrder
from benchfleet_agent.journal import Journal, JournalFull
from benchfleet_agent.probe_selection import probes_to_read
from benchfleet_agent.probes import Probe
from benchfleet_agent.recorder import Recorder
from benchfleet_agent.runtimes import Placement, Runtime, plugins
from benchfleet_agent.runtimes.endpoint import URL_VARIABLE, EndpointRuntime, EndpointSettings
from benchfleet_agent.runtimes.found_server import FoundServer
from benchfleet_agent.runtimes.foundry import FoundryRuntime
from benchfleet_agent.runtimes.foundry_link import FoundrySettings
from benchfleet_agent.sampler import Sampler

MOST_STREAMS = 32
"""Streams side by side in the self-measurement; more would take longer than it tells."""
BUILT_IN = frozenset({"foundry", "endpoint"})
MOST_ENDPOINTS = 16
"""Servers named by plans that are remembered with what they speak."""
_log = logging.getLogger(__name__)


class Runtimes:
    """The host's runtimes by name."""

    def __init__(self, config: AgentConfig) -> None:
        foundry = FoundrySettings(
            data_dir=config.data_dir,
            reference_cache_dir=config.reference_cache_dir,
            log_dir=config.data_dir / "logs",
            model_cache_dir=config.foundry.model_cache_dir,
            python=config.foundry.python,
            catalog_urls=config.foundry.catalog_urls,
            model_roots=config.model_roots,
            offline=config.foundry.offline,
        )
        self._config = config
        self._found = FoundServer()
        self._runtimes: dict[str, Runtime] = {"foundry": FoundryRuntime(foundry)}
        url = config.endpoint_url or _url_of_environment()
        self._endpoints = _endpoint_policy(config, url)
        if url:
            self._runtimes["endpoint"] = self._server(url)
        self._named = lru_cache(MOST_ENDPOINTS)(self._server)

    def _server(self, url: str) -> EndpointRuntime:
        settings = EndpointSettings.from_environment(url, self._config.endpoint_tokenizers)
        return EndpointRuntime(settings, check_source=self._endpoints.check)

    @cached_property
    def _plugins(self) -> dict[str, Runtime]:
        """Runtimes that other packages bring; what is installed later is seen by the next agent."""
        return plugins.runtimes(self._config.data_dir / "logs", BUILT_IN)

    def all(self, *, look: bool = True) -> list[Runtime]:
        """Every runtime this agent was set up with, those of plug-ins, and a server that was found running.

        ``look``: look for one if that was long ago, which takes processor time for seconds.
        """
        found: list[Runtime] = []
        if "endpoint" not in self._runtimes:
            if look:
                self._found.look()
            found = [self._found] if self._found.describe().available else []
        return [*self._runtimes.values(), *self._plugins.values(), *found]

    def find(self, name: str, endpoint_url: str = "") -> Runtime:
        """The runtime of a case.

        Raises `WorkFailed`: ``runtime_unavailable`` naming those there are, ``endpoint_not_allowed``.
        """
        if name == "endpoint" and endpoint_url:
            return self._named(self._endpoints.check(endpoint_url))
        if name in self._runtimes:
            return self._runtimes[name]
        if name == "endpoint":
            return self._found
        if name not in self._plugins:
            known = ", ".join(sorted({*self._runtimes, *self._plugins, "endpoint"}))
            raise WorkFailed(Reason.RUNTIME_UNAVAILABLE, f"this host has no runtime {name!r}; there are {known}")
        return self._plugins[name]

    def of_case(self, order: CaseOrder) -> Runtime:
        """The runtime of a case."""
        return self.find(order.runtime, order.endpoint_url)

    def check_endpoints(self, order: JobOrder) -> None:
        """Raise `WorkFailed` ``endpoint_not_allowed`` when a case names a server that agent.toml does not allow."""
        for url in dict.fromkeys(case.endpoint_url for case in order.cases if case.runtime == "endpoint"):
            if url:
                self._endpoints.check(url)

    @property
    def placement(self) -> Placement:
        """Where runtimes may run on this host."""
        return Placement(self._config.foundry.cpus)

    def probes(self) -> tuple[Probe, ...]:
        """Fresh probes, as agent.toml wants them read."""
        return probes_to_read(self._config.probes)


def _url_of_environment() -> str:
    """The endpoint of the seed's variable; empty: not set, or no URL, which is logged."""
    url = os.environ.get(URL_VARIABLE, "").strip()
    try:
        EndpointPolicy.of(url)
    except ValueError as error:  # it is meant for other programs too, so it must not keep the agent down
        _log.warning("%s is left out: %s", URL_VARIABLE, error)
        return ""
    return url


def _endpoint_policy(config: AgentConfig, url: str) -> EndpointPolicy:
    """What callers may name: what agent.toml lets them, and the agent's own endpoint. Raises `ConfigError`."""
    try:
        return EndpointPolicy.of(url, config.endpoint_allow)
    except ValueError as error:
        raise ConfigError(f"[runtime.endpoint] of agent.toml: {error}") from None


class RunningJob:
    """One accepted job on its thread."""

    def __init__(
        self, order: JobOrder, journal: Journal, runtimes: Runtimes, changed: Callable[[], None], log_dir: Path
    ) -> None:
        self.order = order
        self._runtimes = runtimes
        self._recorder = Recorder(journal, order.job_id, changed)
        self._log_dir = log_dir
        self._cancelled = threading.Event()
        self._failure = Failure(Reason.CANCELLED, "cancelled on request")
        self._case: CaseRun | None = None
        self._thread = threading.Thread(target=self._run, name=f"job-{order.job_id}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def cancel(self, failure: Failure | None = None) -> None:
        """Ask the job to end soon; ``failure`` is why (default: cancelled on request)."""
        if failure is not None:
            self._failure = failure
        self._cancelled.set()
        if self._case is not None:
            self._case.cancel()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; False when it has not come in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _certify(self) -> None:
        """Measure ourselves, alone and side by side as the cases will; a failure is recorded and costs nothing else."""
        most = min(MOST_STREAMS, max(case.concurrency for case in self.order.cases))
        try:
            found = instrument.measure(sorted({1, most}), self._log_dir, cancelled=self._cancelled.is_set)
            for certificate in found:
                self._recorder.certificate(certificate)
        except WorkFailed as error:
            if error.failure.reason is not Reason.CANCELLED:
                self._recorder.certificate_failed(error.failure)

    def _run(self) -> None:
        sampler = Sampler(self._runtimes.probes(), self._recorder.samples, fast_period_ms=self.order.sample_period_ms)
        state, failure = job_pb2.JOB_STATE_FINISHED, None
        try:
            sampler.start()
            if self.order.certificate:
                self._certify()
            for case in self.order.cases:
                if self._cancelled.is_set():
                    break
                self._case = CaseRun(
                    case,
                    self._recorder,
                    sampler,
                    self._cancelled,
                    self._log_dir,
                    self.order.conditions,
                    self.order.idle_baseline_s,
                )
                self._case.carry_out(self._runtimes.of_case, self._runtimes.placement)
        except JournalFull as error:
            state, failure = job_pb2.JOB_STATE_FAILED, Failure(error.reason, str(error))
        except Exception as error:  # noqa: BLE001  (the job must end with an event, whatever happened)
            _log.exception("job %s", self.order.job_id)
            state, failure = job_pb2.JOB_STATE_FAILED, Failure(Reason.INTERNAL, f"{type(error).__name__}: {error}")
        finally:
            sampler.stop()
            if self._case is not None:
                self._case.cancel()  # whatever still runs belongs to nobody now
        if failure is None and self._cancelled.is_set():
            failure = self._failure
            cancelled = failure.reason is Reason.CANCELLED
            state = job_pb2.JOB_STATE_CANCELLED if cancelled else job_pb2.JOB_STATE_FAILED
        try:
            self._recorder.job_finished(state, failure)
            self._recorder.end_spool()  # where a case could not: its journal was full
        except Exception:  # noqa: BLE001  (nobody is left to tell)
            _log.exception("the end of job %s could not be written; it is closed at the next start", self.order.job_id)
