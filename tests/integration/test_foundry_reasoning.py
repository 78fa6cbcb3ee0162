"""What the real Foundry Local streams when a model reasons or fails, and what the load process makes of it.

The model is the tiny one with other numbers in it: each token has one successor, so that the answer is known.
Run as a script (``FOLDER MODEL…``), this file serves model directories until its stdin ends.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import numpy as np
import pytest

from benchfleet.failures import Reason
from benchfleet_agent.load.record import Accounting, Status, TokensSource
from benchfleet_agent.reference_model import genai, graph
from benchfleet_agent.reference_model.weights import Floats, LayerWeights, RandomWeights
from fakes.load_link import Fake, Load, running_load

REASONING, CONTENT = ascii_lowercase, ascii_uppercase
MARKERS = "[", "]"
"""A token each; the server counts them and shows them to nobody."""
COUNTED = len(REASONING) + len(CONTENT) + len(MARKERS)
CHUNKS = len(REASONING) + len(CONTENT)
THINKER, BREAKER, WRITER = "thinker", "breaker", "writer"
WRITTEN = "abéc漢d"
"""The writer's answer, a token a byte."""
BREAKS_AT = 160
"""The context that the breaking model's graph has room for; its configuration promises more."""


class Scripted(RandomWeights):
    """A model whose next token depends on nothing but its last one, from the newline that ends every prompt."""

    def __init__(self, context_length: int, script: str) -> None:
        super().__init__(context_length)
        self._script = [self.vocabulary.tokens.index(token) for token in ["Ċ", *_byte_tokens(script)]]
        self._script.append(self.vocabulary.end_id)

    def head(self) -> Floats:
        """Each row points at the embedding of the token that it follows."""
        embedding = self.embedding()
        head = np.zeros_like(embedding)
        for token, successor in pairwise(self._script):
            head[successor] = embedding[token]
        return head

    def layer(self, index: int) -> LayerWeights:
        """Adds nothing to what the embedding says."""
        layer = super().layer(index)
        nothing = {"attention_output": np.zeros_like(layer.attention_output), "down": np.zeros_like(layer.down)}
        return dataclasses.replace(layer, **nothing)


def _byte_tokens(text: str) -> list[str]:
    """Each byte as the vocabulary writes it: those without a printable character of their own moved up by 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + moved.index(byte)) for byte in text.encode()]


def write_models(folder: Path) -> None:
    """The models' directories."""
    start, end = MARKERS
    for name in (THINKER, BREAKER, WRITER):
        (folder / name).mkdir()
        script = WRITTEN if name == WRITER else start + REASONING + end + CONTENT
        weights = Scripted(BREAKS_AT if name == BREAKER else 512, script)
        graph.write(weights, folder / name, lambda fraction: None)
        genai.write(weights, folder / name)
    path = folder / BREAKER / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["context_length"] = config["search"]["max_length"] = 512
    path.write_text(json.dumps(config), encoding="utf-8")


def serve(folder: Path, names: list[str]) -> None:
    """Serve models that are declared to reason; the first line is the URL."""
    out = os.dup(1)  # the SDK logs to stdout
    os.dup2(2, 1)
    import foundry_local_sdk as sdk

    configuration = sdk.Configuration(
        "reasoning",
        app_data_dir=str(folder / "data"),
        model_cache_dir=str(folder / "cache"),
        logs_dir=str(folder / "logs"),
        web=sdk.Configuration.WebService(urls="http://127.0.0.1:0"),
        disable_nonessential_telemetry=True,
    )
    sdk.FoundryLocalManager.initialize(configuration)
    manager = sdk.FoundryLocalManager.instance
    assert manager is not None
    catalog = manager.get_catalog(sdk.CatalogType.LOCAL)
    for name in names:
        with sdk.ModelInfoBuilder() as info:
            properties = {"task": "chat-completion", "reasoning_start": MARKERS[0], "reasoning_end": MARKERS[1]}
            for key, value in properties.items():
                info.set_string_property(key, value)
            info.set_int_property("supports_reasoning", 1)
            catalog.register_model(str(folder / name), variant(name), info)
        model = catalog.get_model_variant(variant(name))
        assert model is not None
        model.load()
    manager.start_web_service()
    assert manager.urls
    os.write(out, f"{manager.urls[0].rstrip('/')}\n".encode())
    sys.stdin.read()
    manager.close()


def variant(name: str) -> str:
    return f"{name}-generic-cpu:1"


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("foundry")
    write_models(folder)
    command = [sys.executable, __file__, str(folder), THINKER, BREAKER, WRITER]
    # The module path of the tests, for the script imports what the tests do.
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        assert url, (folder / "log").read_text(errors="replace")[-2000:]
        yield f"{url}/catalogs/local/v1"
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.fixture
def load(base_url: str, tmp_path: Path) -> Iterator[Load]:
    with running_load(tmp_path, Fake(0)) as load:
        yield load


def answer(base_url: str, model: str, prompt: str = "hello", **changes: Any) -> bytes:
    """The body of an answer as it came."""
    messages = [{"role": "user", "content": prompt}]
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    body = {"model": variant(model), "messages": messages, "max_tokens": 100, "temperature": 0, **stream, **changes}
    request = urllib.request.Request(
        f"{base_url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        assert response.status == 200
        return bytes(response.read())


def events(body: bytes) -> list[bytes]:
    """The data of a stream; comments, which keep the connection alive while a prompt is read, left out."""
    return [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event.startswith(b"data: ")]


def pieces(chunks: list[dict[str, Any]], key: str) -> list[str]:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return [delta[key] for delta in deltas if delta.get(key)]


def test_reasoning_is_streamed_and_its_markers_are_counted_but_not_sent(base_url: str) -> None:
    *data, done = events(answer(base_url, THINKER))
    assert done == b"[DONE]"
    chunks = [json.loads(event) for event in data]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert pieces(chunks, "reasoning_content") == list(REASONING)
    assert pieces(chunks, "content") == list(CONTENT)
    assert [choice["finish_reason"] for choice in chunks[-2]["choices"]] == ["stop"]
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    assert usage["completion_tokens"] == COUNTED  # the end-of-text token is not among them
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len(REASONING)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_token_that_ends_no_character_has_no_chunk_but_is_counted(base_url: str, load: Load) -> None:
    *data, _ = events(answer(base_url, WRITER))
    chunks = [json.loads(event) for event in data]
    assert pieces(chunks, "content") == list(WRITTEN)
    assert chunks[-1]["usage"]["completion_tokens"] == len(WRITTEN.encode())

    load.open(base_url=base_url, model=variant(WRITER), max_tokens=100)
    record = load.round({"tag": "written"})[0]["written"]
    assert (record.text, record.chunks, record.output_tokens) == (WRITTEN, 6, 9)
    # Hidden tokens, or tokens without text: the stream does not tell.
    assert (record.accounting, record.visible_tokens) == (Accounting.FEWER_CHUNKS_THAN_TOKENS, None)


@pytest.mark.parametrize("options", [None, {"include_usage": False}])
def test_without_being_asked_for_it_there_is_no_usage(base_url: str, options: dict[str, bool] | None) -> None:
    *data, done = events(answer(base_url, WRITER, stream_options=options))
    assert done == b"[DONE]"
    assert all(not json.loads(event).get("usage") for event in data)
    assert all(json.loads(event)["choices"] for event in data)


@pytest.mark.timing
def test_the_role_chunk_comes_after_the_prompt_was_read(base_url: str, load: Load) -> None:
    """So it marks the end of prefill, while headers leave at once; both are kept apart from the first token."""
    load.open(base_url=base_url, model=variant(THINKER), max_tokens=4)
    prompts = {
        f"{name}{number}": filler for number in range(7) for name, filler in (("short", ""), ("long", "x" * 380))
    }
    records, _ = load.round(*[{"tag": tag, "filler": filler} for tag, filler in prompts.items()])

    def median_ns(kind: str, earlier: str, later: str) -> float:
        spans = [
            float(getattr(record, later) - getattr(record, earlier))
            for tag, record in records.items()
            if tag.startswith(kind)
        ]
        return statistics.median(spans)

    read_ns = {kind: median_ns(kind, "headers_ns", "role_ns") for kind in ("short", "long")}
    assert read_ns["long"] > 2 * read_ns["short"], read_ns
    assert median_ns("long", "role_ns", "first_reasoning_ns") < read_ns["long"] / 2, read_ns


def test_one_body_says_the_same(base_url: str) -> None:
    whole = json.loads(answer(base_url, THINKER, stream=False, stream_options=None))
    message = whole["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (REASONING, CONTENT)
    assert whole["usage"]["completion_tokens"] == COUNTED
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(REASONING)


def test_reasoning_is_content_where_thinking_is_off(base_url: str) -> None:
    *data, _ = events(answer(base_url, THINKER, reasoning_effort="none"))
    chunks = [json.loads(event) for event in data]
    assert "".join(pieces(chunks, "content")) == MARKERS[0] + REASONING + MARKERS[1] + CONTENT
    assert not pieces(chunks, "reasoning_content")
    assert chunks[-1]["usage"]["completion_tokens"] == COUNTED


def test_a_request_beyond_the_context_is_an_error_object_after_a_success(base_url: str) -> None:
    (error,) = events(answer(base_url, THINKER, "x" * 600))
    assert "maximum context length" in json.loads(error)["error"]["message"]


def test_a_failure_in_the_middle_is_an_error_object_without_a_usual_end(base_url: str) -> None:
    *data, error = events(answer(base_url, BREAKER, "x" * 110))
    assert 0 < len(pieces([json.loads(event) for event in data], "reasoning_content")) <= len(REASONING)
    assert json.loads(error)["error"]["type"] == "server_error"


def test_a_reasoning_answer_is_accounted_for(base_url: str, load: Load) -> None:
    load.open(base_url=base_url, model=variant(THINKER), max_tokens=100)
    records, _ = load.round({"tag": "reasoning"})
    record = records["reasoning"]
    assert record.status is Status.OK, record
    assert (record.reasoning_text, record.text) == (REASONING, CONTENT)
    assert (record.output_tokens, record.reasoning_tokens) == (COUNTED, len(REASONING))
    assert record.tokens_source is TokensSource.USAGE
    assert record.chunks == len(record.token_ns) == CHUNKS
    # Two tokens short, the markers; without a tokenizer nothing proves that it is they.
    assert record.accounting is Accounting.STRUCTURE_TOKENS_COUNTED
    assert (record.visible_tokens, record.hidden_tokens) == (CHUNKS, 2)
    assert record.start_ns is not None
    assert record.first_reasoning_ns == record.start_ns + record.token_ns[0]  # so TTFT is the first thought's
    assert record.role_ns is not None
    assert record.first_content_ns is not None
    assert record.role_ns <= record.first_reasoning_ns <= record.first_content_ns


def test_an_answer_cut_off_while_it_reasons_is_an_answer(base_url: str, load: Load) -> None:
    load.open(base_url=base_url, model=variant(THINKER), max_tokens=10)
    records, _ = load.round({"tag": "cut"})
    record = records["cut"]
    assert (record.status, record.finish_reason) == (Status.OK, "length")
    assert (record.reasoning_text, record.text) == (REASONING[:9], "")
    assert (record.output_tokens, record.reasoning_tokens, record.chunks) == (10, 9, 9)
    assert record.first_content_ns is None


def test_failures_after_the_headers_are_failures(base_url: str, load: Load) -> None:
    load.open(base_url=base_url, model=variant(THINKER), max_tokens=100)
    records, _ = load.round({"tag": "long", "filler": "x" * 600})
    load.open(base_url=base_url, model=variant(BREAKER), max_tokens=100)
    more, _ = load.round({"tag": "broken", "filler": "x" * 80})
    for record in (records["long"], more["broken"]):
        assert (record.status, record.http_status) == (Status.FAILED, 200)
        assert record.reason in (Reason.STREAM_ERROR, Reason.CONTEXT_OVERFLOW)
        assert record.accounting is Accounting.INCOMPLETE
    assert "maximum context length" in str(records["long"].message)
    assert 0 < more["broken"].chunks < CHUNKS


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2:])
