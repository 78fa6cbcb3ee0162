"""Hosts as they are now: hosts, doctor."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import shutil
import sys
from typing import Any

from benchfleet import __version__
from benchfleet.tls import CredentialFiles, TlsError, certificate_end, expiry_warning, read_limited
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet_controller import fleet
from benchfleet_controller.checklist import (
    Finding,
    checklist_text,
    examine_limits,
    examine_model,
    examine_probes,
    examine_providers,
    examine_runtimes,
)
from benchfleet_controller.commands import EXIT_HOST, known_names, say, store_of, targets
from benchfleet_controller.credentials import chosen
from benchfleet_controller.fleet import Agent
from benchfleet_controller.inventory import all_hosts, load_inventory
from benchfleet_controller.live import printable
from benchfleet_controller.model_probe import probe_model
from benchfleet_controller.plan import HostTarget
from benchfleet_controller.problems import HostProblem
from benchfleet_controller.report import Column, render_table, to_json

CLOCK_TOLERANCE_S = 1.0
MEASURE_S = 120.0
"""Measuring the limits takes some seconds; a busy machine more."""


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


def doctor(options: argparse.Namespace) -> int:
    """Say what is wrong with hosts, and whether they can run models."""
    store = store_of(options)
    findings, problems = asyncio.run(_examine_all(targets(options, store, options.host), options))
    findings += _examine_own_certificate()
    findings += [
        {"host": problem.target.name, "severity": "error", "check": "connection", "message": problem.failure.message}
        for problem in problems
    ]
    if options.format == "json":
        sys.stdout.write(to_json(findings))
    elif options.format == "table":
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        sys.stdout.write(checklist_text(findings, width))
    else:
        columns = ["host", "severity", "check", "message", "advice"]
        sys.stdout.write(render_table(findings, columns, options.format))
    if problems:
        return EXIT_HOST
    return 1 if any(finding["severity"] == "error" for finding in findings) else 0


async def _examine_all(
    chosen: tuple[HostTarget, ...], options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[HostProblem]]:
    """Every host's findings. Agents that share a machine are examined one after the other."""
    agents, problems = await fleet.connect_all(chosen)

    async def examine(group: list[Agent]) -> list[tuple[Agent, list[Finding]]]:
        return [(agent, await _try(agent, options)) for agent in group]

    try:
        answers = await asyncio.gather(*(examine(group) for group in fleet.by_machine(agents)), return_exceptions=True)
    finally:
        for agent in agents:
            await agent.close()
    found: dict[str, list[Finding]] = {}
    for answer in answers:
        if isinstance(answer, HostProblem):
            problems.append(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found |= {agent.target.name: tried for agent, tried in answer}
    rows = []
    for agent in agents:
        rows += [*_examine(agent), *_examine_certificate(agent)]
        rows += [_row(agent.target.name, finding) for finding in found.get(agent.target.name, [])]
    return rows, problems


async def _try(agent: Agent, options: argparse.Namespace) -> list[Finding]:
    """What only trying shows: the models asked for, and the machine's limits."""
    name, endpoint = agent.target.name, options.endpoint or ""
    runtime = options.runtime or ("endpoint" if endpoint else "foundry")
    found = await _providers(agent)
    for model in options.model:
        say(f"{name}: trying {model}")
        result = await probe_model(agent, runtime, endpoint, model, options.device or "")
        found += examine_model(result, name)
    if options.measure:
        say(f"{name}: measuring the machine's limits")
        found.append(await _measure(agent, refresh=options.refresh))
    elif agent.host.HasField("limits"):
        found.append(examine_limits(agent.host.limits))
    return found


async def _providers(agent: Agent) -> list[Finding]:
    """The execution providers of Foundry Local, which only its own answer tells."""
    if not any(one.name == "foundry" and one.available for one in agent.host.runtimes):
        return []
    try:
        return examine_providers((await agent.models("foundry")).execution_providers, agent.target.name)
    except HostProblem as problem:
        return [Finding("warning", "providers", f"not told: {problem.failure.message}")]


async def _measure(agent: Agent, *, refresh: bool) -> Finding:
    try:
        with fleet.refusals(agent.target):
            request = pb.MeasureLimitsRequest(refresh=refresh)
            return examine_limits((await agent.stub.MeasureLimits(request, timeout=MEASURE_S)).limits)
    except HostProblem as problem:
        return Finding("error", "limits", problem.failure.message)


def _row(host: str, finding: Finding) -> dict[str, Any]:
    return _finding(host, finding.severity, finding.check, finding.message, finding.advice) | dict(finding.details)


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
    found += [_row(name, one) for one in (*examine_runtimes(host.runtimes), *examine_probes(host.probes))]
    found += [finding(problem.severity, "host", problem.message, problem.advice) for problem in host.problems]
    return found
