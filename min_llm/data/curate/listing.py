"""Lists that filters read: one entry a line, `#` begins a comment."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from min_llm.config import UserError


class Stamp(NamedTuple):
    """A file in the state that it is in: what is made from it is remembered while that stays the same."""

    path: Path
    size: int
    modified: int


def stamp(path: Path, setting: str) -> Stamp:
    """Raises UserError naming the setting that gave the file."""
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read: {error.strerror}.") from error
    return Stamp(path, found.st_size, found.st_mtime_ns)


def read_list(path: Path, setting: str) -> list[str]:
    """The entries of a file. Raises UserError naming the setting that gave it."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{setting}: {path} is not UTF-8. Convert it, for example with iconv.") from error
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read: {error.strerror}.") from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]
