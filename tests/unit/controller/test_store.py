"""The file itself: who may open it, what it holds before anything ran, and that its page of documentation is true."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import duckdb
import pytest

from benchfleet.failures import Failure, Reason
from benchfleet.samples import SAMPLE_METRICS
from benchfleet_controller import metrics
from benchfleet_controller.plan import HostTarget, Plan, expand
from benchfleet_controller.store import (
    NoSuchRun,
    NotAStore,
    Store,
    StoreBusy,
    StoreError,
    StoreMissing,
    StoreTooNew,
    condensed,
    migrations,
    pooling,
    queries,
    schema,
    views,
)
from benchfleet_controller.store.connection import opened
from fakes.events import JobEvents, commit_events, host, ok_request, spec

DOCS = Path(__file__).parents[3] / "docs" / "schema.md"
PLAN = Plan("lab", (HostTarget("a", "a:1"), HostTarget("b", "b:1")), ("tiny", "small"), devices=("cpu",))


def recorded(path: Path, run_id: str = "run-1", day: int = 1) -> Store:
    store = Store(path, wait_s=0.0)
    ids = iter(range(100))
    jobs = expand(PLAN, lambda: f"{run_id}-{next(ids)}")
    store.record_run(run_id, PLAN, jobs, held_by="me@here", created_at=datetime(2026, 1, day, tzinfo=UTC))
    return store


def test_a_missing_file_is_not_made_by_reading(tmp_path: Path) -> None:
    store = Store(tmp_path / "none" / "bench.duckdb")
    with pytest.raises(StoreMissing, match="run `benchfleet run` first or name it with --db"):
        store.runs()
    assert store.committed_sequence("j") == 0
    assert not (tmp_path / "none").exists()


def test_a_run_is_there_before_anything_starts(tmp_path: Path) -> None:
    store = recorded(tmp_path / "deep" / "bench.duckdb")
    (run,) = store.runs()
    assert (run.run_id, run.name, run.jobs, run.jobs_open, run.cases, run.succeeded) == ("run-1", "lab", 2, 2, 4, 0)
    assert run.created_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert {case["status"] for case in store.case_results()} == {"pending"}
    assert [job.host_name for job in store.open_jobs()] == ["a", "b"]
    assert store.run("run-1")["plan"]["rounds"] == PLAN.rounds


def test_a_refused_job_skips_its_cases_and_needs_no_collecting(tmp_path: Path) -> None:
    store = recorded(tmp_path / "bench.duckdb")
    job = store.run_jobs("run-1")[0]
    store.mark_job(job.job_id, "refused", Failure(Reason.HOST_BUSY, "held by bob"))
    assert [one.host_name for one in store.open_jobs()] == ["b"]
    assert {(c["status"], c["reason"]) for c in store.case_results() if c["host"] == "a"} == {("skipped", "host_busy")}


def test_a_released_job_is_closed(tmp_path: Path) -> None:
    store = Store(tmp_path / "bench.duckdb")
    job = JobEvents()
    job.job_started(spec("c1"))
    job.case_finished("c1")
    job.job_finished()
    commit_events(store, "j1", job.events)
    assert [one.job_id for one in store.open_jobs()] == ["j1"]
    store.mark_released(["j1"])
    assert store.open_jobs() == []


def test_hosts_keep_every_fingerprint_and_the_last_address(tmp_path: Path) -> None:
    store = Store(tmp_path / "bench.duckdb")
    store.record_host(host("h1"), "lab", "lab:1")
    store.record_host(host("h1"), "lab", "lab:2")
    store.record_host(host("h1", os_version="6.2"), "lab", "lab:3")
    (known,) = store.known_hosts()
    assert (known.name, known.address, known.host_id) == ("lab", "lab:3", "h1")
    versions = store._read(lambda c: c.execute("SELECT os_version, address FROM hosts ORDER BY seen_at").fetchall())
    assert versions == [("6.1", "lab:2"), ("6.2", "lab:3")]


def test_adopting_keeps_what_is_known(tmp_path: Path) -> None:
    store = Store(tmp_path / "bench.duckdb")
    for _ in range(2):
        store.adopt_job("j1", spec("c1", "c2"), host(), "lab", "lab:1")
    job = JobEvents()
    job.job_started(spec("c1", "c2"))
    commit_events(store, "j1", job.events)
    (row,) = store.run_jobs("r1")
    assert (row.host_name, row.address, row.host_id, row.state) == ("lab", "lab:1", "h1", "running")
    assert len(store.case_results()) == 2
    assert [one["host"] for one in store.hosts_of_runs(["r1"])] == ["lab"]


def test_runs_are_found_by_id_prefix_and_last(tmp_path: Path) -> None:
    store = recorded(tmp_path / "bench.duckdb", "abc1", 1)
    recorded(store.path, "abd2", 2)
    assert [store.resolve_run(text) for text in ("last", "abc", "abd2")] == ["abd2", "abc1", "abd2"]
    with pytest.raises(NoSuchRun, match="names 2 runs: abd2, abc1"):
        store.resolve_run("ab")
    with pytest.raises(NoSuchRun, match=r"near: .*abc1"):
        store.resolve_run("abc2")
    with pytest.raises(NoSuchRun, match="of that name: abd2"):
        store.resolve_run("lab")


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database " * 1000)
    other = tmp_path / "other.duckdb"
    with duckdb.connect(str(other)) as connection:
        connection.execute("CREATE TABLE t (a INTEGER)")
    for path in (text, other, tmp_path):
        before = path.read_bytes() if path.is_file() else b""
        for operation in (Store(path).runs, lambda path=path: Store(path).record_host(host(), "a", "b")):
            with pytest.raises(NotAStore, match="--db"):
                operation()
        assert not path.is_file() or path.read_bytes() == before


def test_a_newer_file_is_refused_and_a_file_without_a_column_gets_it(tmp_path: Path) -> None:
    store = recorded(tmp_path / "bench.duckdb")
    metric = SAMPLE_METRICS[-1].name
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("DROP VIEW case_results")
        connection.execute(f"ALTER TABLE samples DROP COLUMN {metric}")
        connection.execute("UPDATE schema_migrations SET name = 'views of fewer metrics' WHERE name LIKE 'views %'")
    store.runs()
    with duckdb.connect(str(store.path)) as connection:
        assert connection.execute(f"SELECT {metric} FROM samples").fetchall() == []
        connection.execute("INSERT INTO schema_migrations VALUES ('benchfleet', 99, 'm099_future', now())")
    with pytest.raises(StoreTooNew, match="upgrade benchfleet"):
        store.runs()


def test_a_file_in_use_is_waited_for_and_then_named(tmp_path: Path) -> None:
    store = recorded(tmp_path / "bench.duckdb")
    holder = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StoreBusy, match=f"in use by another process.*{process.pid}"):
            store.runs()
        process.communicate()
    assert len(store.runs()) == 1


def test_errors_of_the_engine_say_what_to_do(tmp_path: Path) -> None:
    from benchfleet_controller.store import connection

    for text, kind, advice in (
        ("IO Error: Could not write file: No space left on device", "StoreFull", "free space"),
        ("IO Error: Failure while replaying WAL file x.wal: Corrupt WAL", "StoreError", "move"),
        ("IO Error: Cannot open file: Permission denied", "StoreError", "permissions"),
    ):
        error = connection._as_store_error(tmp_path, duckdb.IOException(text))
        assert isinstance(error, StoreError)
        assert (type(error).__name__, advice in str(error)) == (kind, True)


def test_the_documentation_names_every_table_view_column_and_its_queries_run(tmp_path: Path) -> None:
    store = Store(tmp_path / "bench.duckdb")
    job = JobEvents()
    job.job_started(spec("c1"))
    job.round("c1", "r1", 0, 0, 1, [ok_request("q1", 0, [0.1, 0.2], 1)])
    commit_events(store, "j1", job.events)
    text = DOCS.read_text()
    condensed_names = {one.table for one in condensed.TABLES}
    real = store._read(
        lambda c: c.execute(
            "SELECT table_name, column_name FROM information_schema.columns ORDER BY table_name, ordinal_position"
        ).fetchall()
    )
    for table in {row[0] for row in real}:
        section = text.split(f"## {table}\n", 1)[1].split("\n## ", 1)[0]
        if table in condensed_names | set(pooling.VIEWS):  # their columns are named by a rule
            continue
        documented = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
        assert documented == [row[1] for row in real if row[0] == table], table
    declared = {(t.name, c.name) for t in schema.TABLES for c in t.columns}
    made = {*views.VIEWS, *condensed_names, "schema_migrations"}
    assert {row[:2] for row in real if row[0] not in made} == declared
    for query in [part.split("```")[0] for part in text.split("```sql\n")[1:]]:
        store._read(partial(queries.rows, sql=query))


def test_metrics_are_columns_of_the_view(tmp_path: Path) -> None:
    store = recorded(tmp_path / "bench.duckdb")
    row = store.case_results()[0]
    for metric in metrics.CASE_METRICS:
        assert metric.name in row
        assert metric.n_column is None or metric.n_column in row
    assert list(store.round_values_of(metrics.BY_NAME)) == list(metrics.BY_NAME)
    assert len(migrations.MIGRATIONS) == migrations.LATEST


def test_a_file_with_other_views_gets_this_programs_when_it_is_opened(tmp_path: Path) -> None:
    store = recorded(tmp_path / "bench.duckdb")
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("CREATE OR REPLACE VIEW case_results AS SELECT 1 AS one")
        connection.execute("DELETE FROM schema_migrations WHERE name LIKE 'views %'")
        connection.execute("INSERT INTO schema_migrations VALUES ('benchfleet', 1, 'views of an older day', now())")
    assert "ttft_p50_s" in store.case_results()[0]


@pytest.mark.parametrize("write", [False, True])
def test_ctrl_c_that_the_database_took_for_itself_is_ctrl_c(tmp_path: Path, write: bool) -> None:
    Store(tmp_path / "b.duckdb").mark_released(())
    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "b.duckdb", write=write, wait_s=0):
        raise RuntimeError("Query interrupted")  # what DuckDB raises then
    with pytest.raises(RuntimeError, match="else"), opened(tmp_path / "b.duckdb", write=write, wait_s=0):
        raise RuntimeError("something else")
