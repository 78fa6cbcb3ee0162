"""A small lab of real processes: one agent, its recording server, the way to it, one database.

It lasts for many trials, so that databases and journals grow as they do in use; a trial that fails ends it.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import duckdb

from .namespaces import AGENT_ADDRESS, Namespaces
from .processes import AgentProcess, Command, ServerProcess, TrialFailed, wait_until
from .reckoning import Answer, Job, Row, read_record
from .relay import Relay
from .server import MODEL
from .tap import Tap

PROMPTS = 16
RUN_S, COLLECT_S = 150.0, 150.0
CLOCK = Path(__file__).with_name("wall_clock.c")

QUESTIONS = {
    "rounds stored twice": "SELECT round_id FROM rounds WHERE {of_run} GROUP BY 1 HAVING count(*) > 1",
    "rounds with another number of requests than they ended with": """
        SELECT r.round_id FROM rounds r LEFT JOIN requests q USING (round_id) WHERE r.{of_run}
        AND r.end_ns IS NOT NULL GROUP BY r.round_id, r.requests HAVING count(q.request_id) <> r.requests""",
    "samples stored twice": """
        SELECT sample_ns FROM samples WHERE {of_run}
        GROUP BY phase, round_id, probe_id, device_id, sample_ns HAVING count(*) > 1""",
    "cases without an end": "SELECT case_id FROM cases WHERE {of_run} AND status IN ('pending', 'running')",
    "cases that failed without a reason": """
        SELECT case_id FROM cases WHERE {of_run} AND status IN ('failed', 'skipped') AND reason IS NULL""",
}
"""What must not be found among a run's rows."""


@functools.cache
def tiny_model() -> Path:
    """A cache directory with the reference model's tiny variant, built once."""
    from benchfleet_agent import reference_model

    cache = Path(tempfile.mkdtemp(prefix="benchfleet-tiny-"))
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    command = [sys.executable, "-m", "benchfleet_agent.reference_model", "build", "--cache-dir", str(cache)]
    subprocess.run([*command, "--variant", reference_model.TINY_VARIANT], check=True, capture_output=True, timeout=120)
    return cache


@functools.cache
def clock_library() -> Path | None:
    """The library that shows processes another wall clock, compiled; None without a C compiler or on other systems."""
    compiler = shutil.which("cc") if sys.platform == "linux" else None
    if compiler is None:
        return None
    made = Path(tempfile.mkdtemp(prefix="benchfleet-clock-")) / "wall_clock.so"
    atexit.register(shutil.rmtree, made.parent, ignore_errors=True)
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(made), str(CLOCK), "-ldl"], check=True)
    return made


class World:
    """The lab; a context manager that ends every process, mount and namespace it made."""

    def __init__(self, directory: Path, setting: str, seed: int) -> None:
        self.directory = directory
        self.setting = setting
        self.draw = random.Random(seed)
        self.database = directory / "results.duckdb"
        self.agent_clock, self.controller_clock = directory / "agent.clock", directory / "controller.clock"
        self.relay: Relay | None = None
        self.namespaces: Namespaces | None = None
        self.tap: Tap | None = None
        self._stack = ExitStack()
        self._seed = seed
        self._commands = 0
        self.running: list[Command] = []

    def __enter__(self) -> World:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for command in self.running:
            if command.running:
                command.kill()
        self._stack.close()

    def _build(self) -> None:
        self.directory.mkdir(parents=True)
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        prefix: list[str] = []
        if self.setting == "namespaces":
            self.namespaces = Namespaces()
            self._stack.callback(self.namespaces.close)
            prefix = self.namespaces.agent
        if self.setting == "disks":
            for name, size in (("agent-disk", "80m"), ("controller-disk", "24m")):
                self._stack.enter_context(mounted(self.directory / name, size))
            self.database = self.directory / "controller-disk" / "results.duckdb"
        (self.directory / "prompts.txt").write_text("".join(f"prompt number {n}\n" for n in range(PROMPTS)))
        self.server = ServerProcess(self.directory / "record.jsonl", self._seed, prefix=prefix)
        self._stack.callback(self.server.stop)
        data_dir = self.directory / ("agent-disk" if self.setting == "disks" else "") / "agent"
        config = ""
        if self.setting == "foundry":
            config = f"reference_cache_dir = {json.dumps(str(tiny_model()))}\n[runtime.foundry]\noffline = true\n"
        self.agent = AgentProcess(
            data_dir,
            prefix=prefix,
            variables=self._clock(self.agent_clock),
            config=config,
        )
        if self.namespaces:
            self.agent.host, self.agent.port, self.agent.flags = AGENT_ADDRESS, 50551, ["--insecure-plaintext"]
        self._stack.callback(self.agent.stop)
        self.agent.start()
        self.address = f"{self.agent.host}:{self.agent.port}"
        if self.setting in ("plain", "foundry"):
            self.tap = Tap(self.address)
            self._stack.callback(self.tap.close)
        if self.setting == "plain":
            self.relay = Relay((self.agent.host, self.agent.port))
            self._stack.callback(self.relay.close)
            self.address = self.relay.address

    def command(self, *arguments: str, database: Path | None = None, user: str = "owner") -> Command:
        """Start ``benchfleet`` with this world's database (or another), for a user."""
        self._commands += 1
        words = [*arguments, "--db", str(database or self.database)]
        if self.namespaces:
            words.append("--insecure-plaintext")
        command = Command(
            *words,
            log=self.directory / f"command{self._commands}",
            prefix=self.namespaces.controller if self.namespaces else (),
            variables={**self._clock(self.controller_clock), "LOGNAME": user},
        )
        self.running.append(command)
        return command

    def run(self, name: str, rounds: int, concurrency: int) -> Command:
        """Start a run of (rounds + 1) × `PROMPTS` requests."""
        what = ["--runtime", "endpoint", "--endpoint", self.server.url, "--model", MODEL]
        if self.setting == "foundry":
            what = ["--runtime", "foundry", "--model", "tiny-random"]
        return self.command(
            "run", "--name", name, "--no-certificate", *what, "--host", f"host={self.address}",
            "--rounds", str(rounds), "--warmup", "1", "--max-tokens", "16",
            "--prompts", str(self.directory / "prompts.txt"), "--concurrency", str(concurrency), "--format", "json",
        )  # fmt: skip

    def answered(self) -> int:
        """Requests answered so far: as the server knows; of Foundry Local, as the reader beside saw."""
        if self.setting == "foundry" and self.tap:
            return sum(len(seen.requests) for seen in self.tap.jobs.values())
        return self.server.answered()

    def answers(self, name: str, after: int) -> list[Answer]:
        """The answers of a run, the server's above a number. Of Foundry Local: what the agent had made durable."""
        if self.setting != "foundry" or self.tap is None:
            return read_record(self.server.record(), after)
        return [
            Answer(n, n, r.request_id, r.output_token_count, r.prompt_token_count, r.end_ns, r.end_ns)
            for job_id in self.jobs(name)
            for n, r in enumerate(self.tap.jobs[job_id].requests if job_id in self.tap.jobs else ())
            if r.status == "ok"
        ]

    def collect(self) -> Command:
        """Start fetching all that the agent holds."""
        return self.command("collect", "--host", f"host={self.address}")

    def collect_elsewhere(self, database: Path) -> Command:
        """The same, by a colleague into another database."""
        return self.command("collect", "--host", f"host={self.address}", database=database, user="colleague")

    def collect_all(self, name: str, attempts: int = 3) -> None:
        """Collect until a run has its end and its agent nothing more of it. Raises `TrialFailed`."""
        words = ""
        for _ in range(attempts):
            if self.complete(name):
                return
            done = self.collect().wait(COLLECT_S)
            words += f"{done.code} {done.err[-1000:]}\n"
        if not self.complete(name):
            raise TrialFailed(f"collect never ends: {words}")

    def complete(self, name: str) -> bool:
        """Whether the run's jobs have ended and been released (or the run was never recorded)."""
        sql = "SELECT state, released FROM jobs JOIN runs USING (run_id) WHERE runs.name = ?"
        return all(state not in ("pending", "running") and released for state, released in self.rows(sql, name))

    def set_clock(self, path: Path, seconds: int) -> None:
        """Jump a wall clock (setting ``clocks``) by so much from the true one."""
        with path.open("r+b" if path.exists() else "wb", buffering=0) as file:
            file.write(struct.pack("=q", seconds * 10**9))

    def rows(self, sql: str, *parameters: object) -> list[tuple[object, ...]]:
        """Ask the database; waits while a controller has it. Nothing when there is no database yet."""
        if not self.database.exists():
            return []
        deadline = time.monotonic() + 10
        while True:
            try:
                with duckdb.connect(str(self.database), read_only=True) as connection:
                    if not connection.execute("SHOW TABLES").fetchall():  # killed before the first transaction ended
                        return []
                    return list(connection.execute(sql, parameters).fetchall())
            except duckdb.IOException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def requests(self, name: str) -> list[Row]:
        """The stored requests of a run."""
        found = self.rows(
            "SELECT request_id, status, reason, answer_sha256, output_tokens, prompt_tokens FROM requests "
            "JOIN runs USING (run_id) WHERE runs.name = ?",
            name,
        )
        rows = [Row(*values) for values in found]  # type: ignore[arg-type]
        if self.setting == "foundry":  # its answers are not unlike each other
            return [dataclasses.replace(row, sha256=row.request_id) for row in rows]
        return rows

    def jobs(self, name: str) -> dict[str, Job]:
        """The stored jobs of a run, by id, with the last sequence that the reader beside saw."""
        found = self.rows(
            "SELECT job_id, state, failure_reason, committed_sequence FROM jobs JOIN runs USING (run_id) "
            "WHERE runs.name = ?",
            name,
        )
        last = {job: seen.sequences[-1] for job, seen in (self.tap.jobs if self.tap else {}).items() if seen.ended}
        return {
            str(job): Job(str(state), None if reason is None else str(reason), int(str(committed)), last.get(str(job)))
            for job, state, reason, committed in found
        }

    def inconsistent(self, name: str, *, destroyed: bool = False) -> list[str]:
        """What the stored rows say against each other, and against the reader beside (not of what was destroyed)."""
        of_run = "run_id IN (SELECT run_id FROM runs WHERE name = ?)"
        found = []
        for what, sql in QUESTIONS.items():
            if wrong := self.rows(sql.format(of_run=of_run), name):
                found.append(f"{len(wrong)} {what}")
        for job_id, job in self.jobs(name).items():
            seen = self.tap.jobs.get(job_id) if self.tap else None
            if seen and not seen.gapless:
                found.append(f"the reader beside saw gaps or doubles in job {job_id}")
            if seen and seen.ended and not destroyed and job.committed_sequence == job.last_sequence:
                ((stored,),) = self.rows("SELECT count(*) FROM samples WHERE job_id = ?", job_id)
                if stored != seen.samples:
                    found.append(f"{stored} samples stored, the reader beside saw {seen.samples}")
        return found

    def wait_for_answers(self, number: int, run: Command) -> None:
        """Wait until the server has answered so many in all, or the run has ended."""
        wait_until(
            lambda: self.answered() >= number or not run.running,
            60,
            lambda: f"{self.answered()} of {number} answers; {run.text[-800:]} {self.agent.log()[-800:]}",
        )

    def _clock(self, path: Path) -> dict[str, str]:
        library = clock_library()
        if self.setting != "clocks" or library is None:
            return {}
        if not path.exists():
            self.set_clock(path, 0)
        return {"LD_PRELOAD": str(library), "WALL_CLOCK_OFFSET": str(path)}


@contextlib.contextmanager
def mounted(directory: Path, size: str) -> Iterator[None]:
    """A small file system of its own while entered. Needs root."""
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=False)


def mounting_missing() -> str | None:
    """Why no small disk can be made here; None: it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "mounting a small disk needs root on Linux"
    return None


def fill(directory: Path) -> Path:
    """Fill a small disk to the last block; the file that does it."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            if file.write(b"\0" * 65536) < 65536:
                break
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 512) == 512:
            pass
    return filler
