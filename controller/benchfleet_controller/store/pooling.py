"""Cases that ran in blocks are one case to everybody who asks: here, and nowhere else, their parts are put together.

Each block of a case is a case of its own to the agent (it loads and unloads the model) and in the tables. The views
``pooled_…`` show rows of all blocks under the id of the first one; every question about cases reads those. A round of a
later block is one round more, the first block's load is the case's load.
"""

from __future__ import annotations

from benchfleet_controller.store.schema import CASES

_DIFFERS = frozenset({"case_id", "case_index", "block_index", "planned_rounds", "maximum_rounds"})
_ASKED = [
    column.name
    for column in CASES.columns[: [column.name for column in CASES.columns].index("alias")]
    if column.name not in _DIFFERS | {"run_id"}
] + [
    "request_rate_per_s", "arrival", "round_duration_s", "minimum_duration_s", "interval_ratio", "prompt_token_count",
    "prefix_cache", "page_cache", "idle_pause_s", "deterministic", "path", "keep_warm_period_s",
]  # fmt: skip
"""What blocks of one case have in common."""

# Where the same was asked for twice in one block, the first of each block belong together, then the second of each.
_FIRST_BLOCKS = f"""
SELECT case_id, first_value(case_id) OVER (PARTITION BY {", ".join(_ASKED)}, place ORDER BY block) AS first_case_id
FROM (SELECT *, coalesce(block_index, 0) AS block,
             row_number() OVER (PARTITION BY {", ".join(_ASKED)}, block ORDER BY case_index) AS place
      FROM cases WHERE {{jobs}})
"""  # noqa: S608 - our own names
TIE_BLOCKS = f"""
UPDATE cases SET first_case_id = f.first_case_id FROM ({_FIRST_BLOCKS}) f
WHERE cases.case_id = f.case_id AND f.case_id <> f.first_case_id
"""  # noqa: S608 - our own names
"""Says of cases that ran in blocks which is the first; once, when they are recorded, for every question needs it.
``{jobs}`` is the condition on ``job_id``.
"""


def _pooled(table: str) -> str:
    return f"""SELECT t.* REPLACE (coalesce(b.first_case_id, t.case_id) AS case_id), t.case_id AS block_case_id
FROM {table} t LEFT JOIN later_blocks b ON t.case_id = b.case_id"""  # noqa: S608 - our own names


_STATUS = """CASE WHEN count(*) FILTER (WHERE status IN ('pending', 'running')) > 0
       THEN CASE WHEN count(*) FILTER (WHERE status <> 'pending') > 0 THEN 'running' ELSE 'pending' END
       WHEN count(*) FILTER (WHERE status = 'failed') > 0 THEN 'failed'
       WHEN count(*) FILTER (WHERE status = 'skipped') > 0 THEN 'skipped' ELSE min(status) END"""
_WORST_FIRST = "CASE status WHEN 'failed' THEN 0 WHEN 'skipped' THEN 1 ELSE 2 END * 1000000 + block"
_TOGETHER = {
    "status": _STATUS,
    "reason": f"min_by(reason, {_WORST_FIRST})",
    "message": f"min_by(message, {_WORST_FIRST}) FILTER (WHERE reason IS NOT NULL)",
    "planned_rounds": "sum(planned_rounds)::INTEGER",
    "maximum_rounds": "sum(maximum_rounds)::INTEGER",
    "dropped_readings": "sum(dropped_readings)::BIGINT",
    "started_at": "min(started_at)",
    "finished_at": "max(finished_at)",
}
"""How the values of several blocks become one; of everything else the first known one stands."""
_COLUMNS = ",\n  ".join(
    f"{_TOGETHER.get(column.name, f'min_by({column.name}, block)')} AS {column.name}"
    for column in CASES.columns
    if column.name not in ("case_id", "first_case_id")
)
_POOLED_CASES = f"""
SELECT case_id, count(*) AS blocks,
  {_COLUMNS}
FROM (SELECT * REPLACE (coalesce(first_case_id, case_id) AS case_id), coalesce(block_index, 0) AS block FROM cases)
GROUP BY case_id
"""  # noqa: S608 - our own names

VIEWS: dict[str, tuple[str, str]] = {
    "later_blocks": (
        "SELECT case_id, first_case_id FROM cases WHERE first_case_id IS NOT NULL",
        "Cases that are a later block of another one, with the id of its first block.",
    ),
    "pooled_cases": (_POOLED_CASES, "Cases, those that ran in blocks as one under the id of the first block."),
    "pooled_rounds": (_pooled("rounds"), "Rounds under the case of pooled_cases they belong to."),
    "pooled_requests": (_pooled("requests"), "Requests under the case of pooled_cases they belong to."),
    "pooled_samples": (_pooled("samples"), "Telemetry readings under the case of pooled_cases they belong to."),
}
"""Name → (query, comment), in the order to create them."""
