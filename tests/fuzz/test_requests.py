"""Requests that no controller would send, on a real agent that measures meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchfleet.transport import MAX_MESSAGE_BYTES
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import job_pb2
from fakes.specs import job_spec
from fuzz.conftest import CALLS, SERVICE, Target

HOSTILE_TEXTS = (
    "", " ", "\0", "\x1b]0;pwned\x07\x1b[2J", "\u202egnp.exe", "a\r\nb: c", "x" * 5_000, "𝔘" * 400,
    "'; DROP TABLE jobs; --", "../../../etc/passwd", "..\\..\\windows\\system32", "/etc/passwd", "~root/.ssh/id_rsa",
    "\\\\?\\C:\\x", "CON/x", "%2e%2e/%00",
    "${jndi:ldap://127.0.0.1/x}", "$(touch /tmp/pwned)/x", "foundry", "endpoint", "tiny-random", "cpu", "run-1",
)  # fmt: skip
HOSTILE_URLS = (
    "http://169.254.169.254/latest", "http://10.0.0.1", "http://u:p@127.0.0.1:9", "file:///etc/passwd", "http://127.0.0.1:9",
    "http://[::1", "http://127.0.0.1:9/../x", "http://127.0.0.1:99999", "http://" + "x" * 3_000,
)  # fmt: skip
INTEGERS = (0, 1, -1, 2**31 - 1, -(2**31))
WIDE = (*INTEGERS, 2**63 - 1, -(2**63))
NUMBERS = (0.0, -0.0, -1.0, 1e-320, 1e308, math.nan, math.inf, -math.inf)

Attack = Callable[[Any], Any]


def attack(examples: int, *, chance: bool = False) -> Attack:
    """Hypothesis' settings: the short form is the same every time, the long one is not."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=not chance,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def values(field: Any) -> st.SearchStrategy[Any]:
    """What a field may be given, by its type."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        texts = st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=30)
        return texts | st.sampled_from(HOSTILE_URLS) if "url" in field.name else texts
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.sampled_from(NUMBERS) | st.floats()
    if field.cpp_type == FieldDescriptor.CPPTYPE_INT64:
        return st.sampled_from(WIDE)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return messages(field.message_type)
    return st.sampled_from(INTEGERS)


def messages(descriptor: Any) -> st.SearchStrategy[Message]:
    """Messages of a type with any of their fields set."""
    made = GetMessageClass(descriptor)
    fields = {
        field.name: st.lists(values(field), max_size=3) if field.is_repeated else values(field)
        for field in descriptor.fields
    }
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: made(**given))


@st.composite
def spoiled_specs(draw: st.DrawFn) -> job_pb2.JobSpec:
    """A spec that makes sense but for one or two fields."""
    spec = job_spec()
    spec.skip_certificate, spec.idle_baseline_s = True, 0
    spec.cases[0].runtime, spec.cases[0].endpoint_url = "endpoint", "http://127.0.0.1:9"
    places: list[Message] = [
        spec, spec.cases[0], spec.cases[0].sampling, spec.cases[0].deadlines, spec.cases[0].stop, spec.prompt_sets[0],
        spec.prompt_sets[0].prompts[0], spec.prompt_sets[0].prompts[0].messages[0],
    ]  # fmt: skip
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places))
        scalar = [f for f in place.DESCRIPTOR.fields if f.message_type is None and not f.is_repeated]
        field = draw(st.sampled_from(scalar))
        setattr(place, field.name, draw(values(field)))
    return spec


def valid(name: str) -> bytes:
    """A request of a call that makes sense."""
    if name == "StartJob":
        return pb.StartJobRequest(job_id="job-1", spec=job_spec()).SerializeToString()
    request = GetMessageClass(SERVICE.methods_by_name[name].input_type)()
    for field in request.DESCRIPTOR.fields:
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            setattr(request, field.name, "tiny")
    return bytes(request.SerializeToString())


def spoil(data: bytes, at: int, value: int, cut: int) -> bytes:
    """The bytes with one changed and some cut off their end."""
    changed = bytearray(data or b"\x0a")
    changed[at % len(changed)] = value
    return bytes(changed[: len(changed) - cut % len(changed)])


BYTES = st.binary(max_size=200) | st.builds(
    spoil, st.sampled_from(CALLS).map(valid), st.integers(0, 2_000), st.integers(0, 255), st.integers(0, 20)
)
CALL = st.sampled_from([name for name in CALLS if name != "MeasureLimits"])
"""MeasureLimits takes no field and works for seconds; it has its own test."""


def send_bytes(target: Target, examples: int, *, chance: bool = False) -> None:
    @attack(examples, chance=chance)
    @given(CALL, BYTES)
    def check(name: str, data: bytes) -> None:
        target.judge(name, data)

    check()


def send_values(target: Target, examples: int, *, chance: bool = False) -> None:
    @attack(examples, chance=chance)
    @given(CALL.flatmap(lambda name: st.tuples(st.just(name), messages(SERVICE.methods_by_name[name].input_type))))
    def check(call: tuple[str, Message]) -> None:
        target.judge(*call)

    check()


def send_specs(target: Target, examples: int, *, chance: bool = False) -> None:
    @attack(examples, chance=chance)
    @given(st.sampled_from(["job-1", *HOSTILE_TEXTS]) | st.uuids().map(str), spoiled_specs())
    def check(job_id: str, spec: job_pb2.JobSpec) -> None:
        target.judge("StartJob", pb.StartJobRequest(job_id=job_id, spec=spec))

    check()


def test_bytes_that_are_no_request_are_the_callers_mistake(attacked: Target) -> None:
    assert {attacked.call(name, b"\xff\xff\xff") for name in CALLS} == {grpc.StatusCode.INVALID_ARGUMENT}
    send_bytes(attacked, 150)


def test_absurd_values_are_refused_in_every_call(attacked: Target) -> None:
    send_values(attacked, 150)


def test_jobs_that_make_no_sense_are_refused(attacked: Target) -> None:
    send_specs(attacked, 100)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_that_for_longer_and_never_the_same_twice(attacked: Target) -> None:
    send_bytes(attacked, 1_000, chance=True)
    send_values(attacked, 1_000, chance=True)
    send_specs(attacked, 500, chance=True)


def test_what_is_too_large_or_too_deep_is_refused(attacked: Target) -> None:
    deep = b"\x7b" * 200_000 + b"\x7c" * 200_000  # groups of an unknown field in each other
    for name in CALLS:
        assert attacked.call(name, bytes(MAX_MESSAGE_BYTES + 1)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert attacked.call(name, deep) is grpc.StatusCode.INVALID_ARGUMENT
    many = pb.StartJobRequest(job_id="job-1", spec=job_spec(*[job_pb2.CaseSpec()] * 100_000))
    assert attacked.judge("StartJob", many) is grpc.StatusCode.INVALID_ARGUMENT
    assert attacked.judge("GetJob", pb.GetJobRequest(job_id="x" * 1_000_000)) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("model", [text for text in HOSTILE_TEXTS if "/" in text or "\\" in text])
def test_a_path_out_of_the_model_roots_is_refused_by_all_calls_that_take_one(attacked: Target, model: str) -> None:
    requests = (pb.ResolveModelRequest, pb.PullModelRequest, pb.RemoveModelRequest, pb.UnloadModelRequest)
    for request in requests:
        name = request.__name__.removesuffix("Request")
        code = attacked.judge(name, request(runtime="foundry", model=model))
        assert code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT), (name, code)
