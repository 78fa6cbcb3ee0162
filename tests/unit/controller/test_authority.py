from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from benchfleet.enrolment import EnrolmentError
from benchfleet.tls import CredentialFiles
from benchfleet_controller.authority import DEFAULT_DAYS, Authority
from benchfleet_controller.certificates import AuthorityError, Issued, new_key, requested_key
from benchfleet_controller.enrolment import ALLOWED_FAILURES, Candidate, Offer, enrol

NOW = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "certs", "lab", NOW)


def issue(authority: Authority, name: str = "lab-1", *addresses: str) -> Issued:
    return authority.issue_host(name, addresses, new_key().public_key(), NOW)


def test_a_hosts_certificate_verifies_under_its_name_and_addresses(authority: Authority) -> None:
    issued = issue(authority, "lab-1", "192.168.1.20", "fd00::22", "lab-1.example")
    store = verification.Store([authority.certificate])
    builder = verification.PolicyBuilder().store(store).time(NOW + DAY)

    for subject in (
        x509.DNSName("lab-1"),
        x509.DNSName("lab-1.example"),
        x509.IPAddress(ipaddress.ip_address("192.168.1.20")),
        x509.IPAddress(ipaddress.ip_address("fd00::22")),
    ):
        assert builder.build_server_verifier(subject).verify(issued.certificate, [])
    with pytest.raises(verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("lab-2")).verify(issued.certificate, [])
    with pytest.raises(verification.VerificationError):  # a host must not act as a controller
        builder.build_client_verifier().verify(issued.certificate, [])


def test_a_controllers_certificate_is_for_clients_only(authority: Authority) -> None:
    issued = authority.issue_controller("anna@laptop", new_key().public_key(), NOW)
    usage = issued.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value

    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert (issued.name, issued.kind, issued.addresses) == ("anna@laptop", "controller", ())
    assert issued.not_after == NOW + DEFAULT_DAYS * DAY


def test_the_authority_can_sign_no_other_authority(authority: Authority) -> None:
    limits = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)

    assert limits.critical
    assert limits.value == x509.BasicConstraints(ca=True, path_length=0)


def test_no_certificate_outlives_the_authority(authority: Authority) -> None:
    end = authority.certificate.not_valid_after_utc
    issued = authority.issue_host("lab-1", (), new_key().public_key(), end - DAY)

    assert issued.not_after == end
    with pytest.raises(AuthorityError, match="has expired"):
        authority.issue_host("lab-1", (), new_key().public_key(), end)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_everything_is_private(authority: Authority) -> None:
    key = new_key()
    issued = authority.issue_host("lab-1", ["192.168.1.20"], key.public_key(), NOW)
    authority.write_bundle(authority.bundle(issued), issued, key)
    modes = {
        path.relative_to(authority.directory).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in [authority.directory, *authority.directory.rglob("*")]
        if path.is_file() or path.name in ("certs", "issued", "lab-1")
    }

    assert {mode for name, mode in modes.items() if name.endswith((".pem", ".key"))} == {0o600}
    assert [modes[name] for name in (".", "issued", "hosts/lab-1")] == [0o700] * 3
    assert "hosts/lab-1/host.key" in modes


def test_an_authority_is_never_overwritten(authority: Authority) -> None:
    with pytest.raises(AuthorityError, match="already"):
        Authority.create(authority.directory, "other", NOW)
    assert Authority(authority.directory).certificate == authority.certificate


def test_no_authority_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="benchfleet certs init"):
        Authority(tmp_path)


def test_a_damaged_authority_is_told(authority: Authority) -> None:
    (authority.directory / "ca.key").write_text("nonsense")
    with pytest.raises(AuthorityError, match="cannot be read"):
        Authority(authority.directory)


def test_renewal_keeps_the_key_and_the_names(authority: Authority) -> None:
    old = issue(authority, "lab-1", "192.168.1.20", "lab-1.example")
    new = authority.renew("lab-1", NOW + 300 * DAY)

    assert new.public_key == old.public_key
    assert (new.name, set(new.addresses)) == ("lab-1", set(old.addresses))
    assert new.not_after == NOW + (300 + DEFAULT_DAYS) * DAY
    assert new.serial != old.serial
    assert authority.newest("lab-1") == new


def test_a_renewed_certificate_goes_beside_its_own_key_only(authority: Authority, tmp_path: Path) -> None:
    key = new_key()
    issued = authority.issue_host("lab-1", (), key.public_key(), NOW)
    files = CredentialFiles.host(tmp_path / "tls")
    authority.write_bundle(files, issued, key)
    authority.write_bundle(files, authority.renew("lab-1", NOW + DAY), None)
    files.read()

    with pytest.raises(AuthorityError, match="is not the key"):
        authority.write_bundle(files, issue(authority, "lab-2"), None)


def test_a_revoked_name_is_in_the_list_and_is_not_renewed(authority: Authority) -> None:
    old, new, other = issue(authority), issue(authority), issue(authority, "lab-2")
    revoked = authority.revoke("lab-1", NOW)

    assert {one.serial for one in revoked} == {old.serial, new.serial}
    again = Authority(authority.directory)
    assert {one.serial: one.state(NOW) for one in again.issued()} == {
        old.serial: "revoked", new.serial: "revoked", other.serial: "valid",
    }  # fmt: skip
    with pytest.raises(AuthorityError, match="is revoked"):
        again.renew("lab-1", NOW)


def test_one_certificate_is_revoked_by_its_serial_number_and_twice_does_no_harm(authority: Authority) -> None:
    old, new = issue(authority), issue(authority)
    authority.revoke(old.serial, NOW)
    authority.revoke(old.serial, NOW)
    authority.revoke(new.serial, NOW)
    crl = x509.load_pem_x509_crl(authority.revocations_pem)
    signer = authority.certificate.public_key()
    assert isinstance(signer, ec.EllipticCurvePublicKey)

    assert crl.is_signature_valid(signer)
    assert sorted(entry.serial_number for entry in crl) == sorted(int(one.serial, 16) for one in (old, new))
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 3


def test_revoking_reaches_the_files_that_wait_to_be_copied(authority: Authority) -> None:
    key = new_key()
    issued = authority.issue_host("lab-1", (), key.public_key(), NOW)
    files = authority.bundle(issued)
    authority.write_bundle(files, issued, key)
    authority.revoke("lab-1", NOW)

    assert files.revocations.read_bytes() == authority.revocations_pem


def test_an_unknown_name_is_answered_with_the_known(authority: Authority) -> None:
    issue(authority)
    with pytest.raises(AuthorityError, match=r"no certificate of 'lab-9'; there are those of: lab-1"):
        authority.revoke("lab-9", NOW)


@pytest.mark.parametrize("name", ["../x", "lab 1", "anna@laptop", ""])
def test_what_cannot_be_a_hosts_name_is_refused(authority: Authority, name: str) -> None:
    with pytest.raises(AuthorityError, match="cannot be"):
        issue(authority, name)
    assert authority.issued() == []


def test_a_name_is_a_hosts_or_a_controllers(authority: Authority) -> None:
    issue(authority)
    with pytest.raises(AuthorityError, match="names a host already"):
        authority.issue_controller("lab-1", new_key().public_key(), NOW)


@pytest.mark.parametrize("days", [0, -1, 826])
def test_lifetimes_are_limited(authority: Authority, days: int) -> None:
    with pytest.raises(AuthorityError, match="1 to 825 days"):
        authority.issue_host("lab-1", (), new_key().public_key(), NOW, days)


def _request(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return (
        x509.CertificateSigningRequestBuilder(x509.Name([]))
        .sign(key, digest)
        .public_bytes(serialization.Encoding.PEM)
    )  # fmt: skip


def test_a_signing_request_gives_its_key() -> None:
    key = new_key()

    assert requested_key(_request(key)) == key.public_key()


def test_signing_requests_for_other_keys_or_of_nonsense_are_refused(authority: Authority) -> None:
    for content in (b"", b"nonsense", os.urandom(500), _request(ed25519.Ed25519PrivateKey.generate())):
        with pytest.raises(AuthorityError, match="makes no sense"):
            requested_key(content)
    with pytest.raises(AuthorityError, match="P-256"):
        authority.issue_host("lab-1", (), ec.generate_private_key(ec.SECP384R1()).public_key(), NOW)


def test_a_token_is_good_once() -> None:
    offer = Offer(b"secret", ends_at=100.0)

    assert offer.refuse(b"secret", 99.0) is None
    assert "used already" in str(offer.refuse(b"secret", 99.0))


def test_a_token_ends_with_its_time() -> None:
    offer = Offer(b"secret", ends_at=100.0)

    assert "not good any more" in str(offer.refuse(b"secret", 100.0))
    assert not offer.used


def test_a_few_wrong_tokens_end_it_for_the_right_one_too() -> None:
    offer = Offer(b"secret", ends_at=100.0)
    for _ in range(ALLOWED_FAILURES):
        assert not offer.over()
        assert offer.refuse(b"wrong", 0.0) == "this is not the token"

    assert offer.over()
    assert "not good any more" in str(offer.refuse(b"secret", 0.0))


def test_a_secret_is_in_no_repr() -> None:
    assert "hunter2" not in repr(Offer(b"hunter2", 1.0))


def test_nobody_joins_when_the_time_is_over(authority: Authority) -> None:
    lines: list[str] = []
    with pytest.raises(EnrolmentError, match="did not join in time"):
        asyncio.run(enrol(authority, Candidate("lab-1"), ("127.0.0.1", 0), lines.append, valid_s=0.0))
    assert lines[0].startswith("benchfleet-agent join 127.0.0.1:")
    assert authority.issued() == []
