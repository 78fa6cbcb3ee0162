"""4-bit block quantisation in the layout ONNX Runtime's MatMulNBits and GatherBlockQuantized share.

A row is cut into blocks of 32 weights. A block is 32 codes of 4 bits, one float32 scale and one 4-bit zero
point: ``weight = scale * (code - zero_point)``.

The source stores Q4_1, ``weight = scale * code + minimum`` with a real-valued minimum. The same thing with
``zero_point = -minimum / scale`` as a float would be exact, but MatMulNBits runs float zero points on a slow
path; a model meant to compare hosts has to take the path that real int4 models take. So the weights are
quantised once more with whole zero points. What that costs is measured in docs/reference-model.md.

Every sum here runs over the first axis of a (32, blocks) array, which numpy adds row by row: IEEE arithmetic in
a fixed order, so that every host gets the same bits whatever its vector width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
_LEVELS = 15  # codes run from 0 to 15
_SHRINKAGE = (0.9, 0.95, 1.0, 1.05, 1.1)
"""Step sizes tried, as fractions of the block's range / 15: clipping an outlier may fit the other 31 better.
Nine sizes and neighbouring zero points lower the error by under 2 % more (tried), for four times the time."""
_BLOCKS_AT_ONCE = 4096  # 512 KiB per float32 array: the work stays in the processor's cache

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix of shape (rows, columns), packed."""

    rows: int
    columns: int
    codes: Bytes
    """(rows, columns / 2): two codes a byte, the first in the low half."""
    scales: Floats
    """(rows, blocks), blocks = columns / 32."""
    zero_points: Bytes
    """(rows, ceil(blocks / 2)): packed like the codes."""
    squared_error: float
    """Sum over all weights of (quantised - original)²."""
    squared_weights: float
    """Sum over all weights of original²."""


def quantize(weights: Floats) -> QuantizedMatrix:
    """Quantise a matrix of shape (rows, columns); columns must be a multiple of 32.

    Per block: asymmetric round-to-nearest at several step sizes, each with the least-squares scale for its codes
    (scale = Σ w·c / Σ c², with c = code - zero point); the candidate with the smallest squared error wins.
    """
    rows, columns = weights.shape
    if columns % BLOCK:
        raise ValueError(f"{columns} columns are not a multiple of the block size {BLOCK}")
    blocks = weights.reshape(-1, BLOCK)
    codes = np.empty((len(blocks), BLOCK), np.uint8)
    scales = np.empty(len(blocks), np.float32)
    zero_points = np.empty(len(blocks), np.uint8)
    squared_error = 0.0
    for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
        part = slice(start, start + _BLOCKS_AT_ONCE)
        part_codes, scales[part], zero_points[part], error = _quantize_blocks(np.ascontiguousarray(blocks[part].T))
        codes[part] = part_codes.T
        squared_error += float(error.sum(dtype=np.float64))
    return QuantizedMatrix(
        rows=rows,
        columns=columns,
        codes=_pack(codes.reshape(rows, columns)),
        scales=scales.reshape(rows, -1),
        zero_points=_pack(zero_points.reshape(rows, -1)),
        squared_error=squared_error,
        squared_weights=float(np.vdot(weights, weights)),
    )


def dequantize(matrix: QuantizedMatrix) -> Floats:
    """The (rows, columns) weights that the packed matrix stands for."""
    blocks = matrix.columns // BLOCK
    codes = _unpack(matrix.codes).reshape(matrix.rows, blocks, BLOCK).astype(np.float32)
    zero_points = _unpack(matrix.zero_points)[:, :blocks, None].astype(np.float32)
    return (matrix.scales[:, :, None] * (codes - zero_points)).reshape(matrix.rows, matrix.columns)


def _quantize_blocks(weights: Floats) -> tuple[Bytes, Floats, Bytes, Floats]:
    """Codes (32, n), scales (n), zero points (n) and squared errors (n) for weights (32, n), a block a column."""
    lowest = np.minimum(weights.min(axis=0), np.float32(0))
    highest = np.maximum(weights.max(axis=0), np.float32(0))
    step = (highest - lowest) / np.float32(_LEVELS)
    step[step == 0] = 1  # a block of zeros: every scale fits
    # Zero lies within [lowest, highest], so this is a whole number from 0 to 15 and zero stays exact.
    zero_points = np.rint(-lowest / step)
    best_error = np.full(weights.shape[1], np.inf, np.float32)
    best_scales = step.copy()
    best_centred = np.zeros_like(weights)
    for shrinkage in _SHRINKAGE:
        centred = np.rint(weights / (step * np.float32(shrinkage)))
        np.clip(centred, -zero_points, _LEVELS - zero_points, out=centred)
        energy = (centred * centred).sum(axis=0)
        fitted = (weights * centred).sum(axis=0) / np.maximum(energy, np.float32(1))
        scales = np.where(energy > 0, fitted, step)
        difference = weights - scales * centred
        error = (difference * difference).sum(axis=0)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scales = np.where(better, scales, best_scales)
        np.copyto(best_centred, centred, where=better)
    codes = (best_centred + zero_points).astype(np.uint8)
    return codes, best_scales, zero_points.astype(np.uint8), best_error


def _pack(values: Bytes) -> Bytes:
    """Two 4-bit values a byte along the last axis, the first in the low half; an odd end is padded with 0."""
    if values.shape[-1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)))
    return np.ascontiguousarray(values[:, 0::2] | (values[:, 1::2] << 4))


def _unpack(packed: Bytes) -> Bytes:
    return np.stack([packed & 0x0F, packed >> 4], axis=-1).reshape(len(packed), -1)
