"""Two network namespaces joined by a veth pair: an agent's machine and a controller's, as far as packets can tell.

Needs root and iproute2 (Debian: ``apt install iproute2``); loss needs nftables, delay the kernel's netem.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Sequence

AGENT_ADDRESS, CONTROLLER_ADDRESS = "10.203.0.1", "10.203.0.2"
NOBODY = "02:00:00:00:00:01"
"""A link address that neither end has."""
_numbers = itertools.count()


def missing() -> str | None:
    """Why there can be no namespaces here; None: there can."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the program ip is missing (Debian: apt install iproute2)"
    done = subprocess.run(["ip", "netns", "add", f"bf{os.getpid()}x"], capture_output=True, text=True)
    if done.returncode != 0:
        return f"no namespace can be made here: {done.stderr.strip()}"
    _ip("netns", "del", f"bf{os.getpid()}x")
    return None


def loss_missing() -> str | None:
    """Why no packets can be lost at random here; None: they can."""
    if reason := missing():
        return reason
    if shutil.which("nft") is None:
        return "the program nft is missing (Debian: apt install nftables)"
    lab = Namespaces()
    try:
        lab.drop(50)
    except subprocess.CalledProcessError as error:
        return f"nftables cannot drop packets here: {error.stderr.strip()}"
    finally:
        lab.close()
    return None


def netem_missing() -> str | None:
    """Why packets cannot be delayed here; None: they can."""
    if reason := missing():
        return reason
    lab = Namespaces()
    try:
        done = subprocess.run([*lab.agent, "tc", "qdisc", "add", "dev", "eth", "root", "netem", "delay", "1ms"],
                              capture_output=True, text=True)  # fmt: skip
        return None if done.returncode == 0 else f"this kernel has no netem ({done.stderr.strip()})"
    except OSError as error:
        return f"tc cannot be run: {error}"
    finally:
        lab.close()


class Namespaces:
    """The pair; `close` removes it with everything that runs in it still running."""

    def __init__(self) -> None:
        number = next(_numbers)
        self._names = (f"bf{os.getpid()}a{number}", f"bf{os.getpid()}c{number}")
        self.agent, self.controller = (["ip", "netns", "exec", name] for name in self._names)
        try:
            for name in self._names:
                _ip("netns", "add", name)
            first, second = self._names
            _ip("link", "add", "eth", "netns", first, "type", "veth", "peer", "name", "eth", "netns", second)
            for name, address in zip(self._names, (AGENT_ADDRESS, CONTROLLER_ADDRESS), strict=True):
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth")
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", "eth", "up")
        except subprocess.CalledProcessError:
            self.close()
            raise

    def unplug(self) -> None:
        """The cable is out on the agent's side."""
        _ip("-n", self._names[0], "link", "set", "eth", "down")

    def plug(self) -> None:
        """It is in again."""
        _ip("-n", self._names[0], "link", "set", "eth", "up")

    def swallow(self) -> None:
        """A black hole, each way: both ends send to a machine that is not there, and nobody tells them."""
        for name, other in zip(self._names, (CONTROLLER_ADDRESS, AGENT_ADDRESS), strict=True):
            _ip("-n", name, "neigh", "replace", other, "lladdr", NOBODY, "dev", "eth", "nud", "permanent")

    def drop(self, percent: int) -> None:
        """Lose packets at random, each way, as they reach the agent's machine or leave it."""
        rule = f"numgen random mod 100 < {percent} drop"
        chains = "".join(
            f'chain {hook} {{ type filter hook {hook} priority 0; policy accept; {way} "eth" {rule}; }}; '
            for hook, way in (("input", "iifname"), ("output", "oifname"))
        )
        self._run(self.agent, ["nft", f"table inet faults {{ {chains} }}"])

    def delay(self, milliseconds: int) -> None:
        """Delay packets by netem, half each way."""
        for end in (self.agent, self.controller):
            self._run(end, ["tc", "qdisc", "add", "dev", "eth", "root", "netem", "delay", f"{milliseconds // 2}ms"])

    def heal(self) -> None:
        """No loss, no delay, plugged in."""
        for name, other in zip(self._names, (CONTROLLER_ADDRESS, AGENT_ADDRESS), strict=True):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("-n", name, "neigh", "del", other, "dev", "eth")
        with contextlib.suppress(subprocess.CalledProcessError, OSError):
            self._run(self.agent, ["nft", "delete", "table", "inet", "faults"])
        for end in (self.agent, self.controller):
            with contextlib.suppress(subprocess.CalledProcessError, OSError):
                self._run(end, ["tc", "qdisc", "del", "dev", "eth", "root"])
        self.plug()

    def close(self) -> None:
        """Remove both."""
        for name in self._names:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)

    def _run(self, end: Sequence[str], command: Sequence[str]) -> None:
        subprocess.run([*end, *command], check=True, capture_output=True, text=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
