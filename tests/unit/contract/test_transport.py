from __future__ import annotations

import pytest

from benchfleet.addresses import is_loopback, join_address, split_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("lab1", ("lab1", 50551)),
        ("[::1]:5000", ("::1", 5000)),
        ("::1", ("::1", 50551)),
        ("fe80::1", ("fe80::1", 50551)),
    ],
)
def test_addresses_are_split_and_the_default_port_filled_in(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize("text", ["", ":1", "host:", "host:port", "host:0", "host:70000"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write HOST:PORT"):
        split_address(text)


def test_ipv6_hosts_are_bracketed_for_grpc() -> None:
    assert join_address("::1", 1) == "[::1]:1"
    assert join_address("lab", 1) == "lab:1"


def test_only_this_machine_is_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("lab1")
