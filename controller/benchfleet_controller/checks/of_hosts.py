"""Warnings about hosts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchfleet_controller.checks.codes import Code, Warned

Row = Mapping[str, Any]


def of_hosts(hosts: Sequence[Row]) -> Iterator[Warned]:
    """Warnings about hosts and what they have in common."""
    by_name: dict[str, list[Row]] = defaultdict(list)
    by_machine: dict[str, list[Row]] = defaultdict(list)
    for host in hosts:
        by_name[host["host"]].append(host)
        if host.get("machine_id"):
            by_machine[host["machine_id"]].append(host)
    for name, seen in by_name.items():
        yield from _of_host(name, seen)
    for sharing in by_machine.values():
        if together := _overlapping(sharing):
            message = "these hosts are one machine and their jobs ran at the same time: they took each other's time"
            yield Warned(Code.MACHINE_SHARED, ", ".join(sorted(together)), message, "run them in turn")
    versions = {host["agent_version"] for host in hosts if host.get("agent_version")}
    if len(versions) > 1:
        message = f"agents have different versions: {', '.join(sorted(versions))}"
        yield Warned(Code.AGENTS_DIFFER, "fleet", message, "upgrade all agents to one version")
    yield from _of_drivers(hosts)


def _of_drivers(hosts: Sequence[Row]) -> Iterator[Warned]:
    """The same device under several drivers."""
    drivers: dict[str, dict[str, str]] = defaultdict(dict)
    for host in hosts:
        for device in host.get("devices") or ():
            if isinstance(device, Mapping) and device.get("driver_version"):
                drivers[str(device.get("display_name"))].setdefault(str(device["driver_version"]), str(host["host"]))
    for name, versions in drivers.items():
        if len(versions) > 1:
            told = ", ".join(f"{version} on {host}" for version, host in sorted(versions.items()))
            message = f"{name} has different drivers: {told}"
            yield Warned(Code.DRIVERS_DIFFER, "fleet", message, "differences may come from them: install one version")


def _overlapping(jobs: Sequence[Row]) -> set[str]:
    """Hosts of jobs whose times overlap; jobs with unknown times count as overlapping nobody."""
    timed = sorted(
        (job for job in jobs if job.get("started_at") and job.get("finished_at")), key=lambda job: job["started_at"]
    )
    return {
        name
        for earlier, later in pairwise(timed)
        if later["started_at"] < earlier["finished_at"]
        for name in (earlier["host"], later["host"])
    }


def _of_host(name: str, seen: Sequence[Row]) -> Iterator[Warned]:
    if any(host.get("on_battery") for host in seen):
        yield Warned(Code.ON_BATTERY, name, "it ran on battery: clocks may be throttled", "plug it in and run again")
    for earlier, later in pairwise(seen):
        changed = [k for k in _IDENTITY if k in earlier and k in later and earlier[k] != later[k]]
        if changed:
            message = f"it changed between runs: {', '.join(changed)}"
            yield Warned(Code.HOST_CHANGED, name, message, "differences between these runs may come from that")
    for problem in seen[-1].get("problems") or ():
        yield Warned(Code.HOST_PROBLEM, name, str(problem.get("message")), str(problem.get("advice")))


_IDENTITY = (
    "host_id", "machine_id", "cpu_model", "logical_cores", "memory_bytes", "os_version", "devices", "runtimes",
    "agent_version", "python_version", "on_battery",
)  # fmt: skip
