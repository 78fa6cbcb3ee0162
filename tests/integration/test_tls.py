"""Nobody in without a certificate: real agents and the real command line over TLS, through a "tunnel" on loopback."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from benchfleet.tls import CredentialFiles
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import agent_service_pb2_grpc
from benchfleet_controller.authority import Authority
from benchfleet_controller.certificates import new_key
from integration.conftest import BIN, AgentProcess, Benchfleet, called, clean_environment, free_port, wait_until

pytestmark = pytest.mark.slow

MakeAgent = Callable[..., AgentProcess]
SPAWNED = True
"""Commands are processes of their own here: those of one process would share connections."""
DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC)


class Lab:
    """An authority, and what is made with it through the program's own interface."""

    def __init__(self, directory: Path, now: datetime.datetime = NOW) -> None:
        self.directory = directory
        self.authority = Authority.create(directory, "lab", now)
        self.controller("anna@laptop", CredentialFiles.controller(directory))

    def controller(self, name: str, files: CredentialFiles, now: datetime.datetime = NOW, days: int = 30) -> None:
        key = new_key()
        self.authority.write_bundle(files, self.authority.issue_controller(name, key.public_key(), now, days), key)

    def another_controller(self, name: str, now: datetime.datetime = NOW, days: int = 30) -> str:
        directory = self.directory.parent / name
        self.controller(name, CredentialFiles.controller(directory), now, days)
        return str(directory)

    def host(self, agent: AgentProcess, name: str, now: datetime.datetime = NOW, days: int = 60) -> CredentialFiles:
        key, files = new_key(), CredentialFiles.host(agent.data_dir / "tls")
        self.authority.write_bundle(files, self.authority.issue_host(name, [], key.public_key(), now, days), key)
        return files


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "certs")


@pytest.fixture
def agent(lab: Lab, make_agent: MakeAgent) -> AgentProcess:
    agent = make_agent("agent", start=False)
    lab.host(agent, "lab-1")
    agent.start()
    return agent


def hosts(benchfleet: Benchfleet, host: str, certs: str, *more: str) -> tuple[int, str, str]:
    """Exit code, state and message of one host."""
    done = benchfleet("hosts", host, "--format", "json", "--certs", certs, *more)
    (row,) = json.loads(done.stdout)
    return done.returncode, row["state"], row["message"] or ""


def test_a_run_over_tls_and_a_host_known_by_its_name(lab: Lab, agent: AgentProcess, benchfleet: Benchfleet) -> None:
    certs = str(lab.directory)
    done = benchfleet(
        "run", "--host", f"lab-1={agent.address}", "--model", "tiny-random", "--rounds", "1", "--max-tokens", "4",
        "--certs", certs,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [case["status"] for case in benchfleet.show()] == ["succeeded"]
    assert "(mutual TLS)" in agent.log()
    assert "StartJob by 'anna@laptop'" in agent.log()

    code, state, message = hosts(benchfleet, f"lab-2={agent.address}", certs)
    assert (code, state) == (4, "unauthenticated")
    assert f"write lab-1={agent.address}" in message


def test_clear_text_tls12_and_strangers_are_refused(
    lab: Lab, agent: AgentProcess, benchfleet: Benchfleet, tmp_path: Path
) -> None:
    host = f"lab-1={agent.address}"
    code, state, message = hosts(benchfleet, host, str(tmp_path / "none"))
    assert (code, state) == (4, "unauthenticated")
    assert "speaks TLS only" in message

    other = Lab(tmp_path / "other" / "certs")
    code, state, message = hosts(benchfleet, host, str(other.directory))
    assert (code, state) == (4, "unauthenticated")
    assert "not of this lab's authority" in message

    # A stranger who trusts the agent, as an attacker would, is turned away by the agent itself.
    stranger = CredentialFiles.controller(other.directory)
    stranger.authority.write_bytes(lab.authority.authority_pem)
    stranger.revocations.write_bytes(lab.authority.revocations_pem)
    code, state, message = hosts(benchfleet, host, str(other.directory))
    assert (code, state) == (4, "unauthenticated")
    assert "does not accept the certificate" in message

    with pytest.raises(grpc.RpcError), grpc.insecure_channel(agent.address) as channel:
        agent_service_pb2_grpc.AgentServiceStub(channel).GetHost(pb.GetHostRequest(), timeout=5)
    files = CredentialFiles.controller(lab.directory)
    assert _handshake(agent.address, files, "TLSv1_3") == "TLSv1.3"
    assert _handshake(agent.address, files, "TLSv1_2") == "refused"


def _handshake(address: str, files: CredentialFiles, version: str) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(files.authority)
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as connection:
            return str(connection.version())
    except OSError:
        return "refused"


def test_a_host_cannot_act_as_a_controller(lab: Lab, agent: AgentProcess, benchfleet: Benchfleet) -> None:
    thief = lab.directory.parent / "thief"
    host = CredentialFiles.host(agent.data_dir / "tls")
    thief.mkdir()
    for source, target in zip(host.paths(), CredentialFiles.controller(thief).paths(), strict=True):
        target.write_bytes(source.read_bytes())

    code, state, _ = hosts(benchfleet, f"lab-1={agent.address}", str(thief))
    assert (code, state) == (4, "unauthenticated")


def test_expired_certificates_are_told_on_both_sides(
    lab: Lab, agent: AgentProcess, benchfleet: Benchfleet, make_agent: MakeAgent
) -> None:
    late = lab.another_controller("late", NOW - 40 * DAY, 10)
    code, state, message = hosts(benchfleet, f"lab-1={agent.address}", late)
    assert (code, state) == (4, "unauthenticated")
    assert "certificate of this controller expired on" in message

    old = make_agent("old", start=False)
    lab.host(old, "lab-2", NOW - 40 * DAY, 10)
    old.start()
    code, state, message = hosts(benchfleet, f"lab-2={old.address}", str(lab.directory))
    assert (code, state) == (4, "unauthenticated")
    assert "certificate of its agent has expired" in message


def test_a_revoked_controller_is_out_without_a_restart(lab: Lab, agent: AgentProcess, benchfleet: Benchfleet) -> None:
    host = f"lab-1={agent.address}"
    lost = lab.another_controller("lost@laptop")
    assert hosts(benchfleet, host, lost)[1] == "idle"
    stream = _open_stream(lost, agent, benchfleet)

    done = benchfleet_certs("revoke", "lost@laptop", "--dir", str(lab.directory))
    assert done.returncode == 0, done.stderr
    assert hosts(benchfleet, host, str(lab.directory))[0] == 0  # which also brings the list there
    wait_until(lambda: hosts(benchfleet, host, lost)[1] == "unauthenticated", 20, "the agent reads the list")

    with pytest.raises(grpc.RpcError) as caught:
        for _ in stream:
            pass
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "is revoked" in hosts(benchfleet, host, lost)[2]
    assert hosts(benchfleet, host, str(lab.directory))[0] == 0
    assert benchfleet("cancel", "last", "--certs", str(lab.directory)).returncode in (0, 1)


def _open_stream(certs: str, agent: AgentProcess, benchfleet: Benchfleet) -> Iterator[pb.StreamJobEventsResponse]:
    """Follow a job that goes on sampling meanwhile, with a certificate that is about to be revoked."""
    done = benchfleet(
        "run", "--detach", "--host", f"lab-1={agent.address}", "--model", "tiny-random", "--min-duration", "60",
        "--certs", certs,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    credentials = CredentialFiles.controller(Path(certs)).read().channel()
    channel = grpc.secure_channel(agent.address, credentials, [("grpc.ssl_target_name_override", "lab-1")])
    stub = agent_service_pb2_grpc.AgentServiceStub(channel)
    (job,) = stub.ListJobs(pb.ListJobsRequest()).jobs
    stream: Iterator[pb.StreamJobEventsResponse] = stub.StreamJobEvents(
        pb.StreamJobEventsRequest(job_id=job.job_id), timeout=60
    )
    next(stream)
    return stream


def test_a_revoked_host_is_not_talked_to(lab: Lab, agent: AgentProcess, benchfleet: Benchfleet) -> None:
    lab.authority.revoke("lab-1", NOW)

    code, state, message = hosts(benchfleet, f"lab-1={agent.address}", str(lab.directory))
    assert (code, state) == (4, "unauthenticated")
    assert "certificate of its agent is revoked" in message


def test_a_controller_that_may_read_may_not_run(lab: Lab, make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    agent = make_agent("agent", start=False)
    lab.host(agent, "lab-1")
    agent.config.write_text(_with_access(agent.config.read_text()))
    agent.start()
    ci, stranger = lab.another_controller("ci"), lab.another_controller("mallory")
    host = f"lab-1={agent.address}"

    assert hosts(benchfleet, host, ci)[:2] == (0, "idle")
    assert benchfleet("models", host, "--certs", ci).returncode == 0
    refused = benchfleet("run", "--host", host, "--model", "tiny-random", "--certs", ci)
    assert refused.returncode == 4
    assert "'ci' may look but not run" in refused.stderr
    assert hosts(benchfleet, host, stranger)[1] == "permission_denied"

    done = benchfleet(
        "run", "--host", host, "--model", "tiny-random", "--rounds", "1", "--max-tokens", "4",
        "--certs", str(lab.directory),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert benchfleet("collect", "--host", host, "--certs", ci).returncode == 0


def _with_access(text: str) -> str:
    top, _, rest = text.partition("[runtime.foundry]")
    return f'{top}[access]\nread = ["ci"]\nrun = ["anna@laptop"]\n[runtime.foundry]{rest}'


def benchfleet_certs(*arguments: str) -> subprocess.CompletedProcess[str]:
    return called(["certs", *arguments], clean_environment())


def test_a_renewed_certificate_is_shown_without_a_restart(
    lab: Lab, make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent("agent", start=False)
    files = lab.host(agent, "lab-1", days=20)
    agent.start()

    def certificate() -> dict[str, str]:
        done = benchfleet(
            "doctor", f"lab-1={agent.address}", "--format", "json", "--certs", str(lab.directory)
        )  # fmt: skip
        found = [row for row in json.loads(done.stdout) if (row["host"], row["check"]) == ("lab-1", "certificate")]
        return dict(found[0])

    assert certificate()["severity"] == "warning"
    assert "in 19 days" in certificate()["message"]
    assert certificate()["advice"] == "benchfleet certs renew lab-1"

    renewed = benchfleet_certs("renew", "--dir", str(lab.directory))
    assert renewed.returncode == 0, renewed.stderr
    assert "lab-1: valid until" in renewed.stdout
    before = files.certificate.read_bytes()
    wait_until(lambda: certificate()["severity"] == "ok", 20, "the agent takes its certificate")
    assert files.certificate.read_bytes() != before
    assert stat.S_IMODE(files.certificate.stat().st_mode) == stat.S_IMODE(files.key.stat().st_mode)


def test_copied_files_are_read_without_a_restart(lab: Lab, agent: AgentProcess, benchfleet: Benchfleet) -> None:
    host, lost = f"lab-1={agent.address}", lab.another_controller("lost@laptop")
    assert hosts(benchfleet, host, lost)[1] == "idle"

    lab.authority.revoke("lost@laptop", NOW)
    (agent.data_dir / "tls/crl.pem").write_bytes(lab.authority.revocations_pem)
    wait_until(lambda: hosts(benchfleet, host, lost)[1] == "unauthenticated", 20, "the agent reads the list")

    lab.host(agent, "lab-2")
    assert hosts(benchfleet, f"lab-2={agent.address}", str(lab.directory))[1] == "idle"


def test_beyond_loopback_a_certificate_is_enough_and_needed(
    lab: Lab, make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent("agent", start=False)
    port = agent.address.rpartition(":")[2]
    agent.address = f"0.0.0.0:{port}"
    command = [str(BIN / "benchfleet-agent"), "serve", "--listen", agent.address, "--data-dir", str(agent.data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment())
    assert done.returncode == 2
    assert "benchfleet certs enrol" in done.stderr

    with agent.config.open("a") as file:
        file.write("[access]\nrun = ['anna@laptop']\n")
    loopback = [*command, "--listen", f"127.0.0.1:{port}", "--config", str(agent.config)]
    done = subprocess.run(loopback, capture_output=True, text=True, timeout=60, env=clean_environment())
    assert done.returncode == 2
    assert "in clear text nobody has a name" in done.stderr

    lab.host(agent, "lab-1")
    agent.start()
    assert hosts(benchfleet, f"lab-1=127.0.0.1:{port}", str(lab.directory))[:2] == (0, "idle")

    (agent.data_dir / "tls/host.pem").unlink()
    agent.stop()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment())
    assert done.returncode == 2
    assert "lacks host.pem" in done.stderr


def test_a_tunnel_to_an_agent_without_a_certificate_needs_none(
    lab: Lab, make_agent: MakeAgent, benchfleet: Benchfleet
) -> None:
    agent = make_agent()

    assert hosts(benchfleet, f"lab-1={agent.address}", str(lab.directory))[:2] == (0, "idle")


def test_clear_text_goes_to_this_machine_only_unless_accepted(
    lab: Lab, make_agent: MakeAgent, benchfleet: Benchfleet, tmp_path: Path
) -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            own = probe.getsockname()[0]
    except OSError:
        pytest.skip("this machine is in no network")
    agent = make_agent("agent", "--insecure-plaintext", start=False)
    agent.address = f"{own}:{free_port()}"
    agent.start()
    for certs, said in (
        (lab.directory, "does not speak TLS"),
        (tmp_path / "none", "no certificate for this controller"),
    ):
        code, state, message = hosts(benchfleet, f"lab-1={agent.address}", str(certs))
        assert (code, state) == (4, "unauthenticated")
        assert said in message
        assert hosts(benchfleet, f"lab-1={agent.address}", str(certs), "--insecure-plaintext")[:2] == (0, "idle")

    agent.stop()
    files = lab.host(agent, own)
    agent.flags = []
    agent.start()
    assert hosts(benchfleet, f"any={agent.address}", str(lab.directory))[:2] == (0, "idle")
    assert files.key.exists()


class Waiting:
    """`benchfleet certs enrol`, and the line it printed."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [str(BIN / "benchfleet"), "certs", "enrol", *arguments, "--dir", str(lab.directory),
             "--listen", f"127.0.0.1:{free_port()}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(),
        )  # fmt: skip
        assert self.process.stdout is not None
        self.words = self.process.stdout.readline().split()

    def join(self, data_dir: Path, *more: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        assert self.words[:2] == ["benchfleet-agent", "join"]
        command = [str(BIN / "benchfleet-agent"), "join", self.words[2], token or self.words[3]]
        return subprocess.run(
            [*command, "--data-dir", str(data_dir), *more],
            capture_output=True, text=True, timeout=60, env=clean_environment(),
        )  # fmt: skip

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def test_a_new_host_joins_by_one_line(lab: Lab, make_agent: MakeAgent, benchfleet: Benchfleet) -> None:
    agent = make_agent("agent", start=False)
    waiting = Waiting(lab, "lab-7", "10.0.0.7")
    joined = waiting.join(agent.data_dir)
    assert joined.returncode == 0, joined.stderr
    assert "this host is lab-7 (10.0.0.7)" in joined.stdout
    code, out, err = waiting.end()
    assert (code, out) == (0, 'lab-7 = "10.0.0.7:50551"\n'), err
    again = waiting.join(agent.data_dir)
    assert again.returncode == 4
    assert "does not answer" in again.stderr

    tls = agent.data_dir / "tls"
    assert sorted(path.name for path in tls.iterdir()) == ["ca.pem", "crl.pem", "host.key", "host.pem"]
    if os.name != "nt":
        assert {stat.S_IMODE(path.stat().st_mode) for path in tls.iterdir()} == {0o600}
        assert stat.S_IMODE(tls.stat().st_mode) == 0o700
    agent.start()
    assert hosts(benchfleet, f"lab-7={agent.address}", str(lab.directory))[:2] == (0, "idle")
    assert waiting.words[3] not in agent.log() + joined.stdout + joined.stderr + err

    # Enrolled again, with a new key: the running agent goes on with it.
    before = (tls / "host.key").read_bytes()
    waiting = Waiting(lab, "lab-8")
    assert waiting.join(agent.data_dir).returncode == 0
    assert waiting.end()[0] == 0
    assert (tls / "host.key").read_bytes() != before
    assert hosts(benchfleet, f"lab-8={agent.address}", str(lab.directory))[:2] == (0, "idle")


def test_wrong_tokens_end_the_enrolment(lab: Lab, tmp_path: Path) -> None:
    from benchfleet.enrolment import Token

    waiting = Waiting(lab, "lab-7")
    right = Token.parse(waiting.words[3])
    for _ in range(3):
        wrong = waiting.join(tmp_path / "agent", token=str(Token(b"x" * 16, right.fingerprint)))
        assert wrong.returncode == 4
        assert "this is not the token" in wrong.stderr
    assert waiting.join(tmp_path / "agent").returncode == 4
    code, out, err = waiting.end()
    assert (code, out) == (4, "")
    assert "too many wrong tokens" in err
    assert not (tmp_path / "agent/tls").exists()
    assert [one.name for one in lab.authority.issued()] == ["anna@laptop"]


def test_somebody_in_between_gets_nothing(lab: Lab, tmp_path: Path) -> None:
    from benchfleet.enrolment import Token

    waiting = Waiting(lab, "lab-7")
    right = Token.parse(waiting.words[3])
    fooled = waiting.join(tmp_path / "agent", token=str(Token(right.secret, b"y" * 32)))
    assert fooled.returncode == 4
    assert "somebody is in between" in fooled.stderr
    for line in (b"", b"nonsense\n", b'{"secret": "zz", "request": ""}\n', b"x" * 200_000):
        _speak(waiting.words[2], line)
    # The secret was not sent, and nonsense is no attempt to guess it: it is still good.
    assert waiting.join(tmp_path / "agent").returncode == 0
    assert waiting.end()[0] == 0


def _speak(address: str, line: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as connection:
            connection.sendall(line)
            connection.recv(1000)


def test_a_host_changes_its_lab_only_when_told(lab: Lab, tmp_path: Path) -> None:
    waiting = Waiting(lab, "lab-7")
    assert waiting.join(tmp_path / "agent").returncode == 0
    waiting.end()

    other = Lab(tmp_path / "other" / "certs")
    waiting = Waiting(other, "lab-7")
    kept = (tmp_path / "agent/tls/ca.pem").read_bytes()
    refused = waiting.join(tmp_path / "agent")
    waiting.end()
    assert refused.returncode == 4
    assert "--force" in refused.stderr
    assert (tmp_path / "agent/tls/ca.pem").read_bytes() == kept

    waiting = Waiting(other, "lab-7")
    assert waiting.join(tmp_path / "agent", "--force").returncode == 0
    assert waiting.end()[0] == 0


def test_the_commands_of_the_authority(tmp_path: Path) -> None:
    directory = str(tmp_path / "certs")
    assert "benchfleet certs init" in benchfleet_certs("list", "--dir", directory).stderr
    assert benchfleet_certs("init", "--dir", directory).returncode == 0
    assert benchfleet_certs("init", "--dir", directory).returncode == 2
    assert benchfleet_certs("host", "lab-1", "192.168.1.20", "--dir", directory).returncode == 0
    assert benchfleet_certs("controller", "ci", "--dir", directory, "--days", "30").returncode == 0
    assert "without ports" in benchfleet_certs("host", "lab-2", "192.168.1.21:50551", "--dir", directory).stderr
    assert "give a name" in benchfleet_certs("host", "--dir", directory).stderr
    assert benchfleet_certs("renew", "ci", "--dir", directory).returncode == 0
    assert benchfleet_certs("revoke", "ci", "--dir", directory).returncode == 0
    assert "is revoked" in benchfleet_certs("renew", "ci", "--dir", directory).stderr

    rows = json.loads(benchfleet_certs("list", "--dir", directory, "--format", "json").stdout)
    assert sorted((row["name"], row["kind"], row["state"]) for row in rows if "@" not in row["name"]) == [
        ("ci", "controller", "revoked"), ("ci", "controller", "revoked"), ("lab-1", "host", "valid"),
    ]  # fmt: skip
    assert CredentialFiles.host(tmp_path / "certs/hosts/lab-1").present()
    assert CredentialFiles.controller(tmp_path / "certs").present()


def test_an_agents_own_doctor_tells_when_its_certificate_ends(lab: Lab, make_agent: MakeAgent) -> None:
    agent = make_agent("agent", start=False)

    def doctor() -> str:
        command = [str(BIN / "benchfleet-agent"), "doctor", "--data-dir", str(agent.data_dir)]
        return subprocess.run(
            [*command, "--config", str(agent.config)], capture_output=True, text=True, timeout=60,
            env=clean_environment(),
        ).stdout  # fmt: skip

    assert "certificate: none" in doctor()
    lab.host(agent, "lab-1", days=20)
    assert "warning: the certificate expires" in doctor()
