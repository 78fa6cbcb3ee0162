"""benchfleet: the load process takes the times, the store's own view makes the numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.answers import Answer
from benchmarks.peers.client import MODEL, Client, Command, Load
from benchmarks.peers.raw_socket import PROMPT

from benchfleet_agent.load.record import RequestRecord

WARM_UP = 2
# Columns of the store that differ from the record's fields by name.
_RENAMED = {
    "token_offset_ns": "token_ns",
    "piece_length": "piece_lengths",
    "other_length": "other_lengths",
    "connect_ns": "connect_duration_ns",
}
_QUERY = """
SELECT ttft_s, tpot_s, itl_s, decode_tokens_per_s, accounting FROM request_metrics
WHERE status = 'ok' ORDER BY start_ns
"""


def command(_programs: Path, load: Load, _folder: Path) -> Command:
    """The load process with all its commands in stdin: open, a warm-up round, the round that counts, close."""
    opened = {
        "do": "open",
        "base_url": f"{load.server}/v1",
        "model": MODEL,
        "max_tokens": load.tokens,
        "temperature": 0,
        "concurrency": load.concurrency,
        "request_timeout_s": 60,
        "tokenizer_path": str(load.tokenizer / "tokenizer.json"),
    }
    warm_up = {"do": "round", "round_id": "warm-up", "requests": _requests(WARM_UP)}
    counted = {"do": "round", "round_id": "counted", "requests": _requests(load.requests)}
    lines = [json.dumps(one) + "\n" for one in (opened, warm_up, counted, {"do": "close"})]
    return Command((sys.executable, "-m", "benchfleet_agent.load"), stdin="".join(lines))


def _requests(number: int) -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": PROMPT}]
    return [{"request_id": str(index), "prompt_id": "p", "messages": messages} for index in range(number)]


def parse(text: str) -> list[Answer]:
    """The load process's events: its records of the counted round, through the store's view."""
    events = [json.loads(line) for line in text.splitlines()]
    failed = [event["message"] for event in events if event["event"] == "failed"]
    if failed:
        raise ValueError(failed[0])
    return judged(
        [
            RequestRecord.from_dict(event)
            for event in events
            if event["event"] == "request" and event["round_id"] == "counted"
        ]
    )


def judged(records: list[RequestRecord]) -> list[Answer]:
    """The metrics a user of the store would see, in the order of starting."""
    import duckdb

    from benchfleet_controller.store import schema, views

    fields = {column.name: _RENAMED.get(column.name, column.name) for column in schema.REQUESTS.columns}
    known = {name: field for name, field in fields.items() if field in RequestRecord.__dataclass_fields__}
    rows = [{name: _value(record, field) for name, field in known.items()} for record in records]
    with duckdb.connect() as connection:
        for version in range(1, 1 + max(column.since for column in schema.REQUESTS.columns)):
            connection.execute(schema.REQUESTS.ddl(version) or "SELECT 1")
        if rows:
            names = ", ".join(rows[0])
            holes = ", ".join("?" * len(rows[0]))
            statement = f"INSERT INTO requests ({names}) VALUES ({holes})"
            connection.executemany(statement, [list(row.values()) for row in rows])
        # One case that ran in no blocks.
        connection.execute("CREATE VIEW pooled_requests AS SELECT *, NULL AS block_case_id FROM requests")
        connection.execute(f"CREATE VIEW request_metrics AS {views.REQUEST_METRICS}")
        found = connection.execute(_QUERY).fetchall()
    return [
        Answer(ttft_s, tpot_s, tuple(itl_s or ()), rate, accounting)
        for ttft_s, tpot_s, itl_s, rate, accounting in found
    ]


def _value(record: RequestRecord, field: str) -> Any:
    value = getattr(record, field)
    return (list(value) or None) if isinstance(value, tuple) else value


CLIENT = Client("benchfleet", (), command, "stdout", parse, warm_up=WARM_UP)
