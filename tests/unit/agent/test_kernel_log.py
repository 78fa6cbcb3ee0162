"""The kernel's log: records in, processes that the out-of-memory killer ended out."""

from __future__ import annotations

from pathlib import Path

from benchfleet_agent.kernel_log import oom_kills, parse

RECORDS = [
    "6,1200,5000000,-;ollama invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0\n",
    "3,1201,5000100,-;Out of memory: Killed process 4711 (ollama) total-vm:9000kB, anon-rss:8000kB\n SUBSYSTEM=x\n",
    "3,1202,9000000,c;Memory cgroup out of memory: Killed process 4712 (llama (server)) total-vm:1kB\n",
    "not a record",
]


def test_kills_are_found_with_process_and_name() -> None:
    assert [(kill.pid, kill.name) for kill in parse(RECORDS, 0)] == [(4711, "ollama"), (4712, "llama (server")]
    assert parse(RECORDS, 0)[0].said == RECORDS[1].split(";")[1].split("\n")[0]


def test_kills_before_the_case_are_not_its_own() -> None:
    assert [kill.pid for kill in parse(RECORDS, 8_000_000)] == [4712]


def test_a_log_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    assert oom_kills(0, str(tmp_path / "none")) == []
