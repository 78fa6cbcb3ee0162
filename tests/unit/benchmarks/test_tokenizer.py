from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from benchmarks.peers.tokenizer import TOKEN, write_tokenizer

from fakes import openai_server


def test_a_client_that_counts_for_itself_finds_the_servers_number(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer")

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    assert TOKEN == openai_server.TOKEN
    assert len(tokenizer.encode(TOKEN * 64).ids) == 64
    assert "chat_template" in json.loads((folder / "tokenizer_config.json").read_text())


def test_what_a_request_carries_overrides_the_default_field_by_field() -> None:
    default = openai_server.Script(tag="gap", tokens=64)

    plain = openai_server.read_script({"messages": [{"role": "user", "content": "Hello."}]}, default)
    changed = openai_server.read_script({"messages": [{"role": "user", "content": '{"tokens": 2}'}]}, default)

    assert plain == default
    assert (changed.tag, changed.tokens) == ("gap", 2)
