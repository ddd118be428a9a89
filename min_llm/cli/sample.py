"""`min-llm sample`: continue a prompt."""

from __future__ import annotations

from typing import Annotated

import typer


def sample(
    model: Annotated[str, typer.Argument(help="run folder, Hugging Face folder, GGUF file or name")],
    prompt: Annotated[str, typer.Option(help="text to continue")] = "\n",
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.8,
    max_tokens: Annotated[int, typer.Option(help="tokens of each sample")] = 200,
    top_k: Annotated[int, typer.Option(help="sample among the k most likely tokens; 0: all")] = 0,
    top_p: Annotated[
        float, typer.Option(help="sample among the likeliest tokens of this total probability")
    ] = 1.0,
    n: Annotated[int, typer.Option("-n", help="number of samples")] = 1,
    seed: Annotated[int, typer.Option(help="of the draws")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; auto: float32 on a CPU")] = "auto",
    step: Annotated[int | None, typer.Option(help="checkpoint to use; default: the latest")] = None,
) -> None:
    """Continue PROMPT. The text goes to standard output, everything else to standard error."""
    from min_llm import platform
    from min_llm.config import build
    from min_llm.infer.load import load
    from min_llm.infer.request import Sampling
    from min_llm.kernels import cpu
    from min_llm.nn.runtime import RuntimeConfig
    from min_llm.reporting import reporter

    platform.use_compilation_cache()
    cpu.keep_blocks()  # weights in huge pages are read a tenth faster
    sampling = Sampling(temperature, top_k, top_p, max_tokens=max_tokens, n=n, seed=seed)
    loaded = load(model, step, build(RuntimeConfig, {"dtype": dtype}, "runtime"))
    reporter().info(f"{loaded.about}, {loaded.cfg.family}, temperature {temperature}")
    for text in loaded.choices(loaded.prompt(prompt), sampling):
        print(prompt + text)
