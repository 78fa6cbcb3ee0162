"""What a controller brings is taken only with the authority's signature, and only when newer and the same host's."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature

from benchfleet.tls import CERTIFICATE_HEADER, REVOCATIONS_HEADER, CredentialFiles, pem_content
from benchfleet_agent.renewal import PAUSE_S, Renewal, install
from benchfleet_controller.authority import Authority
from benchfleet_controller.certificates import new_key

NOW = datetime.datetime.now(datetime.UTC)
LATER = NOW + datetime.timedelta(days=300)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "certs", "lab", NOW)


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> CredentialFiles:
    key, files = new_key(), CredentialFiles.host(tmp_path / "tls")
    authority.write_bundle(files, authority.issue_host("lab-1", ["10.0.0.1"], key.public_key(), NOW), key)
    return files


def crl(authority: Authority) -> dict[str, bytes]:
    return {REVOCATIONS_HEADER: pem_content(authority.revocations_pem)}


def test_a_newer_list_is_taken_and_an_older_never_comes_back(authority: Authority, files: CredentialFiles) -> None:
    old = crl(authority)
    authority.issue_host("lab-2", (), new_key().public_key(), NOW)
    authority.revoke("lab-2", NOW)

    assert "number 2 is in use" in install(files, crl(authority))[0]
    assert files.revocations.read_bytes() == authority.revocations_pem
    assert "left alone" in install(files, old)[0]
    assert files.revocations.read_bytes() == authority.revocations_pem


def test_a_list_of_another_authority_is_refused(authority: Authority, files: CredentialFiles, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", "lab", NOW)
    other.issue_host("x", (), new_key().public_key(), NOW)
    other.revoke("x", NOW)

    assert "did not sign" in install(files, crl(other))[0]
    assert files.revocations.read_bytes() == authority.revocations_pem


def test_a_renewed_certificate_is_taken_once(authority: Authority, files: CredentialFiles) -> None:
    renewed = authority.renew("lab-1", LATER)
    news = {CERTIFICATE_HEADER: pem_content(renewed.pem)}

    assert "is in use" in install(files, news)[0]
    assert files.certificate.read_bytes() == renewed.pem
    files.read()
    assert "ends no later" in install(files, news)[0]


def test_a_certificate_for_another_key_or_other_names_is_refused(authority: Authority, files: CredentialFiles) -> None:
    before, own = files.certificate.read_bytes(), authority.newest("lab-1").public_key
    for wrong in (
        authority.issue_host("lab-1", ["10.0.0.1"], new_key().public_key(), LATER),
        authority.issue_host("lab-1", ["10.0.0.2"], own, LATER),
        authority.issue_host("lab-3", ["10.0.0.1"], own, LATER),
    ):
        assert "is refused" in install(files, {CERTIFICATE_HEADER: pem_content(wrong.pem)})[0]
    assert files.certificate.read_bytes() == before


def test_a_certificate_of_another_authority_is_refused(files: CredentialFiles, tmp_path: Path) -> None:
    from cryptography import x509

    key = x509.load_pem_x509_certificate(files.certificate.read_bytes()).public_key()
    other = Authority.create(tmp_path / "other", "lab", NOW)
    wrong = other.issue_host("lab-1", ["10.0.0.1"], key, LATER)  # type: ignore[arg-type]
    with pytest.raises((InvalidSignature, ValueError)):
        install(files, {CERTIFICATE_HEADER: pem_content(wrong.pem)})


def test_a_revoked_renewal_is_refused(authority: Authority, files: CredentialFiles) -> None:
    renewed = authority.renew("lab-1", LATER)
    authority.revoke(renewed.serial, NOW)
    said = install(files, {CERTIFICATE_HEADER: pem_content(renewed.pem), **crl(authority)})

    assert said[1] == "a revoked certificate is refused"


@pytest.mark.parametrize("header", [CERTIFICATE_HEADER, REVOCATIONS_HEADER])
def test_nonsense_is_refused(files: CredentialFiles, header: str) -> None:
    with pytest.raises(ValueError, match=r"error|parse|ASN"):
        install(files, {header: b"nonsense"})


def test_what_is_known_or_was_seen_or_comes_too_often_starts_no_child(
    authority: Authority, files: CredentialFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, checked = [0.0], list[str]()
    renewal = Renewal(files, lambda: now[0])
    monkeypatch.setattr(renewal, "_check", checked.append)

    def take(*metadata: tuple[str, str | bytes]) -> int:
        asyncio.run(renewal.take(metadata))
        return len(checked)

    assert take() == 0
    assert take(("user-agent", "grpc"), (REVOCATIONS_HEADER, crl(authority)[REVOCATIONS_HEADER])) == 0
    assert take((REVOCATIONS_HEADER, b"a")) == 1
    assert take((REVOCATIONS_HEADER, b"b")) == 1
    now[0] += PAUSE_S
    assert take((REVOCATIONS_HEADER, b"a")) == 1
    assert take((REVOCATIONS_HEADER, b"b")) == 2
