"""The values of GGUF's metadata: text, numbers of eleven types and arrays of them, out of a file and into one.

In memory a value carries its type: str, a NumPy number, an array of numbers, a list of str or of lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from min_llm.config import UserError

MAX_DEPTH = 4  # of arrays in arrays, which nobody writes

STRING, ARRAY, BOOL = 8, 9, 7
NUMBERS = dict(enumerate(map(np.dtype, ["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"])))
NUMBERS |= dict(enumerate(map(np.dtype, ["<u8", "<i8", "<f8"]), 10))
"""Type code -> dtype of a number in the file."""


class Cursor:
    """Takes values off a file from front to back, never past its end."""

    def __init__(self, data: UInt8[np.ndarray, bytes], path: Path) -> None:
        self.data, self.path, self.at, self.where = data, path, 0, "the header"

    def error(self, what: str) -> UserError:
        return UserError(f"{self.path} is damaged or no GGUF file: in {self.where}, {what}.")

    def check(self, count: int, each: int) -> None:
        """Refuse a count of things of at least `each` bytes that the rest of the file has no room for."""
        left = len(self.data) - self.at
        if count * each > left:
            raise self.error(
                f"{count * each:,} bytes must follow byte {self.at:,}, but the file has {left:,} more"
            )

    def take(self, dtype: np.dtype, count: int = 1) -> np.ndarray:
        self.check(count, dtype.itemsize)
        begin, self.at = self.at, self.at + count * dtype.itemsize
        return self.data[begin : self.at].view(dtype)

    def integer(self, dtype: str) -> int:
        return int(self.take(np.dtype(dtype))[0])

    def text(self) -> str:
        data = self.take(np.dtype("u1"), self.integer("<u8")).tobytes()
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"text before byte {self.at:,} is not UTF-8") from error


def read_value(cursor: Cursor, code: int, depth: int = 0) -> Any:
    """The value of a type that follows: a NumPy number, text, an array of numbers or a list of anything else."""
    if code in NUMBERS:
        return _numbers(cursor, code)[0]
    if code == STRING:
        return cursor.text()
    if code != ARRAY:
        raise cursor.error(f"{code} is no type of a value")
    element, count = cursor.integer("<u4"), cursor.integer("<u8")
    if element in NUMBERS:
        return _numbers(cursor, element, count)
    if element not in (STRING, ARRAY):
        raise cursor.error(f"{element} is no type of an array's elements")
    if depth == MAX_DEPTH:
        raise cursor.error(f"arrays lie more than {MAX_DEPTH} deep in each other")
    cursor.check(count, 8)
    return [read_value(cursor, element, depth + 1) for _ in range(count)]


def _numbers(cursor: Cursor, code: int, count: int = 1) -> np.ndarray:
    """Numbers out of the file, copied. A bool is a byte: true unless it is 0."""
    if code == BOOL:
        return cursor.take(np.dtype("u1"), count) != 0
    dtype = NUMBERS[code]
    return cursor.take(dtype, count).astype(dtype.newbyteorder("="))


def plain(value: Any) -> Any:
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if isinstance(value, str) else value.tolist()


# Writing


def u4(value: int) -> bytes:
    return value.to_bytes(4, "little")


def u8(value: int) -> bytes:
    return int(value).to_bytes(8, "little")


def packed_text(text: str) -> bytes:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{text!r} has a lone surrogate, which no UTF-8 contains; clean it first.") from error
    return u8(len(data)) + data


def packed(key: str, value: Any, depth: int = 0) -> tuple[int, bytes]:
    """(type code, bytes) of a value."""
    if isinstance(value, str):
        return STRING, packed_text(value)
    if isinstance(value, np.ndarray) and value.ndim > 1:
        value = list(value)
    if isinstance(value, list | tuple):
        if (numbers := _typed(key, value)) is None:
            return ARRAY, _packed_list(key, value, depth)
        value = numbers
    elif (numbers := _typed(key, [value])) is not None:
        value = numbers[0]
    if isinstance(value, np.generic | np.ndarray):
        dtype = value.dtype.newbyteorder("<")
        for code, known in NUMBERS.items():
            if known == dtype:
                data = value.astype(dtype).tobytes()
                return (ARRAY, u4(code) + u8(value.size) + data) if value.ndim else (code, data)
        raise UserError(f"The metadata {key!r} is of type {value.dtype}, which GGUF does not have.")
    raise UserError(
        f"The metadata {key!r} is a {type(value).__name__}; GGUF has text, numbers and lists of them."
    )


def _packed_list(key: str, items: Sequence[Any], depth: int) -> bytes:
    """An array of text, of arrays or of NumPy numbers."""
    if depth == MAX_DEPTH:
        raise UserError(f"The metadata {key!r} has lists more than {MAX_DEPTH} deep in each other.")
    parts = [packed(key, item, depth + 1) for item in items]
    codes = {code for code, _ in parts} or {STRING}
    if len(codes) > 1:
        raise UserError(f"The metadata {key!r} is a list of several types; a list in GGUF has one.")
    return b"".join([u4(codes.pop()), u8(len(parts)), *(data for _, data in parts)])


def _typed(key: str, items: Sequence[Any]) -> np.ndarray | None:
    """Python numbers of one type as an array of a type that GGUF has; None for anything else."""
    types = {type(item) for item in items}
    if types == {bool}:
        return np.array(items)
    if types == {float}:
        with np.errstate(over="ignore"):
            numbers = np.array(items, np.float32)
        if np.isinf(numbers).sum() == sum(map(math.isinf, items)):
            return numbers
        raise UserError(f"The metadata {key!r} does not fit a float32; give it as np.float64.")
    if types == {int}:
        for dtype in (np.uint32, np.int32, np.uint64, np.int64):
            if np.iinfo(dtype).min <= min(items) and max(items) <= np.iinfo(dtype).max:
                return np.array(items, dtype)
        raise UserError(f"The metadata {key!r} does not fit into 64 bits.")
    return None
