"""Where a reference model's numbers come from: a GGUF file, or a seeded generator for the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchfleet_agent.reference_model.tokenizer import Vocabulary, speakable, tiny_vocabulary

Floats = NDArray[np.float32]
_CONTROL_TOKEN = 3  # llama.cpp, enum llama_token_type


@dataclass(frozen=True, slots=True)
class Architecture:
    """A Llama decoder's dimensions."""

    layers: int
    hidden_size: int
    feed_forward_size: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary_size: int
    context_length: int
    rope_base: float
    norm_epsilon: float


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Matrices have the shape (outputs, inputs); inputs are contiguous."""

    attention_norm: Floats
    qkv: Floats
    """Queries, keys and values one below the other: ((heads + 2 kv_heads) * head_size, hidden)."""
    attention_output: Floats
    feed_forward_norm: Floats
    gate: Floats
    up: Floats
    down: Floats


class Weights(Protocol):
    """A whole model's weights, handed out part by part so that never all of them are in memory as floats."""

    architecture: Architecture
    vocabulary: Vocabulary

    def embedding(self) -> Floats:
        """(vocabulary, hidden)."""

    def head(self) -> Floats | None:
        """(vocabulary, hidden), or None when the head shares the embedding's numbers."""

    def final_norm(self) -> Floats:
        """(hidden,)."""

    def layer(self, index: int) -> LayerWeights:
        """Layer ``index``, from 0."""


class GgufWeights:
    """A Llama model with a GPT-2 style tokenizer in a GGUF file. Raises `ValueError` when it is something else."""

    def __init__(self, path: Path) -> None:
        import gguf

        self._dequantize: Callable[..., Any] = gguf.dequantize
        self._reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        kind, tokenizer = self._field("general.architecture"), self._field("tokenizer.ggml.model")
        if (kind, tokenizer) != ("llama", "gpt2") or "output.weight" in self._tensors:
            raise ValueError(f"{path.name} is not a llama model with a gpt2 tokenizer and a tied head")
        heads = self._field("llama.attention.head_count")
        hidden_size = self._field("llama.embedding_length")
        self.architecture = Architecture(
            layers=self._field("llama.block_count"),
            hidden_size=hidden_size,
            feed_forward_size=self._field("llama.feed_forward_length"),
            heads=heads,
            kv_heads=self._field("llama.attention.head_count_kv"),
            head_size=hidden_size // heads,
            vocabulary_size=self._field("llama.vocab_size"),
            context_length=self._field("llama.context_length"),
            rope_base=float(self._field("llama.rope.freq_base")),
            norm_epsilon=float(self._field("llama.attention.layer_norm_rms_epsilon")),
        )
        self.vocabulary = Vocabulary(
            tokens=self._field("tokenizer.ggml.tokens"),
            special=frozenset(
                token_id
                for token_id, token_type in enumerate(self._field("tokenizer.ggml.token_type"))
                if token_type == _CONTROL_TOKEN
            ),
            merges=self._field("tokenizer.ggml.merges"),
            begin_id=self._field("tokenizer.ggml.bos_token_id"),
            end_id=self._field("tokenizer.ggml.eos_token_id"),
            unknown_id=self._field("tokenizer.ggml.unknown_token_id"),
            padding_id=self._field("tokenizer.ggml.padding_token_id"),
            chat_template=self._field("tokenizer.chat_template"),
        )

    def embedding(self) -> Floats:
        """See `Weights`."""
        return self._tensor("token_embd.weight")

    def head(self) -> None:
        """See `Weights`: always tied."""

    def final_norm(self) -> Floats:
        """See `Weights`."""
        return self._tensor("output_norm.weight")

    def layer(self, index: int) -> LayerWeights:
        """See `Weights`."""
        prefix = f"blk.{index}"
        sizes = self.architecture
        return LayerWeights(
            attention_norm=self._tensor(f"{prefix}.attn_norm.weight"),
            qkv=np.concatenate(
                [
                    rotary_halves(self._tensor(f"{prefix}.attn_q.weight"), sizes.heads),
                    rotary_halves(self._tensor(f"{prefix}.attn_k.weight"), sizes.kv_heads),
                    self._tensor(f"{prefix}.attn_v.weight"),
                ]
            ),
            attention_output=self._tensor(f"{prefix}.attn_output.weight"),
            feed_forward_norm=self._tensor(f"{prefix}.ffn_norm.weight"),
            gate=self._tensor(f"{prefix}.ffn_gate.weight"),
            up=self._tensor(f"{prefix}.ffn_up.weight"),
            down=self._tensor(f"{prefix}.ffn_down.weight"),
        )

    def close(self) -> None:
        """Unmap the file, without which Windows cannot delete it."""
        self._tensors.clear()
        del self._reader

    def _field(self, name: str) -> Any:
        field = self._reader.fields.get(name)
        if field is None:
            raise ValueError(f"the GGUF file has no {name}")
        return field.contents()

    def _tensor(self, name: str) -> Floats:
        tensor = self._tensors[name]
        weights: Floats = np.ascontiguousarray(self._dequantize(tensor.data, tensor.tensor_type), np.float32)
        return weights


def rotary_halves(matrix: Floats, heads: int) -> Floats:
    """Undo the row order llama.cpp gives query and key matrices; shape (heads * head_size, inputs) stays.

    llama.cpp rotates neighbouring rows (0, 1), (2, 3), … and permutes the rows on conversion to suit
    (``LlamaModel.permute`` in convert_hf_to_gguf.py); the original pairs row i with row i + head_size / 2, which
    GroupQueryAttention calls ``rotary_interleaved=0``. Whole rows move, so no number changes.
    """
    rows, inputs = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, inputs).swapaxes(1, 2).reshape(rows, inputs)


class RandomWeights:
    """A toy of the same structure whose greedy answers are visible ASCII and never end by themselves.

    The head's rows are zero except for tokens that are text by themselves, so that the end token is never the
    likeliest and every generated token can be seen in a stream: tests can count.
    """

    def __init__(self, context_length: int, seed: int = 1) -> None:
        self.vocabulary = tiny_vocabulary()
        self.architecture = Architecture(
            layers=2,
            hidden_size=64,
            feed_forward_size=128,
            heads=4,
            kv_heads=2,
            head_size=16,
            vocabulary_size=len(self.vocabulary.tokens),
            context_length=context_length,
            rope_base=10000.0,
            norm_epsilon=1e-5,
        )
        self._seed = seed

    def embedding(self) -> Floats:
        """See `Weights`."""
        return self._matrix(0, self.architecture.vocabulary_size, self.architecture.hidden_size)

    def head(self) -> Floats:
        """See `Weights`. Not tied: a tied random model repeats its last token for ever."""
        head = np.zeros((self.architecture.vocabulary_size, self.architecture.hidden_size), np.float32)
        chosen = speakable(self.vocabulary)
        head[chosen] = self._matrix(1, len(chosen), self.architecture.hidden_size)
        return head

    def final_norm(self) -> Floats:
        """See `Weights`."""
        return np.ones(self.architecture.hidden_size, np.float32)

    def layer(self, index: int) -> LayerWeights:
        """See `Weights`."""
        sizes = self.architecture
        hidden, stream = sizes.hidden_size, 10 * (index + 1)
        return LayerWeights(
            attention_norm=np.ones(hidden, np.float32),
            qkv=self._matrix(stream, (sizes.heads + 2 * sizes.kv_heads) * sizes.head_size, hidden),
            attention_output=self._matrix(stream + 1, hidden, sizes.heads * sizes.head_size),
            feed_forward_norm=np.ones(hidden, np.float32),
            gate=self._matrix(stream + 2, sizes.feed_forward_size, hidden),
            up=self._matrix(stream + 3, sizes.feed_forward_size, hidden),
            down=self._matrix(stream + 4, hidden, sizes.feed_forward_size),
        )

    def _matrix(self, stream: int, rows: int, columns: int) -> Floats:
        """Uniform in ±sqrt(3 / columns): outputs vary about as much as inputs.

        Made from raw bits, whose sequence numpy keeps from version to version (NEP 19); its distributions it may not.
        """
        bits = np.random.PCG64([self._seed, stream]).random_raw(rows * columns) >> np.uint64(40)
        uniform = bits.astype(np.float32) / np.float32(2**23) - np.float32(1)
        return (uniform * np.float32(np.sqrt(3 / columns))).reshape(rows, columns)
