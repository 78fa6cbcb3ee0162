"""How requests of a round follow each other: the load process against the scripted server."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchfleet.failures import Reason
from benchfleet_agent.load.record import RequestRecord, Status, TokensSource
from fakes.load_link import LATE_NS, MS, Fake, Load, running_load, running_server

pytestmark = pytest.mark.timing
S = 1_000_000_000
QUICK = {"ttft_ms": 5, "gap_ms": 1, "tokens": 4}


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    with running_server() as fake:
        yield fake


@pytest.fixture(scope="module")
def load(fake: Fake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    with running_load(tmp_path_factory.mktemp("load"), fake) as load:
        yield load


def _in_order(records: dict[str, RequestRecord]) -> list[RequestRecord]:
    return sorted(records.values(), key=lambda record: record.position)


def _lateness_ns(record: RequestRecord) -> int:
    assert record.start_ns is not None
    assert record.scheduled_ns is not None
    return record.start_ns - record.scheduled_ns


def test_an_open_loop_sends_at_its_rate_whatever_the_answers_take(load: Load) -> None:
    load.open(concurrency=16)
    records, finished = load.round({"tag": "slow", "ttft_ms": 300}, rate_per_s=20, duration_s=1, arrival="constant")
    sent = _in_order(records)

    assert [record.position for record in sent] == list(range(20))
    due = [(record.scheduled_ns or 0) - finished["start_ns"] for record in sent]
    assert due == [position * S // 20 for position in range(20)]
    late = [_lateness_ns(record) for record in sent]
    assert min(late) >= 0  # never early
    assert statistics.median(late) < 20 * MS  # 300 ms answers would make a closed loop far later than that


def test_a_server_that_is_too_slow_for_its_rate_makes_requests_late_and_they_say_so(load: Load) -> None:
    load.open(concurrency=1)
    records, _ = load.round({"tag": "slow", "ttft_ms": 100, "tokens": 1}, rate_per_s=50, duration_s=0.2)
    late = [_lateness_ns(record) for record in _in_order(records)]

    assert late == sorted(late)
    assert late[-1] > 500 * MS


def test_poisson_arrivals_are_the_same_for_a_seed(load: Load) -> None:
    load.open(concurrency=8)
    pace = {"rate_per_s": 100, "duration_s": 0.5, "arrival": "poisson"}
    rounds = [load.round({"tag": "q", **QUICK}, **pace, seed=seed) for seed in ("1", "1", "2")]
    due = [[(r.scheduled_ns or 0) - end["start_ns"] for r in _in_order(records)] for records, end in rounds]

    assert due[0] == due[1] != due[2]
    assert len({later - earlier for earlier, later in itertools.pairwise(due[0])}) > 5


def test_a_duration_repeats_the_prompts_in_a_closed_loop_until_time_is_up(load: Load) -> None:
    load.open(concurrency=2)
    records, finished = load.round({"tag": "a", **QUICK}, {"tag": "b", **QUICK}, duration_s=0.3)
    sent = _in_order(records)

    assert len(sent) > 10
    assert {record.scheduled_ns for record in sent} == {None}
    assert all((record.start_ns or 0) < finished["start_ns"] + 300 * MS + LATE_NS for record in sent)
    assert finished["end_ns"] >= finished["start_ns"] + 290 * MS


def test_prefixes_reach_the_server_and_are_recorded(load: Load, fake: Fake) -> None:
    load.open()
    records, _ = load.round({"tag": "pre-a"}, {"tag": "pre-b"}, {"tag": "pre-c"}, prefix_seed="42/0")

    prefixes = [records[tag].prompt_prefix for tag in ("pre-a", "pre-b", "pre-c")]
    assert prefixes == [fake.truth(tag)["prefix"] for tag in ("pre-a", "pre-b", "pre-c")]
    assert len(set(prefixes)) == 3
    again, _ = load.round({"tag": "pre-d"}, prefix_seed="42/0")
    assert again["pre-d"].prompt_prefix == prefixes[0]


def test_pieces_cut_the_answer_into_what_arrived_together(load: Load) -> None:
    load.open()
    records, _ = load.round(
        {"tag": "plain", "tokens": 3}, {"tag": "several", "tokens": 8, "tokens_per_chunk": 4},
        {"tag": "reasoned", "tokens": 4, "reasoning": 2},
    )  # fmt: skip

    assert records["plain"].piece_lengths == (4, 4, 4)
    assert records["several"].piece_lengths == (16, 16)
    assert records["reasoned"].piece_lengths == (0, 0, 4, 4)
    assert records["reasoned"].other_lengths == (4, 4, 0, 0)
    assert records["plain"].other_lengths == ()
    assert all(sum(record.piece_lengths) == len(record.text) for record in records.values())


@pytest.mark.parametrize("pace", [{"rate_per_s": 0}, {"rate_per_s": -1}, {"duration_s": 0}, {"rate_per_s": "5"}])
def test_a_pace_that_makes_no_sense_is_refused(load: Load, pace: dict[str, object]) -> None:
    load.open()
    load.start([{"tag": "never"}], **pace)
    refusal = load.child.receive(10)
    assert (refusal["event"], refusal["reason"]) == ("failed", Reason.INVALID_SPEC)


def test_a_tokenizer_that_is_broken_costs_the_count_and_not_the_request(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with running_load(tmp_path, fake) as load:
        load.open(tokenizer_path=str(tmp_path / "tokenizer.json"))
        records, _ = load.round({"tag": "uncounted", "usage": False}, {"tag": "counted"})

    assert {record.status for record in records.values()} == {Status.OK}
    assert records["uncounted"].tokens_source is TokensSource.ESTIMATE
    assert records["counted"].tokens_source is TokensSource.USAGE
