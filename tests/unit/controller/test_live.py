from __future__ import annotations

import io

from benchfleet.v1 import event_pb2, job_pb2
from benchfleet_controller.live import HostProgress, Progress, printable
from fakes.events import JobEvents, failed_request, ok_request, spec


def _job() -> JobEvents:
    """Two cases of a job with a warm-up round and two counted ones; only the first case is carried out."""
    job = JobEvents()
    job.job_started(spec("c1", "c2"))
    job.case_started("c1")
    job.progress("c1")
    job.loaded("c1")
    job.round("c1", "r0", 0, 0, 1, [ok_request("q0", 0, [0.1, 0.2], 0.3)], warmup=True)
    job.round("c1", "r1", 1, 1, 2, [ok_request("q1", 1, [0.1, 0.2], 0.3), failed_request("q2", 1)])
    job.case_finished("c1")
    return job


def _texts(progress: HostProgress, job: JobEvents) -> list[str]:
    texts = []
    for event in job.events:
        progress.apply(event)
        texts.append(progress.text)
    return texts


def test_a_host_says_what_it_does() -> None:
    progress = HostProgress()

    assert progress.text == "waiting"
    assert _texts(progress, _job()) == [
        "accepted",
        "case 1/2: tiny-cpu:1",
        "loading",
        "tiny-cpu:1 loaded in 1.0 s",
        "case 1/2 warm-up round 1/3, 0 requests",
        "case 1/2 warm-up round 1/3, 1 requests",
        "case 1/2 warm-up round 1/3, 1 requests",
        "case 1/2 round 2/3, 0 requests",
        "case 1/2 round 2/3, 1 requests",
        "case 1/2 round 2/3, 2 requests",
        "case 1/2 round 2/3, 2 requests",
        "case 1/2 succeeded",
    ]
    assert not progress.ended


def test_the_lines_that_stay_are_the_turning_points() -> None:
    progress = HostProgress()
    kinds = [event.WhichOneof("kind") for event in _job().events if progress.apply(event)]

    assert kinds == [
        "case_started",
        "progress_reported",
        "model_loaded",
        "round_finished",
        "round_finished",
        "case_finished",
    ]


def test_a_share_is_said_and_only_its_end_stays() -> None:
    progress, job = HostProgress(), JobEvents()
    half = job.add(progress_reported=event_pb2.ProgressReported(case_id="c1", message="downloading", fraction=0.5))
    whole = job.add(progress_reported=event_pb2.ProgressReported(case_id="c1", message="downloading", fraction=1.0))

    assert not progress.apply(half)
    assert progress.text == "downloading 50%"
    assert progress.apply(whole)
    assert progress.text == "downloading 100%"


def test_a_case_without_a_variant_says_so_and_why() -> None:
    progress, job = HostProgress(), JobEvents()
    job.job_started(spec("c1"))
    job.add(case_started=event_pb2.CaseStarted(case_id="c1"))
    failure = event_pb2.Failure(reason="model_not_found", message="no such model; did you mean tiny?")
    job.case_finished("c1", "failed", failure=failure)

    assert _texts(progress, job)[1:] == [
        "case 1/1: no such model",
        "case 1/1 failed: no such model; did you mean tiny?",
    ]


def test_a_job_that_ends_early_says_why() -> None:
    progress, job = HostProgress(), JobEvents()
    job.job_started(spec("c1"))
    failure = event_pb2.Failure(reason="cancelled", message="cancelled on request")
    job.job_finished(job_pb2.JOB_STATE_CANCELLED, failure=failure)

    assert _texts(progress, job)[-1] == "done: cancelled on request"
    assert progress.ended


def test_a_stream_that_goes_on_in_the_middle_claims_no_numbers() -> None:
    progress, job = HostProgress(), _job()
    job.events = job.events[7:]  # what came before was fetched and stored earlier

    assert _texts(progress, job) == [
        "case round 2, 0 requests",
        "case round 2, 1 requests",
        "case round 2, 2 requests",
        "case round 2, 2 requests",
        "case succeeded",
    ]


def _begin(job: JobEvents, index: int, kind: str, *, warmup: bool = True) -> None:
    job.add(round_started=event_pb2.RoundStarted(case_id="c1", round_index=index, warmup=warmup, kind=kind))


def test_rounds_that_are_none_to_people_have_other_words_and_no_number() -> None:
    progress, job = HostProgress(), JobEvents()
    job.job_started(spec("c1"))
    job.case_started("c1")
    for index, kind in enumerate(("calibration", "calibration", "warmup", "counted", "counted", "idle")):
        _begin(job, index, kind, warmup=kind != "counted")

    assert _texts(progress, job)[2:] == [
        "case 1/1 checking prompt lengths",
        "case 1/1 checking prompt lengths",
        "case 1/1 warm-up round 1/3, 0 requests",
        "case 1/1 round 2/3, 0 requests",
        "case 1/1 round 3/3, 0 requests",
        "case 1/1 request after the pause",
    ]


def test_the_end_of_a_length_check_is_no_turning_point() -> None:
    progress, job = HostProgress(), JobEvents()
    _begin(job, 0, "calibration")
    ended = job.add(round_finished=event_pb2.RoundFinished(case_id="c1"))
    assert [progress.apply(event) for event in job.events] == [False, False]
    _begin(job, 1, "counted", warmup=False)
    progress.apply(job.events[-1])
    assert progress.apply(ended)


def test_where_the_number_of_rounds_is_open_the_most_is_said() -> None:
    progress, job = HostProgress(), JobEvents()
    job.job_started(spec("c1", stop=job_pb2.StopSpec(interval_ratio=0.02, maximum_round_count=49)))
    job.case_started("c1")
    _begin(job, 3, "counted", warmup=False)

    assert _texts(progress, job)[-1] == "case 1/1 round 4 (at most 50), 0 requests"


def test_how_true_the_time_stamps_are_is_said() -> None:
    progress, job = HostProgress(), JobEvents()
    job.add(certificate_recorded=event_pb2.CertificateRecorded(concurrency=8, ttft_error_p99_ns=250_000))
    failure = event_pb2.Failure(reason="internal", message="no port is free")
    job.add(certificate_recorded=event_pb2.CertificateRecorded(failure=failure))

    assert [progress.apply(event) for event in job.events[:1]] == [True]
    assert progress.text == "checked its time stamps: first tokens are known to ±0.25 ms with 8 in flight"
    assert _texts(progress, job)[-1] == "its time stamps could not be checked: no port is free"


def test_without_a_terminal_lines_are_plain_and_each_host_is_named() -> None:
    stream = io.StringIO()
    with Progress(["a"], stream) as progress:
        for event in _job().events:
            progress.watch("a", event)
        progress.say("a word")

    lines = stream.getvalue().splitlines()
    assert lines[0] == "a: case 1/2: tiny-cpu:1"
    assert lines[-2:] == ["a: case 1/2 succeeded", "a word"]
    assert "\x1b" not in stream.getvalue()


def test_a_quiet_progress_says_nothing() -> None:
    stream = io.StringIO()
    with Progress(["a"], stream, quiet=True) as progress:
        progress.say("a word")
        for event in _job().events:
            progress.watch("a", event)

    assert stream.getvalue() == ""


def test_text_from_elsewhere_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\nc\u202ed – é") == "a [2Jb  c d – é"
