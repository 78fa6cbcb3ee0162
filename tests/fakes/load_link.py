"""The load process and the scripted server as real processes, for tests that hold one against the other."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchfleet_agent.child import Child, ChildGone
from benchfleet_agent.load.record import RequestRecord

SERVER = Path(__file__).parent / "openai_server.py"
MS = 1_000_000
LATE_NS = 60 * MS
"""What a busy machine may add to any one moment; the median must be far better."""


@dataclass
class Fake:
    """The scripted server."""

    port: int
    truths: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def truth(self, tag: str) -> dict[str, Any]:
        """What the server did for the request with this tag."""
        if tag not in self.truths:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/truth", timeout=10) as response:
                self.truths |= {entry["tag"]: entry for entry in json.load(response)}
        return self.truths[tag]

    def sent_ns(self, tag: str, label: str = "token") -> list[int]:
        """When the server sent what has this label."""
        return [stamp_ns for step, stamp_ns in self.truth(tag)["steps"] if step == label]


@dataclass
class Load:
    """A load process and what it said."""

    child: Child
    fake: Fake
    opened: dict[str, Any] = field(default_factory=dict)

    def open(self, **changes: Any) -> None:
        """Say ``open``."""
        settings = {"base_url": self.fake.base_url, "api_key": "sk-test-secret", "model": "fake", "max_tokens": 16}
        sampling = {"temperature": 0, "top_p": 1, "seed": 42, "request_timeout_s": 20}
        self.child.send({"do": "open", **settings, **sampling, **changes})
        self.opened = self.child.receive(30)
        assert self.opened["event"] == "opened", self.opened

    def start(self, scripts: list[dict[str, Any]], **pace: Any) -> None:
        """Say ``round``; each script's tag is its request's id (unless it is sent again)."""
        requests = [
            {
                "request_id": script["tag"],
                "prompt_id": "p",
                "messages": [{"role": "user", "content": json.dumps(script)}],
            }
            for script in scripts
        ]
        self.child.send({"do": "round", "round_id": "R", "requests": requests, **pace})

    def round(self, *scripts: dict[str, Any], **pace: Any) -> tuple[dict[str, RequestRecord], dict[str, Any]]:
        """The records of a round by tag, and what ended it."""
        self.start(list(scripts), **pace)
        records = {}
        while (message := self.child.receive(30))["event"] == "request":
            assert message["round_id"] == "R"
            record = RequestRecord.from_dict(message)
            records[record.request_id] = record
        assert message["event"] == "round_finished", message
        return records, message


@contextlib.contextmanager
def running_server() -> Iterator[Fake]:
    """The scripted server in a process of its own."""
    with subprocess.Popen([sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Fake(json.loads(process.stdout.readline())["port"])
        process.stdin.close()


def start_load(folder: Path, fake: Fake, *arguments: str) -> Load:
    """A load process that has not been told anything."""
    command = [sys.executable, "-m", "benchfleet_agent.load", *arguments]
    # What is set here must not reach any request.
    environment = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_ORG_ID": "nobody"}
    return Load(Child("load", command, log_path=folder / "load.log", environment=environment), fake)


def end(child: Child) -> ChildGone:
    """Kill the child if it lives, and say how it ended."""
    child.kill()
    while True:
        try:
            child.receive(10)
        except ChildGone as gone:
            # `Child` leaves its pipes to the garbage collector, which would blame whatever test runs then.
            for pipe in (child._process.stdout, child._process.stdin):
                assert pipe is not None
                pipe.close()
            return gone


@contextlib.contextmanager
def running_load(folder: Path, fake: Fake, *arguments: str) -> Iterator[Load]:
    """A load process that is told to close at the end, and must."""
    load = start_load(folder, fake, *arguments)
    try:
        yield load
        load.child.send({"do": "close"})
        assert load.child.stop(10)
    finally:
        end(load.child)


def assert_stamps_are_true(record: RequestRecord, fake: Fake, tag: str) -> None:
    """No stamp before the server sent; the median right after it (chunks of one read share the last one's stamp)."""
    assert record.start_ns is not None
    sent = fake.sent_ns(tag)
    if len(sent) != record.chunks:  # what a reset threw away
        return
    errors = [record.start_ns + offset - stamp for offset, stamp in zip(record.token_ns, sent, strict=True)]
    assert min(errors) > -MS / 10, errors
    assert max(errors) < LATE_NS, errors
    assert statistics.median(errors) < 3 * MS, errors
