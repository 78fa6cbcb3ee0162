"""Writes a Llama decoder as an ONNX graph for ONNX Runtime GenAI, without PyTorch.

The graph is the one ONNX Runtime GenAI's own model builder makes for int4 on the CPU (``prune_lm_head=true``):
ONNX Runtime's contrib operators, documented in its docs/ContribOperators.md, and a few shape operators.

Inputs: ``input_ids`` (batch, new), ``attention_mask`` (batch, total), ``past_key_values.N.key|value`` (batch,
kv_heads, past, head_size). Outputs: ``logits`` (batch, 1, vocabulary) of the last position only, which is all a
generator reads (every position of a 4,000-token prompt would be 800 MB of logits), and ``present.N.key|value``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchfleet_agent.reference_model.quantization import BLOCK, QuantizedMatrix, quantize
from benchfleet_agent.reference_model.weights import Architecture, LayerWeights, Weights

GRAPH_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
_CONTRIB = "com.microsoft"
_OPSET = 21
_IR_VERSION = 10  # the newest that opset 21 asks for; a newer one would only shut out older runtimes
_ALIGNMENT = 4096  # so that a runtime can map each tensor in place
_ACCURACY_LEVEL = 4  # MatMulNBits quantises activations to int8 as well: the fast path
_ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}


@dataclass(slots=True)
class QuantizationError:
    """How far the quantised weights are from the given ones, over all matrices."""

    squared_error: float = 0.0
    squared_weights: float = 0.0

    @property
    def relative(self) -> float:
        """Σ (quantised - given)² / Σ given²."""
        return self.squared_error / self.squared_weights


def write(weights: Weights, model_dir: Path, advance: Callable[[float], None]) -> QuantizationError:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``model_dir``, both flushed to the disk.

    ``advance`` is called with the fraction done. Raises `OSError` when the disk is full.
    """
    with (model_dir / DATA_NAME).open("wb") as data:
        decoder = _Decoder(weights, data)
        model = decoder.build(advance)
        _sync(data)
    with (model_dir / GRAPH_NAME).open("wb") as graph:
        graph.write(model.SerializeToString(deterministic=True))
        _sync(graph)
    return decoder.error


@dataclass(frozen=True, slots=True)
class _Extent:
    """Where a tensor lies in the data file, in bytes."""

    offset: int
    length: int


class _Decoder:
    """Builds the graph node by node while the weights go to the data file."""

    def __init__(self, weights: Weights, data: BinaryIO) -> None:
        self.error = QuantizationError()
        self._weights = weights
        self._sizes: Architecture = weights.architecture
        self._data = data
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []

    def build(self, advance: Callable[[float], None]) -> onnx.ModelProto:
        layers = self._sizes.layers
        self._rotary_caches()
        self._sequence_lengths()
        hidden, head = self._embedding()
        advance(1 / (layers + 1))
        normed, residual = "", hidden
        for index in range(layers):
            layer = self._weights.layer(index)
            normed, residual = self._layer(index, layer, residual, normed)
            advance((index + 2) / (layers + 1))
        final = self._skip_norm("final_norm", residual, normed, self._weights.final_norm())[0]
        # A one-element list of indices keeps the axis: (batch, new, hidden) becomes (batch, 1, hidden).
        last = self._node("Gather", "last_position", [final, self._constant("last_index", [-1])], axis=1)
        self._matmul_node("head", [last, *head], self._sizes.vocabulary_size, self._sizes.hidden_size, ["logits"])
        return self._model()

    def _embedding(self) -> tuple[str, list[str]]:
        """The embedded tokens, and the head's initializers: when tied, the same bytes under another shape."""
        embedding = self._quantize(self._weights.embedding())
        codes = self._write(embedding.codes)
        scales = self._write(embedding.scales)
        zero_points = self._write(embedding.zero_points)
        inputs = [
            self._tensor("embedding.codes", "uint8", embedding.codes.shape, codes),
            "input_ids",
            self._tensor("embedding.scales", "float32", embedding.scales.shape, scales),
            self._tensor("embedding.zero_points", "uint8", embedding.zero_points.shape, zero_points),
        ]
        hidden = self._node(
            "GatherBlockQuantized",
            "embed",
            inputs,
            domain=_CONTRIB,
            bits=4,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )
        untied = self._weights.head()
        if untied is not None:
            return hidden, self._matrix("head", untied)
        return hidden, [
            self._tensor("head.codes", "uint8", _block_shape(embedding), codes),
            "embedding.scales",
            "embedding.zero_points",
        ]

    def _layer(self, index: int, layer: LayerWeights, residual: str, previous: str) -> tuple[str, str]:
        """One layer. ``previous`` is the last layer's output not yet added to the residual ("" for the first).

        Returns this layer's output and the residual it is to be added to: addition and norm are one operator.
        """
        name = f"layers.{index}"
        sizes = self._sizes
        if previous:
            normed, residual = self._skip_norm(f"{name}.attention_norm", residual, previous, layer.attention_norm)
        else:
            normed = self._first_norm(f"{name}.attention_norm", residual, layer.attention_norm)
        attended = self._node(
            "GroupQueryAttention",
            f"{name}.attention",
            [
                self._matmul(f"{name}.qkv", normed, layer.qkv),
                "",  # keys and values come packed with the queries
                "",
                f"past_key_values.{index}.key",
                f"past_key_values.{index}.value",
                "last_positions",
                "total_length",
                "cos_cache",
                "sin_cache",
            ],
            [f"{name}.attention", f"present.{index}.key", f"present.{index}.value"],
            domain=_CONTRIB,
            num_heads=sizes.heads,
            kv_num_heads=sizes.kv_heads,
            scale=float(1 / np.sqrt(sizes.head_size)),
            do_rotary=1,
            rotary_interleaved=0,
        )
        projected = self._matmul(f"{name}.attention_output", attended, layer.attention_output)
        normed, residual = self._skip_norm(f"{name}.feed_forward_norm", residual, projected, layer.feed_forward_norm)
        gate = self._matmul(f"{name}.gate", normed, layer.gate)
        up = self._matmul(f"{name}.up", normed, layer.up)
        # SiLU(gate) * up, with SiLU(x) = x * sigmoid(x).
        activated = self._node("Mul", f"{name}.silu", [gate, self._node("Sigmoid", f"{name}.sigmoid", [gate])])
        product = self._node("Mul", f"{name}.gated", [activated, up])
        return self._matmul(f"{name}.down", product, layer.down), residual

    def _rotary_caches(self) -> None:
        """Cosine and sine of position / base^(2i / head_size), each (context, head_size / 2) (RoFormer, eq. 15)."""
        sizes = self._sizes
        # In decimal, because platforms' pow() differ in the last bit, and 8,000 positions make that visible.
        base, size = Decimal(sizes.rope_base), Decimal(sizes.head_size)
        frequencies = [float(base ** (-pair / size)) for pair in range(0, sizes.head_size, 2)]
        angles = np.outer(np.arange(sizes.context_length, dtype=np.float64), frequencies)
        self._store("cos_cache", np.cos(angles).astype(np.float32))
        self._store("sin_cache", np.sin(angles).astype(np.float32))

    def _sequence_lengths(self) -> None:
        """What GroupQueryAttention wants to know: each row's last position, and the padded total length."""
        total = self._node("ReduceSum", "mask_sum", ["attention_mask", self._constant("one", [1])], keepdims=0)
        last = self._node("Sub", "last_positions_64", [total, "one"])
        self._node("Cast", "last_positions", [last], to=TensorProto.INT32)
        shape = self._node("Shape", "mask_shape", ["attention_mask"])
        length = self._node("Gather", "total_length_64", [shape, self._constant("second", 1)], axis=0)
        self._node("Cast", "total_length", [length], to=TensorProto.INT32)

    def _first_norm(self, name: str, hidden: str, gain: NDArray[np.float32]) -> str:
        inputs = [hidden, self._store(f"{name}.gain", gain)]
        epsilon = self._sizes.norm_epsilon
        return self._node("SimplifiedLayerNormalization", name, inputs, axis=-1, epsilon=epsilon, stash_type=1)

    def _skip_norm(self, name: str, residual: str, addend: str, gain: NDArray[np.float32]) -> tuple[str, str]:
        """RMSNorm(residual + addend) and the sum itself."""
        outputs = [name, "", "", f"{name}.sum"]
        inputs = [residual, addend, self._store(f"{name}.gain", gain)]
        epsilon = self._sizes.norm_epsilon
        self._node("SkipSimplifiedLayerNormalization", name, inputs, outputs, domain=_CONTRIB, epsilon=epsilon)
        return name, f"{name}.sum"

    def _matmul(self, name: str, left: str, matrix: NDArray[np.float32]) -> str:
        return self._matmul_node(name, [left, *self._matrix(name, matrix)], *matrix.shape)

    def _matmul_node(
        self, name: str, inputs: Sequence[str], rows: int, columns: int, outputs: Sequence[str] = ()
    ) -> str:
        """``inputs`` times the transpose of a (rows, columns) matrix."""
        return self._node(
            "MatMulNBits",
            name,
            inputs,
            outputs,
            domain=_CONTRIB,
            N=rows,
            K=columns,
            bits=4,
            block_size=BLOCK,
            accuracy_level=_ACCURACY_LEVEL,
        )

    def _matrix(self, name: str, matrix: NDArray[np.float32]) -> list[str]:
        """Quantise and store a matrix; the names of its three initializers as MatMulNBits wants them."""
        quantized = self._quantize(matrix)
        codes = self._write(quantized.codes)
        return [
            self._tensor(f"{name}.codes", "uint8", _block_shape(quantized), codes),
            self._store(f"{name}.scales", quantized.scales),
            self._store(f"{name}.zero_points", quantized.zero_points),
        ]

    def _quantize(self, matrix: NDArray[np.float32]) -> QuantizedMatrix:
        quantized = quantize(matrix)
        self.error.squared_error += quantized.squared_error
        self.error.squared_weights += quantized.squared_weights
        return quantized

    def _node(
        self,
        operator: str,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str] = (),
        *,
        domain: str = "",
        **attributes: float | int,
    ) -> str:
        """Add a node; returns its first output, which is called like the node unless said otherwise."""
        outputs = outputs or [name]
        node = helper.make_node(operator, inputs, outputs, name=name, domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._nodes.append(node)
        return outputs[0]

    def _constant(self, name: str, value: int | list[int]) -> str:
        self._initializers.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def _store(self, name: str, array: NDArray[Any]) -> str:
        return self._tensor(name, array.dtype.name, array.shape, self._write(array))

    def _write(self, array: NDArray[Any]) -> _Extent:
        self._data.write(bytes(-self._data.tell() % _ALIGNMENT))
        offset = self._data.tell()
        # ONNX stores little-endian (onnx.proto, TensorProto.raw_data).
        self._data.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
        return _Extent(offset, array.nbytes)

    def _tensor(self, name: str, element_type: str, shape: Sequence[int], extent: _Extent) -> str:
        tensor = TensorProto(name=name, data_type=_ELEMENT_TYPES[element_type], dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": DATA_NAME, "offset": extent.offset, "length": extent.length}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._initializers.append(tensor)
        return name

    def _model(self) -> onnx.ModelProto:
        sizes = self._sizes

        def cache(prefix: str, length: str) -> list[Any]:
            shape: list[str | int | None] = ["batch", sizes.kv_heads, length, sizes.head_size]
            return [
                helper.make_tensor_value_info(f"{prefix}.{index}.{part}", TensorProto.FLOAT, shape)
                for index in range(sizes.layers)
                for part in ("key", "value")
            ]

        logits_shape: list[str | int | None] = ["batch", 1, sizes.vocabulary_size]
        graph = helper.make_graph(
            self._nodes,
            "benchfleet reference model",
            inputs=[
                helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "new"]),
                helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
                *cache("past_key_values", "past"),
            ],
            outputs=[
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits_shape),
                *cache("present", "total"),
            ],
            initializer=self._initializers,
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="benchfleet")


def _block_shape(matrix: QuantizedMatrix) -> tuple[int, int, int]:
    """The shape in which MatMulNBits takes the codes: (rows, blocks, bytes of a block)."""
    return matrix.rows, matrix.columns // BLOCK, BLOCK // 2


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
