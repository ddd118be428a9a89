"""`min-llm average`: the mean of several checkpoints of a run, as a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from min_llm.config import UserError


def average(
    run: Annotated[Path, typer.Argument(help="run folder; checkpoint.keep_every makes it keep checkpoints")],
    target: Annotated[Path, typer.Argument(help="a new folder (Hugging Face)")],
    steps: Annotated[str, typer.Option(help="of the checkpoints, as 100,200,300")] = "",
    last: Annotated[int, typer.Option(help="so many of the latest checkpoints instead")] = 0,
) -> None:
    """Write the mean of checkpoints of RUN, with its tokenizer."""
    import dataclasses

    from min_llm.cli.export import check_absent, write_folder
    from min_llm.cli.models import whole_numbers
    from min_llm.infer.load import load_run
    from min_llm.reporting import reporter
    from min_llm.train import average

    check_absent(target)
    if bool(steps) == bool(last):
        raise UserError("Say which checkpoints: --steps 100,200,300, or --last 3.")
    chosen = average.last_steps(run, last) if last else whole_numbers(steps, "--steps")
    mean = dataclasses.replace(load_run(run, chosen[-1]), params=average.average(run, chosen))
    write_folder(mean, target, "float32")
    reporter().info(f"The mean of the checkpoints {', '.join(map(str, chosen))} of {run} is in {target}")
