"""The one registry of case metrics: columns of ``case_results``, their units, and which way is better. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from benchfleet_controller.energy import KWH_PER_MILLION


class Better(StrEnum):
    """Which way a metric improves."""

    LOWER = "lower"
    HIGHER = "higher"
    NONE = "none"
    """It describes; neither way is better."""


class Source(StrEnum):
    """Where a metric's values by round come from."""

    REQUESTS = "requests"
    ROUNDS = "rounds"
    SPANS = "spans"
    DEVICE_MEMORY = "device_memory"
    """Memory of all devices over the round (`spans.ROUND_DEVICE_MEMORY`)."""
    SCORES = "scores"
    """Scores of the round's answers."""
    ENERGY = "energy"
    """The energy of the round, of what the case's energy was metered (`telemetry.round_energy`)."""
    MARGINAL = "marginal"
    """The same above idle power with the model loaded."""


@dataclass(frozen=True, slots=True)
class ByRound:
    """How one round's value is computed: SQL over its ok requests, the round itself, or its readings.

    Of energy, ``value`` names what it is divided by (a count of the round's answers), and ``weight`` is the factor.
    """

    table: Source
    value: str
    weight: str


@dataclass(frozen=True, slots=True)
class CaseMetric:
    """One metric of a case. ``name`` is its column and JSON key and ends in its unit."""

    name: str
    unit: str
    better: Better
    label: str
    """Heading for people."""
    format: str
    """How people see it: a ``format()`` spec, or ``bytes``."""
    formula: str
    quantile: float | None = None
    """For a percentile: which one, in 0…1."""
    n_column: str | None = None
    """Column with the number of values a percentile rests on."""
    by_round: ByRound | None = None
    """None: one value a case, so no interval."""
    of_tokens: bool = False
    """Divides by or counts tokens: comparable only when they were counted the same way."""

    def human(self, value: object) -> str:
        """The value for people, with its unit where the heading has none; an unmeasured one is a dash."""
        if value is None or not isinstance(value, int | float):
            return "–"
        return human_bytes(value) if self.format == "bytes" else format(value, self.format)


def human_bytes(value: float) -> str:
    """Bytes in binary units, three digits."""
    size = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def _of_requests(value: str, weight: str) -> ByRound:
    return ByRound(Source.REQUESTS, value, weight)


def _quantile(name: str, q: float, label: str, formula: str, n_column: str) -> CaseMetric:
    column = name.replace(f"_p{round(q * 100)}", "")
    rounds = _of_requests(f"quantile_cont({column}, {q})", f"count({column})") if column != "itl_s" else _ITL
    return CaseMetric(
        name, "s", Better.LOWER, label, ".3f" if column != "itl_s" else ".4f", formula, q, n_column, rounds
    )


_ITL = _of_requests("median(list_median(itl_s))", "count(itl_s)")
"""By round, the median of the requests' median gaps: near enough for an interval, and no unnesting."""

_LOWER, _HIGHER, _NONE = Better.LOWER, Better.HIGHER, Better.NONE

CASE_METRICS: tuple[CaseMetric, ...] = (
    CaseMetric(
        "ttft_avg_s",
        "s",
        _LOWER,
        "First Token (s)",
        ".3f",
        "mean of t_first - t0 over ok requests",
        by_round=_of_requests("avg(ttft_s)", "count(ttft_s)"),
    ),
    _quantile("ttft_p50_s", 0.5, "TTFT p50 (s)", "median of t_first - t0", "ttft_n"),
    _quantile("ttft_p95_s", 0.95, "TTFT p95 (s)", "95th percentile of t_first - t0", "ttft_n"),
    CaseMetric(
        "e2e_avg_s",
        "s",
        _LOWER,
        "Avg Latency (s)",
        ".3f",
        "mean of end of body - t0",
        by_round=_of_requests("avg(e2e_s)", "count(e2e_s)"),
    ),
    _quantile("e2e_p50_s", 0.5, "Latency p50 (s)", "median of end of body - t0", "e2e_n"),
    _quantile("e2e_p95_s", 0.95, "Latency p95 (s)", "95th percentile of end of body - t0", "e2e_n"),
    _quantile("itl_p50_s", 0.5, "ITL p50 (s)", "median gap between token-bearing chunks, all requests pooled", "itl_n"),
    CaseMetric("itl_p95_s", "s", _LOWER, "ITL p95 (s)", ".4f", "95th percentile of those gaps", 0.95, "itl_n"),
    CaseMetric(
        "tpot_avg_s",
        "s",
        _LOWER,
        "TPOT (s)",
        ".4f",
        "mean of (t_last - t_first)/(tokens after the first chunk)",
        by_round=_of_requests("avg(tpot_s)", "count(tpot_s)"),
        of_tokens=True,
    ),
    CaseMetric(
        "decode_tokens_per_s",
        "tokens/s",
        _HIGHER,
        "Tokens/sec",
        ".1f",
        "sum(tokens after the first chunk)/sum(t_last - t_first); decode_basis says which tokens",
        by_round=_of_requests(
            "sum(decode_tokens) FILTER (WHERE decode_s IS NOT NULL) / sum(decode_s)", "sum(decode_s)"
        ),
        of_tokens=True,
    ),
    CaseMetric(
        "prefill_tokens_per_s",
        "tokens/s",
        _HIGHER,
        "Prefill tokens/s",
        ".0f",
        "sum(prompt tokens)/sum(TTFT) over requests whose accounting is not hidden_tokens",
        by_round=_of_requests(
            "sum(prompt_tokens) FILTER (WHERE prefill_tokens_per_s IS NOT NULL) / "
            "sum(ttft_s) FILTER (WHERE prefill_tokens_per_s IS NOT NULL)",
            "sum(ttft_s)",
        ),
        of_tokens=True,
    ),
    CaseMetric(
        "output_tokens_per_s",
        "tokens/s",
        _HIGHER,
        "Throughput (tokens/s)",
        ".1f",
        "output tokens of ok requests/wall time of the rounds that ended",
        by_round=ByRound(
            Source.ROUNDS,
            "q.output_tokens / nullif((r.end_ns - r.start_ns) / 1e9, 0)",
            "(r.end_ns - r.start_ns) / 1e9",
        ),
        of_tokens=True,
    ),
    CaseMetric(
        "requests_per_s",
        "1/s",
        _HIGHER,
        "Requests/s",
        ".2f",
        "ok requests/wall time of the rounds that ended",
        by_round=ByRound(
            Source.ROUNDS,
            "coalesce(q.answers, 0) / nullif((r.end_ns - r.start_ns) / 1e9, 0)",
            "(r.end_ns - r.start_ns) / 1e9",
        ),
    ),
    CaseMetric(
        "server_prefill_avg_s",
        "s",
        _LOWER,
        "Prefill, server (s)",
        ".3f",
        "mean of prefill by the server's own clock, where it tells (llama.cpp)",
        by_round=_of_requests("avg(server_prefill_s)", "count(server_prefill_s)"),
    ),
    CaseMetric(
        "server_decode_tokens_per_s",
        "tokens/s",
        _HIGHER,
        "Tokens/sec, server",
        ".1f",
        "sum(tokens)/sum(decoding time) as the server itself counts and times, where it tells (llama.cpp)",
        by_round=_of_requests(
            "sum(server_decode_tokens) FILTER (WHERE server_decode_s > 0) / "
            "sum(server_decode_s) FILTER (WHERE server_decode_tokens IS NOT NULL)",
            "sum(server_decode_s)",
        ),
        of_tokens=True,
    ),
    CaseMetric("load_s", "s", _LOWER, "Load (s)", ".2f", "duration of the runtime's load call"),
    CaseMetric("cold_ttft_s", "s", _LOWER, "Cold first token (s)", ".3f", "TTFT of the first request after the load"),
    CaseMetric(
        "idle_ttft_s", "s", _LOWER, "First token after a pause (s)", ".3f", "TTFT of the request after the pause"
    ),
    CaseMetric("unload_s", "s", _LOWER, "Unload (s)", ".2f", "duration of the runtime's unload call"),
    CaseMetric(
        "ram_peak_bytes",
        "bytes",
        _LOWER,
        "RAM peak",
        "bytes",
        "largest resident memory of the runtime",
        by_round=ByRound(Source.SPANS, "max(rss_peak_bytes)", "1.0"),
    ),
    CaseMetric(
        "vram_peak_bytes",
        "bytes",
        _LOWER,
        "VRAM peak",
        "bytes",
        "largest device memory of the runtime; where unknown, of the device above its baseline",
        by_round=ByRound(Source.DEVICE_MEMORY, "peak", "1.0"),
    ),
    CaseMetric("gpu_busy_ratio", "ratio", _NONE, "GPU busy", ".0%", "time-weighted mean in rounds, busiest device"),
    CaseMetric(
        "cpu_busy_ratio",
        "ratio",
        _NONE,
        "CPU busy",
        ".0%",
        "CPU time of the runtime in rounds/their time/logical processors",
    ),
    CaseMetric("energy_j", "J", _LOWER, "Energy (J)", ".1f", "device energy over the rounds, all devices"),
    CaseMetric(
        "ram_steady_bytes",
        "bytes",
        _LOWER,
        "RAM in rounds",
        "bytes",
        "median resident memory of the runtime in rounds",
        by_round=ByRound(Source.SPANS, "median(rss_median_bytes)", "1.0"),
    ),
    CaseMetric(
        "ram_anon_peak_bytes",
        "bytes",
        _LOWER,
        "RAM peak, anonymous",
        "bytes",
        "largest anonymous memory of the runtime (private on Windows, the footprint on macOS)",
        by_round=ByRound(Source.SPANS, "max(anon_peak_bytes)", "1.0"),
    ),
    CaseMetric(
        "ram_file_peak_bytes",
        "bytes",
        _LOWER,
        "RAM peak, files",
        "bytes",
        "largest memory of mapped files such as weights (Linux)",
        by_round=ByRound(Source.SPANS, "max(file_peak_bytes)", "1.0"),
    ),
    CaseMetric(
        "quality_ratio",
        "ratio",
        _HIGHER,
        "Quality",
        ".0%",
        "mean score of counted answers; quality_source says by what: what prompts expect, or a judge",
        n_column="quality_n",
        by_round=ByRound(Source.SCORES, "avg(s.score)", "count(s.score)"),
    ),
    CaseMetric(
        "energy_per_token_j",
        "J",
        _LOWER,
        "Energy/token (J)",
        ".3g",
        "gross energy of the counted rounds/output tokens; energy_scope says of what",
        by_round=ByRound(Source.ENERGY, "output_tokens", "1"),
        of_tokens=True,
    ),
    CaseMetric(
        "energy_per_request_j",
        "J",
        _LOWER,
        "Energy/request (J)",
        ".3g",
        "gross energy of the counted rounds/ok requests",
        by_round=ByRound(Source.ENERGY, "requests", "1"),
    ),
    CaseMetric(
        "marginal_per_token_j",
        "J",
        _LOWER,
        "Marginal energy/token (J)",
        ".3g",
        "(gross energy - idle power with the model loaded × duration of the counted rounds)/output tokens",
        by_round=ByRound(Source.MARGINAL, "output_tokens", "1"),
        of_tokens=True,
    ),
    CaseMetric(
        "marginal_per_request_j",
        "J",
        _LOWER,
        "Marginal energy/request (J)",
        ".3g",
        "the same/ok requests",
        by_round=ByRound(Source.MARGINAL, "requests", "1"),
    ),
    CaseMetric(
        "kwh_per_million_tokens",
        "kWh/1M tokens",
        _LOWER,
        "kWh/1M tokens",
        ".3g",
        "energy_per_token_j × 0.27778",
        by_round=ByRound(Source.ENERGY, "output_tokens", str(KWH_PER_MILLION)),
        of_tokens=True,
    ),
    CaseMetric(
        "cost_per_million_tokens",
        "price/1M tokens",
        _LOWER,
        "Electricity/1M tokens",
        ".3g",
        "kwh_per_million_tokens × the price of a kWh that was given; electricity only, in the price's currency",
        by_round=ByRound(Source.ENERGY, "output_tokens", str(KWH_PER_MILLION)),
        of_tokens=True,
    ),
    CaseMetric(
        "decode_limit_ratio",
        "ratio",
        _NONE,
        "Of memory limit",
        ".0%",
        "decode tokens/s × size of the model/memory bandwidth of the host (CPU) or device; one request at a time only",
    ),
    CaseMetric(
        "prefill_limit_ratio",
        "ratio",
        _NONE,
        "Of compute limit",
        ".0%",
        "2 × weights of the model × prefill tokens/s/operations per second of the host; where the variant's name tells "
        "the bits of a weight",
    ),
)
"""In the order of reports. Every name is a key of a case; those up to memory are columns of ``case_results`` too."""

BY_NAME = {metric.name: metric for metric in CASE_METRICS}

DEFAULT_COMPARED = (
    "e2e_avg_s", "e2e_p95_s", "ttft_p50_s", "ttft_p95_s", "tpot_avg_s", "decode_tokens_per_s", "output_tokens_per_s",
    "ram_peak_bytes", "vram_peak_bytes", "load_s", "energy_per_token_j", "cost_per_million_tokens", "quality_ratio",
)  # fmt: skip
"""What is compared when nobody asks for more or less, as far as anything measured it."""

GATED = (
    "e2e_avg_s", "ttft_p50_s", "decode_tokens_per_s", "output_tokens_per_s", "ram_peak_bytes", "vram_peak_bytes",
    "quality_ratio",
)  # fmt: skip
"""What the regression gate judges when nobody asks for more or less: what a few rounds can decide. Left out are what
has one value a case, percentiles that take many requests, energy, which few hosts meter well, and what says it again.
"""

MARGINAL_METRICS = ("marginal_per_token_j", "marginal_per_request_j")
ENERGY_METRICS = (
    "energy_per_token_j", "energy_per_request_j", *MARGINAL_METRICS, "kwh_per_million_tokens",
    "cost_per_million_tokens",
)  # fmt: skip
"""What rests on the energy that ``energy_scope`` names."""
