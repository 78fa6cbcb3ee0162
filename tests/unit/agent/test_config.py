from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchfleet_agent.config import AgentConfig, ConfigError, load_config, override, parse_cpus


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
    ],
)
def test_a_file_that_makes_no_sense_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(_file(tmp_path, text))


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
