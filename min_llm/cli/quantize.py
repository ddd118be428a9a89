"""`min-llm quantize`: any model that can be loaded, in 8 or 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quantize(
    model: Annotated[str, typer.Argument(help="run folder, Hugging Face folder, GGUF file or name")],
    target: Annotated[Path, typer.Argument(help="a new folder")],
    method: Annotated[str, typer.Option(help="w8a8 (the fast one on CPUs), int8, int4 or fp8")],
    group: Annotated[int, typer.Option(help="values that share a scale, for int4")] = 32,
    dtype: Annotated[str, typer.Option(help="of what stays: bfloat16 or float32")] = "bfloat16",
    step: Annotated[int | None, typer.Option(help="checkpoint of a run; default: the latest")] = None,
) -> None:
    """Write MODEL with its linear layers quantized, as min-llm, vLLM and transformers read it."""
    from min_llm import models
    from min_llm.config import UserError
    from min_llm.formats import huggingface
    from min_llm.infer.load import load
    from min_llm.quant.quantize import quantize
    from min_llm.reporting import reporter
    from min_llm.tokenizers import export

    if dtype not in ("bfloat16", "float32"):
        raise UserError(f"--dtype is {dtype}; it must be bfloat16 or float32.")
    if target.exists():
        raise UserError(f"{target} is there already. Choose another name, or remove it.")
    loaded = load(model, step)
    params = quantize(loaded.params, models.spec(loaded.cfg), method, group)
    files = export.folder_files(loaded.tokenizer, loaded.template, loaded.opening, loaded.cfg.max_seq_len)
    huggingface.write(target, loaded.cfg, params, dtype, extra=files)
    reporter().info(f"{loaded.about} in {method} is in {target}")
