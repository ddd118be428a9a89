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
    import dataclasses

    from min_llm import models
    from min_llm.cli.export import check_absent, write_folder
    from min_llm.config import UserError
    from min_llm.infer.load import load
    from min_llm.quant.quantize import quantize
    from min_llm.reporting import reporter

    if dtype not in ("bfloat16", "float32"):
        raise UserError(f"--dtype is {dtype}; it must be bfloat16 or float32.")
    check_absent(target)
    loaded = load(model, step)
    params = quantize(loaded.params, models.spec(loaded.cfg), method, group)
    write_folder(dataclasses.replace(loaded, params=params), target, dtype)
    reporter().info(f"{loaded.about} in {method} is in {target}")
