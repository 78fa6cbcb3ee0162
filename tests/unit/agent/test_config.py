from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchfleet_agent.config import AgentConfig, ConfigError, JournalConfig, load_config, override, parse_cpus


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_read_and_flags_win_over_it(tmp_path: Path) -> None:
    text = 'listen = "127.0.0.1:1"\n[runtime.foundry]\ncpus = [0]\noffline = true\n'
    config = override(load_config(_file(tmp_path, text)), {"listen": "127.0.0.1:2", "cpus": None})

    assert config.listen == "127.0.0.1:2"
    assert config.foundry.cpus == (0,)
    assert config.foundry.offline


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("listn = 1", "did you mean listen"),
        ("[runtime.foundry]\ncpu = [0]", "did you mean runtime.foundry.cpus"),
        ("listen = 5", "listen must be a str, not int"),
        ('[runtime.foundry]\ncpus = ["0"]', "list of processor numbers"),
        ("model_roots = [1]", "list of strings"),
        ("listen = ", "not TOML"),
        ('[runtime.endpoint]\ntokenizers = { "qwen" = "/nowhere" }', "'/nowhere' for qwen is no file on this host"),
        ("[runtime.endpoint]\nallow = [1]", "runtime.endpoint.allow must be a list of strings"),
        ("[journal]\nmax_byte = 1", "did you mean journal.max_bytes"),
        ('[journal]\nmax_bytes = "eight"', 'such as "8 GiB" or "unlimited"'),
        ("[journal]\nmax_bytes = true", 'such as "8 GiB" or "unlimited"'),
        ("[journal]\nmax_bytes = 5e9", 'such as "8 GiB" or "unlimited"'),
        ("[journal]\nmax_bytes = 1000", "at least 1 MiB"),
        ('[journal]\nmax_age_days = "30"', "max_age_days must be a number of days"),
        ("[journal]\nmax_age_days = -1", "max_age_days must be a number of days"),
        ("[journal]\nmax_age_days = nan", "max_age_days must be a number of days"),
        ('[probes]\ndisabled = ["nvidai"]', "no probe 'nvidai'; did you mean nvidia"),
        ("[probes]\nperiod_ms = {sytem = 200}", "no probe 'sytem'; did you mean system"),
        ("[probes]\nperiod_ms = {system = 5}", "period of the probe system must lie between 100 and 60000 ms"),
        ("[probes]\nperiod_ms = {system = 0.5}", "whole milliseconds"),
    ],
)
def test_a_file_that_makes_no_sense_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(_file(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4_000_000", 4_000_000),
        ('"8 GiB"', 8 << 30),
        ('"1.5MiB"', 3 << 19),
        ('"20 MB"', 20_000_000),
        ('"2000000 B"', 2_000_000),
        ('"unlimited"', None),
    ],
)
def test_the_size_of_the_journal_is_bytes_or_a_text_with_a_unit(tmp_path: Path, text: str, size: int | None) -> None:
    assert load_config(_file(tmp_path, f"[journal]\nmax_bytes = {text}")).journal.max_bytes == size


def test_the_journal_is_bounded_and_old_jobs_are_told_of_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    assert AgentConfig().journal == JournalConfig(8 << 30, 30.0)
    assert load_config(_file(tmp_path, "[journal]\nmax_age_days = 2.5")).journal == JournalConfig(8 << 30, 2.5)
    assert load_config(_file(tmp_path, "[journal]\nmax_age_days = 0")).journal.max_age_days is None


def test_probes_are_left_out_and_read_less_often_also_those_of_other_platforms(tmp_path: Path) -> None:
    text = '[probes]\ndisabled = ["nvidia", "macos_gpu", "rapl"]\nperiod_ms = { system = 200, windows_power = 5_000 }'

    probes = load_config(_file(tmp_path, text)).probes

    assert probes.disabled == ("nvidia", "macos_gpu", "rapl")
    assert probes.periods_ms == {"system": 200, "windows_power": 5_000}


def test_servers_that_callers_may_name_are_carried_as_they_are_written(tmp_path: Path) -> None:
    text = '[runtime.endpoint]\nallow = ["http://127.0.0.1:*", "https://lab7:8443"]'

    assert load_config(_file(tmp_path, text)).endpoint_allow == ("http://127.0.0.1:*", "https://lab7:8443")
    assert AgentConfig().endpoint_allow == ()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml cannot be read"):
        load_config(tmp_path / "absent.toml")


@pytest.mark.parametrize("listen", ["127.0.0.1:50551", "localhost:50551", "[::1]:50551"])
def test_loopback_needs_no_permission(listen: str) -> None:
    AgentConfig(listen=listen).check_listen()


@pytest.mark.parametrize("listen", ["0.0.0.0:50551", "192.168.1.5:50551", "[::]:50551", "lab1:50551"])
def test_beyond_loopback_plaintext_must_be_accepted_explicitly(listen: str) -> None:
    with pytest.raises(ConfigError, match="--insecure-plaintext"):
        AgentConfig(listen=listen).check_listen()
    AgentConfig(listen=listen, insecure_plaintext=True).check_listen()


def test_an_address_that_is_none_says_how_to_write_one() -> None:
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        AgentConfig(listen="127.0.0.1:http").check_listen()


def test_processors_are_read_from_lists_ranges_and_all() -> None:
    count = os.cpu_count() or 1

    assert parse_cpus("0") == (0,)
    assert parse_cpus("all") == tuple(range(count))
    with pytest.raises(ConfigError, match="names no processors"):
        parse_cpus("first")
    with pytest.raises(ConfigError, match="no processor 9999"):
        parse_cpus("9999")
