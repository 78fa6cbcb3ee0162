from __future__ import annotations

import datetime
import random
import ssl
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchfleet.failures import Reason
from benchfleet.v1 import agent_service_pb2
from benchfleet_agent.access import (
    LOOK_S,
    READ_CALLS,
    RUN_CALLS,
    AccessControl,
    AccessPolicy,
    Caller,
    Revocations,
    needs,
    revoked_serials,
    serial_and_end,
)
from benchfleet_agent.config import ConfigError, load_config

NOW = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
END = NOW + datetime.timedelta(days=9)
KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab")])
CALLS = [method.name for method in agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"].methods]


def revocation_list(*serials: int, extensions: bool = True) -> bytes:
    builder = x509.CertificateRevocationListBuilder(NAME, NOW, NOW + datetime.timedelta(days=9))
    for serial in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW).build()
        )
    if extensions:
        builder = builder.add_extension(x509.CRLNumber(7), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def certificate(serial: int, end: datetime.datetime = END) -> bytes:
    return (
        x509.CertificateBuilder(NAME, NAME, KEY.public_key(), serial, NOW, end)
        .sign(KEY, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def control(tmp_path: Path, policy: AccessPolicy, *revoked: int) -> AccessControl:
    path = tmp_path / "crl.pem"
    path.write_bytes(revocation_list(*revoked))
    return AccessControl(policy, Revocations(path), wall_clock=NOW.timestamp)


def caller(
    name: str = "anna@laptop", serial: int = 5, version: str = "TLSv1.3", end: datetime.datetime = END
) -> Caller:
    return Caller(name, serial, version, end.timestamp())


def test_without_a_policy_every_certified_controller_may_run() -> None:
    assert all(AccessPolicy().allows("anybody", call) for call in CALLS)


def test_every_call_of_the_contract_is_either_for_readers_or_for_runners() -> None:
    assert set(CALLS) == READ_CALLS | RUN_CALLS
    assert not READ_CALLS & RUN_CALLS
    policy = AccessPolicy(run=frozenset({"anna"}))
    assert not policy.allows("anna", "ACallOfALaterContract")


def test_no_call_for_readers_names_a_server_a_path_or_a_model() -> None:
    service = agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"]
    taken = {call: {field.name for field in service.methods_by_name[call].input_type.fields} for call in READ_CALLS}

    assert set().union(*taken.values()) == {"runtime", "endpoint_url", "job_id", "committed_sequence"}, taken
    assert [call for call, fields in taken.items() if "endpoint_url" in fields] == ["ListModels"]
    assert needs("ListModels", agent_service_pb2.ListModelsRequest(runtime="foundry")) == "ListModels"
    named = agent_service_pb2.ListModelsRequest(endpoint_url="http://127.0.0.1:1")
    assert needs("ListModels", named) in RUN_CALLS  # a reader may not have the agent ask it


def test_with_a_policy_only_the_named_may_do_what_it_says() -> None:
    policy = AccessPolicy(read=frozenset({"ci"}), run=frozenset({"anna"}))

    assert {call for call in CALLS if policy.allows("ci", call)} == READ_CALLS
    assert {call for call in CALLS if policy.allows("anna", call)} == set(CALLS)
    assert not any(policy.allows("mallory", call) for call in CALLS)


def test_everybody_may_read_and_some_may_run() -> None:
    policy = AccessPolicy(read=frozenset({"*"}), run=frozenset({"anna"}))

    assert policy.allows("mallory", "GetHost")
    assert not policy.allows("mallory", "StartJob")
    assert not AccessPolicy(read=frozenset()).allows("anna", "GetHost")


def test_reading_changes_nothing_and_covers_known_calls_only() -> None:
    assert set(CALLS) >= READ_CALLS
    assert {"StartJob", "CancelJob", "ReleaseJobEvents"}.isdisjoint(READ_CALLS)
    assert not AccessPolicy(read=frozenset({"ci"})).allows("ci", "CallOfANewerVersion")


@pytest.mark.parametrize(
    ("shown", "reason", "said"),
    [
        (None, Reason.UNAUTHENTICATED, "no certificate"),
        (caller(serial=66), Reason.UNAUTHENTICATED, "serial number 42 is revoked"),
        (caller(end=NOW - datetime.timedelta(seconds=1)), Reason.UNAUTHENTICATED, "has expired; renew it"),
        (caller(version="TLSv1.2"), Reason.UNAUTHENTICATED, "TLS 1.3 only"),
        (caller(version=""), Reason.UNAUTHENTICATED, "TLS 1.3 only"),
        (caller("ci"), Reason.PERMISSION_DENIED, "look but not run"),
        (caller("mallory"), Reason.PERMISSION_DENIED, "do nothing"),
    ],
)
def test_a_refusal_says_why(tmp_path: Path, shown: Caller | None, reason: Reason, said: str) -> None:
    access = control(tmp_path, AccessPolicy(read=frozenset({"ci"}), run=frozenset({"anna@laptop"})), 66)
    refused = access.judge(shown, "StartJob")

    assert refused is not None
    assert refused[0] is grpc.StatusCode[reason.name]
    assert refused[1].reason is reason
    assert said in refused[1].message
    assert access.judge(caller(), "StartJob") is None


def test_a_changed_revocation_list_is_read_again_and_a_damaged_one_keeps_the_last(tmp_path: Path) -> None:
    path, now = tmp_path / "crl.pem", [0.0]
    path.write_bytes(revocation_list())
    revocations = Revocations(path, lambda: now[0])
    assert not revocations.hold(66)

    path.write_bytes(revocation_list(66))
    now[0] += LOOK_S
    assert revocations.hold(66)

    path.write_bytes(b"half a fi")
    now[0] += LOOK_S
    assert revocations.hold(66)

    path.unlink()
    now[0] += LOOK_S
    assert revocations.hold(66)

    path.write_bytes(revocation_list(66, 67))
    now[0] += LOOK_S
    assert revocations.hold(67)


def test_without_a_revocation_list_nobody_is_let_in(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="crl"):
        Revocations(tmp_path / "crl.pem")
    (tmp_path / "crl.pem").write_bytes(certificate(1))
    with pytest.raises(ValueError, match="no revocation list"):
        Revocations(tmp_path / "crl.pem")


@pytest.mark.parametrize("extensions", [True, False])
def test_serial_numbers_are_those_the_library_wrote(extensions: bool) -> None:
    rng = random.Random(1)
    for count in (0, 1, 2, 300):
        serials = {rng.getrandbits(rng.choice((7, 8, 9, 64, 127, 159))) | 1 for _ in range(count)}

        assert revoked_serials(revocation_list(*serials, extensions=extensions)) == serials
        for serial in serials:
            assert serial_and_end(certificate(serial)) == (serial, END.timestamp())


@pytest.mark.parametrize("year", [2049, 2050, 2100])
def test_the_end_of_a_certificate_is_read_in_both_ways_it_is_written(year: int) -> None:
    end = datetime.datetime(year, 2, 28, 23, 59, 58, tzinfo=datetime.UTC)

    assert serial_and_end(certificate(5, end))[1] == end.timestamp()


def test_what_is_cut_or_changed_never_hides_a_revocation_without_an_error() -> None:
    pem = revocation_list(66, 67)
    text = pem.decode()
    der = ssl.PEM_cert_to_DER_cert(text.replace("X509 CRL", "CERTIFICATE"))

    def read(content: bytes) -> frozenset[int]:
        return revoked_serials(ssl.DER_cert_to_PEM_cert(content).replace("CERTIFICATE", "X509 CRL").encode())

    assert read(der) == {66, 67}
    for length in range(len(der)):
        with pytest.raises(ValueError, match="no revocation list"):
            read(der[:length])
        with pytest.raises(ValueError, match="DER element"):
            serial_and_end(der[:length])


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff\xfe", revocation_list(1) * 2, revocation_list(1)[:-30]])
def test_what_is_no_revocation_list_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no revocation list"):
        revoked_serials(content)


def test_a_certificate_is_no_revocation_list() -> None:
    pem = ssl.DER_cert_to_PEM_cert(certificate(5)).replace("CERTIFICATE", "X509 CRL")
    with pytest.raises(ValueError, match="no revocation list"):
        revoked_serials(pem.encode())


def test_a_resting_agent_does_without_the_library_for_certificates() -> None:
    modules = "__main__, access, config, enrolment, renewal, service"
    code = f"import sys\nfrom benchfleet_agent import {modules}\nprint('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "False"


def test_the_policy_is_read_from_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('[access]\nread = ["*"]\nrun = ["anna@laptop"]\n')
    assert load_config(path).access == AccessPolicy(frozenset({"*"}), frozenset({"anna@laptop"}))

    path.write_text('[access]\nrun = ["anna@laptop"]\n')
    assert load_config(path).access == AccessPolicy(None, frozenset({"anna@laptop"}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[access]\nruns = ["anna"]', "did you mean access.run"),
        ('[access]\nrun = "anna"', "access.run must be a list"),
        ("[access]\nrun = [5]", "access.run must be a list of strings"),
        ("access = 1", "access must be a dict"),
    ],
)
def test_a_policy_that_makes_no_sense_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(path)
