"""What a case's telemetry says: proof of its device, its energy, and how near it came to the machine's limit. Pure.

`derive` takes a row of ``case_results``, the case's spans by device and phase (`store.spans.PARTS`) and its host, and
gives the keys that the row gains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchfleet_controller import efficiency, energy, proof
from benchfleet_controller.energy import Energy, Method, Scope, Window

Row = Mapping[str, Any]

_COUNTERS = ((Scope.GPU_BOARD, "device_energy_mj", 1e-3), (Scope.CPU_PACKAGE, "cpu_package_energy_uj", 1e-6))
_POWERS = ((Scope.GPU_BOARD, "device_power_w"), (Scope.SYSTEM, "system_power_w"), (Scope.SYSTEM, "battery_discharge_w"))
_IDLE = ("baseline", "loaded")


def derive(case: Row, parts: Sequence[Row], host: Row | None) -> dict[str, Any]:
    """Keys for a case: proof, energy, efficiency, driver; ``energy_reason`` and ``efficiency_reason`` say why not."""
    devices = [dict(one) for one in (host or {}).get("devices") or []]
    return (
        _proof(case, parts, devices)
        | _energy(case, parts, devices)
        | _efficiency(case, devices, (host or {}).get("limits"))
        | _driver(case, devices)
        | {"agent_version": (host or {}).get("agent_version")}
    )


def _proof(case: Row, parts: Sequence[Row], devices: Sequence[Row]) -> dict[str, Any]:
    if not case.get("rounds"):  # nothing ran that could be observed
        return {"device_proof": None, "device_evidence": None}
    kinds = {str(one["device_id"]): str(one.get("kind") or "") for one in devices}
    ids = dict.fromkeys((*kinds, *(str(part["device_id"]) for part in parts if part["device_id"])))
    seen = [_seen(name, kinds.get(name, ""), [p for p in parts if p["device_id"] == name]) for name in ids]
    declared = proof.Declared(
        device=case.get("device"),
        ep_requested=case.get("ep_requested"),
        ep_actual=case.get("ep_actual"),
        libraries=case.get("device_libraries"),
        size_bytes=case.get("size_bytes"),
        remote=bool(case.get("remote")),
    )
    judged = proof.judge(declared, case.get("busy_cores"), seen)
    return {"device_proof": judged.verdict.value, "device_evidence": list(judged.evidence)}


def _seen(device_id: str, kind: str, parts: Sequence[Row]) -> proof.Seen:
    by_phase = {str(part["phase"]): part for part in parts}
    rounds, baseline = by_phase.get("round", {}), by_phase.get("baseline", {})
    grown = []
    for name in ("used", "shared"):
        before = baseline.get(f"{name}_median_bytes")
        after = [
            part[f"{name}_peak_bytes"]
            for part in parts
            if part["phase"] != "baseline" and part[f"{name}_peak_bytes"] is not None
        ]
        if before is not None and after:
            grown.append(max(after) - before)
    held = [part["runtime_peak_bytes"] for part in parts if part["runtime_peak_bytes"] is not None]
    return proof.Seen(
        device_id,
        kind,
        runtime_busy_ratio=rounds.get("runtime_busy_ratio"),
        runtime_memory_bytes=max(held, default=None),
        busy_ratio=rounds.get("busy_ratio"),
        idle_busy_ratio=baseline.get("busy_ratio"),
        memory_growth_bytes=max(grown, default=None),
    )


def energies_of(parts: Sequence[Row], rounds: int) -> list[Energy]:
    """Each scope's energy over the counted rounds; of several methods the first of counter, then power."""
    found: dict[Scope, Energy] = {}
    sources = [(scope, name, Method.COUNTER, factor) for scope, name, factor in _COUNTERS]
    sources += [(scope, name, Method.POWER, 1.0) for scope, name in _POWERS]
    for scope, name, method, factor in sources:
        window = _window(parts, name, factor, "round")
        if window is not None and (scope not in found or found[scope].gross_j is None):
            idle = [_window(parts, name, factor, phase) for phase in _IDLE]
            made = energy.measured(scope, method, window, rounds, *idle)
            if scope not in found or made.gross_j is not None:
                found[scope] = made
    return list(found.values())


def _window(parts: Sequence[Row], name: str, factor: float, phase: str) -> Window | None:
    """A source over one kind of phase: devices beside each other add joules, not seconds."""
    mine = [part for part in parts if part["phase"] == phase and part[f"{name}_spans"]]
    if not mine:
        return None
    return Window(
        seconds=max(part[f"{name}_s"] for part in mine),
        spans=min(part[f"{name}_spans"] for part in mine),
        joules=sum(part[f"{name}_sum"] for part in mine) * factor,
        readings=min(part[f"{name}_readings"] for part in mine),
        moves=min(part[f"{name}_moves"] for part in mine),
    )


def _energy(case: Row, parts: Sequence[Row], devices: Sequence[Row]) -> dict[str, Any]:
    rounds = case.get("rounds") or 0
    found = energies_of(parts, rounds) if rounds else []
    boards = [one for one in devices if one.get("kind") == "gpu" and one.get("memory_kind") in (None, "", "dedicated")]
    head = energy.headline(found, dedicated=case.get("device") == "gpu" and bool(boards), boards=len(boards))
    tokens, answers = case.get("output_tokens"), (case.get("requests") or 0) - (case.get("failed") or 0)
    per_token = head.joules / tokens if head.joules is not None and tokens else None
    per_request = head.joules / answers if head.joules is not None and answers else None
    reason = head.reason
    if case.get("remote"):
        reason, per_token, per_request = "the endpoint is on another machine", None, None
    elif reason is None and not tokens:
        reason = "no output tokens were counted"
    return {
        "energy": [_document(one) for one in found] or None,
        "energy_scope": None if head.scope is None else head.scope.value,
        "energy_method": head.method,
        "energy_per_token_j": per_token,
        "energy_per_request_j": per_request,
        "kwh_per_million_tokens": None if per_token is None else energy.kwh_per_million_tokens(per_token),
        "cost_per_million_tokens": None,
        "energy_reason": reason if rounds else None,
    }


def _document(one: Energy) -> dict[str, Any]:
    return {
        "scope": one.scope.value,
        "method": one.method.value,
        "duration_s": one.duration_s,
        "gross_j": one.gross_j,
        "idle_host_w": one.idle_host_w,
        "idle_loaded_w": one.idle_loaded_w,
        "marginal_host_j": one.marginal_host_j,
        "marginal_loaded_j": one.marginal_loaded_j,
        "reasons": list(one.reasons),
    }


def with_price(cases: Sequence[Row], price_per_kwh: float | None) -> list[dict[str, Any]]:
    """The cases with ``cost_per_million_tokens``, in the currency of the price; electricity only."""
    return [
        dict(case)
        | {
            "cost_per_million_tokens": None
            if price_per_kwh is None or case.get("kwh_per_million_tokens") is None
            else case["kwh_per_million_tokens"] * price_per_kwh
        }
        for case in cases
    ]


def _efficiency(case: Row, devices: Sequence[Row], limits: Row | None) -> dict[str, Any]:
    mine = [one for one in devices if one.get("kind") == case.get("device")]
    bandwidth = mine[0].get("memory_bandwidth_bytes_per_s") if len(mine) == 1 else None
    told = efficiency.efficiency(case, limits, bandwidth)
    return {
        "decode_limit_ratio": told.decode_ratio,
        "prefill_limit_ratio": told.prefill_ratio,
        "efficiency": told.sentence,
        "efficiency_reason": told.reason if case.get("rounds") else None,
    }


def _driver(case: Row, devices: Sequence[Row]) -> dict[str, Any]:
    mine = [one for one in devices if one.get("kind") == case.get("device")]

    def joined(key: str) -> str | None:
        return ", ".join(dict.fromkeys(str(one[key]) for one in mine if one.get(key))) or None

    return {"device_name": joined("display_name"), "driver_version": joined("driver_version")}


def round_energy(
    case: Row, rounds: Sequence[tuple[Sequence[Row], Mapping[str, Any]]]
) -> list[tuple[float, Mapping[str, Any]]]:
    """Joules of each counted round in the case's own scope and method, with what the round answered.

    ``rounds`` has each round's parts (as of `derive`, of phase ``round``) and its counts. Empty: no energy speaks for
    the case.
    """
    scope, methods = case.get("energy_scope"), str(case.get("energy_method") or "").split("+")
    if scope is None:
        return []
    held = {Scope.CPU_PACKAGE, Scope.GPU_BOARD} if scope == Scope.PARTS else {Scope(scope)}
    metered = {one["scope"]: one["method"] for one in case.get("energy") or () if one["gross_j"] is not None}
    held &= {Scope(name) for name in metered}
    sources = [
        (name, factor)
        for group, method in ((_COUNTERS, Method.COUNTER), (tuple((s, n, 1.0) for s, n in _POWERS), Method.POWER))
        for one, name, factor in group
        if one in held and metered[one] == method and method.value in methods
    ]
    found = []
    for parts, counts in rounds:
        windows = [window for name, factor in sources if (window := _window(parts, name, factor, "round"))]
        if windows:
            found.append((sum(window.joules for window in windows), counts))
    return found
