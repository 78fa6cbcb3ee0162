"""The tables as values: names, types and comments, declared once for the database and for docs/schema.md.

`TABLES` is the newest state; what a migration added says so (`Column.since`, `Table.since`) and stands at the end.
All ``*_ns`` columns are the host's monotonic clock: good for differences within one case, meaningless across hosts.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchfleet.samples import SAMPLE_METRICS


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, DuckDB type, and what it says, with its unit."""

    name: str
    type: str
    comment: str
    since: int = 1
    """The migration that added it."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table; ``primary_key`` is empty for fact tables, where a key would cost most of the insert rate."""

    name: str
    comment: str
    columns: tuple[Column, ...]
    primary_key: str = ""
    since: int = 1

    def ddl(self, version: int) -> str:
        """What migration ``version`` does to the table and its comments, as one script; empty: nothing."""
        columns = [c for c in self.columns if max(c.since, self.since) == version]
        if self.since == version:
            lines = [f"{c.name} {c.type}" + (" PRIMARY KEY" if c.name == self.primary_key else "") for c in columns]
            statements = [f"CREATE TABLE {self.name} (\n  " + ",\n  ".join(lines) + "\n)"]
            statements.append(f"COMMENT ON TABLE {self.name} IS {_quoted(self.comment)}")
        else:
            statements = [f"ALTER TABLE {self.name} ADD COLUMN {c.name} {c.type}" for c in columns]
        statements.extend(f"COMMENT ON COLUMN {self.name}.{c.name} IS {_quoted(c.comment)}" for c in columns)
        return "".join(f"{statement};\n" for statement in statements)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _columns(text: str, since: int = 1) -> tuple[Column, ...]:
    """Columns from lines of ``name TYPE comment``."""
    split = (line.split(maxsplit=2) for line in text.strip().splitlines())
    return tuple(Column(name, type_, comment, since) for name, type_, comment in split)


_IDS = """
run_id VARCHAR the run
job_id VARCHAR the job
case_id VARCHAR the case
"""

HOSTS = Table(
    "hosts",
    "Fingerprints of hosts: one row for each state a host was seen in; the newest seen_at is how it is now.",
    _columns("""
host_id VARCHAR identity of the agent's data directory
fingerprint VARCHAR digest of everything below that makes a host what it is; referred to by jobs
machine_id VARCHAR identity of the machine; agents with the same value share one
name VARCHAR how people last called it
address VARCHAR where its agent last listened
hostname VARCHAR network name
agent_version VARCHAR version of the agent
os_name VARCHAR Linux, Windows or Darwin
os_version VARCHAR release and build
os_edition VARCHAR distribution or edition; NULL unknown
architecture VARCHAR processor architecture
cpu_model VARCHAR name of the processor; NULL unknown
physical_cores INTEGER physical cores; NULL unknown
logical_cores INTEGER logical processors; NULL unknown
memory_bytes BIGINT physical memory in bytes
python_version VARCHAR Python that runs the agent
on_battery BOOLEAN whether it ran on battery; NULL no battery or unknown
devices JSON list of GPUs and NPUs: {device_id, kind, display_name, driver_version, memory_bytes, …}
runtimes JSON list of {name, available, unavailable_reason, version, components}
probes JSON list of {probe_id, available, unavailable_reason, metrics, period_ms}
problems JSON list of {severity, message, advice}, as last seen
seen_at TIMESTAMPTZ when it was last seen so
""")
    + _columns("limits JSON what the machine can do at most, as last measured; NULL not measured", since=4),
)

RUNS = Table(
    "runs",
    "Executions of a plan over its hosts.",
    _columns("""
run_id VARCHAR identity of the run
name VARCHAR the plan's name
created_at TIMESTAMPTZ when the run was recorded, before anything started
seed BIGINT seed of the order of cases and of every request; NULL none
plan JSON the plan as it was carried out; NULL when the run was collected from a host
held_by VARCHAR who asked
benchfleet_version VARCHAR version that recorded the run
"""),
    "run_id",
)

JOBS = Table(
    "jobs",
    "One host's part of a run.",
    _columns("""
job_id VARCHAR identity of the job
run_id VARCHAR the run
host_name VARCHAR the host as the user names it
address VARCHAR where its agent listens
host_id VARCHAR the host; NULL until it answered
machine_id VARCHAR the host's machine; NULL until it answered
fingerprint VARCHAR hosts.fingerprint when the job started; NULL until then
state VARCHAR pending, running, finished, failed, cancelled, or why it never started: refused, unreachable
failure_reason VARCHAR why it did not finish; NULL when it did
failure_message VARCHAR the same for people
committed_sequence BIGINT highest event stored; moves in one transaction with the rows
started_at TIMESTAMPTZ agent's wall clock at the start
finished_at TIMESTAMPTZ agent's wall clock at the end
released BOOLEAN the agent was told to forget the job's events
"""),
    "job_id",
)

CASES = Table(
    "cases",
    "Combinations to measure on one host: what was asked and what ran.",
    _columns("""
case_id VARCHAR identity of the case
run_id VARCHAR the run
job_id VARCHAR the job
case_index INTEGER order within the job, from 0
runtime VARCHAR the runtime asked for
endpoint_url VARCHAR base URL for the runtime endpoint; NULL otherwise
model VARCHAR alias or variant id as the user wrote it
device_asked VARCHAR cpu, gpu, npu; NULL whatever the runtime prefers
prompt_set VARCHAR name of the prompt set
concurrency INTEGER requests in flight
planned_rounds INTEGER counted rounds asked for
warmup_rounds INTEGER rounds before them that never count
stream BOOLEAN whether answers were asked for as a stream
max_tokens INTEGER most tokens of an answer
temperature DOUBLE sampling temperature; NULL not sent
top_p DOUBLE nucleus sampling; NULL not sent
seed BIGINT seed sent; NULL not sent
alias VARCHAR alias of the variant that ran
variant VARCHAR exact id of the variant that ran; NULL none could be pinned
device VARCHAR device of the variant; NULL the runtime does not say
ep_requested VARCHAR execution provider of the pinned variant; NULL unknown
ep_actual VARCHAR execution provider the runtime says it ran on; NULL it does not say
size_bytes BIGINT size of the variant on disk in bytes
license VARCHAR licence of the model
context_length BIGINT longest prompt plus answer in tokens
status VARCHAR pending, running, succeeded, failed or skipped
reason VARCHAR why it failed or was skipped, or that some requests failed
message VARCHAR the same for people
load_ns BIGINT duration of the runtime's own load call; NULL it loads on the first request
load_start_ns BIGINT when loading began
load_end_ns BIGINT when loading ended
unload_ns BIGINT duration of unloading; NULL not measured
remote BOOLEAN the endpoint is not on the agent's host: latencies include the network
components JSON versions of the runtime and its parts, by name
unmeasured JSON metrics that could not be measured, by name, with the reason
dropped_readings BIGINT readings the sampler dropped to stay on time
stamp_source VARCHAR where receive times come from: kernel or socket
started_at TIMESTAMPTZ agent's wall clock at the start
finished_at TIMESTAMPTZ agent's wall clock at the end
""")
    + _columns(
        """
request_rate_per_s DOUBLE requests a second of an open loop; NULL closed loop
arrival VARCHAR constant or poisson spacing of an open loop; NULL closed loop
round_duration_s DOUBLE how long each round was to last; NULL one pass over the prompts
minimum_duration_s DOUBLE how long the counted rounds were to last together; NULL no matter
interval_ratio DOUBLE rounds went on until the intervals of the means were so narrow; NULL no matter
maximum_rounds INTEGER most counted rounds
prompt_token_count INTEGER tokens of each synthetic prompt; NULL the prompts were given
prefix_cache VARCHAR defeated (each request begins with words of its own) or allowed
page_cache VARCHAR what was asked for before the load: kept or dropped
page_cache_ratio DOUBLE share of the model's files in the page cache when loading began; NULL not known
idle_pause_s DOUBLE pause before the idle request; NULL there was none
deterministic BOOLEAN everything that decides an answer was fixed
""",
        since=2,
    )
    + _columns("block_index INTEGER which of the blocks that cases are interleaved in, from 0", since=3)
    + _columns(
        """
path VARCHAR how the runtime was reached: http or direct
keep_warm_period_s DOUBLE time between requests that keep the model loaded; NULL none were sent
conditions JSON what the host had to be like for a round to begin; NULL no matter
device_libraries JSON libraries of execution providers and drivers in the runtime's processes; NULL not known
evidence JSON what speaks for the failure; NULL nothing was found
forecast JSON whether the model was forecast to fit, and why; NULL no forecast
""",
        since=4,
    )
    + _columns(
        """
quantisation VARCHAR how weights are stored, as the runtime says; NULL it does not
first_case_id VARCHAR the first block of the case that this is a later block of; NULL it is none
""",
        since=5,
    ),
    "case_id",
)

ROUNDS = Table(
    "rounds",
    "Passes over the prompt set.",
    _columns(
        "round_id VARCHAR identity of the round"
        + _IDS
        + """round_index INTEGER order within the case, warm-up rounds first
warmup BOOLEAN never counted in results
start_ns BIGINT the first request was about to be sent
end_ns BIGINT the last request had ended; NULL the round never ended
load_cpu_ns BIGINT CPU time of the load process in ns
load_rss_bytes BIGINT resident memory of the load process after the round
requests INTEGER requests that ended in the round
failed INTEGER of those, failed
"""
    )
    + _columns("kind VARCHAR calibration, warmup, counted, idle or keepwarm", since=2)
    + _columns(
        """
state_before JSON conditions of the host just before; NULL not told
state_after JSON conditions of the host just after; NULL not told
""",
        since=4,
    )
    + _columns(
        "model_unloaded BOOLEAN the runtime had unloaded the model in the pause before; NULL no pause, or not told",
        since=5,
    ),
)

REQUESTS = Table(
    "requests",
    "Prompts sent, with all their moments; a NULL moment did not happen.",
    _columns(
        "request_id VARCHAR identity of the request"
        + _IDS
        + """round_id VARCHAR the round
warmup BOOLEAN of a warm-up round: never counted in results
prompt_id VARCHAR the prompt within its set
status VARCHAR ok or failed
reason VARCHAR why it failed; NULL when ok
message VARCHAR the same for people
http_status INTEGER HTTP status; NULL no answer
start_ns BIGINT t0, just before the request was written
sent_ns BIGINT the request was written
headers_ns BIGINT response headers arrived
first_byte_ns BIGINT first byte of the body arrived
role_ns BIGINT the chunk that only names the role arrived
first_reasoning_ns BIGINT first reasoning text arrived
first_content_ns BIGINT first visible content or tool call arrived
last_content_ns BIGINT last token-bearing chunk arrived
finish_ns BIGINT the finish reason arrived
usage_ns BIGINT the usage chunk arrived
done_ns BIGINT [DONE] or the end of the body arrived
end_ns BIGINT the client was finished
connect_ns BIGINT time to open the connection; NULL an open one was used
token_offset_ns BIGINT[] arrival of every token-bearing chunk in ns since start_ns; NULL there were none
coalesced_chunks INTEGER chunks that arrived in the same read as an earlier one
prompt_tokens INTEGER tokens of the prompt
cached_prompt_tokens INTEGER of those, from a prefix cache
output_tokens INTEGER tokens of the answer, seen and unseen
visible_tokens INTEGER of those, visible in the stream; NULL not known
reasoning_tokens INTEGER of those, reasoning as the server counts it; NULL not known
hidden_tokens INTEGER of those, counted but never sent; NULL not known
tokens_source VARCHAR usage, tokenizer or estimate; NULL there are no counts
accounting VARCHAR consistent, or why counts and stream do not agree
finish_reason VARCHAR stop, length, …; NULL none arrived
text VARCHAR the answer
reasoning_text VARCHAR reasoning sent apart from the answer
stamp_source VARCHAR where receive times come from: kernel, socket or app
"""
    )
    + _columns(
        """
scheduled_ns BIGINT open loop: when it was due; NULL closed loop
position INTEGER place in its round, from 0
prompt_prefix VARCHAR words put before the prompt to defeat prefix caches; NULL none
answer_sha256 VARCHAR SHA-256 of the answer (reasoning, a zero byte, text); NULL there was none
piece_length INTEGER[] characters of each token-bearing chunk, in the order of token_offset_ns; NULL not streamed
""",
        since=2,
    )
    + _columns(
        """
server_prefill_s DOUBLE what the server itself says prefill took, in seconds; NULL it does not say
server_decode_s DOUBLE what the server itself says decoding took, in seconds; NULL it does not say
server_prefill_tokens INTEGER prompt tokens it computed in that prefill, not from its cache; NULL it does not say
server_decode_tokens INTEGER tokens it computed in that decoding; NULL it does not say
other_length INTEGER[] characters of reasoning and tool-call text in each of these chunks; NULL there was none
""",
        since=5,
    ),
)

SAMPLES = Table(
    "samples",
    "Telemetry readings; NULL is unmeasured and never 0. Counters are meant to be differenced.",
    _columns(
        _IDS.strip()
        + """
round_id VARCHAR the round; NULL outside rounds
phase VARCHAR baseline, prepare, load, loaded, warmup, round, unload or after
probe_id VARCHAR the probe
device_id VARCHAR the device; NULL the host and the runtime's processes
sample_ns BIGINT when the reading was taken
cost_us INTEGER how long the reading took in microseconds
"""
    )
    + tuple(
        Column(m.name, "BIGINT" if m.integer else "DOUBLE", f"{m.description} ({m.kind}, {m.unit})")
        for m in SAMPLE_METRICS
    ),
)

CERTIFICATES = Table(
    "certificates",
    "How true an agent's time stamps were: measured before a job on a loopback server that knows when it sent what.",
    _columns("""
job_id VARCHAR the job
run_id VARCHAR the run
concurrency INTEGER streams side by side
request_count INTEGER requests sent
token_count INTEGER tokens streamed
token_rate_per_s DOUBLE tokens a second in each stream, as scheduled
stamp_source VARCHAR where receive times came from: kernel or socket
ttft_error_p50_ns BIGINT our TTFT minus the server's, the median
ttft_error_p99_ns BIGINT the same without its sign, the 99th percentile
itl_error_p50_ns BIGINT our gaps minus the server's without sign, the median
itl_error_p99_ns BIGINT the 99th percentile of the same
stamp_error_p50_ns BIGINT arrival stamp minus send stamp, the median
stamp_error_p99_ns BIGINT the 99th percentile of the same
jitter_ns BIGINT standard deviation of the same
server_lateness_p99_ns BIGINT how late the server was against its own schedule: how quiet the machine was
cpu_per_token_ns BIGINT CPU time of the load process for each streamed token
rss_bytes BIGINT resident memory of the load process; NULL not known
duration_ns BIGINT how long it took
failure_reason VARCHAR why there is none; NULL there is one
failure_message VARCHAR the same for people
"""),
    since=2,
)

BASELINES = Table(
    "baselines",
    "Named results that later runs are compared with.",
    _columns("""
name VARCHAR what people call it
run_id VARCHAR the run it was made of; empty: of a file, which does not say
cases INTEGER how many cases it holds
document VARCHAR the baseline as JSON, as `benchfleet baseline export` writes it
set_at TIMESTAMPTZ when it was set or imported
"""),
    "name",
    since=3,
)

SCORES = Table(
    "scores",
    "How good answers are: one row a request and scorer.",
    _columns("""
request_id VARCHAR the request
run_id VARCHAR the run
case_id VARCHAR the case
prompt_id VARCHAR the prompt within its set
scorer VARCHAR expected (aspects of the prompt file) or the judge's name
score DOUBLE 0 to 1; NULL it could not be scored
detail JSON what was found and what was missing
reason VARCHAR why there is no score; NULL there is one
scored_at TIMESTAMPTZ when
"""),
    since=4,
)

TABLES = (HOSTS, RUNS, JOBS, CASES, ROUNDS, REQUESTS, SAMPLES, CERTIFICATES, BASELINES, SCORES)
BY_NAME = {table.name: table for table in TABLES}
