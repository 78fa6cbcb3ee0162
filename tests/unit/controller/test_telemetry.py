"""Telemetry in the database: spans, memory, energy, proof and the conditions of rounds, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchfleet.v1 import event_pb2, host_pb2, job_pb2
from benchfleet_controller.compare import Verdict, compare
from benchfleet_controller.results import results_of
from benchfleet_controller.store import Store
from benchfleet_controller.telemetry import with_price
from fakes.events import JobEvents, S, commit_events, host, ok_request, spec

MIB = 1 << 20


def tenths(start_s: float, end_s: float) -> list[float]:
    return [start_s + n / 10 for n in range(round((end_s - start_s) * 10) + 1)]


def made(
    path: Path, *, device: str = "gpu", ep: str = "CUDA", round_s: float = 10.0, power: str = "", **on: Any
) -> Store:
    """One case with two rounds of 10 s, 100 tokens each: the board takes 10 W idle, 20 W loaded, 50 W in rounds."""
    store, job = Store(path), JobEvents()
    gpu = host_pb2.Device(device_id="gpu0", kind="gpu", display_name="GPU", driver_version="580")
    gpu.memory_kind, gpu.memory_bandwidth_bytes_per_s = "dedicated", 2e9
    job.job_started(spec("c1"), host(**({"devices": [gpu]} | on)))
    job.case_started("c1", device=device, execution_provider=ep, size_bytes=100 * MIB)
    job.loaded("c1", ep=ep)
    joules, middle, end = 0.0, 12 + round_s, 12 + 2 * round_s
    for phase, round_id, start_s, end_s, watts, held in (
        ("baseline", "", 0, 6, 10.0, 50), ("loaded", "", 6, 12, 20.0, 150), ("round", "r1", 12, middle, 50.0, 170),
        ("round", "r2", middle, end, 50.0, 170), ("loaded", "", end, end + 1, 20.0, 150),
        ("after", "", end + 1, end + 2, 10.0, 60),
    ):  # fmt: skip
        at = tenths(start_s, end_s)
        counted = [1e3 * (joules + watts * (time - start_s)) for time in at]
        joules += watts * (end_s - start_s)
        wavering = [watts + (0.01 if n % 2 else -0.01) for n in range(len(at))]
        energy = {power: wavering} if power else {"device_energy_mj": counted}
        job.samples(
            "c1", round_id, phase, at, device_id="gpu0", probe_id="nvidia",
            device_memory_used_bytes=[held * MIB] * len(at), device_busy_ratio=[0.9 * (phase == "round")] * len(at),
            device_throttle_reasons=[int(round_id == "r2" and n < 50) for n in range(len(at))], **energy,
        )  # fmt: skip
        rss = {"baseline": 0, "loaded": 300, "round": 400, "after": 100}[phase]
        job.samples(
            "c1", round_id, phase, at, probe_id="system",
            runtime_rss_bytes=[rss * MIB] * len(at), runtime_anon_bytes=[rss * MIB // 4] * len(at),
            runtime_file_bytes=[rss * MIB // 2] * len(at), runtime_cpu_ns=[time * S / 2 for time in at],
            host_cpu_busy_ns=[time * S for time in at], host_cpu_total_ns=[4 * time * S for time in at],
        )  # fmt: skip
        if round_id:
            offsets = [0.1 + n / 20 for n in range(100)]
            job.round(
                "c1",
                round_id,
                int(round_id[1]) - 1,
                start_s,
                end_s,
                [ok_request(f"q-{round_id}", start_s, offsets, end_s)],
            )
    job.case_finished("c1")
    job.job_finished()
    commit_events(store, "j1", job.events)
    return store


def test_energy_by_counter_for_a_token_and_a_request(tmp_path: Path) -> None:
    (case,) = made(tmp_path / "a.duckdb").case_results()
    (told,) = case["energy"]
    assert (told["scope"], told["method"]) == ("gpu_board", "counter")
    assert (told["gross_j"], told["duration_s"]) == pytest.approx((1000.0, 20.0))
    assert (told["idle_host_w"], told["idle_loaded_w"]) == pytest.approx((10.0, 20.0))
    assert (told["marginal_host_j"], told["marginal_loaded_j"]) == pytest.approx((800.0, 600.0))
    assert (case["energy_scope"], case["energy_reason"]) == ("gpu_board", None)
    assert case["energy_per_token_j"] == pytest.approx(5.0)
    assert case["energy_per_request_j"] == pytest.approx(500.0)
    assert (case["marginal_per_token_j"], case["marginal_per_request_j"]) == pytest.approx((3.0, 300.0))
    assert case["marginal_reason"] is None
    assert case["kwh_per_million_tokens"] == pytest.approx(5 / 3.6)
    assert case["energy_j"] == pytest.approx(1000.0)
    assert case["cost_per_million_tokens"] is None
    assert with_price([case], 0.36)[0]["cost_per_million_tokens"] == pytest.approx(0.5)


def test_energy_by_power_is_the_area_below_it(tmp_path: Path) -> None:
    (case,) = made(tmp_path / "a.duckdb", power="device_power_w").case_results()
    assert case["energy_method"] == "power"
    assert case["energy_per_token_j"] == pytest.approx(5.0, rel=1e-3)
    assert case["marginal_per_token_j"] == pytest.approx(3.0, rel=1e-3)


def test_averaged_power_is_the_last_resort_and_needs_longer_rounds(tmp_path: Path) -> None:
    (case,) = made(tmp_path / "a.duckdb", power="device_power_average_w").case_results()
    assert case["energy"][0]["method"] == "averaged_power"
    assert case["energy_reason"].startswith(
        "gpu_board: rounds of 10 s are too short for a source that moves every 1 s: ±20%"
    )
    (case,) = made(tmp_path / "b.duckdb", power="device_power_average_w", round_s=30.0).case_results()
    assert (case["energy_method"], case["energy_j"]) == ("averaged_power", pytest.approx(3000.0, rel=1e-3))
    assert case["energy_per_request_j"] == pytest.approx(1500.0, rel=1e-3)


def test_energy_by_round_gives_intervals(tmp_path: Path) -> None:
    store = made(tmp_path / "a.duckdb")
    for metric, value in (
        ("energy_per_token_j", 5.0),
        ("energy_per_request_j", 500.0),
        ("marginal_per_token_j", 3.0),
        ("marginal_per_request_j", 300.0),
        ("kwh_per_million_tokens", 5 / 3.6),
    ):
        values = store.round_values(metric, ["r1"])
        assert values.case_id.tolist() == ["c1", "c1"]
        assert values.value.tolist() == pytest.approx([value, value])
    assert store.round_values("energy_per_token_j", ["r1"]).weight.tolist() == [100.0, 100.0]


def test_device_memory_by_round_is_what_the_device_held_above_its_baseline(tmp_path: Path) -> None:
    values = made(tmp_path / "a.duckdb").round_values("vram_peak_bytes", ["r1"])
    assert values.case_id.tolist() == ["c1", "c1"]
    assert values.value.tolist() == [120 * MIB, 120 * MIB]


def test_a_cpu_case_is_not_charged_for_the_board_alone(tmp_path: Path) -> None:
    store = made(tmp_path / "a.duckdb", device="cpu", ep="CPU")
    (case,) = store.case_results()
    assert case["energy_per_token_j"] is None
    assert case["energy_reason"] == "only gpu_board was metered, and the work is done by the processor"
    assert store.round_values("energy_per_token_j").value.tolist() == []
    (_, row) = compare([case | {"host": "z"}, case], ("host",), "z", ["energy_per_token_j"]).rows
    assert row.why.startswith("the device is contradicted")
    sure = {"device_proof": "confirmed"}
    (_, row) = compare([case | {"host": "z"} | sure, case | sure], ("host",), "z", ["energy_per_token_j"]).rows
    assert row.why == f"unmeasured on both sides: {case['energy_reason']}"


def test_energies_of_different_scopes_are_not_compared(tmp_path: Path) -> None:
    (case,) = made(tmp_path / "a.duckdb").case_results()
    other = case | {"host": "z", "energy_scope": "parts"}
    energy, speed = compare([other, case], ("host",), "z", ["energy_per_token_j", "ttft_p50_s"]).rows[1::2]
    assert (energy.verdict, energy.why) == (Verdict.NOT_COMPARABLE, "energy was metered of gpu_board instead of parts")
    assert speed.verdict is not Verdict.NOT_COMPARABLE


def test_memory_peak_steady_split_and_given_back(tmp_path: Path) -> None:
    (case,) = made(tmp_path / "a.duckdb").case_results()
    names = ("baseline", "peak", "steady", "anon_peak", "file_peak", "before_unload", "after_unload", "given_back")
    told = {name: case[f"ram_{name}_bytes"] / MIB for name in names}
    assert list(told.values()) == [0, 400, 400, 100, 200, 300, 100, 200]
    assert (case["vram_peak_bytes"], case["vram_basis"]) == (120 * MIB, "device_delta")
    assert case["vram_given_back_bytes"] == 90 * MIB


def test_the_device_is_proven_by_what_rose_with_the_rounds(tmp_path: Path) -> None:
    (case,) = made(tmp_path / "a.duckdb").case_results()
    assert case["device_proof"] == "confirmed"
    assert case["device_evidence"] == [
        "gpu0 was busy in 90% of the rounds (0% before) and held 120 MiB more than before; the model is 100 MiB"
    ]
    assert (case["driver_version"], case["device_name"], case["agent_version"]) == ("580", "GPU", "0.1.0")


def test_a_cpu_case_that_filled_the_gpu_is_contradicted_and_in_no_comparison(tmp_path: Path) -> None:
    (case,) = made(tmp_path / "a.duckdb", device="cpu", ep="CPU").case_results()
    assert case["device_proof"] == "contradicted"
    other = case | {"host": "z", "case_id": "c2", "device_proof": "confirmed"}
    (base, row) = compare([other, case], ("host",), "z", ["ttft_p50_s"]).rows
    assert base.verdict is Verdict.BASELINE
    assert row.verdict is Verdict.NOT_COMPARABLE
    assert row.why.startswith("the device is contradicted: declared cpu, but gpu0 was busy")


def test_the_share_of_the_devices_bandwidth(tmp_path: Path) -> None:
    (case,) = made(tmp_path / "a.duckdb").case_results()
    assert case["decode_limit_ratio"] == pytest.approx(20 * 100 * MIB / 2e9)
    assert case["efficiency"].startswith("memory-bound at 105% of this device's limit")


def test_a_cpu_case_is_held_against_the_measured_limit_of_its_host(tmp_path: Path) -> None:
    limits = host_pb2.MachineLimits(memory_bandwidth_bytes_per_s=4e9, compute_flop_per_s=1e11)
    (case,) = made(tmp_path / "a.duckdb", device="cpu", ep="CPU", limits=limits).case_results()
    assert case["decode_limit_ratio"] == pytest.approx(20 * 100 * MIB / 4e9)


def test_rounds_carry_what_the_host_was_like(tmp_path: Path) -> None:
    store = made(tmp_path / "a.duckdb")
    (case,) = results_of(store, ["r1"], metrics=())
    # Half of the machine's one busy processor is the runtime's: an eighth of all four is others'.
    assert case["round_troubles"] == [
        {"trouble": "throttled", "rounds": [2], "worst": "a device was slowed down (power) in 50% of its time"},
        {"trouble": "background_load", "rounds": [1, 2], "worst": "other programs used 12% of all processors"},
    ]
    assert (case["rounds_invalid"], case["rounds_suspicious"]) == (0, 2)


def test_states_of_rounds_are_read(tmp_path: Path) -> None:
    store, job = Store(tmp_path / "a.duckdb"), JobEvents()
    asked = spec("c1")
    asked.conditions.CopyFrom(job_pb2.HostConditions(require_ac=True))
    job.job_started(asked)
    job.case_started("c1")
    before, after = host_pb2.HostState(on_battery=False), host_pb2.HostState(on_battery=True)
    job.add(round_started=event_pb2.RoundStarted(case_id="c1", round_id="r1", start_ns=S, host_state=before))
    job.add(
        round_finished=event_pb2.RoundFinished(case_id="c1", round_id="r1", start_ns=S, end_ns=2 * S, host_state=after)
    )
    commit_events(store, "j1", job.events)
    (case,) = results_of(store, ["r1"], metrics=())
    assert [one["trouble"] for one in case["round_troubles"]] == ["power_changed"]
    assert case["rounds_invalid"] == 1
    assert case["conditions"]["require_ac"] is True


def test_a_counter_that_was_restarted_leaves_the_energy_unknown(tmp_path: Path) -> None:
    store, job = Store(tmp_path / "a.duckdb"), JobEvents()
    job.job_started(spec("c1"))
    job.case_started("c1", device="gpu")
    at = tenths(0, 10)
    job.samples("c1", "r1", "round", at, device_id="gpu0", device_energy_mj=[1e6 - 1e4 * n for n in range(len(at))])
    job.round("c1", "r1", 0, 0, 10, [ok_request("q1", 0, [0.1, 0.2], 10)])
    commit_events(store, "j1", job.events)
    (case,) = store.case_results()
    assert (case["energy"], case["energy_per_token_j"]) == (None, None)
    assert case["energy_reason"] == "no probe of this host counts energy or power"


def test_a_case_that_never_ran_claims_nothing(tmp_path: Path) -> None:
    store, job = Store(tmp_path / "a.duckdb"), JobEvents()
    job.job_started(spec("c1"))
    commit_events(store, "j1", job.events)
    (case,) = results_of(store, ["r1"])
    told = ("device_proof", "energy", "energy_reason", "efficiency", "efficiency_reason", "spread_ratio")
    assert [case[name] for name in told] == [None] * len(told)
    json.dumps({name: case[name] for name in told} | {"round_troubles": case["round_troubles"]})


def worked(
    path: Path, *samples: tuple[str, str, float, float, dict[str, Any]], device: str = "gpu", **on: Any
) -> dict[str, Any]:
    """The case of one round made of (phase, probe, start, end, value by metric) read ten times a second."""
    store, job = Store(path), JobEvents()
    job.job_started(spec("c1"), host(**on))
    job.case_started("c1", device=device, size_bytes=100 * MIB)
    job.loaded("c1", ep="")
    for phase, probe_id, start_s, end_s, values in samples:
        at = tenths(start_s, end_s)
        columns = {name: [value(time) for time in at] if callable(value) else value for name, value in values.items()}
        device_id = "gpu0" if probe_id == "gpu" else ""
        job.samples(
            "c1", "r1" if phase == "round" else "", phase, at, probe_id=probe_id, device_id=device_id,
            **{name: column if isinstance(column, list) else [column] * len(at) for name, column in columns.items()},
        )  # fmt: skip
    job.round("c1", "r1", 0, 10, 12, [ok_request("q1", 10, [0.1, 0.2], 12)])
    job.case_finished("c1")
    job.job_finished()
    commit_events(store, "j1", job.events)
    (case,) = store.case_results()
    (case["conditions_of_round"],) = store.round_conditions(["r1"])
    return case


def test_of_idle_phases_only_long_pieces_count(tmp_path: Path) -> None:
    store, job = Store(tmp_path / "a.duckdb"), JobEvents()
    job.job_started(spec("c1"))
    job.case_started("c1", device="cpu", execution_provider="CPU")
    joules = 0.0
    pieces = [("loaded", "", 0.0, 8.0, 20.0)]
    for index in range(3):  # rounds 0.3 s apart, in which the package cools down from 80 W
        begin = 8 + 10.3 * index
        pieces += [("round", f"r{index}", begin, begin + 10, 80.0), ("loaded", "", begin + 10, begin + 10.3, 50.0)]
    for phase, round_id, start_s, end_s, watts in pieces:
        at = tenths(start_s, end_s)
        counted = [1e6 * (joules + watts * (time - start_s)) for time in at]
        joules += watts * (end_s - start_s)
        job.samples("c1", round_id, phase, at, probe_id="rapl", cpu_package_energy_uj=counted)
        if round_id:
            job.round("c1", round_id, int(round_id[1]), start_s, end_s, [ok_request(round_id, start_s, [0.1], end_s)])
    commit_events(store, "j1", job.events)
    (told,) = store.case_results()[0]["energy"]
    assert told["idle_loaded_w"] == pytest.approx(20.0, rel=0.02)
    assert told["gross_j"] == pytest.approx(2400.0, rel=0.02)


def test_a_share_of_memory_read_at_edges_gives_way_to_a_larger_one_of_the_device(tmp_path: Path) -> None:
    def of_runtime(mib: int) -> Any:
        return lambda time: mib * MIB if time in (10, 12) else None

    def case(name: str, own: int, most: int) -> tuple[int, str]:
        found = worked(
            tmp_path / name,
            ("baseline", "gpu", 0, 1, {"device_memory_used_bytes": 50 * MIB}),
            ("round", "gpu", 10, 12, {
                "device_memory_used_bytes": lambda time: (most if time == 11 else 100) * MIB,
                "device_memory_runtime_bytes": of_runtime(own),
            }),
        )  # fmt: skip
        return found["vram_peak_bytes"] // MIB, found["vram_basis"]

    assert case("a.duckdb", own=120, most=250) == (200, "device_delta")
    assert case("b.duckdb", own=120, most=150) == (120, "process_at_edges")


def test_a_gpu_with_the_hosts_memory_is_told_by_what_is_no_longer_free(tmp_path: Path) -> None:
    gpu = host_pb2.Device(device_id="gpu0", kind="gpu", display_name="GB10", memory_kind="unified")
    samples = (
        ("baseline", "system", 0, 1, {"host_available_bytes": 1000 * MIB}),
        ("round", "system", 10, 12, {"host_available_bytes": lambda time: (300 if time == 11 else 400) * MIB}),
    )
    case = worked(tmp_path / "a.duckdb", *samples, devices=[gpu])
    assert (case["vram_peak_bytes"], case["vram_basis"]) == (700 * MIB, "available_delta")
    powered = (*samples, ("round", "gpu", 10, 12, {"device_power_w": 30.0}))
    assert worked(tmp_path / "p.duckdb", *powered, devices=[gpu])["vram_basis"] == "available_delta"
    gpu.memory_kind = "dedicated"
    for name, some in (("b", samples), ("c", powered)):
        assert worked(tmp_path / f"{name}.duckdb", *some, devices=[gpu])["vram_peak_bytes"] is None


def test_busy_time_and_clocks_of_the_round_alone(tmp_path: Path) -> None:
    case = worked(
        tmp_path / "a.duckdb",
        ("round", "gpu", 10, 12, {"device_busy_ns": lambda time: int((time - 10) * S / 4)}),
        ("round", "cpu", 10, 12, {"host_cpu_clock_hz": lambda time: 1e9 if time in (10, 12) else 3e9}),
    )
    assert case["gpu_busy_ratio"] == pytest.approx(0.25)
    assert case["conditions_of_round"]["cpu_clock_hz"] == 3e9


def test_what_the_neural_engine_holds_proves_it_and_footprints_stand_for_anonymous_memory(tmp_path: Path) -> None:
    held = {"runtime_neural_bytes": 80 * MIB, "runtime_footprint_bytes": 90 * MIB}
    case = worked(tmp_path / "a.duckdb", ("round", "macos", 10, 12, held), device="npu")
    assert case["device_proof"] == "confirmed"
    assert case["device_evidence"] == ["the Neural Engine held 80 MiB of the runtime; the model is 100 MiB"]
    assert case["ram_anon_peak_bytes"] == 90 * MIB


def test_two_sources_of_one_energy_are_held_against_each_other(tmp_path: Path) -> None:
    case = worked(
        tmp_path / "a.duckdb",
        ("round", "gpu", 10, 40, {
            "device_energy_mj": lambda time: int((time - 10) * 50_000),
            "device_power_w": lambda time: 40 + (time % 0.2),
        }),
    )  # fmt: skip
    (told,) = case["energy"]
    assert (told["method"], told["gross_j"], told["second_method"]) == ("counter", pytest.approx(1500), "power")
    assert told["disagreement_ratio"] == pytest.approx(0.2, abs=0.01)
