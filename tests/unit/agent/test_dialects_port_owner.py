"""Whose port it is: from files as proc(5) describes them, and from documented output of lsof and netstat."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchfleet_agent.runtimes import port_owner
from benchfleet_agent.runtimes.port_owner import parse_listeners, parse_lsof, parse_netstat

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 4243 1 0 20 4 30 10 -1
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 999 1 0 100 0 0 10 0
"""
NETSTAT = """
Aktive Verbindungen

  Proto  Lokale Adresse         Remoteadresse          Status           PID
  TCP    0.0.0.0:135            0.0.0.0:0              ABHÖREN          1096
  TCP    127.0.0.1:5273         0.0.0.0:0              ABHÖREN          22320
  TCP    127.0.0.1:5273         127.0.0.1:50001        HERGESTELLT      22320
  TCP    127.0.0.1:15273        0.0.0.0:0              ABHÖREN          7
  TCP    [::1]:5273             [::]:0                 ABHÖREN          22321
  UDP    0.0.0.0:5273           *:*                                     8
"""


def test_only_listening_sockets_of_the_port_count() -> None:
    assert parse_listeners(TCP, 8080) == {4242}
    assert parse_listeners(TCP, 80) == set()


def test_lsof_and_netstat_name_the_listeners() -> None:
    assert parse_lsof("p501\nf12\np502\nf12\n") == (501, 502)
    assert parse_lsof("") == ()
    assert parse_netstat(NETSTAT, 5273) == (22320, 22321)


@pytest.mark.skipif(sys.platform != "linux", reason="lays out /proc with links")
class TestLinux:
    @staticmethod
    def proc(directory: Path, *processes: tuple[int, int, str, int | None]) -> Path:
        """A /proc of processes (pid, parent, name, inode of a socket they hold)."""
        (directory / "net").mkdir()
        (directory / "net" / "tcp").write_text(TCP)
        for pid, parent, name, inode in processes:
            descriptors = directory / str(pid) / "fd"
            descriptors.mkdir(parents=True)
            (directory / str(pid) / "comm").write_text(f"{name}\n")
            (directory / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} {pid} 0\n")
            os.symlink("/dev/null", descriptors / "0")
            if inode is not None:
                os.symlink(f"socket:[{inode}]", descriptors / "3")
        return directory

    def test_the_root_of_the_processes_that_hold_the_socket_owns_it(self, tmp_path: Path) -> None:
        proc = self.proc(tmp_path, (10, 1, "a (b) c", 4242), (11, 10, "worker", 4242), (12, 1, "other", 4243))
        assert port_owner.find(8080, proc).pids == (10,)

    def test_a_forwarder_is_not_the_server(self, tmp_path: Path) -> None:
        found = port_owner.find(8080, self.proc(tmp_path, (10, 1, "ssh", 4242)))
        assert (found.pids, found.forwarder) == ((), "ssh")
        assert "runs elsewhere" in found.reason

    def test_another_users_process_is_a_reason(self, tmp_path: Path) -> None:
        found = port_owner.find(8080, self.proc(tmp_path, (10, 1, "x", None)))
        assert found.pids == ()
        assert "another user's" in found.reason

    def test_a_port_nobody_listens_on_is_a_reason(self, tmp_path: Path) -> None:
        assert "nothing listens" in port_owner.find(81, self.proc(tmp_path)).reason
