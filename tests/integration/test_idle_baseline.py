"""A real job on a host whose processor tells its energy: a tree of files as the kernel has it, with a known load."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchfleet.v1 import job_pb2
from benchfleet_agent.executor import RunningJob, Runtimes
from benchfleet_agent.jobs import JobOrder
from benchfleet_agent.journal import Journal
from benchfleet_agent.probes.rapl import RaplProbe
from benchfleet_agent.probes.system import SystemProbe
from benchfleet_agent.recorder import job_started
from benchfleet_agent.runtimes import Placement
from benchfleet_agent.runtimes.endpoint import EndpointRuntime, EndpointSettings
from benchfleet_controller import energy
from benchfleet_controller.store import Store
from fakes.dialects import FakeServer, Reply, serving
from fakes.events import commit_events, host
from fakes.specs import case_spec, job_spec

pytestmark = pytest.mark.slow

IDLE_W, REQUEST_J = 10.0, 0.2


class Meter(FakeServer):
    """A server, and the energy of the processor that it runs on."""

    served = 0

    def chat(self, body: Any) -> Reply:
        self.served += 1
        return super().chat(body)

    def read(self, path: Path) -> str:
        """``energy_uj`` of the package."""
        assert path.name == "energy_uj"
        return f"{int(1e6 * (IDLE_W * time.perf_counter() + REQUEST_J * self.served))}"


def test_idle_power_and_marginal_energy_of_a_real_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sys/class/powercap/intel-rapl:0"
    package.mkdir(parents=True)
    (package / "name").write_text("package-0\n")
    (package / "max_energy_range_uj").write_text(f"{1 << 60}\n")
    # Seconds would do for these; a test has less.
    monkeypatch.setattr(energy, "FEWEST_IDLE_S", 1.0)
    monkeypatch.setattr(energy, "MOST_EDGE_ERROR", 0.5)
    server, journal = Meter("m"), Journal(tmp_path)
    spec = job_spec(case_spec(model="m", runtime="endpoint"))
    spec.cases[0].stop.round_duration_s = 0.6
    spec.idle_baseline_s, spec.skip_certificate = 1.2, True
    journal.accept("j1", spec, job_started(host("h1"), spec))

    with serving(server) as url:
        runtimes = SimpleNamespace(
            probes=lambda: (SystemProbe(), RaplProbe(tmp_path, read=server.read)),
            of_case=lambda order: EndpointRuntime(EndpointSettings(url)),
            placement=Placement(),
        )
        order = JobOrder.from_proto("j1", spec)
        job = RunningJob(order, journal, cast("Runtimes", runtimes), lambda: None, tmp_path)
        job.start()
        assert job.join(60)

    store = Store(tmp_path / "results.duckdb")
    commit_events(store, "j1", journal.read("j1", 0, 1 << 24))
    held = journal.job("j1")
    journal.close()
    assert held is not None
    assert held.state == job_pb2.JOB_STATE_FINISHED
    (case,) = store.case_results()
    assert case["status"] == "succeeded", case["message"]
    (told,) = case["energy"]
    assert (told["scope"], told["method"], told["reasons"]) == ("cpu_package", "counter", [])
    assert told["idle_host_w"] == pytest.approx(IDLE_W, rel=0.02)
    assert told["idle_loaded_w"] == pytest.approx(IDLE_W, rel=0.02)
    assert case["marginal_per_request_j"] == pytest.approx(REQUEST_J, rel=0.05)
    assert case["energy_per_request_j"] > case["marginal_per_request_j"]
    # The server was there before the case, so what it held then is known.
    assert case["ram_baseline_bytes"] > 1 << 20
