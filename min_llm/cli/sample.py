"""`min-llm sample`: continue a prompt with a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sample(
    run: Annotated[Path, typer.Argument(help="run folder, as made by `min-llm train`")],
    prompt: Annotated[str, typer.Option(help="text to continue")] = "\n",
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.8,
    max_tokens: Annotated[int, typer.Option(help="tokens of each sample")] = 200,
    top_k: Annotated[int, typer.Option(help="sample among the k most likely tokens; 0: all")] = 0,
    top_p: Annotated[
        float, typer.Option(help="sample among the likeliest tokens of this total probability")
    ] = 1.0,
    n: Annotated[int, typer.Option("-n", help="number of samples")] = 1,
    seed: Annotated[int, typer.Option(help="of the draws")] = 0,
    step: Annotated[int | None, typer.Option(help="checkpoint to use; default: the latest")] = None,
) -> None:
    """Continue PROMPT. The text goes to standard output, everything else to standard error."""
    from min_llm import platform
    from min_llm.infer.load import load_run
    from min_llm.infer.sample import Sampling, generate
    from min_llm.infer.text import prompt_tokens
    from min_llm.reporting import reporter

    platform.use_compilation_cache()
    sampling = Sampling(temperature, top_k, top_p)
    loaded = load_run(run, step)
    tokens = prompt_tokens(loaded.tokenizer, prompt)
    reporter().info(f"{run} at step {loaded.step}, {loaded.cfg.model.family}, temperature {temperature}")
    out = generate(
        loaded.params,
        loaded.cfg.model,
        loaded.runtime,
        [tokens] * n,
        max_tokens,
        sampling,
        seed,
        loaded.tokenizer.eos,
        loaded.tokenizer.vocab_size,
    )
    for ids in out:
        print(prompt + loaded.tokenizer.decode(ids))
