"""The views a person can query, and the one place where metrics get their formulas (the design's section 5).

Per request (`request_metrics`), with t_first and t_last the first and last token-bearing chunk:

* ``ttft_s`` = t_first − t0; ``e2e_s`` = end of the body − t0;
* ``rate_tokens`` = the tokens known to have arrived between t_first and t_last: the visible ones where they are known,
  all counted ones where several came per chunk or the server splits tokens, else one a chunk (a lower bound);
  ``rate_basis`` says which. ``decode_tokens`` = those of them that arrived after t_first: all but one, or, when chunks
  hold several, all but the first chunk's share of the text. ``tpot_s`` = (t_last − t_first)/decode_tokens;
  ``decode_tokens_per_s`` its inverse.

Per case (`case_results`) only ok requests of counted rounds enter; see the comments of its columns.
"""

from __future__ import annotations

from benchfleet_controller.store import condensed, pooling
from benchfleet_controller.store.spans import SAMPLE_PART

REQUEST_METRICS = """
SELECT
  request_id, run_id, job_id, case_id, round_id, warmup, prompt_id, status, reason, start_ns,
  token_offset_ns[1] / 1e9 AS ttft_s,
  (coalesce(done_ns, end_ns) - start_ns) / 1e9 AS e2e_s,
  token_offset_ns[-1] / 1e9 AS last_token_s,
  CASE WHEN visible_tokens IS NOT NULL THEN visible_tokens
       WHEN accounting IN ('several_tokens_per_chunk', 'more_chunks_than_tokens') THEN output_tokens
       WHEN accounting = 'fewer_chunks_than_tokens' THEN len(token_offset_ns) END AS rate_tokens,
  CASE WHEN visible_tokens = output_tokens THEN 'output'
       WHEN visible_tokens IS NOT NULL THEN 'visible'
       WHEN accounting IN ('several_tokens_per_chunk', 'more_chunks_than_tokens') THEN 'output'
       WHEN accounting = 'fewer_chunks_than_tokens' THEN 'chunks' END AS rate_basis,
  CASE WHEN rate_tokens > 1 AND token_offset_ns[-1] > token_offset_ns[1]
       THEN (token_offset_ns[-1] - token_offset_ns[1]) / 1e9 END AS decode_s,
  CASE WHEN rate_tokens > len(token_offset_ns) AND (other_length IS NOT NULL OR list_min(piece_length) > 0)
       THEN rate_tokens * (1 - (piece_length[1] + coalesce(other_length[1], 0))
                               / (list_sum(piece_length) + coalesce(list_sum(other_length), 0)))
       ELSE rate_tokens - 1 END AS decode_tokens,
  decode_s / decode_tokens AS tpot_s,
  decode_tokens / decode_s AS decode_tokens_per_s,
  CASE WHEN accounting <> 'hidden_tokens' AND token_offset_ns[1] > 0
       THEN prompt_tokens / (token_offset_ns[1] / 1e9) END AS prefill_tokens_per_s,
  CASE WHEN len(token_offset_ns) > 1
       THEN list_transform(list_zip(token_offset_ns[2:], token_offset_ns[1:len(token_offset_ns) - 1]),
                           lambda pair: (pair[1] - pair[2]) / 1e9) END AS itl_s,
  prompt_tokens, cached_prompt_tokens, output_tokens, visible_tokens, hidden_tokens, tokens_source, accounting,
  finish_reason, stamp_source, coalesced_chunks, len(token_offset_ns) AS chunks, text,
  (start_ns - scheduled_ns) / 1e9 AS lateness_s, position, block_case_id,
  server_prefill_s, server_decode_s, server_prefill_tokens, server_decode_tokens
FROM pooled_requests
"""

# Of the certificates of the job with stamps of that source, the one whose load comes closest from below; alone is
# always among them.
_CERTIFICATE_PART = """
SELECT c.case_id, k.stamp_source, max_by(k.ttft_error_p99_ns, k.concurrency) / 1e9 AS ttft_error_s,
       max_by(k.itl_error_p99_ns, k.concurrency) / 1e9 AS itl_error_s
FROM cases c JOIN certificates k ON k.job_id = c.job_id AND k.concurrency <= c.concurrency
WHERE k.failure_reason IS NULL GROUP BY c.case_id, k.stamp_source
"""

_CERTIFIED_PART = """
SELECT job_id, string_agg(DISTINCT stamp_source, ' and ' ORDER BY stamp_source)
         FILTER (WHERE failure_reason IS NULL) AS sources,
       any_value(failure_reason) AS failure
FROM certificates GROUP BY job_id
"""

# Why a case with stamps has no certificate that describes it.
_CERTIFICATE_REASON = """
CASE WHEN k.ttft_error_s IS NOT NULL OR coalesce(q.stamp_source, c.stamp_source) IS NULL THEN NULL
     WHEN m.sources IS NOT NULL THEN 'the certificate is of ' || m.sources || ' stamps, the case has '
                                     || coalesce(q.stamp_source, c.stamp_source)
     WHEN m.failure IS NOT NULL THEN 'the instrument could not be checked: ' || m.failure
     ELSE 'the instrument was not checked' END
"""

# What the runtime held at each stage of a case.
CASE_STAGES = f"""
SELECT case_id, run_id, phase, min(start_ns) AS start_ns, sum(samples)::BIGINT AS samples,
       max(rss_first_bytes) AS rss_first_bytes, max(rss_last_bytes) AS rss_last_bytes,
       max(rss_peak_bytes) AS rss_peak_bytes, max(anon_last_bytes) AS anon_last_bytes,
       max(file_last_bytes) AS file_last_bytes, sum(device_memory_first_bytes)::BIGINT AS device_memory_first_bytes,
       sum(device_memory_last_bytes)::BIGINT AS device_memory_last_bytes
FROM (SELECT case_id, run_id, phase, device_id, min(start_ns) AS start_ns, sum(samples) AS samples,
             min_by(rss_first_bytes, start_ns) AS rss_first_bytes, max_by(rss_last_bytes, end_ns) AS rss_last_bytes,
             max(rss_peak_bytes) AS rss_peak_bytes, max_by(anon_last_bytes, end_ns) AS anon_last_bytes,
             max_by(file_last_bytes, end_ns) AS file_last_bytes,
             min_by(device_used_first_bytes, start_ns) AS device_memory_first_bytes,
             max_by(device_used_last_bytes, end_ns) AS device_memory_last_bytes
      FROM ({condensed.SPANS.whole}) GROUP BY case_id, run_id, phase, device_id)
GROUP BY case_id, run_id, phase
"""  # noqa: S608 - our own text

# Tokens over wall time of the rounds that ended; a round cut short has no wall time to divide by.
_ROUND_PART = """
SELECT r.case_id, count(*) AS rounds, sum(r.end_ns - r.start_ns) / 1e9 AS rounds_s,
       sum(r.load_cpu_ns) / nullif(sum(r.end_ns - r.start_ns), 0) AS load_cpu_ratio,
       sum(t.output_tokens) / nullif(sum(r.end_ns - r.start_ns) / 1e9, 0) AS output_tokens_per_s,
       sum(t.answers) / nullif(sum(r.end_ns - r.start_ns) / 1e9, 0) AS requests_per_s
FROM pooled_rounds r LEFT JOIN round_requests_told t USING (round_id)
WHERE NOT r.warmup AND r.end_ns IS NOT NULL GROUP BY r.case_id
"""

# Pauses in which the runtime unloaded the model; NULL where it was not asked or does not say.
_UNLOADS_PART = "SELECT case_id, sum(model_unloaded::INTEGER)::BIGINT AS unloads FROM pooled_rounds GROUP BY case_id"

# What the prompt's author expects decides; a judge only where nothing was expected.
SCORED = """
SELECT coalesce(any_value(first_case_id), case_id) AS case_id, request_id,
       coalesce(max(score) FILTER (WHERE scorer = 'expected'), avg(score) FILTER (WHERE scorer <> 'expected')) AS score,
       CASE WHEN count(score) FILTER (WHERE scorer = 'expected') > 0 THEN 'expected'
            ELSE string_agg(DISTINCT scorer, '+' ORDER BY scorer) END AS source
FROM scores LEFT JOIN later_blocks USING (case_id) WHERE score IS NOT NULL GROUP BY scores.case_id, request_id
"""

_QUALITY_PART = f"""
SELECT case_id, avg(score) AS quality_ratio, count(score) AS quality_n,
       string_agg(DISTINCT source, '+' ORDER BY source) AS quality_source
FROM ({SCORED}) GROUP BY case_id
"""  # noqa: S608 - our own text


def case_results(spans: str, case_requests: str, round_requests: str) -> str:
    """The query of the view, from three queries for what `condensed` has."""
    return f"""
WITH spans AS MATERIALIZED ({spans}), round_requests_told AS ({round_requests})
SELECT
  j.host_name AS host, coalesce(c.device, c.device_asked) AS device, c.runtime,
  coalesce(c.alias, c.model) AS model, c.variant, c.status, c.reason,
  coalesce(o.rounds, 0) AS rounds, coalesce(q.requests, 0) AS requests, coalesce(q.failed, 0) AS failed,
  q.ttft_avg_s, q.ttft_q[1] AS ttft_p50_s, q.ttft_q[2] AS ttft_p95_s,
  q.e2e_avg_s, q.e2e_q[1] AS e2e_p50_s, q.e2e_q[2] AS e2e_p95_s,
  q.itl_q[1] AS itl_p50_s, q.itl_q[2] AS itl_p95_s, q.tpot_avg_s,
  q.decode_tokens_per_s, q.decode_basis, q.prefill_tokens_per_s, o.output_tokens_per_s,
  q.output_tokens, q.prompt_tokens, q.cached_prompt_tokens, q.tokens_source, q.accounting,
  c.load_ns / 1e9 AS load_s, q.cold_ttft_s,
  s.ram_peak_bytes, s.vram_peak_bytes, s.gpu_busy_ratio,
  s.busy_cores / h.logical_cores AS cpu_busy_ratio, s.energy_j, coalesce(s.samples, 0) AS samples,
  c.case_id, c.run_id, c.job_id, c.case_index, c.message, c.concurrency, c.prompt_set,
  c.planned_rounds, c.warmup_rounds, c.max_tokens, c.temperature, c.top_p, c.seed, c.stream,
  c.model AS model_asked, c.device_asked, c.ep_requested, c.ep_actual,
  coalesce(c.ep_actual, c.ep_requested) AS execution_provider,
  c.size_bytes, c.license, c.context_length, c.quantisation,
  coalesce(q.stamp_source, c.stamp_source) AS stamp_source,
  c.remote, c.dropped_readings, c.unmeasured, c.components, o.load_cpu_ratio, s.swap_growth_bytes,
  q.coalesced_ratio,
  coalesce(q.ttft_n, 0) AS ttft_n, coalesce(q.e2e_n, 0) AS e2e_n, coalesce(q.itl_n, 0) AS itl_n,
  j.fingerprint, c.started_at, c.finished_at,
  c.request_rate_per_s, c.arrival, o.requests_per_s, q.lateness_avg_s, q.lateness_p95_s,
  c.round_duration_s, c.minimum_duration_s, c.interval_ratio, c.maximum_rounds,
  c.prompt_token_count, q.prompt_tokens_min, q.prompt_tokens_max, c.prefix_cache, c.deterministic,
  c.page_cache, c.page_cache_ratio, c.idle_pause_s, q.idle_ttft_s, c.unload_ns / 1e9 AS unload_s,
  s.ram_loaded_bytes, s.ram_before_unload_bytes, s.ram_after_unload_bytes,
  k.ttft_error_s, k.itl_error_s, o.rounds_s, c.blocks,
  s.ram_baseline_bytes, s.ram_steady_bytes, s.ram_anon_peak_bytes, s.ram_file_peak_bytes,
  if(s.ram_before_unload_bytes < s.ram_after_unload_bytes, 0, s.ram_before_unload_bytes - s.ram_after_unload_bytes)
    AS ram_given_back_bytes,
  s.vram_basis, s.vram_given_back_bytes, s.busy_cores,
  c.path, c.keep_warm_period_s, c.conditions, c.device_libraries, c.evidence, c.forecast,
  w.quality_ratio, coalesce(w.quality_n, 0) AS quality_n, w.quality_source,
  q.server_prefill_avg_s, q.server_decode_tokens_per_s, u.unloads,
  {_CERTIFICATE_REASON} AS instrument_reason
FROM pooled_cases c
JOIN jobs j USING (job_id)
LEFT JOIN (SELECT fingerprint, max(logical_cores) AS logical_cores FROM hosts GROUP BY fingerprint) h
  ON h.fingerprint = j.fingerprint
LEFT JOIN ({case_requests}) q ON q.case_id = c.case_id
LEFT JOIN ({_CERTIFICATE_PART}) k
  ON k.case_id = c.case_id AND k.stamp_source = coalesce(q.stamp_source, c.stamp_source)
LEFT JOIN ({_CERTIFIED_PART}) m ON m.job_id = c.job_id
LEFT JOIN ({_ROUND_PART}) o ON o.case_id = c.case_id
LEFT JOIN ({_QUALITY_PART}) w ON w.case_id = c.case_id
LEFT JOIN ({_UNLOADS_PART}) u ON u.case_id = c.case_id
LEFT JOIN ({SAMPLE_PART}) s ON s.case_id = c.case_id
"""  # noqa: S608 - our own text


VIEWS: dict[str, tuple[str, str]] = pooling.VIEWS | {
    "request_metrics": (REQUEST_METRICS, "Metrics of each request, warm-up included; times in seconds."),
    "case_stages": (CASE_STAGES, "What the runtime held at each stage of each case; bytes."),
    "case_results": (
        case_results(*(one.whole for one in condensed.TABLES)),
        "Results of each case over the ok requests of its counted rounds; NULL: unmeasured.",
    ),
}
"""Name → (query, comment), in the order to create them."""
