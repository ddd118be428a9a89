"""How GGUF packs numbers: each kind of tensor is a row of equal blocks, float32 to bytes and back.

A block of a quantised kind holds 32 or 256 neighbours along the last axis: small integers q and one float16 scale
d (and a minimum m), so a weight is d*q or d*q + m. The K kinds cut their 256 into sub-blocks whose scales are small
integers too. Layouts are those of ggml-quants.c; the order of operations is that of the `gguf` package, so that both
give the same bits.

    kind   block  bytes  bits a weight       kind   block  bytes  bits a weight
    F32    1      4      32                  Q4_0   32     18     4.5
    F16    1      2      16                  Q4_1   32     20     5
    BF16   1      2      16                  Q4_K   256    144    4.5
    Q8_0   32     34     8.5                 Q6_K   256    210    6.5625
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from min_llm.config import UserError

Bytes = UInt8[np.ndarray, "n bytes"]
Numbers = Float[np.ndarray, "n block"]

AT_ONCE = 1 << 18
"""Numbers converted together: their intermediate arrays stay in the cache and the memory they take stays small."""


@dataclass(frozen=True)
class Kind:
    """One way to store a tensor. `encode` is None for kinds that are only read."""

    code: int  # of the file format: enum ggml_type
    block: int  # numbers in a block
    bytes: int  # of a block
    decode: Callable[[Bytes], Numbers]
    encode: Callable[[Numbers], Bytes] | None = None


def decode(kind: Kind, data: UInt8[np.ndarray, size]) -> Float[np.ndarray, numbers]:
    """float32 numbers of whole blocks. Kind F32 is not copied: what a file maps stays mapped and read-only."""
    blocks = data.reshape(-1, kind.bytes)
    if kind is KINDS["F32"]:
        return kind.decode(blocks).reshape(-1)
    out = np.empty((len(blocks), kind.block), np.float32)
    step = AT_ONCE // kind.block
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # a scale may be infinite or no number: so is the weight
        for i in range(0, len(blocks), step):
            out[i : i + step] = kind.decode(blocks[i : i + step])
    return out.reshape(-1)


def encode(kind: Kind, array: Float[np.ndarray, numbers]) -> Iterator[UInt8[np.ndarray, size]]:
    """The bytes of float32 numbers, a part at a time. Raises UserError for numbers that the kind cannot hold."""
    assert kind.encode is not None
    blocks = array.reshape(-1, kind.block)
    step = AT_ONCE // kind.block
    for i in range(0, len(blocks), step):
        yield kind.encode(blocks[i : i + step]).reshape(-1)


# Floats


def _decode_f32(blocks: Bytes) -> Numbers:
    return blocks.view("<f4").astype(np.float32, copy=False)


def _encode_f32(x: Numbers) -> Bytes:
    return x.astype("<f4", copy=False).view(np.uint8)


def _decode_f16(blocks: Bytes) -> Numbers:
    return blocks.view("<f2").astype(np.float32)


def _encode_f16(x: Numbers) -> Bytes:
    with np.errstate(over="ignore"):
        half = x.astype("<f2")
    if np.isinf(half).sum() != np.isinf(x).sum():
        raise UserError(
            f"it holds {np.abs(x[np.isfinite(x)]).max():g}, float16 ends at 65504; use BF16 or F32"
        )
    return half.view(np.uint8)


def _decode_bf16(blocks: Bytes) -> Numbers:
    """The upper half of a float32."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _encode_bf16(x: Numbers) -> Bytes:
    """To the nearest, ties to even; what is no number stays none, and quiet (ggml_compute_fp32_to_bf16)."""
    bits = x.view(np.uint32)
    bits = np.where((bits & 0x7FFFFFFF) > 0x7F800000, (bits & 0xFFFF0000) | (64 << 16), bits)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2").view(np.uint8)


# Blocks of 32


def _scale(blocks: Bytes, at: int = 0) -> Float[np.ndarray, "n 1"]:
    """The float16 at byte `at` of each block."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(qs: Bytes, run: int) -> UInt8[np.ndarray, "n block"]:
    """The lower halves of `run` bytes, then their upper halves, then those of the next `run`."""
    both = qs.reshape(len(qs), -1, 1, run) >> np.array([[0], [4]], np.uint8)
    return (both & 0x0F).reshape(len(qs), -1)


def _inverse(d: Float[np.ndarray, "n 1"]) -> tuple[Bytes, Float[np.ndarray, "n 1"]]:
    """The bytes of the scale and 1/d; 0 for a block of zeros and for scales so small that they are stored as 0."""
    with np.errstate(over="ignore", divide="ignore"):
        half, inverse = d.astype("<f2"), 1 / d
    if not np.isfinite(half).all():
        raise UserError("it holds numbers that are infinite, none, or too large for a float16 scale; use F32")
    return half.view(np.uint8), np.where(np.isinf(inverse), np.float32(0), inverse)


def _decode_q8_0(blocks: Bytes) -> Numbers:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _scale(blocks)


def _encode_q8_0(x: Numbers) -> Bytes:
    """d is the largest magnitude over 127; halves are rounded away from zero, as C's roundf does."""
    d, inverse = _inverse(np.abs(x).max(axis=1, keepdims=True) / 127)
    q = x * inverse
    size = np.abs(q)
    whole = np.floor(size)
    q = np.sign(q) * (whole + np.floor(2 * (size - whole)))
    return np.concatenate([d, q.astype(np.int8).view(np.uint8)], axis=1)


def _decode_q4_0(blocks: Bytes) -> Numbers:
    return _scale(blocks) * (_nibbles(blocks[:, 2:], 16).astype(np.int8) - np.int8(8)).astype(np.float32)


def _encode_q4_0(x: Numbers) -> Bytes:
    """The number of the largest magnitude becomes -8, the end of the range that has one value more."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    d, inverse = _inverse(largest / -8)
    q = np.trunc(x * inverse + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    return np.concatenate([d, q[:, :16] | (q[:, 16:] << 4)], axis=1)


def _decode_q4_1(blocks: Bytes) -> Numbers:
    return _scale(blocks) * _nibbles(blocks[:, 4:], 16).astype(np.float32) + _scale(blocks, 2)


# Blocks of 256


def _decode_q4_k(blocks: Bytes) -> Numbers:
    """8 sub-blocks of 32. Their 6-bit scales and minima lie in 12 bytes: those of the first four in the lower bits
    of bytes 0-3 and 4-7, of the last four with 4 bits in bytes 8-11 and the upper 2 in the upper bits of 0-7."""
    n = len(blocks)
    low_d, low_m, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low_d & 0x3F, (rest & 0x0F) | ((low_d >> 2) & 0x30)], axis=1)
    minima = np.concatenate([low_m & 0x3F, (rest >> 4) | ((low_m >> 2) & 0x30)], axis=1)
    d = (_scale(blocks) * scales.astype(np.float32)).reshape(n, 8, 1)
    m = (_scale(blocks, 2) * minima.astype(np.float32)).reshape(n, 8, 1)
    q = _nibbles(blocks[:, 16:], 32).reshape(n, 8, 32).astype(np.float32)
    return (d * q - m).reshape(n, 256)


def _decode_q6_k(blocks: Bytes) -> Numbers:
    """16 sub-blocks of 16 with int8 scales. The lower 4 bits of q lie in 128 bytes, the upper 2 in 64 more."""
    n = len(blocks)
    low = _nibbles(blocks[:, :128], 64)
    shifts = np.array([[0], [2], [4], [6]], np.uint8)
    high = ((blocks[:, 128:192].reshape(n, 2, 1, 32) >> shifts) & 0x03).reshape(n, 256)
    d = (_scale(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)).reshape(n, 16, 1)
    q = ((low | (high << 4)).astype(np.int8) - np.int8(32)).reshape(n, 16, 16).astype(np.float32)
    return (d * q).reshape(n, 256)


KINDS = {
    "F32": Kind(0, 1, 4, _decode_f32, _encode_f32),
    "F16": Kind(1, 1, 2, _decode_f16, _encode_f16),
    "BF16": Kind(30, 1, 2, _decode_bf16, _encode_bf16),
    "Q8_0": Kind(8, 32, 34, _decode_q8_0, _encode_q8_0),
    "Q4_0": Kind(2, 32, 18, _decode_q4_0, _encode_q4_0),
    "Q4_1": Kind(3, 32, 20, _decode_q4_1),
    "Q4_K": Kind(12, 256, 144, _decode_q4_k),
    "Q6_K": Kind(14, 256, 210, _decode_q6_k),
}

# Kinds that files have and we do not read, for messages.
OTHERS = {6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 20: "IQ4_NL", 23: "IQ4_XS", 39: "MXFP4"}
