"""A model of other programs, whatever its form: what it is is decided by looking at the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from min_llm.config import UserError, nearest
from min_llm.formats import gguf, gguf_model, huggingface, named
from min_llm.models import ModelConfig


def found(source: str | Path) -> Path | None:
    """The folder or GGUF file of a path, of a name in `named`, or of OWNER/NAME on Hugging Face, fetched if it must be.
    None where it is a folder that is not Hugging Face's. Raises UserError that says what was looked for."""
    text, path = str(source), Path(source).expanduser()
    if text in named.NAMED:
        return named.fetched(text)
    if path.suffix == ".gguf":
        return path
    if path.is_dir():
        return path if huggingface.is_folder(path) else None
    if text.count("/") == 1 and not path.is_absolute() and not text.startswith("."):
        return huggingface.downloaded(text)
    raise UserError(
        f"{text!r} is no run folder, Hugging Face folder or GGUF file, and no name that is known "
        f"({', '.join(named.NAMED)}).{nearest(text, list(named.NAMED))}"
    )


def read_config(path: Path) -> ModelConfig:
    """Of what `found` found."""
    return huggingface.read_config(path) if path.is_dir() else gguf_model.config_of(gguf.read(path), path)


def read(path: Path, dtype: str = "float32") -> Any:
    """The parameters of what `found` found."""
    return huggingface.read(path, dtype)[1] if path.is_dir() else gguf_model.read(path, dtype)[1]
