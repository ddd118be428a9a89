"""GGUF files (llama.cpp's): metadata by key, then tensors, little-endian, versions 2 and 3.

    "GGUF" version:u32 n_tensors:u64 n_metadata:u64
    key type:u32 value                                      for each piece of metadata
    name n_dims:u32 dims:u64[n_dims] kind:u32 offset:u64    for each tensor; its first dimension is the innermost
    ... zeros to the next multiple of the alignment, then the tensors' bytes, each at its offset from here

Text is its length (u64) and UTF-8, an array its elements' type (u32), its length (u64) and its elements. This file
knows the format alone, nothing of models. Source: docs/gguf.md in ggml.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8

from min_llm import platform
from min_llm.config import UserError, nearest
from min_llm.formats import gguf_blocks
from min_llm.formats.gguf_blocks import KINDS
from min_llm.formats.gguf_values import Cursor, packed, packed_text, plain, read_value, u4, u8

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT, ALIGNMENT_KEY = 32, "general.alignment"
MAX_ALIGNMENT = 1 << 24  # ours: padding is written
MAX_DIMS, MAX_NAME = 4, 63  # llama.cpp's limits; names in bytes

KIND_OF_CODE = {kind.code: name for name, kind in KINDS.items()}


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a file. Its bytes are mapped: nothing is read before it is asked for."""

    name: str
    shape: tuple[int, ...]  # in NumPy's order: the file's dimensions reversed
    kind: str  # "F32", "Q4_1", ...: a name of KINDS, or of a kind that we do not read
    data: UInt8[np.ndarray, bytes]  # as in the file: whole blocks; empty for kinds that we do not read
    path: Path

    def array(self) -> np.ndarray:
        """The numbers as float32, dequantised; an F32 tensor is the mapped file itself, read-only.

        Raises UserError for a kind that we do not read.
        """
        if self.kind not in KINDS:
            raise UserError(
                f"Tensor {self.name!r} in {self.path} is of kind {self.kind}, which min_llm does not read; it reads "
                f"{', '.join(KINDS)}. Convert the file with llama.cpp's llama-quantize."
            )
        return gguf_blocks.decode(KINDS[self.kind], self.data).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class File:
    """What a GGUF file holds, in its order."""

    typed: dict[str, Any]  # metadata with the file's types as NumPy's: `write` gives them back exactly
    tensors: dict[str, Tensor]

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Metadata as plain Python: bool, int, float, str and lists of them."""
        return {key: plain(value) for key, value in self.typed.items()}


def read(path: str | Path) -> File:
    """Read metadata and the table of tensors; the tensors themselves are mapped.

    Raises UserError for a file that is absent, foreign, cut off or damaged, naming the place.
    """
    path = Path(path)
    if not path.is_file():  # a pipe would be waited for
        raise UserError(
            f"{path} is {'no file' if path.exists() else 'absent'}; give the path of a GGUF file."
        )
    try:
        if (size := path.stat().st_size) < len(MAGIC):
            raise UserError(f"{path} has {size} bytes: it is no GGUF file.")
        cursor = Cursor(np.asarray(np.memmap(path, np.uint8, "r")), path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    n_tensors, n_metadata = _header(cursor)
    typed: dict[str, Any] = {}
    for _ in range(n_metadata):
        cursor.where = f"the metadata after {next(reversed(typed), None)!r}"
        key = cursor.text()
        if key in typed:
            raise cursor.error(f"the key {key!r} comes twice")
        cursor.where = f"the metadata {key!r}"
        typed[key] = read_value(cursor, cursor.integer("<u4"))
    alignment = _alignment(typed, path)
    infos = dict(_tensor_infos(cursor, n_tensors))
    start = _aligned(cursor.at, alignment)
    tensors = {name: _tensor(cursor, name, *info, start, alignment) for name, info in infos.items()}
    return File(typed, tensors)


def write(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[Sequence[int], str]],
    array: Callable[[str], np.ndarray],
) -> Path:
    """Write a GGUF file of version 3 in one step: a reader sees the old file or the new one. Returns its path.

    metadata: str, numbers and lists or arrays of one type. NumPy's types are kept; a Python float is written as
    FLOAT32 and ints as the first of UINT32, INT32, UINT64, INT64 that holds them, as llama.cpp expects most keys.
    tensors: name -> (shape in NumPy's order, kind "F32", "F16", "BF16", "Q8_0" or "Q4_0"), in the file's order.
    array: gives the float32 numbers of a name; called once for each, in order, so one tensor is in memory at a time.

    Raises UserError for what the format cannot hold and for a disk that cannot be written to.
    """
    path = Path(path)
    alignment = _alignment(metadata, path)
    head = [MAGIC, u4(VERSIONS[-1]), u8(len(tensors)), u8(len(metadata))]
    for key, value in metadata.items():
        code, data = packed(key, value)
        head += [packed_text(key), u4(code), data]
    offset = 0
    for name, (shape, kind) in tensors.items():
        _check_tensor(name, shape, kind)
        head += [packed_text(name), u4(len(shape)), *map(u8, reversed(shape))]
        head += [u4(KINDS[kind].code), u8(offset)]
        offset = _aligned(offset + _size(shape, kind), alignment)
    try:
        with platform.replacing(path) as file:
            file.write(b"".join(head))
            for name, (shape, kind) in tensors.items():
                numbers = np.asarray(array(name))
                if numbers.shape != tuple(shape) or numbers.dtype != np.float32:
                    raise UserError(
                        f"Tensor {name!r} was announced as float32 {tuple(shape)}, got {numbers.dtype} {numbers.shape}."
                    )
                _pad(file, alignment)
                try:
                    for part in gguf_blocks.encode(KINDS[kind], numbers):
                        file.write(part.data)
                except UserError as error:
                    raise UserError(f"Tensor {name!r} cannot be written as {kind}: {error}.") from error
            _pad(file, alignment)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    return path


# Reading


def _header(cursor: Cursor) -> tuple[int, int]:
    """Numbers of tensors and of pieces of metadata; each has room in the file for as many."""
    if (magic := cursor.take(np.dtype("u1"), len(MAGIC)).tobytes()) != MAGIC:
        raise UserError(f"{cursor.path} is no GGUF file: it begins with {magic!r} instead of {MAGIC!r}.")
    version = cursor.integer("<u4")
    if version and not version & 0xFFFF:
        raise UserError(f"{cursor.path} is a big-endian GGUF file; min_llm reads little-endian ones only.")
    if version not in VERSIONS:
        raise UserError(
            f"{cursor.path} has version {version} of the GGUF format, min_llm reads "
            f"{' and '.join(map(str, VERSIONS))}; convert it with a llama.cpp of today."
        )
    n_tensors, n_metadata = cursor.integer("<u8"), cursor.integer("<u8")
    cursor.check(n_tensors, 24)  # the smallest entries: empty text, no dimensions, a value of one byte
    cursor.check(n_metadata, 13)
    return n_tensors, n_metadata


def _tensor_infos(cursor: Cursor, n_tensors: int) -> Iterator[tuple[str, tuple[tuple[int, ...], int, int]]]:
    """(name, (shape, code of the kind, offset)) of each tensor."""
    seen: set[str] = set()
    for i in range(n_tensors):
        cursor.where = f"the entry of tensor {i + 1} of {n_tensors}"
        name = cursor.text()
        if name in seen:
            raise cursor.error(f"the name {name!r} comes twice")
        seen.add(name)
        if (n_dims := cursor.integer("<u4")) > MAX_DIMS:
            raise cursor.error(f"{name!r} has {n_dims} dimensions, at most {MAX_DIMS} are possible")
        shape = tuple(cursor.take(np.dtype("<u8"), n_dims).tolist()[::-1])
        yield name, (shape, cursor.integer("<u4"), cursor.integer("<u8"))


def _tensor(
    cursor: Cursor, name: str, shape: tuple[int, ...], code: int, offset: int, start: int, alignment: int
) -> Tensor:
    """A tensor whose bytes lie within the file, as far as its kind is known."""
    cursor.where = f"the entry of tensor {name!r}"
    if offset % alignment:
        raise cursor.error(f"its offset {offset} is no multiple of the alignment, {alignment}")
    kind = KIND_OF_CODE.get(code) or gguf_blocks.OTHERS.get(code, f"number {code}")
    if kind in KINDS and (fault := _fault(shape, kind)):
        raise cursor.error(fault)
    begin = start + offset
    end = begin + (_size(shape, kind) if kind in KINDS else 0)
    if end > len(cursor.data):
        raise cursor.error(
            f"its bytes {begin:,} to {end:,} lie outside the file, which has {len(cursor.data):,}; is it cut off?"
        )
    return Tensor(name, shape, kind, cursor.data[begin:end], cursor.path)


# What reading and writing share


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _alignment(typed: Mapping[str, Any], path: Path) -> int:
    """The alignment that the metadata asks for."""
    value = typed.get(ALIGNMENT_KEY, ALIGNMENT)
    if (
        not isinstance(value, int | np.uint32)
        or not 8 <= value <= MAX_ALIGNMENT
        or int(value).bit_count() != 1
    ):
        raise UserError(
            f"{ALIGNMENT_KEY} in {path} is {value!r}; it must be a UINT32, a power of two from 8 to {MAX_ALIGNMENT}."
        )
    return int(value)


def _size(shape: Sequence[int], kind: str) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) // KINDS[kind].block * KINDS[kind].bytes


def _fault(shape: Sequence[int], kind: str) -> str:
    """What is wrong with a shape, or nothing."""
    if min(shape, default=1) < 1:
        return f"the shape {tuple(shape)} is empty, which GGUF has no place for"
    if (shape[-1] if shape else 1) % (block := KINDS[kind].block):
        return (
            f"the last axis of shape {tuple(shape)} is not made of whole blocks of {block}, as {kind} needs"
        )
    return ""


# Writing


def _check_tensor(name: str, shape: Sequence[int], kind: str) -> None:
    writable = [name for name, kind in KINDS.items() if kind.encode]
    if kind not in writable:
        raise UserError(f"Tensor {name!r} cannot be written as {kind!r}.{nearest(str(kind), writable)}")
    if len(packed_text(name)) - 8 > MAX_NAME:
        raise UserError(
            f"The name of tensor {name!r} is longer than the {MAX_NAME} bytes that llama.cpp takes."
        )
    if len(shape) > MAX_DIMS:
        raise UserError(f"Tensor {name!r} has {len(shape)} dimensions; GGUF has at most {MAX_DIMS}.")
    if fault := _fault(shape, kind):
        raise UserError(f"Tensor {name!r} cannot be written: {fault}.")


def _pad(file: IO[bytes], alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
