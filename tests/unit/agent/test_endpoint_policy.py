from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.config import AgentConfig, ConfigError
from benchfleet_agent.endpoint_policy import EndpointPolicy, parse_pattern
from benchfleet_agent.executor import Runtimes

METADATA = "http://169.254.169.254/latest/meta-data"


def reason(policy: EndpointPolicy, url: str) -> Reason | None:
    try:
        policy.check(url)
    except WorkFailed as error:
        return error.failure.reason
    return None


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:11434",
        "http://localhost:8080/v1",
        "https://LOCALHOST:8443",
        "http://[::1]:8080",
        "127.0.0.1:11434",
        "http://127.8.9.10/openai/v1",
    ],
)
def test_without_a_setting_this_hosts_own_servers_may_be_asked(url: str) -> None:
    assert reason(EndpointPolicy.of(), url) is None


@pytest.mark.parametrize(
    "url",
    [
        METADATA,
        "http://[fd00:ec2::254]/",
        "http://metadata.google.internal",
        "http://10.0.0.7:8080",
        "http://router/v1",
        "http://0.0.0.0:8080",
        "http://127.1:8080",
        "http://2130706433:8080",
        "http://0x7f000001:8080",
        "http://0177.0.0.1:8080",
        "http://127.0.0.1.nip.io:8080",
        "http://localhost.example:8080",
        "http://x.localhost:8080",
        "http://[::]:8080",
    ],
)
def test_without_a_setting_nothing_else_may(url: str) -> None:
    assert reason(EndpointPolicy.of(), url) is Reason.ENDPOINT_NOT_ALLOWED


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@127.0.0.1:8080",
        "http://127.0.0.1:8080@10.0.0.7/",
        "http://127.0.0.1\\@10.0.0.7:8080",
        "http://127.0.0.1:8080/../admin",
        "http://127.0.0.1:8080/%2e%2e/admin",
        "http://127.0.0.1:8080//10.0.0.7/v1",
        "http://127.0.0.1:8080/v1?to=http://10.0.0.7",
        "http://127.0.0.1:8080/v1#x",
        "file:///etc/passwd",
        "gopher://127.0.0.1:70",
        "http://[::1%25eth0]:8080",
        "http://①27.0.0.1:8080",
        "http://localhost.:8080",
        "http://[::1].evil.com/v1",
        "http://[::1]evil.com",
        "http://evil.com[::1]",
        "http://[::1]:80.evil.com",
        "http://127.0.0.1:",
        "http://127.0.0.1:+80",
        "http://127.0.0.1:080",
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:8080/a b",
        "http://127.0.0.1:8080/\r\nHost: x",
        "http://127.0.0.1:8080/" + "x" * 3_000,
        "http://",
        "://",
    ],
)
def test_urls_that_programs_read_differently_are_refused_even_for_loopback(url: str) -> None:
    assert reason(EndpointPolicy.of(), url) is Reason.INVALID_SPEC


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("LocalHost:8080/v1/", "http://localhost:8080/v1"),
        ("http://[0:0:0::1]:8080", "http://[::1]:8080/v1"),
        ("https://127.0.0.1/openai/v1", "https://127.0.0.1/openai/v1"),
    ],
)
def test_what_is_asked_is_put_together_from_what_was_judged(url: str, asked: str) -> None:
    assert EndpointPolicy.of().check(url) == asked


def test_what_is_refused_is_told_with_what_to_write() -> None:
    with pytest.raises(WorkFailed) as caught:
        EndpointPolicy.of().check("http://gpu-box:8000/v1")

    wanted = 'allow = ["http://127.0.0.1:*", "http://localhost:*", "http://gpu-box:8000"]'
    assert wanted in caught.value.failure.message
    assert "[runtime.endpoint]" in caught.value.failure.message
    policy = EndpointPolicy.of(allow=["http://127.0.0.1:*", "http://localhost:*", "http://gpu-box:8000"])
    assert reason(policy, "http://gpu-box:8000/v1") is None


def test_a_list_replaces_loopback_and_keeps_the_configured_url() -> None:
    policy = EndpointPolicy.of("http://127.0.0.1:5273", ["http://gpu-box:*"])

    assert reason(policy, "http://gpu-box:1234/v1") is None
    assert reason(policy, "http://gpu-box") is None
    assert reason(policy, "http://127.0.0.1:5273/v1") is None
    assert reason(policy, "http://127.0.0.1:2375") is Reason.ENDPOINT_NOT_ALLOWED
    assert reason(policy, "https://gpu-box:1234") is Reason.ENDPOINT_NOT_ALLOWED
    assert reason(policy, "http://gpu-box.evil.example:1234") is Reason.ENDPOINT_NOT_ALLOWED


def test_the_configured_url_does_not_take_loopback_away() -> None:
    policy = EndpointPolicy.of("http://gpu-box:8000")

    assert reason(policy, "http://gpu-box:8000") is None
    assert reason(policy, "http://gpu-box:8001") is Reason.ENDPOINT_NOT_ALLOWED
    assert reason(policy, "http://127.0.0.1:11434") is None


def test_a_path_covers_what_lies_below_it_and_nothing_beside() -> None:
    policy = EndpointPolicy.of(allow=["https://gateway/tenant-a/v1"])

    assert reason(policy, "https://gateway/tenant-a") is None
    assert reason(policy, "https://gateway:443/tenant-a/v1") is None
    assert reason(policy, "https://gateway/tenant-a/sub/v1") is None
    assert reason(policy, "https://gateway/tenant-ab/v1") is Reason.ENDPOINT_NOT_ALLOWED
    assert reason(policy, "https://gateway/v1") is Reason.ENDPOINT_NOT_ALLOWED
    assert reason(policy, "https://gateway/tenant-a/../tenant-b/v1") is Reason.INVALID_SPEC


def test_a_metadata_address_takes_being_listed_as_it_is() -> None:
    assert reason(EndpointPolicy.of(allow=["http://metadata:*"]), METADATA) is Reason.ENDPOINT_NOT_ALLOWED
    assert reason(EndpointPolicy.of(allow=["http://169.254.169.254"]), METADATA) is None


def test_addresses_are_compared_as_addresses() -> None:
    policy = EndpointPolicy.of(allow=["http://[2001:DB8:0:0::1]:*"])

    assert reason(policy, "http://[2001:db8::1]:9") is None
    assert reason(policy, "http://[2001:db8::2]:9") is Reason.ENDPOINT_NOT_ALLOWED


@pytest.mark.parametrize(
    "pattern", ["*", "http://*", "http://*.example:80", "gpu-box:80", "ftp://gpu-box", "http://a:*:*", "http://u:p@h"]
)
def test_a_pattern_that_makes_no_sense_is_an_error(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_pattern(pattern)


@given(st.text(max_size=60), st.sampled_from(["http://", "https://", ""]))
def test_any_text_is_judged_and_never_breaks_the_judge(text: str, scheme: str) -> None:
    assert reason(EndpointPolicy.of(), scheme + text) in (None, Reason.ENDPOINT_NOT_ALLOWED, Reason.INVALID_SPEC)


def test_the_runtimes_of_an_agent_keep_to_its_policy() -> None:
    runtimes = Runtimes(AgentConfig())
    narrow = Runtimes(AgentConfig(endpoint_allow=("http://gpu-box:*",)))

    with pytest.raises(WorkFailed) as caught:
        runtimes.find("endpoint", METADATA)

    assert caught.value.failure.reason is Reason.ENDPOINT_NOT_ALLOWED
    assert runtimes.find("endpoint", "http://127.0.0.1:1/v1").name == "endpoint"
    assert narrow.find("endpoint", "http://gpu-box:1/v1").name == "endpoint"
    with pytest.raises(WorkFailed, match="may not ask"):
        narrow.find("endpoint", "http://127.0.0.1:1/v1")


@pytest.mark.parametrize("changes", [{"endpoint_url": "http://u:p@h"}, {"endpoint_allow": ("http://*",)}])
def test_settings_that_make_no_sense_keep_the_agent_from_starting(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"\[runtime.endpoint\]"):
        Runtimes(AgentConfig(**changes))


def test_the_agents_own_endpoint_may_be_named_wherever_it_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOUNDRY_LOCAL_ENDPOINT", "http://gpu-box:5273")
    assert Runtimes(AgentConfig()).find("endpoint", "http://gpu-box:5273/v1").name == "endpoint"
    for url in ("http://gpu-box:5274/v1", METADATA):
        with pytest.raises(WorkFailed) as caught:
            Runtimes(AgentConfig()).find("endpoint", url)
        assert caught.value.failure.reason is Reason.ENDPOINT_NOT_ALLOWED
    monkeypatch.setenv("FOUNDRY_LOCAL_ENDPOINT", "http://<windows-host>:5273/v1")
    assert Runtimes(AgentConfig()).find("endpoint", "http://127.0.0.1:1").name == "endpoint"  # it starts all the same
