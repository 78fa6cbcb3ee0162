"""Bad input: a clear error that says what to do, exit code 2 or 4, no traceback, nothing half-written."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from benchfleet.v1 import agent_service_pb2, agent_service_pb2_grpc, host_pb2
from fakes.lab import lab_store
from integration.conftest import AgentProcess, Benchfleet, free_port

MakeAgent = Callable[..., AgentProcess]


@pytest.fixture
def empty_database() -> None:
    """None: whether a refused run has made a file is looked at here."""


def _refused(benchfleet: Benchfleet, code: int, *said: str, arguments: tuple[str, ...]) -> str:
    done = benchfleet(*arguments)
    assert done.returncode == code, (done.returncode, done.stderr)
    for words in said:
        assert words in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_nothing_listens_at_the_address(benchfleet: Benchfleet) -> None:
    address = f"127.0.0.1:{free_port()}"

    _refused(
        benchfleet, 4, "nothing answers", "benchfleet-agent serve",
        arguments=("run", "--model", "m", "--host", f"a={address}"),
    )  # fmt: skip

    assert not benchfleet.database.exists()


def test_an_unknown_name_is_answered_with_how_to_name_a_host(benchfleet: Benchfleet) -> None:
    _refused(
        benchfleet, 2, "no host is known as 'lab7'", "=192.168", arguments=("run", "--model", "m", "--host", "lab7")
    )


@pytest.fixture
def web_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_port_that_is_not_an_agent(benchfleet: Benchfleet, web_server: str) -> None:
    _refused(benchfleet, 4, "no benchfleet agent", arguments=("run", "--model", "m", "--host", f"a={web_server}"))
    assert not benchfleet.database.exists()


def test_a_port_that_never_answers_is_not_waited_for_long(benchfleet: Benchfleet) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        _refused(benchfleet, 4, "no benchfleet agent", arguments=("run", "--model", "m", "--host", f"a={address}"))


class _OtherVersion(agent_service_pb2_grpc.AgentServiceServicer):
    def GetHost(self, request: agent_service_pb2.GetHostRequest, context: object) -> agent_service_pb2.GetHostResponse:  # noqa: N802
        return agent_service_pb2.GetHostResponse(host=host_pb2.Host(agent_version="9.9.9"), contract_revision=999)


def test_an_agent_of_another_version(benchfleet: Benchfleet) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    agent_service_pb2_grpc.add_AgentServiceServicer_to_server(_OtherVersion(), server)  # type: ignore[abstract,no-untyped-call,unused-ignore]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        _refused(
            benchfleet, 4, "9.9.9", "install the same benchfleet",
            arguments=("run", "--model", "m", "--host", f"a=127.0.0.1:{port}"),
        )  # fmt: skip
    finally:
        server.stop(None).wait()
    assert not benchfleet.database.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rouns = 3", "did you mean rounds"),
        ("rounds = 'three'", "rounds must be a whole number"),
        ("models = []", "models must not be empty"),
        ("rounds = ", "plan.toml"),
        ("rounds = 0", "rounds must lie between"),
        ("concurrency = [1, 0]", "concurrency[1] must lie between"),
        ("prompts = 'absent.txt'", "cannot be read"),
    ],
)
def test_a_plan_that_makes_no_sense(benchfleet: Benchfleet, tmp_path: Path, text: str, said: str) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    models = () if "models" in text else ("--model", "m")

    _refused(benchfleet, 2, said, arguments=("run", str(plan), "--host", "a=127.0.0.1:1", *models))

    assert not benchfleet.database.exists()


def test_no_model_at_all(benchfleet: Benchfleet) -> None:
    _refused(benchfleet, 2, "--model smollm2-135m", arguments=("run", "--host", "a=127.0.0.1:1"))


def test_an_unknown_model_is_answered_with_near_names(shared_agent: AgentProcess, benchfleet: Benchfleet) -> None:
    _refused(
        benchfleet, 4, "did you mean", "tiny-random",
        arguments=("run", "--model", "tiny-randm", "--host", f"a={shared_agent.address}"),
    )  # fmt: skip

    assert not benchfleet.database.exists()


def test_a_device_the_model_has_no_variant_for(shared_agent: AgentProcess, benchfleet: Benchfleet) -> None:
    _refused(
        benchfleet, 4, "only for cpu",
        arguments=("run", "--model", "tiny-random", "--device", "npu", "--host", f"a={shared_agent.address}"),
    )  # fmt: skip


def test_a_database_held_by_another_process_is_waited_for_and_named(
    shared_agent: AgentProcess, benchfleet: Benchfleet
) -> None:
    import duckdb

    command = Benchfleet(benchfleet.database)  # a process of its own
    with duckdb.connect(str(benchfleet.database)):
        said = _refused(
            command, 2, str(os.getpid()),
            arguments=("run", "--wait", "2", "--model", "tiny-random", "--host", f"a={shared_agent.address}"),
        )  # fmt: skip
    assert str(benchfleet.database) in said


def test_a_file_that_is_no_database_is_left_alone(benchfleet: Benchfleet) -> None:
    benchfleet.database.write_text("my holiday pictures\n" * 1000)

    _refused(benchfleet, 2, str(benchfleet.database), arguments=("runs",))

    assert benchfleet.database.read_text().startswith("my holiday pictures")


def test_a_database_of_somebody_else_is_left_alone(benchfleet: Benchfleet) -> None:
    import duckdb

    with duckdb.connect(str(benchfleet.database)) as connection:
        connection.execute("CREATE TABLE holiday (day DATE)")

    _refused(benchfleet, 2, "not benchfleet's", arguments=("runs",))

    assert benchfleet.rows("SHOW TABLES") == [("holiday",)]


def test_questions_before_the_first_run_say_so(benchfleet: Benchfleet) -> None:
    for command in (("runs",), ("show",), ("compare",)):
        _refused(benchfleet, 2, "benchfleet run", arguments=command)
    assert not benchfleet.database.exists()


def test_no_such_run_names_near_ones(benchfleet: Benchfleet) -> None:
    lab_store(benchfleet.database, rounds=1, samples=2)

    _refused(benchfleet, 2, "no run", arguments=("show", "deadbeef"))
    _refused(benchfleet, 2, "no metric", arguments=("compare", "last", "--metric", "speed"))
    _refused(benchfleet, 2, "to compare with", arguments=("compare", "last", "--baseline", "zzz"))
    _refused(benchfleet, 2, "end the file in", arguments=("report", "last", "-o", "x.pdf"))


def test_no_network_for_the_models_download_fails_the_case_and_says_what_to_do(
    make_agent: MakeAgent, benchfleet: Benchfleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    agent = make_agent(start=False)
    agent.config.write_text(f'reference_cache_dir = "{tmp_path / "empty"}"\n[runtime.foundry]\noffline = true\n')
    agent.start()

    done = benchfleet("run", "--model", "smollm2-135m", "--host", f"a={agent.address}")

    assert done.returncode == 1, done.stderr
    (case,) = benchfleet.show()
    assert (case["status"], case["reason"]) == ("failed", "download_failed")
    assert not list((tmp_path / "empty").rglob("*.onnx"))


def test_a_second_agent_on_one_port_or_one_directory_is_refused(make_agent: MakeAgent, tmp_path: Path) -> None:
    import subprocess
    import sys

    from integration.conftest import clean_environment

    agent = make_agent()
    serve = [sys.executable, "-m", "benchfleet_agent", "serve"]

    def attempt(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*serve, *flags], capture_output=True, text=True, timeout=60, env=clean_environment())

    port = attempt("--listen", agent.address, "--data-dir", str(tmp_path / "other"))
    directory = attempt("--listen", f"127.0.0.1:{free_port()}", "--data-dir", str(agent.data_dir))
    beyond = attempt("--listen", "0.0.0.0:1", "--data-dir", str(tmp_path / "other"))

    assert (port.returncode, "is taken" in port.stderr) == (4, True)
    assert (directory.returncode, "another agent is using" in directory.stderr) == (4, True)
    assert (beyond.returncode, "--insecure-plaintext" in beyond.stderr) == (2, True)
