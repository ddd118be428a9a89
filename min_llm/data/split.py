"""Which text is for training and which for validation."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable

import numpy as np

from min_llm.config import UserError
from min_llm.data.sources import Source
from min_llm.reporting import reporter

Piece = Callable[[str, str], tuple[str, str]]  # (document's name, text) -> (training text, validation text)


def splitter(source: Source, rule: str, fraction: float, seed: int, tune: bool) -> Piece:
    """The function that cuts a source's documents by a rule ("auto" is the source's own).

    tune: the tail of every training text is validation and the validation text is left out, so that settings
    can be chosen without looking at it.
    """
    rule = source.split if rule == "auto" else rule
    if rule == "tail":
        split: Piece = lambda name, text: tail(text, fraction)
    elif rule == "holdout":
        if not source.holdout:
            raise UserError(f"{source.name} names no works to hold out; use data.split=tail or documents.")
        split = lambda name, text: ("", text) if name in source.holdout else (text, "")
    else:
        last = last_held_out(source, fraction, seed)
        split = lambda name, text: ("", text) if draw(text, seed) <= last else (text, "")
    if tune:
        return lambda name, text: tail(split(name, text)[0], fraction)
    return split


def tail(text: str, fraction: float) -> tuple[str, str]:
    """The first and the last part of a text: nanoGPT's split, in characters."""
    at = int(len(text) * (1 - fraction))
    return text[:at], text[at:]


def draw(text: str, seed: int) -> int:
    """A number in [0, 2^64) that depends on seed and text alone: equal documents fall on the same side."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{text}".encode(errors="replace")).digest()[:8], "big")


def last_held_out(source: Source, fraction: float, seed: int) -> int:
    """The highest draw that is validation: the lowest draws make up `fraction` of the characters."""
    draws, lengths = array("Q"), array("Q")
    for _, text in source.documents():
        draws.append(draw(text, seed))
        lengths.append(len(text))
    order = np.argsort(np.asarray(draws))
    reached = np.cumsum(np.asarray(lengths)[order]) / max(sum(lengths), 1)
    n = int(np.searchsorted(reached, fraction)) + 1
    held, rest = np.asarray(draws)[order[:n]], np.asarray(draws)[order[n:]]
    if not len(rest) or rest.max() == held.max():
        raise UserError(
            f"{source.name} has {len(draws)} documents: too few to hold out whole ones. Use data.split=tail."
        )
    if reached[n - 1] > 2 * fraction:
        reporter().warn(
            f"{reached[n - 1]:.0%} of {source.name} is validation text, because its documents are few and long; "
            "data.split=tail cuts every document."
        )
    return int(held.max())
