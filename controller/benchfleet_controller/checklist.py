"""Doctor's checklist: what is said of a host's models, runtimes, probes and limits. Pure: facts in, findings out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchfleet.failures import Failure, Reason
from benchfleet.quantities import quantity
from benchfleet.samples import BY_NAME
from benchfleet.v1 import event_pb2, host_pb2

MOST_GAPS = 3
"""Reasons for gaps of a probe that people are told; the rest are counted. `Finding.details` has all."""
MOST_READINGS = 4
_EMPTY_IS_FINE = {Reason.EMPTY_ANSWER}
"""An answer of a few tokens may hold no text yet; the model computed it all the same."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the checklist. ``severity``: ``ok``, ``info``, ``warning`` or ``error``."""

    severity: str
    check: str
    message: str
    advice: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """What JSON has of it besides."""


@dataclass(slots=True)
class ProbeResult:
    """What a model's probe came to, built up from the events of its job."""

    model: str
    variant: host_pb2.ModelVariant | None = None
    refused: Failure | None = None
    """Why there is no such model, or no job could be started."""
    loaded: event_pb2.ModelLoaded | None = None
    forecast: event_pb2.FitForecasted | None = None
    requests: list[event_pb2.RequestFinished] = field(default_factory=list)
    failure: Failure | None = None

    def apply(self, event: event_pb2.Event) -> None:
        """Take in one event."""
        kind = event.WhichOneof("kind")
        if kind == "model_loaded":
            self.loaded = event.model_loaded
        elif kind == "fit_forecasted":
            self.forecast = event.fit_forecasted
        elif kind == "request_finished":
            self.requests.append(event.request_finished)
        elif kind == "case_finished" and event.case_finished.HasField("failure"):
            self.failure = Failure.from_proto(event.case_finished.failure)
        elif kind == "job_finished" and event.job_finished.HasField("failure"):
            self.failure = self.failure or Failure.from_proto(event.job_finished.failure)


def examine_model(result: ProbeResult, host: str) -> list[Finding]:
    """The checklist for one model: it is offered, is there, fits, loads on its provider, answers."""
    check = f"model {result.model}"
    if result.variant is None:
        why = result.refused.message if result.refused else "the host does not offer it"
        return [Finding("error", check, why, f"benchfleet models {host}")]
    variant = result.variant
    found = [Finding("ok", check, f"offered as {variant.variant}")]
    if variant.HasField("cached"):
        there = variant.cached or result.loaded is not None
        message = "its files are there" if variant.cached else "its files were not there"
        advice = None if variant.cached else f"benchfleet pull {host} {result.model}"
        found.append(Finding("ok" if variant.cached else "info" if there else "warning", check, message, advice))
    if result.refused is not None:
        return [*found, Finding("error", check, f"not probed: {result.refused.message}")]
    if result.forecast is not None and result.forecast.HasField("fits") and not result.forecast.fits:
        found.append(Finding("warning", check, f"it may not fit in memory: {result.forecast.basis}"))
    if result.loaded is None:
        why = result.failure.message if result.failure else "it was not loaded"
        return [*found, Finding("error", check, f"does not load: {why}")]
    found.append(_load(result, variant, check))
    return [*found, _answer(result, check)]


def _load(result: ProbeResult, variant: host_pb2.ModelVariant, check: str) -> Finding:
    assert result.loaded is not None
    loaded = result.loaded
    seconds = (loaded.end_ns - loaded.start_ns) / 1e9
    actual = loaded.actual_execution_provider
    message = f"loads in {seconds:.1f} s" + (f" on {actual}" if actual else "")
    asked = variant.execution_provider
    if asked and actual and asked != actual:
        advice = "install the device's driver and its execution provider, or ask for the CPU's variant"
        return Finding("error", check, f"{message}, not on {asked}", advice)
    return Finding("ok", check, message)


def _answer(result: ProbeResult, check: str) -> Finding:
    if not result.requests:
        why = result.failure.message if result.failure else "no request ended"
        return Finding("error", check, f"does not answer: {why}")
    request = result.requests[-1]
    failure = Failure.from_proto(request.failure) if request.HasField("failure") else None
    if failure is not None and failure.reason not in _EMPTY_IS_FINE:
        return Finding("error", check, f"does not answer: {failure.message}")
    if not request.HasField("start_ns"):
        return Finding("error", check, "does not answer: its request was never sent")
    seconds = (request.end_ns - request.start_ns) / 1e9
    tokens = f", {request.output_token_count} tokens" if request.HasField("output_token_count") else ""
    return Finding("ok", check, f"answers a probe in {seconds:.2g} s{tokens}")


def examine_runtimes(runtimes: Iterable[host_pb2.RuntimeInfo]) -> list[Finding]:
    """What each runtime is and can do."""
    found = []
    for runtime in runtimes:
        check = f"runtime {runtime.name}"
        if not runtime.available:
            found.append(Finding("error", check, runtime.unavailable_reason))
            continue
        said = [f"version {runtime.version}" if runtime.version else "available"]
        if runtime.dialect:
            said.append(f"speaks {runtime.dialect}")
        if runtime.endpoint_url:
            said.append(f"at {runtime.endpoint_url}" + (" (found running; not set up)" if runtime.found else ""))
        if runtime.capabilities:
            said.append("can " + ", ".join(runtime.capabilities))
        found.append(Finding("ok", check, "; ".join(said)))
    return found


def examine_providers(providers: Iterable[host_pb2.ExecutionProvider], host: str) -> list[Finding]:
    """Which execution providers a runtime could use, and which of them are on the host."""
    found = []
    for one in providers:
        check = f"provider {one.name}"
        if one.registered:
            found.append(Finding("ok", check, f"{one.runtime} can use it"))
        elif one.downloaded:
            advice = f"see the agent's log, or fetch it again: benchfleet pull {host} MODEL --device gpu"
            found.append(Finding("warning", check, f"on the host, but {one.runtime} cannot use it", advice))
        else:
            message = f"offered to {one.runtime} and not on the host: its variants are not listed"
            advice = f"benchfleet pull {host} MODEL --device gpu (or npu) fetches it"
            found.append(Finding("info", check, message, advice))
    return found


def examine_probes(probes: Iterable[host_pb2.ProbeInfo]) -> list[Finding]:
    """What telemetry the host offers, at what cost, how well tried, and what it leaves open."""
    found = []
    for probe in probes:
        check = f"probe {probe.probe_id}"
        details = {"reading": dict(sorted(probe.reading.items())) or None, "gaps": dict(sorted(probe.gaps.items()))}
        if not probe.available:
            found.append(Finding("info", check, probe.unavailable_reason, details=details))
            continue
        said = [f"{len(probe.metrics)} metrics"]
        if probe.HasField("cost_us"):
            said.append(f"{probe.cost_us:.0f} µs a reading")
        if probe.verification:
            said.append(f"tried on {probe.verification}")
        message = ", ".join(said) + _readings(probe)
        found.append(Finding("ok", check, message, _gaps(dict(probe.gaps)), details))
    return found


def _readings(probe: host_pb2.ProbeInfo) -> str:
    """Some of what it read, in the order of its metrics: those of the first device."""
    first: dict[str, float] = {}
    for name, value in sorted(probe.reading.items()):
        first.setdefault(name.partition("@")[0], value)
    told = [
        f"{name} {quantity(first[name], BY_NAME[name].unit)}"
        for name in probe.metrics
        if name in first and name in BY_NAME  # a later agent may know more
    ]
    more = f" and {len(told) - MOST_READINGS} more" if len(told) > MOST_READINGS else ""
    own = any(one.startswith(("runtime_", "load_")) for one in told[:MOST_READINGS])
    whose = " (runtime_* and load_*: the agent's own)" if own else ""  # no case runs that they could be read of
    return f"; read {', '.join(told[:MOST_READINGS])}{more}{whose}" if told else ""


def _gaps(gaps: dict[str, str]) -> str | None:
    """Why metrics are missing: one reason often speaks for many."""
    if not gaps:
        return None
    by_reason: dict[str, list[str]] = {}
    for name, why in sorted(gaps.items()):
        by_reason.setdefault(why, []).append(name)
    named = [f"{', '.join(names)}: {why}" for why, names in list(by_reason.items())[:MOST_GAPS]]
    more = sum(len(names) for names in list(by_reason.values())[MOST_GAPS:])
    return "not offered: " + "; ".join(named) + (f"; and {more} more" if more else "")


def examine_limits(limits: host_pb2.MachineLimits) -> Finding:
    """What the machine can do at most."""
    if limits.failure:
        return Finding("warning", "limits", f"not measured: {limits.failure}")
    bandwidth, compute = limits.memory_bandwidth_bytes_per_s / 1e9, limits.compute_flop_per_s / 1e9
    message = (
        f"memory {bandwidth:.3g} GB/s, {compute:.4g} Gflop/s, {limits.thread_count} threads"
        + (f" ({limits.method})" if limits.method else "")
    )  # fmt: skip
    return Finding("ok", "limits", message)


def checklist_text(findings: Sequence[Mapping[str, Any]], width: int | None) -> str:
    """Findings for people, host by host; wrapped to ``width`` columns, None: a line each."""
    severity = max((len(str(one["severity"])) for one in findings), default=0)
    check = max((len(str(one["check"])) for one in findings), default=0)
    indent = " " * (2 + severity + 2 + check + 2)
    lines, host = [], None
    for one in findings:
        if one["host"] != host:
            host = one["host"]
            lines.append(str(host))
        head = f"  {one['severity']:{severity}}  {one['check']:{check}}  "
        parts = [(head, str(one["message"]))]
        if one.get("advice"):
            parts.append((indent, f"→ {one['advice']}"))
        if width is None:
            lines.append(head + "  ".join(text for _, text in parts))
            continue
        for first, text in parts:
            wrapped = textwrap.wrap(text, max(width - len(indent), 30), break_on_hyphens=False) or [""]
            lines += [first + wrapped[0], *(indent + more for more in wrapped[1:])]
    return "".join(f"{line}\n" for line in lines)
