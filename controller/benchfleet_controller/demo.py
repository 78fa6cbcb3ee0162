"""The demonstration: two agents on this machine, the real runtime, a comparison, a report.

The agents are real processes started with their own command line, so the demonstration goes the way a lab's
run goes: only the addresses are this machine's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchfleet_controller.commands import UsageError, say
from benchfleet_controller.commands.answers import report_data
from benchfleet_controller.commands.running import carry_out, show_results
from benchfleet_controller.live import Progress, printable
from benchfleet_controller.plan import HostTarget, Plan
from benchfleet_controller.report import write_report
from benchfleet_controller.store import Store

AGENTS = {"all-cores": "all", "one-core": "0"}
"""Names, and the processors their runtimes are pinned to."""
START_S = 60.0
STOP_S = 40.0


def run_demo(directory: Path, model: str, rounds: int, database: Path | None) -> int:
    """Run the demonstration; the exit code of the run."""
    if rounds < 1:
        raise UsageError("--rounds must be at least 1")
    directory.mkdir(parents=True, exist_ok=True)
    store = Store(database or directory / "benchfleet.duckdb")
    cores = os.cpu_count() or 1
    say(
        f"Two agents on this machine: all-cores may use all {cores} processors, one-core is pinned to one.\n"
        "They take turns. The model runs in Foundry Local's own runtime; nothing leaves this machine.\n"
    )
    with contextlib.ExitStack() as agents:
        hosts = tuple(
            HostTarget(name, agents.enter_context(running_agent(directory / name, cpus)))
            for name, cpus in AGENTS.items()
        )
        plan = Plan(name="demo", hosts=hosts, models=(model,), rounds=rounds, max_tokens=64, idle_baseline_s=0)
        with Progress(list(AGENTS)) as progress:
            outcome = carry_out(plan, store, progress)
    if outcome is None:
        return 130
    campaign, code = outcome
    print()
    show_results(store, campaign.run_id, "table")
    _show_answer(store, campaign.run_id)
    report = directory / "report.md"
    write_report(report, report_data(store, campaign.run_id), force=True)
    option = f"--db {store.path}"
    print(
        f"\nDatabase: {store.path}\nReport:   {report}\n\nTry next:\n"
        f"  benchfleet show last {option} --format json\n"
        f"  benchfleet compare last {option} --by host --baseline one-core\n"
        f"  benchfleet report last {option} -o report.html\n"
        "(in a checkout: .venv/bin/benchfleet)"
    )
    return code


@contextlib.contextmanager
def running_agent(data_dir: Path, cpus: str, module: str = "benchfleet_agent") -> Iterator[str]:
    """An agent of this installation on a free loopback port while entered; its address."""
    data_dir.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", module, "serve", "--listen", address, "--data-dir", str(data_dir)]
    log_path = data_dir / "agent.log"
    with log_path.open("wb") as log:
        # A session of its own: Ctrl-C is for the controller, which says what becomes of the jobs.
        process = subprocess.Popen(
            [*command, "--runtime-cpus", cpus], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_listening(process, address, log_path)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_listening(process: subprocess.Popen[bytes], address: str, log_path: Path) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            last = log_path.read_text(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
            raise UsageError(f"the demonstration's agent did not start: {last[0]} (see {log_path})")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
            return
        time.sleep(0.05)
    raise UsageError(f"the demonstration's agent did not listen within {START_S:g} s; see {log_path}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _show_answer(store: Store, run_id: str) -> None:
    hosts = {case["case_id"]: case["host"] for case in store.case_results([run_id])}
    for answer in reversed(store.sample_answers(run_id)):
        if answer["text"]:
            text = printable(answer["text"])[:300]
            print(f"\nOne answer ({hosts[answer['case_id']]}, prompt {answer['prompt_id']}): {text}")
            return
