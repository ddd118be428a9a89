"""Bytes as printable characters, and the order in which byte-level BPE counts them (GPT-2's encoder.py).

GPT-2 wrote its vocabulary as text, so every byte got a visible character: printable Latin-1 stands for
itself, the other 68 bytes are 256, 257, ... (a space is "Ġ"). Its token ids 0 .. 255 follow that list, and
tiktoken, Llama 3 and Hugging Face inherited the order, so ours is the same: id 0 is "!", id 220 is the space.
"""

from __future__ import annotations

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

ORDER: tuple[int, ...] = (*_PRINTABLE, *_OTHERS)
"""ORDER[id] is the byte of the token id, for the 256 single-byte tokens."""

RANK: tuple[int, ...] = tuple(ORDER.index(byte) for byte in range(256))
"""RANK[byte] is the token id of a byte, the inverse of ORDER."""

_CHARS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
_BYTES = {char: byte for byte, char in _CHARS.items()}


def printable(token: bytes) -> str:
    """A token's bytes as one character each, none of them a space or control character."""
    return "".join(_CHARS[byte] for byte in token)


def from_printable(text: str) -> bytes:
    """The bytes that `printable` shows as this text. Raises KeyError with a character it never writes."""
    return bytes([_BYTES[char] for char in text])
