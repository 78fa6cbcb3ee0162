"""What a case's telemetry says: proof of its device, its energy, and how near it came to the machine's limit. Pure.

`derive` takes a row of ``case_results``, the case's spans by device and phase (`store.spans.PARTS`) and its host, and
gives the keys that the row gains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchfleet_controller import efficiency, energy, proof
from benchfleet_controller.energy import Energy, Method, Scope, Window

Row = Mapping[str, Any]

_SOURCES = (
    (Scope.GPU_BOARD, "device_energy_mj", Method.COUNTER, 1e-3),
    (Scope.CPU_PACKAGE, "cpu_package_energy_uj", Method.COUNTER, 1e-6),
    (Scope.GPU_BOARD, "device_power_w", Method.POWER, 1.0),
    (Scope.MODULE, "device_module_power_w", Method.POWER, 1.0),
    (Scope.SYSTEM, "system_power_w", Method.POWER, 1.0),
    (Scope.SYSTEM, "battery_discharge_w", Method.POWER, 1.0),
    (Scope.GPU_BOARD, "device_power_average_w", Method.AVERAGED_POWER, 1.0),
)
"""What is metered, by what, how, and the factor to joules; the best first."""
_IDLE = ("baseline", "loaded")


def derive(case: Row, parts: Sequence[Row], host: Row | None) -> dict[str, Any]:
    """Keys for a case: proof, energy, efficiency, driver; ``energy_reason`` and ``efficiency_reason`` say why not."""
    devices = [dict(one) for one in (host or {}).get("devices") or []]
    return (
        _proof(case, parts, devices)
        | _unified_memory(case, parts, devices)
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
    neural = [part["neural_peak_bytes"] for part in parts if part["neural_peak_bytes"] is not None]
    if neural:  # the Neural Engine is no device that could be listed, but the kernel counts what it holds
        seen.append(proof.Seen("the Neural Engine", "npu", runtime_memory_bytes=max(neural)))
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


def _unified_memory(case: Row, parts: Sequence[Row], devices: Sequence[Row]) -> dict[str, Any]:
    """Memory of a GPU that has the host's and whose driver has no figure of it: what the host lost of free memory.

    All that the runtime and others took since the baseline is in it. Empty where another source told.
    """
    unified = any(one.get("kind") == "gpu" and one.get("memory_kind") == "unified" for one in devices)
    if not unified or case.get("device") != "gpu" or case.get("remote") or case.get("vram_peak_bytes") is not None:
        return {}
    host = {str(part["phase"]): part for part in parts if not part["device_id"]}
    before = host.get("baseline", {}).get("available_median_bytes")
    least = [
        part["available_least_bytes"]
        for phase, part in host.items()
        if phase != "baseline" and part["available_least_bytes"] is not None
    ]
    if before is None or not least:
        return {}
    return {"vram_peak_bytes": max(0, int(before - min(least))), "vram_basis": "available_delta"}


def energies_of(parts: Sequence[Row], rounds: int) -> list[Energy]:
    """Each scope's energy over the counted rounds; of several methods the best that is not refused."""
    found: dict[Scope, Energy] = {}
    for scope, name, method, factor in _SOURCES:
        window = _window(parts, name, method, factor, "round")
        if window is None:
            continue
        idle = [_window(parts, name, method, factor, phase) for phase in _IDLE]
        made, best = energy.measured(scope, window, rounds, *idle), found.get(scope)
        if best is None or (best.gross_j is None and made.gross_j is not None):
            found[scope] = made
        elif best.gross_j is not None and best.second_j is None and made.gross_j is not None:
            found[scope] = replace(best, second_method=made.method, second_j=made.gross_j)
    return list(found.values())


def _window(parts: Sequence[Row], name: str, method: Method, factor: float, phase: str) -> Window | None:
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
        method=method,
        spread_w=None if method is Method.COUNTER else sum(part[f"{name}_spread"] for part in mine),
    )


def _energy(case: Row, parts: Sequence[Row], devices: Sequence[Row]) -> dict[str, Any]:
    rounds = case.get("rounds") or 0
    found = energies_of(parts, rounds) if rounds else []
    boards = [one for one in devices if one.get("kind") == "gpu" and one.get("memory_kind") in (None, "", "dedicated")]
    head = energy.headline(found, dedicated=case.get("device") == "gpu" and bool(boards), boards=len(boards))
    tokens, answers = case.get("output_tokens"), (case.get("requests") or 0) - (case.get("failed") or 0)
    gross, marginal, reason = head.joules, head.marginal_j, head.reason
    if case.get("remote"):
        gross, marginal, reason = None, None, "the endpoint is on another machine"
    elif reason is None and not tokens:
        reason = "no output tokens were counted"
    per_token = _each(gross, tokens)
    return {
        "energy": [_document(one) for one in found] or None,
        "energy_scope": None if head.scope is None else head.scope.value,
        "energy_method": head.method,
        "energy_per_token_j": per_token,
        "energy_per_request_j": _each(gross, answers),
        "marginal_per_token_j": _each(marginal, tokens),
        "marginal_per_request_j": _each(marginal, answers),
        "kwh_per_million_tokens": None if per_token is None else energy.kwh_per_million_tokens(per_token),
        "cost_per_million_tokens": None,
        "energy_reason": reason if rounds else None,
        "marginal_reason": (reason or head.marginal_reason) if rounds else None,
    }


def _each(joules: float | None, count: int | None) -> float | None:
    return joules / count if joules is not None and count else None


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
        "second_method": None if one.second_method is None else one.second_method.value,
        "second_j": one.second_j,
        "disagreement_ratio": one.disagreement_ratio,
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
    case: Row, rounds: Sequence[tuple[Sequence[Row], Mapping[str, Any]]], *, marginal: bool = False
) -> list[tuple[float, Mapping[str, Any]]]:
    """Joules of each counted round in the case's own scope and method, with what the round answered.

    ``rounds`` has each round's parts (as of `derive`, of phase ``round``) and its counts; ``marginal``: above the host
    with the model loaded. Empty: no energy speaks for the case, or its idle power is not known.
    """
    scope = case.get("energy_scope")
    if scope is None or (marginal and case.get("marginal_reason")):
        return []
    held = {Scope.CPU_PACKAGE, Scope.GPU_BOARD} if scope == Scope.PARTS else {Scope(scope)}
    metered = {one["scope"]: one for one in case.get("energy") or () if one["gross_j"] is not None}
    found = []
    for parts, counts in rounds:
        joules: dict[Scope, float] = {}
        for one, name, method, factor in _SOURCES:
            told = metered.get(one)
            if one not in held or one in joules or told is None or told["method"] != method:
                continue
            if window := _window(parts, name, method, factor, "round"):
                joules[one] = window.joules - (told["idle_loaded_w"] * window.seconds if marginal else 0.0)
        if joules:
            found.append((sum(joules.values()), counts))
    return found
