"""Load shapes, conditions and the agent's own certificate, through the command line on the real Foundry Local."""

from __future__ import annotations

import json

import pytest

from integration.conftest import AgentProcess, Benchfleet

pytestmark = pytest.mark.slow

RUN = ("run", "--model", "tiny-random", "--max-tokens", "4", "--prompt", "Hello.", "--prompt", "Bye.")


@pytest.fixture
def host(shared_agent: AgentProcess) -> str:
    return f"h={shared_agent.address}"


def test_the_agent_certifies_itself_before_the_first_case(host: str, benchfleet: Benchfleet) -> None:
    done = benchfleet(*RUN, "--rounds", "1", "--concurrency", "1,2", "--certificate", "--host", host)

    assert done.returncode == 0, done.stderr
    rows = benchfleet.rows(
        "SELECT concurrency, failure_reason, ttft_error_p50_ns, itl_error_p99_ns, token_count > 100, rss_bytes "
        "FROM certificates ORDER BY concurrency"
    )
    assert [(row[0], row[1], row[4]) for row in rows] == [(1, None, True), (2, None, True)]
    assert all(abs(row[2]) < 5_000_000 and 0 < row[3] < 100_000_000 for row in rows)
    assert all(row[5] < 80_000_000 for row in rows)
    assert all(case["ttft_error_s"] > 0 and case["itl_error_s"] > 0 for case in benchfleet.show())
    first_case = benchfleet.rows("SELECT min(load_start_ns) FROM cases")
    assert first_case[0][0] is not None


def test_synthetic_prompts_have_the_length_the_server_counts_as_near_as_its_vocabulary_lets(
    host: str, benchfleet: Benchfleet
) -> None:
    done = benchfleet(
        "run", "--model", "tiny-random", "--max-tokens", "4", "--rounds", "1", "--warmup", "0",
        "--prompt-tokens", "128,256", "--prompt-count", "1", "--prefix-cache", "allow", "--host", host,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    lengths = {case["prompt_token_count"]: case["prompt_tokens_max"] for case in benchfleet.show()}
    assert set(lengths) == {128, 256}
    # Its vocabulary is of single letters and a few words, so a length cannot always be met to the token.
    assert all(abs(found - asked) <= 8 for asked, found in lengths.items()), lengths
    kinds = benchfleet.rows("SELECT kind, warmup, count(*) FROM rounds GROUP BY ALL ORDER BY ALL")
    assert [row[:2] for row in kinds] == [("calibration", True), ("counted", False)]


def test_an_open_loop_keeps_its_rate_and_one_that_cannot_be_kept_is_refused(host: str, benchfleet: Benchfleet) -> None:
    open_loop = (*RUN, "--rounds", "1", "--warmup", "0", "--host", host, "--concurrency", "2")

    kept = benchfleet(*open_loop, "--rate", "10", "--arrival", "constant", "--round-duration", "1")
    too_fast = benchfleet(*open_loop, "--rate", "2000", "--round-duration", "0.1")

    assert kept.returncode == 0, kept.stderr
    (case,) = benchfleet.show(_runs(benchfleet)[1])
    assert (case["requests"], case["arrival"], case["request_rate_per_s"]) == (10, "constant", 10.0)
    assert 0 <= case["lateness_avg_s"] < 0.05
    assert too_fast.returncode == 1
    (case,) = benchfleet.show()
    assert (case["status"], case["reason"]) == ("failed", "rate_not_kept")
    assert "2000 requests/s were not kept with at most 2 in flight" in case["message"]


@pytest.mark.slow
def test_rounds_go_on_until_their_duration_or_the_most(host: str, benchfleet: Benchfleet) -> None:

    lasting = benchfleet(*RUN, "--rounds", "1", "--min-duration", "0.3", "--max-rounds", "200", "--host", host)
    narrow = benchfleet(*RUN, "--until-within", "0.1%", "--max-rounds", "5", "--host", host)

    assert (lasting.returncode, narrow.returncode) == (0, 0), lasting.stderr + narrow.stderr
    (case,) = benchfleet.show(_runs(benchfleet)[1])
    lasted = benchfleet.rows(
        f"SELECT sum(end_ns - start_ns) FROM rounds WHERE kind = 'counted' AND run_id = '{case['run_id']}'"
    )
    assert 1 < case["rounds"] < 200
    assert lasted[0][0] >= 300_000_000
    assert benchfleet.show()[0]["rounds"] == 5  # nothing here is known to 0.1 %


@pytest.mark.slow
def test_cold_and_warm_and_idle_are_told_apart(host: str, benchfleet: Benchfleet) -> None:
    done = benchfleet(*RUN, "--rounds", "2", "--page-cache", "drop", "--idle-pause", "0.5", "--host", host)

    assert done.returncode == 0, done.stderr
    (case,) = benchfleet.show()
    assert (case["page_cache"], case["page_cache_ratio"]) == ("dropped", pytest.approx(0, abs=0.05))
    assert case["requests"] == 4  # neither the warm-up nor the request after the pause
    assert min(case["idle_ttft_s"], case["cold_ttft_s"], case["unload_s"]) > 0
    assert case["ram_loaded_bytes"] > 50_000_000
    assert case["ram_after_unload_bytes"] > 0
    pause = benchfleet.rows(
        "SELECT (SELECT min(q.start_ns) FROM requests q JOIN rounds r USING (round_id) WHERE kind = 'idle') "
        "- (SELECT max(end_ns) FROM rounds WHERE kind = 'counted')"
    )
    assert 500_000_000 <= pause[0][0] < 3_000_000_000
    stages = benchfleet.rows("SELECT phase FROM case_stages ORDER BY start_ns")
    assert [stage for (stage,) in stages if stage in ("baseline", "load", "after")] == ["baseline", "load", "after"]


@pytest.mark.slow
def test_each_request_begins_with_words_of_its_own_unless_that_is_declared_off(
    host: str, benchfleet: Benchfleet
) -> None:

    benchfleet(*RUN, "--rounds", "2", "--host", host)
    benchfleet(*RUN, "--rounds", "2", "--prefix-cache", "allow", "--host", host)

    rows = benchfleet.rows(
        "SELECT c.prefix_cache, count(*), count(prompt_prefix), count(DISTINCT prompt_prefix) "
        "FROM requests q JOIN cases c USING (case_id) GROUP BY 1 ORDER BY 1"
    )
    assert rows == [("allowed", 6, 0, 0), ("defeated", 6, 6, 6)]


def test_answers_of_a_deterministic_run_come_again_and_are_stored_with_their_hash(
    host: str, benchfleet: Benchfleet
) -> None:

    for _ in range(2):
        done = benchfleet(*RUN, "--rounds", "2", "--deterministic", "--host", host)
        assert done.returncode == 0, done.stderr

    same = benchfleet.rows(
        "SELECT round_index, position, count(DISTINCT answer_sha256), count(DISTINCT prompt_prefix), count(*) "
        "FROM requests q JOIN rounds r USING (round_id) WHERE kind = 'counted' GROUP BY ALL"
    )
    assert len(same) == 4
    assert {row[2:] for row in same} == {(1, 1, 2)}
    new, old = _runs(benchfleet)
    rows = json.loads(benchfleet("compare", new, "--baseline", old, "--answers", "--format", "json").stdout)
    (compared,) = [row for row in rows if row["group"] == new]
    assert (compared["pairs"], compared["equal"], compared["share"]) == (4, 4, 1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "0"), "--rate must be above 0"),
        (("--arrival", "poisson"), "add a rate"),
        (("--concurrency", "100000"), "must lie between 1 and 256"),
        (("--concurrency", "8..2"), "takes numbers such as 1,2,4 or a range"),
        (("--max-tokens", "100000"), "do not fit into its context of"),
        (("--max-rounds", "2", "--rounds", "3", "--min-duration", "5"), "contradict"),
        (("--until-within", "200%"), "must lie between 0.001 and 0.5"),
        (("--deterministic", "--temperature", "0.7"), "deterministic means temperature 0"),
        (("--goodput", "speed=3"), "speed"),
        (("--prompt-tokens", "64"), "exclude each other"),
    ],
)
def test_impossible_combinations_are_refused_before_anything_runs(
    arguments: tuple[str, ...], said: str, host: str, benchfleet: Benchfleet
) -> None:
    done = benchfleet(*RUN, "--host", host, *arguments)

    assert done.returncode in (2, 4)
    assert said in done.stderr, done.stderr
    assert not benchfleet.database.exists() or benchfleet.rows("SELECT count(*) FROM runs") == [(0,)]


def _runs(benchfleet: Benchfleet) -> list[str]:
    """Run ids, newest first."""
    return [row[0] for row in benchfleet.rows("SELECT run_id FROM runs ORDER BY created_at DESC")]
