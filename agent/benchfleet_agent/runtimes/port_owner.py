"""Which process listens on a TCP port of this host: whose memory a case on a foreign server is charged to.

Linux: /proc/net/tcp and /proc/PID/fd (proc(5)); macOS: ``lsof``; Windows: ``netstat``. Other users' processes are
hidden from an ordinary user on Linux and macOS. The two commands' parsers were tried on documented output only.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"  # include/net/tcp_states.h: TCP_LISTEN is 10
_COMMAND_S = 5.0
FORWARDERS = frozenset(
    {"ssh", "sshd", "docker-proxy", "rootlessport", "rootlesskit", "kubectl", "socat", "slirp4netns"}
)
"""Programs that listen for a server elsewhere: in a container, on another machine."""


@dataclass(frozen=True, slots=True)
class PortOwner:
    """What is known of a port's listener."""

    pids: tuple[int, ...] = ()
    """Its processes, lowest first; empty: not known."""
    reason: str = ""
    """Why not; empty when it is known."""
    forwarder: str = ""
    """The program's name when it only passes bytes on to a server elsewhere."""


def find(port: int, proc: Path = Path("/proc")) -> PortOwner:
    """The processes that listen on a port. Milliseconds on Linux, up to a second elsewhere."""
    try:
        if sys.platform == "linux":
            return _find_linux(port, proc)
        if sys.platform == "win32":
            pids = parse_netstat(netstat(), port)
        else:
            pids = parse_lsof(output("lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fp"))
    except (OSError, subprocess.SubprocessError) as error:
        return PortOwner(reason=f"the owner of port {port} cannot be looked up ({error})")
    return PortOwner(pids) if pids else PortOwner(reason=_hidden(port))


def parse_listeners(text: str, port: int) -> set[int]:
    """Inodes of the sockets that listen on a port, from ``/proc/net/tcp`` or ``tcp6``."""
    return {inode for listened, inode in listeners(text) if listened == port}


def listeners(text: str) -> Iterator[tuple[int, int]]:
    """Ports that are listened on, with the sockets' inodes, from ``/proc/net/tcp`` or ``tcp6``."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN:
            yield int(fields[1].rpartition(":")[2], 16), int(fields[9])


def parse_lsof(text: str) -> tuple[int, ...]:
    """Process ids from ``lsof -Fp``: lines such as ``p1234``."""
    return tuple(sorted({int(found) for found in re.findall(r"^p(\d+)\r?$", text, re.MULTILINE)}))


def parse_netstat(text: str, port: int) -> tuple[int, ...]:
    """Process ids from Windows' ``netstat -ano``."""
    return tuple(sorted({pid for listened, pid in netstat_listeners(text) if listened == port and pid}))


def netstat_listeners(text: str) -> Iterator[tuple[int, int]]:
    """Ports that are listened on, with the process ids, from Windows' ``netstat -ano``; its words are translated, so a
    listener is known by its far end.
    """
    for row in map(str.split, text.splitlines()):
        if len(row) >= 4 and row[0] == "TCP" and row[2] in ("0.0.0.0:0", "[::]:0", "*:*") and row[-1].isdecimal():
            port = row[1].rpartition(":")[2]
            if port.isdecimal():
                yield int(port), int(row[-1])


def netstat() -> str:
    """What Windows' ``netstat`` says of TCP. Raises OSError, `subprocess.SubprocessError`."""
    return "".join(output("netstat", "-ano", "-p", protocol) for protocol in ("TCP", "TCPv6"))


def _find_linux(port: int, proc: Path) -> PortOwner:
    inodes = {inode for text in socket_tables(proc) for inode in parse_listeners(text, port)}
    if not inodes:
        return PortOwner(reason=f"nothing listens on port {port} in this network namespace (a container?)")
    wanted = {f"socket:[{inode}]" for inode in inodes}
    pids = sorted(pid for pid in pids_of(proc) if any(one in wanted for one in descriptors(proc / str(pid))))
    if not pids:
        return PortOwner(reason=_hidden(port))
    for pid in pids:
        if (name := _name(proc / str(pid))) in FORWARDERS:
            return PortOwner(
                reason=f"port {port} belongs to {name}, which passes it on: the server runs elsewhere", forwarder=name
            )
    # Workers that inherited the socket are children of the first; whoever samples a tree wants its root.
    return PortOwner(_roots(proc, pids))


def _roots(proc: Path, pids: list[int]) -> tuple[int, ...]:
    return tuple(pid for pid in pids if _parent(proc / str(pid)) not in pids)


def socket_tables(proc: Path) -> list[str]:
    """What Linux says of TCP sockets, a text a version of IP."""
    paths = [proc / "net" / name for name in ("tcp", "tcp6")]
    return [path.read_text(encoding="ascii") for path in paths if path.exists()]


def pids_of(proc: Path) -> Iterable[int]:
    """Linux's process ids."""
    return (int(name) for name in os.listdir(proc) if name.isdecimal())  # noqa: PTH208 (thousands: names are enough)


def descriptors(directory: Path) -> Iterator[str]:
    """What a Linux process has open, such as ``socket:[4242]``; nothing of one that ended, or is another user's."""
    try:
        with os.scandir(directory / "fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # closed meanwhile
                    yield os.readlink(entry.path)  # noqa: PTH115
    except OSError:
        return


def _name(directory: Path) -> str:
    try:
        return (directory / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _parent(directory: Path) -> int:
    try:
        # After the name in parentheses, which may hold anything: state, parent (proc_pid_stat(5)).
        return int((directory / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _hidden(port: int) -> str:
    return (
        f"the process that listens on port {port} is another user's; run the agent as that user to measure its memory"
    )


def output(*command: str) -> str:
    """What a command prints. Raises OSError, `subprocess.SubprocessError`."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_COMMAND_S, check=False, errors="replace"
    ).stdout
