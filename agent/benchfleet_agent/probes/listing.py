"""What the probes of this host offer, as text for people and as JSON for scripts."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchfleet.quantities import quantity
from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Probe, ProbeDescription, default_probes, describe


def carry_out(options: argparse.Namespace, probes: Sequence[Probe] | None = None) -> int:
    """The command ``benchfleet-agent probes [NAME]`` over these probes (default: all); returns the exit code."""
    probes = default_probes() if probes is None else probes
    if options.name is not None:
        known = [probe.probe_id for probe in probes]
        probes = tuple(probe for probe in probes if probe.probe_id == options.name)
        if not probes:
            near = difflib.get_close_matches(options.name, known, n=3) or known
            message = f"there is no probe {options.name!r} here; did you mean {', '.join(near)}?"
            print(f"benchfleet-agent: {message}", file=sys.stderr)
            return 2
    rows = describe(probes)
    if options.format == "json":
        print(json.dumps([as_json(row) for row in rows], indent=2))
    else:
        print("\n".join(as_text(row, explained=options.name is not None) for row in rows))
    return 0


def as_json(row: ProbeDescription) -> dict[str, Any]:
    """One probe with stable keys; ``reading`` has base units as the metrics' names say, absent is null."""
    return {
        "id": row.probe_id,
        "available": row.available,
        "reason": row.reason,
        "cost_us": row.cost_us,
        "metrics": list(row.metrics),
        "period_ms": row.period_ms,
        "reading": dict(row.reading),
        "gaps": dict(row.gaps),
        "devices": [asdict(device) for device in row.devices],
        "verification": row.verification,
    }


def as_text(row: ProbeDescription, *, explained: bool = False) -> str:
    """One probe as a block of lines: its state, its devices, one reading, and what is missing and why."""
    if not row.available:
        lines = [f"{row.probe_id}: not available: {row.reason}"]
        if explained:
            lines += [f"  it would read {name}: {BY_NAME[name].description}" for name in row.metrics if name in BY_NAME]
        return "\n".join(lines)
    cost = "" if row.cost_us is None else f", {row.cost_us:.0f} µs a reading"
    lines = [f"{row.probe_id}: every {row.period_ms} ms{cost}, tried on {row.verification}"]
    for device in row.devices:
        memory = "" if device.memory_bytes is None else f", {quantity(device.memory_bytes, 'bytes')}"
        kind = f" {device.memory_kind} memory" if device.memory_kind else ""
        lines.append(f"  {device.kind} {device.device_id}: {device.display_name}{memory}{kind}")
    width = max((len(name) for name in row.reading), default=0)
    for name, value in row.reading.items():
        metric = BY_NAME[name.partition("@")[0]]
        explanation = f"   {metric.description}" if explained else ""
        lines.append(f"  {name:<{width}}  {quantity(value, metric.unit):>12}{explanation}")
    if any(name.startswith(("runtime_", "load_")) for name in row.reading):
        lines.append("  runtime_* and load_* are this program's own: no case runs that they could be read of")
    # One reason often speaks for many metrics.
    for reason in dict.fromkeys(row.gaps.values()):
        names = ", ".join(name for name, why in row.gaps.items() if why == reason)
        lines.append(f"  missing {names}: {reason}")
    return "\n".join(lines)
