"""Model servers found running on the host: by program, by port, by what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Placement, server_discovery
from benchfleet_agent.runtimes.endpoint import EndpointRuntime, EndpointSettings
from benchfleet_agent.runtimes.found_server import FoundServer
from fakes.dialects import FakeServer, Reply, serving
from fakes.dialects.ollama import FakeOllama

TCP = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    "   0: 0100007F:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 777 1 0 100 0 0 10 0\n"
    "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 888 1 0 100 0 0 10 0\n"
)


def process(proc: Path, pid: int, program: str, inode: int) -> None:
    fds = proc / str(pid) / "fd"
    fds.mkdir(parents=True)
    (proc / str(pid) / "cmdline").write_bytes(f"/usr/bin/{program}\0serve\0".encode())
    (fds / "3").symlink_to(f"socket:[{inode}]")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")
def test_programs_that_serve_models_are_known_by_name_and_their_ports_by_their_sockets(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TCP)
    process(tmp_path, 10, "ollama", 777)
    process(tmp_path, 11, "nginx", 888)
    assert server_discovery.ports_by_program(tmp_path) == {11434: "ollama"}


def test_the_commands_of_other_systems_are_read() -> None:
    lsof = "p71\ncLM\\x20Studio\nf20\nn127.0.0.1:1234\np80\ncollama\nf3\nn*:11434\nn[::1]:11434\n"
    assert server_discovery.parse_lsof(lsof) == {1234: "LM Studio", 11434: "ollama"}
    tasks = '"ollama.exe","4242","Console","1","52.388 K"\n"svchost.exe","900","Services","0","9 K"\n'
    assert server_discovery.parse_tasklist(tasks) == {4242: "ollama.exe", 900: "svchost.exe"}
    netstat = (
        "  TCP    127.0.0.1:11434        0.0.0.0:0              LISTENING       4242\n"
        "  TCP    127.0.0.1:50000        127.0.0.1:11434        ESTABLISHED     900\n"
    )
    assert server_discovery.parse_netstat(netstat, {4242: "ollama.exe"}) == {11434: "ollama.exe"}


def test_foundry_local_comes_first_and_strangers_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    owned = {9: "nginx", 11434: "Ollama.exe", 58338: "Inference.Service.Agent.exe"}
    monkeypatch.setattr(server_discovery, "ports_by_program", lambda: owned)
    monkeypatch.setattr(server_discovery, "_listens", lambda port: port in (8080, 11434))
    assert server_discovery.candidates() == [f"http://127.0.0.1:{port}" for port in (58338, 11434, 8080)]


class Website(FakeServer):
    """Answers everything with a page."""

    def answer(self, method: str, path: str, body: Any) -> Reply:
        return Reply(b"<html>", kind="text/html")


def test_without_a_url_the_first_server_that_serves_models_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHFLEET_ENDPOINT_API_KEY", "a-secret-of-somebody-else")
    ollama = FakeOllama("m:1")
    with serving(Website()) as website, serving(ollama) as url:
        runtime = EndpointRuntime(
            EndpointSettings(), find_service=lambda: None, find_servers=lambda: ["http://127.0.0.1:9", website, url]
        )
        said: list[str] = []
        session = runtime.open(runtime.resolve("m:1", None), Placement())
        session.prepare(lambda message, fraction: said.append(message))
        assert f"found Ollama at {url}" in said
        description = runtime.describe()
        assert (description.dialect, description.endpoint_url, description.found) == ("ollama", f"{url}/v1", True)
        assert session.load(5.0).endpoint.api_key == "not-needed"


def test_a_host_without_servers_says_how_to_name_one() -> None:
    runtime = EndpointRuntime(EndpointSettings(), find_service=lambda: None, find_servers=list)
    with pytest.raises(WorkFailed) as caught:
        runtime.models()
    assert caught.value.failure.reason is Reason.RUNTIME_UNAVAILABLE
    assert "--endpoint" in caught.value.failure.message


def test_a_found_server_is_described_without_asking_and_looked_for_in_the_background() -> None:
    with serving(FakeOllama("m:1")) as url:
        found = FoundServer(find_service=lambda: None, find_servers=lambda: [url], clock=lambda: 0.0)
        assert not found.describe().available
        found.look()
        for _ in range(1000):
            if found.describe().available:
                break
            found._lock.acquire()  # held while it looks
            found._lock.release()
        assert found.describe().dialect == "ollama"
        assert found.describe().endpoint_url == f"{url}/v1"
