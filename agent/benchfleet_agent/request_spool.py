"""Requests that ended, as the load process wrote them down: what an agent that stood still and was killed never read.

One file for the case that runs, a JSON line a record behind a first line that says whose they are. Nothing is synced:
it outlives processes, as a power cut takes the load process's unread records anyway.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchfleet_agent.load.record import RequestRecord
from benchfleet_agent.load.spooling import open_spool


@dataclass(frozen=True, slots=True)
class Spooled:
    """What a spool held."""

    job_id: str
    case_id: str
    requests: tuple[tuple[str, RequestRecord], ...]
    """Round id and record, in the order of ending."""


class RequestSpool:
    """The spool of one data directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "requests.spool"

    def begin(self, job_id: str, case_id: str) -> Path:
        """Empty it for a case; where its load process appends. Raises OSError."""
        self.path.unlink(missing_ok=True)  # a load process of a killed agent may still have the old one open
        descriptor = open_spool(self.path)
        try:
            os.write(descriptor, json.dumps({"job_id": job_id, "case_id": case_id}).encode() + b"\n")
        finally:
            os.close(descriptor)
        return self.path

    def end(self) -> None:
        """The case's requests are in the journal. Never raises."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def read(self) -> Spooled | None:
        """What is there, without lines that were not completely written; None when there is nothing."""
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError:
            return None
        entries = [entry for line in lines if (entry := _parsed(line)) is not None]
        if not entries or not isinstance(entries[0].get("job_id"), str):
            return None
        requests = [request for entry in entries[1:] if (request := _request(entry)) is not None]
        return Spooled(entries[0]["job_id"], str(entries[0].get("case_id", "")), tuple(requests))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _request(entry: dict[str, Any]) -> tuple[str, RequestRecord] | None:
    try:
        return str(entry["round_id"]), RequestRecord.from_dict(entry)
    except (KeyError, TypeError, ValueError):
        return None
