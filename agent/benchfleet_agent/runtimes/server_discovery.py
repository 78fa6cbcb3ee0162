"""Model servers that run on this host: by the programs that listen on loopback, then by the ports they like.

Linux: /proc (proc(5)); macOS: ``lsof``; Windows: ``netstat`` and ``tasklist``. The parsers of the latter three were
tried on documented output only. What is found is a guess: who asks there must see whether a model server answers.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

PROGRAMS = ("inference.service.agent", "foundry", "ollama", "lm studio", "lms", "llama-server", "llama-swap")
"""Programs that serve models, as the beginnings of process names in lower case; Foundry Local's first."""
PORTS = (5272, 5273, 11434, 1234, 8080)
"""Where Foundry Local's early services, Ollama, LM Studio and llama.cpp listen unless told otherwise."""
_LISTEN = "0A"  # include/net/tcp_states.h: TCP_LISTEN is 10
_COMMAND_S = 5.0
_CONNECT_S = 0.2


def candidates() -> list[str]:
    """Root URLs to ask, best first. Milliseconds on Linux, up to seconds elsewhere."""
    owned = ports_by_program()
    ranked = sorted((rank, port) for port, name in owned.items() if (rank := rank_of(name)) is not None)
    ports = [port for _, port in ranked]
    ports += [port for port in PORTS if port not in ports and _listens(port)]
    return [f"http://127.0.0.1:{port}" for port in ports]


def rank_of(program: str) -> int | None:
    """The place of a program among those that serve models; None: it is none."""
    lower = program.lower()
    return next((rank for rank, name in enumerate(PROGRAMS) if lower.startswith(name)), None)


def ports_by_program(proc: Path = Path("/proc")) -> dict[int, str]:
    """Ports that programs of this user listen on, with the program's name; empty where it cannot be looked up."""
    try:
        if sys.platform == "linux":
            return _of_linux(proc)
        if sys.platform == "win32":
            names = parse_tasklist(_output("tasklist", "/FO", "CSV", "/NH"))
            return parse_netstat(_output("netstat", "-ano", "-p", "TCP"), names)
        return parse_lsof(_output("lsof", "-nP", "-iTCP", "-sTCP:LISTEN", "-Fcn"))
    except (OSError, subprocess.SubprocessError):
        return {}


def parse_lsof(text: str) -> dict[int, str]:
    """Read ``lsof -Fcn``: after each process's ``cNAME`` its sockets, ``n127.0.0.1:11434``."""
    found, program = {}, ""
    for line in text.splitlines():
        if line.startswith("c"):
            program = line[1:].replace("\\x20", " ")
        elif line.startswith("n") and (port := line.rpartition(":")[2]).isdecimal():
            found[int(port)] = program
    return found


def parse_tasklist(text: str) -> dict[int, str]:
    """Read Windows' ``tasklist /FO CSV /NH``: process id → program."""
    return {int(pid): name for name, pid in re.findall(r'^"([^"]+)","(\d+)"', text, re.MULTILINE)}


def parse_netstat(text: str, names: Mapping[int, str]) -> dict[int, str]:
    """Read Windows' ``netstat -ano``; its words are translated, so a listener is known by its far end."""
    rows = (line.split() for line in text.splitlines())
    return {
        int(port): names.get(int(row[-1]), "")
        for row in rows
        if len(row) >= 4 and row[0] == "TCP" and row[2] in ("0.0.0.0:0", "[::]:0") and row[-1].isdecimal()
        and (port := row[1].rpartition(":")[2]).isdecimal()
    }  # fmt: skip


def _of_linux(proc: Path) -> dict[int, str]:
    ports: dict[str, int] = {}
    for name in ("tcp", "tcp6"):
        path = proc / "net" / name
        if path.exists():
            for line in path.read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if len(fields) > 9 and fields[3] == _LISTEN:
                    ports[f"socket:[{fields[9]}]"] = int(fields[1].rpartition(":")[2], 16)
    found = {}
    for directory in _model_servers(proc):
        for target in _descriptors(directory):
            if target in ports:
                found[ports[target]] = _name(directory)
    return found


def _model_servers(proc: Path) -> Iterable[Path]:
    pids = (name for name in os.listdir(proc) if name.isdecimal())  # noqa: PTH208 (thousands: names are enough)
    return [proc / pid for pid in pids if rank_of(_name(proc / pid)) is not None]


def _name(directory: Path) -> str:
    """The program's name; the kernel keeps 15 characters of it, so the command line comes first."""
    try:
        first = (directory / "cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
        return Path(first).name or (directory / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _descriptors(directory: Path) -> list[str]:
    try:
        with os.scandir(directory / "fd") as descriptors:
            return [os.readlink(entry.path) for entry in descriptors]  # noqa: PTH115
    except OSError:  # it ended, or is another user's
        return []


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(_CONNECT_S)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _output(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_COMMAND_S, check=False, errors="replace"
    ).stdout
