"""Addresses of agents as people write them and as gRPC wants them."""

from __future__ import annotations

import ipaddress

DEFAULT_PORT = 50551


def split_address(address: str) -> tuple[str, int]:
    """``host:port``, ``[v6]:port`` or a bare host (with the default port) as host and port.

    Raises ValueError with what is wrong and how to write it.
    """
    text = address.strip()
    host, separator, port = text.rpartition(":")
    if not separator or (text.count(":") > 1 and not host.endswith("]")):
        host, port = text, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is no address; write HOST:PORT, for example 192.168.1.20:{DEFAULT_PORT}")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The address as gRPC wants it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
