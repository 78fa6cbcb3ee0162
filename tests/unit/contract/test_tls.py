"""Files of a certificate, checked and reloaded. The files come from the authority that makes them in a lab."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchfleet import tls
from benchfleet.enrolment import EnrolmentError, Token, decode, encode
from benchfleet.tls import CredentialFiles, PeerCertificate, TlsError, expiry_warning, write_private
from benchfleet_controller.authority import Authority
from benchfleet_controller.certificates import new_key

NOW = datetime.datetime.now(datetime.UTC)


def host_files(authority: Authority, directory: Path) -> CredentialFiles:
    key = new_key()
    issued = authority.issue_host("lab-1", ["192.168.1.20"], key.public_key(), NOW)
    files = CredentialFiles.host(directory)
    authority.write_bundle(files, issued, key)
    return files


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "certs", "lab", NOW)


def test_no_files_mean_no_certificate_and_some_files_are_an_error(authority: Authority, tmp_path: Path) -> None:
    files = CredentialFiles.host(tmp_path / "tls")
    assert not files.present()

    files = host_files(authority, tmp_path / "tls")
    assert files.present()

    files.certificate.unlink()
    with pytest.raises(TlsError, match=r"lacks host\.pem"):
        files.present()


def test_an_authority_alone_is_no_certificate_of_a_controller(authority: Authority) -> None:
    assert not CredentialFiles.controller(authority.directory).present()


def test_a_key_of_another_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    files, other = host_files(authority, tmp_path / "a"), host_files(authority, tmp_path / "b")
    files.key.write_bytes(other.key.read_bytes())

    with pytest.raises(TlsError, match="do not fit together"):
        files.read()


def test_an_encrypted_key_is_refused_without_asking(authority: Authority, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    files, key = host_files(authority, tmp_path / "tls"), new_key()
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )

    with pytest.raises(TlsError, match="is encrypted"):
        files.read()


def test_no_secret_is_in_any_repr(authority: Authority, tmp_path: Path) -> None:
    credentials = host_files(authority, tmp_path / "tls").read()
    token = Token(b"s" * 16, b"f" * 32)

    assert "PRIVATE" not in repr(credentials)
    assert repr(token) == "Token()"


def test_an_agent_takes_changed_files_and_keeps_the_old_while_they_do_not_fit(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(
        grpc,
        "ssl_server_certificate_configuration",
        lambda pairs, roots: pairs[0][1],  # the certificate stands for the configuration
    )

    def dynamic(first: Any, changed: Callable[[], Any], require_client_authentication: bool) -> Any:
        assert require_client_authentication
        served.append(first)
        return changed

    monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", dynamic)
    files, warnings = host_files(authority, tmp_path / "tls"), list[str]()
    changed: Any = tls.server_credentials(files, warnings.append)
    assert served == [files.certificate.read_bytes()]
    assert changed() is None

    fresh = host_files(authority, tmp_path / "fresh")
    write_private(files.certificate, fresh.certificate.read_bytes())
    assert changed() is None
    assert "stays in use" in warnings[0]

    write_private(files.key, fresh.key.read_bytes())
    assert changed() == fresh.certificate.read_bytes()
    assert changed() is None


def test_files_are_private_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_private(path, b"new")

    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["key"]
    assert os.name == "nt" or stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    (tmp_path / "key/content").touch()

    with pytest.raises(OSError, match="key"):
        write_private(tmp_path / "key", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize(
    ("days", "said"), [(31, None), (29.5, "in 29 days"), (0.5, "in 0 days"), (0, "expired on"), (-5, "expired on")]
)
def test_expiry_is_told_thirty_days_ahead(days: float, said: str | None) -> None:
    warning = expiry_warning(NOW + datetime.timedelta(days=days), NOW)

    assert warning is None if said is None else said in str(warning)


def test_names_are_compared_without_case_and_addresses_in_any_form() -> None:
    peer = PeerCertificate(("lab-1", "fd00::22"), NOW)

    assert peer.is_for("LAB-1")
    assert peer.is_for("fd00:0:0:0:0:0:0:22")
    assert not peer.is_for("lab-2")


@pytest.mark.parametrize("name", ["", "-x", "a/b", "..", "a b", "a\nb", "x" * 65, "ä", "a.", "C:\\x"])
def test_names_that_could_be_paths_or_lines_are_refused(name: str) -> None:
    with pytest.raises(TlsError, match="cannot be a certificate's name"):
        tls.check_name(name)


def test_a_token_survives_being_copied() -> None:
    token = Token(bytes(range(16)), bytes(range(200, 232)))

    assert Token.parse(f" {token}\n") == token
    assert not str(token).startswith("-")


@pytest.mark.parametrize(
    "text", ["", "join1-", "join1-AAAA", "join1-" + "!" * 64, str(Token(b"s" * 16, b"f" * 32))[6:]]
)
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(EnrolmentError, match="copy the whole line") as caught:
        Token.parse(text)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"a": 1}', b"\xff", b"[" * 100_000, b'{"a": "' + b"x" * 70_000])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(EnrolmentError, match="same version"):
        decode(line, "a")


def test_a_refusal_is_passed_on() -> None:
    with pytest.raises(EnrolmentError, match="no longer"):
        decode(encode({"error": "no longer"}), "a")
    assert decode(encode({"a": "é", "b": "c"}), "a") == {"a": "é"}
