"""The main job through the real command line, real agents and the real Foundry Local runtime."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from integration.conftest import AgentProcess, Benchfleet, agents_in

MakeAgent = Callable[..., AgentProcess]
SPAWNED = True
"""Commands are processes of their own here."""

RUN = ("run", "--model", "tiny-random", "--rounds", "2", "--warmup", "1", "--max-tokens", "48")
SHOWN = {
    "host", "device", "runtime", "model", "variant", "status", "reason", "rounds", "requests", "failed", "ttft_p50_s",
    "ttft_p95_s", "e2e_avg_s", "e2e_p50_s", "e2e_p95_s", "itl_p50_s", "decode_tokens_per_s", "output_tokens_per_s",
    "output_tokens", "prompt_tokens", "tokens_source", "load_s", "ram_peak_bytes", "vram_peak_bytes",
    "gpu_busy_ratio", "cpu_busy_ratio", "samples",
}  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """A run on one host whose agent was stopped afterwards."""

    done: subprocess.CompletedProcess[str]
    benchfleet: Benchfleet
    agent_exit: int
    left: list[list[str]]
    """Command lines of the processes that the agent left behind."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, reference_cache: Path, empty_database: Path) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    benchfleet = Benchfleet(folder / "results.duckdb", empty_database)
    with agents_in(folder, reference_cache) as make:
        agent = make()
        done = benchfleet(*RUN, "--host", f"solo={agent.address}")
        code = agent.stop()
        mine, running = str(agent.data_dir), [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    return Finished(done, benchfleet, code, [one for one in running if mine in " ".join(one)])


def test_one_host_ends_in_a_table_and_rows_that_agree(finished: Finished) -> None:
    done, benchfleet = finished.done, finished.benchfleet

    assert done.returncode == 0, done.stderr
    assert "solo" in done.stdout
    assert "tiny-random" in done.stdout
    (case,) = benchfleet.show()
    assert set(case) >= SHOWN
    assert (case["host"], case["status"], case["rounds"], case["requests"], case["failed"]) == (
        "solo",
        "succeeded",
        2,
        8,
        0,
    )
    assert case["variant"] == "tiny-random-generic-cpu:1"
    assert case["tokens_source"] == "usage"
    assert case["output_tokens"] == 8 * 48
    assert 0 < case["ttft_p50_s"] <= case["ttft_p95_s"] <= case["e2e_p95_s"]
    assert case["decode_tokens_per_s"] > 0
    assert case["load_s"] > 0
    assert case["ram_peak_bytes"] > 20 << 20
    assert case["samples"] > 5
    assert case["vram_peak_bytes"] is None  # or this machine has a GPU, which CI has not
    assert benchfleet.rows("SELECT count(*), count(*) FILTER (WHERE warmup) FROM requests") == [(12, 4)]
    unmeasured = json.loads(benchfleet.rows("SELECT unmeasured FROM cases")[0][0])
    assert "NVIDIA" in unmeasured["device_memory_used_bytes"]


def test_samples_belong_to_the_round_they_were_taken_in(finished: Finished) -> None:
    benchfleet = finished.benchfleet

    strays = benchfleet.rows(
        "SELECT count(*) FROM samples s JOIN rounds r USING (round_id) "
        "WHERE s.sample_ns < r.start_ns - 1e9 OR s.sample_ns > r.end_ns + 1e9"
    )
    covered = benchfleet.rows(
        "SELECT count(DISTINCT round_id) FROM samples WHERE round_id IS NOT NULL AND round_id <> ''"
    )
    rising = benchfleet.rows(
        "SELECT min(d) FROM (SELECT runtime_cpu_ns - lag(runtime_cpu_ns) OVER (ORDER BY sample_ns) AS d FROM samples "
        "WHERE phase IN ('warmup', 'round'))"
    )

    assert strays == [(0,)]
    assert covered == [(3,)]
    assert rising[0][0] >= 0


def test_two_agents_on_one_machine_take_turns_and_are_compared(make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    a, b = make_agent("a"), make_agent("b")

    done = benchfleet(*RUN, "--host", f"a={a.address}", "--host", f"b={b.address}")

    assert done.returncode == 0, done.stderr
    assert "a, b share one machine" in done.stderr
    assert "By host, against a" in done.stdout
    spans = benchfleet.rows("SELECT started_at, finished_at FROM jobs ORDER BY started_at")
    assert spans[0][1] <= spans[1][0]
    compared = benchfleet("compare", "last", "--by", "host", "--baseline", "b", "--format", "json")
    rows = json.loads(compared.stdout)
    assert {row["group"] for row in rows} == {"a", "b"}
    assert all({"value", "interval", "ratio", "verdict"} <= set(row) for row in rows)


def test_reports_are_written_in_every_format_and_never_over_a_file(finished: Finished, tmp_path: Path) -> None:
    benchfleet = finished.benchfleet

    for ending in ("md", "csv", "json", "html", "parquet"):
        assert benchfleet("report", "last", "-o", str(tmp_path / f"r.{ending}")).returncode == 0
    again = benchfleet("report", "last", "-o", str(tmp_path / "r.md"))

    assert (again.returncode, "--force" in again.stderr) == (2, True)
    assert (
        "| Model | Avg Latency (s) | p95 (s) | Tokens/sec | Rounds | First Token (s) |"
        in (tmp_path / "r.md").read_text()
    )
    (case,) = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert {"alias", "latency_avg", "latency_p95", "tokens_per_sec_avg", "first_token_latency_avg"} <= set(case)
    assert (tmp_path / "r.csv").read_text().startswith("host,device,runtime,model")
    assert "tiny-random" in (tmp_path / "r.html").read_text()
    assert benchfleet.rows(f"SELECT host, ttft_p50_s > 0 FROM '{tmp_path / 'r.parquet'}'") == [("solo", True)]


def test_the_seeds_environment_variables_and_a_plan_work(
    make_agent: MakeAgent, benchfleet: Benchfleet, tmp_path: Path
) -> None:
    agent = make_agent()
    plan = tmp_path / "plan.toml"
    plan.write_text(f'rounds = 1\nwarmup = 0\n[hosts]\nlab = "{agent.address}"\n')

    done = benchfleet(
        "run", str(plan), BENCH_MODELS="tiny-random", BENCH_MAX_TOKENS="4", BENCH_PROMPT="Hi.", BENCH_ROUNDS="9"
    )

    assert done.returncode == 0, done.stderr
    (case,) = benchfleet.show()
    assert (case["rounds"], case["requests"], case["output_tokens"]) == (1, 1, 4)


def test_answers_that_are_not_streamed_have_no_token_times(make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    agent = make_agent()

    done = benchfleet(*RUN, "--no-stream", "--host", f"solo={agent.address}")

    assert done.returncode == 0, done.stderr
    (case,) = benchfleet.show()
    assert (case["ttft_p50_s"], case["itl_p50_s"], case["accounting"]) == (None, None, "not_streamed")
    assert case["e2e_avg_s"] > 0


def test_an_agent_stopped_in_the_middle_ends_the_job_with_its_reason(
    make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent()
    process = benchfleet.start(
        "run", "--model", "tiny-random", "--rounds", "5000", "--max-tokens", "8", "--host", f"solo={agent.address}"
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "round" in line:
            break
    agent.signal(signal.SIGTERM)

    _, err = process.communicate(timeout=60)

    assert process.returncode != 0
    assert "Traceback" not in err
    assert agent.process is not None
    assert agent.process.wait(60) == 0
    agent.start()
    assert benchfleet("collect").returncode == 0
    assert benchfleet.rows("SELECT state, failure_reason FROM jobs") == [("failed", "agent_stopped")]
    assert not agent.child_pids("foundry")


def test_nothing_of_an_agent_survives_its_clean_stop(finished: Finished) -> None:
    assert (finished.agent_exit, finished.left) == (0, [])
