"""Models managed from the controller, and the path without HTTP, with real agents and the real Foundry Local."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchfleet_agent import reference_model
from integration.conftest import AgentProcess, Benchfleet, wait_until
from integration.test_foundry_reasoning import CHUNKS, CONTENT, COUNTED, MARKERS, REASONING, THINKER, write_models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("foundry_local_sdk") is None, reason="needs foundry-local-sdk"),
    pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="building the tiny model needs onnx"),
]
MakeAgent = Callable[..., AgentProcess]
TINY = reference_model.TINY_VARIANT


def own_cache(agent: AgentProcess, cache: Path, **more: object) -> None:
    """Give an agent a cache of its own, which a test may empty, and more settings."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in {"reference_cache_dir": str(cache), **more}.items()]
    agent.config.write_text("\n".join([*lines, "[runtime.foundry]", "offline = true", ""]))
    agent.start()


def test_pull_doctor_and_rm_over_two_hosts(make_agent: MakeAgent, benchfleet: Benchfleet, tmp_path: Path) -> None:
    agents = [make_agent(name, start=False) for name in ("a", "b")]
    for agent in agents:
        own_cache(agent, tmp_path / f"cache-{agent.data_dir.name}")
    hosts = [f"{agent.data_dir.name}={agent.address}" for agent in agents]
    pulled = benchfleet("pull", *hosts, "tiny-random", "--format", "json")
    assert pulled.returncode == 0, pulled.stderr
    rows = json.loads(pulled.stdout)
    assert [(row["host"], row["variant"], row["state"]) for row in rows] == [("a", TINY, "there"), ("b", TINY, "there")]
    assert all(row["size_bytes"] > 500_000 for row in rows)
    assert "is there" in pulled.stderr
    again = benchfleet("pull", hosts[0], "tiny-random", "no-such-model", "--format", "json")
    assert again.returncode == 4
    assert [row["state"] for row in json.loads(again.stdout)] == ["there", "refused"]

    doctor = benchfleet("doctor", *hosts, "--model", "tiny-random", "--format", "json")
    assert doctor.returncode == 0, doctor.stdout
    said = [row["message"] for row in json.loads(doctor.stdout) if row["check"] == "model tiny-random"]
    assert len(said) == 8
    assert said[:2] == [f"offered as {TINY}", "its files are there"]
    assert "loads in" in said[2]
    assert "answers a probe" in said[3]
    assert not benchfleet.database.exists()  # nothing of the probe is kept, here or there

    assert benchfleet("rm", hosts[0], "tiny-random").returncode == 2  # nobody to ask
    removed = benchfleet("rm", "--yes", *hosts, "tiny-random", "--format", "json")
    assert removed.returncode == 0, removed.stderr
    assert all(row["freed_bytes"] > 500_000 for row in json.loads(removed.stdout))
    assert benchfleet("rm", "--yes", hosts[0], "tiny-random").returncode == 4
    unloaded = benchfleet("unload", hosts[0], "tiny-random")
    assert unloaded.returncode == 4
    assert "only while its case runs" in unloaded.stderr


def test_models_are_left_alone_while_a_job_runs(make_agent: MakeAgent, benchfleet: Benchfleet, tmp_path: Path) -> None:
    agent = make_agent("a", start=False)
    own_cache(agent, tmp_path / "cache")
    assert benchfleet("pull", f"a={agent.address}", "tiny-random").returncode == 0
    run = benchfleet.start(
        "run", "--host", f"a={agent.address}", "--model", "tiny-random", "--rounds", "9000", "--max-tokens", "200"
    )
    try:
        wait_until(lambda: agent.child_pids("foundry_child") or run.poll() is not None, 90, "the job runs")
        for command in (("pull",), ("rm", "--yes"), ("unload",)):
            busy = benchfleet(*command, f"a={agent.address}", "tiny-random")
            assert busy.returncode == 4
            if command != ("unload",):
                assert "runs job" in busy.stdout + busy.stderr
        benchfleet("cancel", "last")
        run.communicate(timeout=60)
        assert benchfleet("rm", "--yes", f"a={agent.address}", "tiny-random").returncode == 0
    finally:
        run.kill()
        run.communicate()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_a_pull_and_the_host_is_free_again(
    make_agent: MakeAgent, benchfleet: Benchfleet, tmp_path: Path
) -> None:
    agent = make_agent("a", start=False)
    own_cache(agent, tmp_path / "cache")
    pull = benchfleet.start("pull", f"a={agent.address}", "tiny-random")
    wait_until(lambda: agent.child_pids("reference_model"), 60, "the build runs")
    (builder,) = agent.child_pids("reference_model")[:1]
    psutil.Process(builder).suspend()  # so that it cannot have ended
    pull.send_signal(signal.SIGINT)
    pull.communicate(timeout=60)
    assert pull.returncode == 130
    wait_until(lambda: not agent.child_pids("reference_model"), 60, "the build is ended")
    assert benchfleet("pull", f"a={agent.address}", "tiny-random").returncode == 0


def test_direct_and_http_are_cases_of_one_run(make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    agent = make_agent()
    done = benchfleet(
        "run", "--host", f"a={agent.address}", "--model", "tiny-random", "--path", "http", "--path", "direct",
        "--rounds", "2", "--max-tokens", "20", "--concurrency", "1,2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = benchfleet.rows(
        "select c.path, r.status, r.stamp_source, r.accounting, r.tokens_source, len(r.token_offset_ns), "
        "r.output_tokens, r.sent_ns, r.headers_ns, r.http_status from requests r join cases c using (case_id)"
    )
    direct = [row[1:] for row in rows if row[0] == "direct"]
    http = [row for row in rows if row[0] == "http"]
    assert len(direct) == len(http) > 20
    for status, stamp, accounting, source, chunks, tokens, *wire in direct:
        assert (status, stamp, source) == ("ok", "app", "usage")
        assert accounting in ("consistent", "structure_tokens_counted", "fewer_chunks_than_tokens")
        assert 0 < chunks <= tokens <= 20
        assert wire == [None, None, None]
    assert all(row[7] for row in http)
    forecasts = benchfleet.rows("select forecast from cases")
    assert all(json.loads(forecast)["fits"] for (forecast,) in forecasts)


def test_the_same_words_whatever_the_path(make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    agent = make_agent()
    done = benchfleet(
        "run", "--host", f"a={agent.address}", "--model", "tiny-random", "--path", "http", "--path", "direct",
        "--rounds", "1", "--warmup", "0", "--max-tokens", "12", "--temperature", "0", "--prefix-cache", "allow",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    texts = benchfleet.rows("select prompt_id, count(*), count(distinct text) from requests group by prompt_id")
    assert texts
    assert all((n, different) == (2, 1) for _, n, different in texts)


def test_a_request_without_http_keeps_its_deadline(
    make_agent: MakeAgent, benchfleet: Benchfleet, tmp_path: Path
) -> None:
    agent = make_agent()
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'models = ["tiny-random"]\npath = ["direct"]\nrounds = 1\nwarmup = 0\nmax_tokens = 7000\n'
        f'prompts = ["hello"]\n[hosts]\na = "{agent.address}"\n[deadlines]\nrequest_s = 0.2\n'
    )
    done = benchfleet("run", str(plan))
    assert done.returncode == 1, (done.returncode, done.stderr)
    ((reason, chunks, seconds),) = benchfleet.rows(
        "select reason, len(token_offset_ns), (end_ns - start_ns) / 1e9 from requests"
    )
    assert reason == "request_timeout"
    assert chunks > 0
    assert 0.2 <= seconds < 1.0


def test_a_model_that_cannot_fit_is_left_out_when_asked(
    make_agent: MakeAgent, benchfleet: Benchfleet, tmp_path: Path, reference_cache: Path
) -> None:
    """Its configuration asks for a cache that no machine has; without --skip-unfit it is tried all the same."""
    huge = tmp_path / "models" / "huge"
    shutil.copytree(reference_model.directory(reference_cache, TINY), huge)
    config = json.loads((huge / "genai_config.json").read_text())
    config["model"]["decoder"]["num_hidden_layers"] = 1 << 22
    (huge / "genai_config.json").write_text(json.dumps(config))
    agent = make_agent(start=False)
    own_cache(agent, reference_cache, model_roots=[str(tmp_path / "models")])
    done = benchfleet("run", "--host", f"a={agent.address}", "--model", "huge", "--skip-unfit", "--max-tokens", "8000")
    ((status, reason, forecast),) = benchfleet.rows("select status, reason, forecast from cases")
    assert (status, reason) == ("skipped", "does_not_fit"), done.stderr
    assert json.loads(forecast)["fits"] is False
    assert "are free" in done.stderr + done.stdout


def test_a_model_that_declares_to_reason_has_its_thoughts_apart_on_both_paths(
    make_agent: MakeAgent, benchfleet: Benchfleet, tmp_path: Path, reference_cache: Path
) -> None:
    roots = tmp_path / "models"
    roots.mkdir()
    write_models(roots)
    (roots / THINKER / "benchfleet.toml").write_text(f"reasoning = {json.dumps(MARKERS)}\n")
    agent = make_agent(start=False)
    own_cache(agent, reference_cache, model_roots=[str(roots)])
    done = benchfleet(
        "run", "--host", f"a={agent.address}", "--model", THINKER, "--path", "http", "--path", "direct",
        "--rounds", "1", "--warmup", "0", "--prompt", "hello", "--max-tokens", "100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = benchfleet.rows(
        "select path, reasoning_text, text, output_tokens, reasoning_tokens, len(token_offset_ns) "
        "from requests join cases using (case_id) order by path"
    )
    told = (REASONING, CONTENT, COUNTED, len(REASONING), CHUNKS)
    assert rows == [("direct", *told), ("http", *told)]
