"""Hosts as they are now: hosts, models, doctor."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import sys
from typing import Any

from benchfleet import __version__
from benchfleet.tls import CredentialFiles, TlsError, certificate_end, expiry_warning, read_limited
from benchfleet_controller import fleet
from benchfleet_controller.commands import EXIT_HOST, known_names, store_of, targets
from benchfleet_controller.credentials import chosen
from benchfleet_controller.fleet import Agent, HostProblem
from benchfleet_controller.inventory import all_hosts, load_inventory
from benchfleet_controller.live import printable
from benchfleet_controller.plan import HostTarget
from benchfleet_controller.report import Column, render_table, to_json

CLOCK_TOLERANCE_S = 1.0


def hosts(options: argparse.Namespace) -> int:
    """List hosts and whether they answer."""
    store = store_of(options)
    if options.host:
        chosen = targets(options, store, options.host)
    else:
        chosen = all_hosts(load_inventory(options.inventory), known_names(store))
    agents, problems = asyncio.run(_ask(chosen))
    rows = [_host_row(agent) for agent in agents]
    rows += [
        {"name": problem.target.name, "address": problem.target.address, "state": problem.failure.reason.value,
         "message": problem.failure.message}
        for problem in problems
    ]  # fmt: skip
    labels = {
        "name": "Name", "address": "Address", "state": "State", "hostname": "Host", "cpu_model": "Processor",
        "logical_cores": "Cores", "memory_bytes": "Memory", "os": "System", "devices": "GPU/NPU",
        "agent_version": "Agent", "message": "Message",
    }  # fmt: skip
    sys.stdout.write(render_table(rows, [Column(*pair) for pair in labels.items()], options.format))
    if not rows:
        print("no hosts are known yet; name one: benchfleet hosts 192.168.1.20", file=sys.stderr)
    return EXIT_HOST if problems else 0


def models(options: argparse.Namespace) -> int:
    """List what hosts can serve."""
    store = store_of(options)

    async def ask() -> list[dict[str, Any]]:
        rows = []
        for target in targets(options, store, options.host):
            agent = await fleet.connect(target)
            try:
                rows += [{"host": target.name, **_model_row(model)} for model in await agent.models()]
            finally:
                await agent.close()
        return rows

    names = (
        "host", "alias", "variant", "runtime", "device", "ep", "size_bytes", "license", "context_length",
        "capabilities", "cached", "loaded",
    )  # fmt: skip
    sys.stdout.write(render_table(asyncio.run(ask()), list(names), options.format))
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Say what is wrong with hosts."""
    store = store_of(options)
    agents, problems = asyncio.run(_ask(targets(options, store, options.host)))
    findings = [finding for agent in agents for finding in [*_examine(agent), *_examine_certificate(agent)]]
    findings += _examine_own_certificate()
    findings += [
        {"host": problem.target.name, "severity": "error", "check": "connection", "message": problem.failure.message}
        for problem in problems
    ]
    if options.format == "json":
        sys.stdout.write(to_json(findings))
    else:
        columns = ["host", "severity", "check", "message", "advice"]
        sys.stdout.write(render_table(findings, columns, options.format))
    if problems:
        return EXIT_HOST
    return 1 if any(finding["severity"] == "error" for finding in findings) else 0


async def _ask(chosen: tuple[HostTarget, ...]) -> tuple[list[Agent], list[HostProblem]]:
    agents, problems = await fleet.connect_all(chosen)
    for agent in agents:
        await agent.close()
    return agents, problems


def _host_row(agent: Agent) -> dict[str, Any]:
    host = agent.host
    return {
        "name": agent.target.name,
        "address": agent.target.address,
        "state": f"busy: {agent.held_by}" if agent.running_job_id else "idle",
        "hostname": host.hostname,
        "cpu_model": host.cpu_model or None,
        "logical_cores": host.logical_core_count if host.HasField("logical_core_count") else None,
        "memory_bytes": host.memory_bytes or None,
        "os": f"{host.os_edition or host.os_name} {host.os_version}",
        "devices": ", ".join(device.display_name for device in host.devices) or None,
        "agent_version": host.agent_version,
        "message": None,
    }


def _model_row(model: Any) -> dict[str, Any]:
    def known(field: str) -> Any:
        return getattr(model, field) if model.HasField(field) else None

    return {
        "alias": model.alias,
        "variant": model.variant,
        "runtime": model.runtime,
        "device": known("device"),
        "ep": known("execution_provider"),
        "size_bytes": known("size_bytes"),
        "license": known("license"),
        "context_length": known("context_length"),
        "capabilities": list(model.capabilities),
        "cached": known("cached"),
        "loaded": known("loaded"),
    }


def _examine_certificate(agent: Agent) -> list[dict[str, Any]]:
    if agent.certificate is None:
        message, advice = "none: the connection is in clear text", "through a tunnel or on one machine that is fine"
        return [_finding(agent.target.name, "info", "certificate", message, advice)]
    return [_expiry(agent.target.name, agent.certificate.not_after, f"benchfleet certs renew {agent.target.name}")]


def _examine_own_certificate() -> list[dict[str, Any]]:
    files = CredentialFiles.controller(chosen().directory)
    found = []
    for path, how in (
        (files.certificate, "benchfleet certs renew"),
        (files.authority, "benchfleet certs init --dir NEW, and enrol all hosts again"),
    ):
        with contextlib.suppress(OSError):
            try:
                found.append(_expiry(path.name, certificate_end(read_limited(path)), how))
            except TlsError as error:
                found.append(_finding(path.name, "error", "certificate", str(error)))
    return found


def _expiry(whose: str, not_after: datetime.datetime, renew: str) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    warning = expiry_warning(not_after, now)
    if warning is None:
        return _finding(whose, "ok", "certificate", f"valid until {not_after:%Y-%m-%d}")
    return _finding(whose, "warning" if not_after > now else "error", "certificate", warning, renew)


def _finding(whose: str, severity: str, check: str, message: str, advice: str | None = None) -> dict[str, Any]:
    return {"host": whose, "severity": severity, "check": check, "message": printable(message), "advice": advice}


def _examine(agent: Agent) -> list[dict[str, Any]]:
    """What there is and what is wrong, as rows of host, severity, check, message, advice."""
    host, name = agent.host, agent.target.name

    def finding(severity: str, check: str, message: str, advice: str | None = None) -> dict[str, Any]:
        return _finding(name, severity, check, message, advice)

    found = [finding("ok", "connection", f"agent {host.agent_version} on {host.hostname} answers")]
    if host.agent_version != __version__:
        found.append(
            finding(
                "warning",
                "version",
                f"agent {host.agent_version}, controller {__version__}",
                "install the same on both",
            )
        )
    if agent.running_job_id:
        found.append(finding("warning", "state", f"busy with job {agent.running_job_id} for {agent.held_by}"))
    if abs(agent.clock_offset_s) > CLOCK_TOLERANCE_S:
        message = f"its clock differs from ours by {agent.clock_offset_s:.1f} s (labels only; no latency depends on it)"
        found.append(finding("warning", "clock", message, "let both synchronise with a time server"))
    for runtime in host.runtimes:
        check = f"runtime {runtime.name}"
        if runtime.available:
            found.append(finding("ok", check, f"version {runtime.version}" if runtime.version else "available"))
        else:
            found.append(finding("error", check, runtime.unavailable_reason))
    for probe in host.probes:
        check = f"probe {probe.probe_id}"
        if probe.available:
            found.append(finding("ok", check, f"{len(probe.metrics)} metrics, {probe.cost_us:.0f} µs a reading"))
        else:
            found.append(finding("info", check, probe.unavailable_reason))
    found += [finding(problem.severity, "host", problem.message, problem.advice) for problem in host.problems]
    return found
