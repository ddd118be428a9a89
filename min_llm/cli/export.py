"""`min-llm export`: any model that can be loaded, written for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from min_llm.infer.load import Loaded


def export(
    model: Annotated[str, typer.Argument(help="run folder, Hugging Face folder, GGUF file or name")],
    target: Annotated[Path, typer.Argument(help="a new folder (Hugging Face), or a file that ends in .gguf")],
    dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16 for a folder; F32, F16, BF16, Q8_0 or Q4_0 for GGUF")
    ] = "",
    step: Annotated[int | None, typer.Option(help="checkpoint of a run; default: the latest")] = None,
) -> None:
    """Write MODEL with its tokenizer for other programs."""
    from min_llm.config import UserError
    from min_llm.formats import gguf_model
    from min_llm.infer.load import load
    from min_llm.reporting import reporter
    from min_llm.tokenizers import export as vocabularies

    as_gguf = target.suffix == ".gguf"
    known = tuple(gguf_model.FILE_TYPES) if as_gguf else ("float32", "bfloat16")
    if dtype and dtype not in known:
        raise UserError(f"--dtype {dtype} is not for {target.name}; there are {', '.join(known)}.")
    check_absent(target)
    loaded = load(model, step)
    if as_gguf:
        metadata = vocabularies.gguf_metadata(loaded.tokenizer, loaded.template, loaded.opening)
        gguf_model.write(target, loaded.cfg, loaded.params, dtype or "F16", metadata)
    else:
        write_folder(loaded, target, dtype or "float32")
    reporter().info(f"{loaded.about} is in {target}")


def check_absent(target: Path) -> None:
    from min_llm.config import UserError

    if target.exists():
        raise UserError(f"{target} is there already. Choose another name, or remove it.")


def write_folder(loaded: Loaded, target: Path, dtype: str) -> None:
    """A model with its tokenizer as a Hugging Face folder, whole or not at all."""
    from min_llm.formats import huggingface
    from min_llm.tokenizers import export as vocabularies

    files = vocabularies.folder_files(
        loaded.tokenizer, loaded.template, loaded.opening, loaded.cfg.max_seq_len
    )
    huggingface.write(target, loaded.cfg, loaded.params, dtype, extra=files)
