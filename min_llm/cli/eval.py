"""`min-llm eval`: how well a model predicts text, chooses answers, writes them, or finds what a text said."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from min_llm.cli.models import say, show, whole_numbers

if TYPE_CHECKING:
    from min_llm.evals.intervals import Accuracy
    from min_llm.evals.needles import Grid
    from min_llm.infer.engine import Engine
    from min_llm.infer.load import Loaded

Row = tuple[str, float, tuple[float, float] | None]  # what, its value, its interval


class Task(StrEnum):
    perplexity = "perplexity"
    choices = "choices"
    exact = "exact"
    needles = "needles"


def evaluate(
    model: Annotated[str, typer.Argument(help="run folder, Hugging Face folder, GGUF file or name")],
    file: Annotated[
        str,
        typer.Argument(
            help="perplexity: text (.txt, .jsonl, .parquet, or a source of `min-llm data list`); choices: .jsonl of "
            "context, choices, answer (an index); exact: .jsonl of prompt, answer (text, or several); needles: text "
            "that the model was not trained on, as for perplexity"
        ),
    ],
    task: Annotated[Task, typer.Option(help="what FILE holds and is measured")] = Task.perplexity,
    stride: Annotated[int, typer.Option(help="perplexity: tokens scored in a window; 0: all of them")] = 0,
    field: Annotated[
        str, typer.Option(help="perplexity, needles: the field of .jsonl or .parquet that is text")
    ] = "text",
    delimiter: Annotated[str, typer.Option(help="choices: what stands between context and choice")] = " ",
    max_tokens: Annotated[int, typer.Option(help="exact: of an answer")] = 64,
    stop: Annotated[
        list[str] | None, typer.Option(help=r"exact: ends an answer, again for more; default \n")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="exact: prompts are messages of a user")] = False,
    lengths: Annotated[str, typer.Option(help="needles: tokens of the texts, as 128,256")] = "",
    depths: Annotated[int, typer.Option(help="needles: how many, from the beginning to the end")] = 5,
    trials: Annotated[int, typer.Option(help="needles: texts of each length and depth")] = 8,
    inserted: Annotated[int, typer.Option(help="needles: how many are in a text (paper: 1, and 4)")] = 1,
    asked: Annotated[
        int, typer.Option(help="needles: how many of those are asked for (paper: 1, and 2)")
    ] = 1,
    seed: Annotated[int, typer.Option(help="needles: of keys, values and places")] = 0,
    picture: Annotated[Path | None, typer.Option(help="needles: a .png to draw the recall in")] = None,
    model_len: Annotated[
        int, typer.Option(help="tokens of a window or of prompt and answer; 0: the context")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="a JSON file to write, with every question's result")
    ] = None,
    step: Annotated[int | None, typer.Option(help="checkpoint to use; default: the latest")] = None,
) -> None:
    """Measure MODEL on FILE, with 95 % confidence intervals."""
    import json

    from min_llm import platform
    from min_llm.data.sources import documents
    from min_llm.evals.needles import longer, needles, spread
    from min_llm.infer.engine import Engine
    from min_llm.infer.load import load
    from min_llm.infer.options import EngineConfig
    from min_llm.reporting import reporter

    platform.use_compilation_cache()
    loaded = load(model, step)
    reporter().info(f"{loaded.about}, {loaded.cfg.family}: {task.value} of {file}")
    sizes = whole_numbers(lengths, "--lengths") if task is Task.needles else ()
    if sizes:
        loaded = longer(loaded, max(sizes))
    engine = Engine(loaded, EngineConfig(model_len=model_len, warm=False), release=True)
    if task is Task.perplexity:
        rows, facts = perplexity(engine, file, field, stride)
    elif task is Task.choices:
        rows, facts = choices(engine, loaded, Path(file), delimiter)
    elif task is Task.needles:
        texts = documents(file, field)
        grid = needles(engine, texts, sizes, spread(depths), trials, seed, inserted, asked, loaded.opening)
        rows, facts = recall(grid, loaded.about, picture)
    else:
        rows, facts = exact(engine, loaded, Path(file), max_tokens, stop or ["\n"], chat)
    show(("", "value", "95 % interval"), [
        (what, f"{value:.4f}", "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}")
        for what, value, interval in rows
    ], right=(1, 2))  # fmt: skip
    say(
        ", ".join(
            f"{name} {facts[name]:,}"
            for name in ("documents", "tokens", "bytes", "questions")
            if name in facts
        )
    )
    if out is not None:
        numbers = {what: {"value": value, "interval": interval} for what, value, interval in rows}
        made = {"model": loaded.about, "file": file, "task": task.value, "numbers": numbers} | facts
        platform.write_atomic(out, json.dumps(made, indent=1, ensure_ascii=False) + "\n")


def perplexity(engine: Engine, source: str, field: str, stride: int) -> tuple[list[Row], dict[str, Any]]:
    from min_llm.data.sources import documents
    from min_llm.evals.perplexity import perplexity

    found = perplexity(engine, documents(source, field), stride)
    rows: list[Row] = [("bits per byte", found.bits_per_byte, found.interval)]
    facts = {"documents": found.documents, "tokens": found.tokens, "bytes": found.bytes, "nats": found.nats}
    return [*rows, ("perplexity per token", found.perplexity, None)], facts


def choices(engine: Engine, loaded: Loaded, path: Path, delimiter: str) -> tuple[list[Row], dict[str, Any]]:
    import dataclasses

    from min_llm.evals.choices import choices, read

    questions = read(path)
    found = choices(engine, questions, loaded.opening, delimiter)
    rows: list[Row] = [
        accuracy("accuracy", found.raw),
        accuracy("accuracy, per token", found.per_token),
        accuracy("accuracy, per byte", found.per_byte),
        ("guessing", found.chance, None),
    ]
    scores = [[dataclasses.asdict(score) for score in some] for some in found.scores]
    return rows, {"questions": len(questions), "scores": scores}


def exact(
    engine: Engine, loaded: Loaded, path: Path, max_tokens: int, stop: list[str], chat: bool
) -> tuple[list[Row], dict[str, Any]]:
    from min_llm.evals.exact import exact, read

    tasks = read(path)
    prompts = [
        loaded.ask([{"role": "user", "content": t.prompt}]) if chat else loaded.prompt(t.prompt)
        for t in tasks
    ]
    found = exact(engine, prompts, tasks, max_tokens, stop)
    rows = [accuracy("exact match", found.strict), accuracy("exact match, normalised", found.normalised)]
    return rows, {"questions": len(tasks), "texts": found.texts}


def recall(grid: Grid, about: str, picture: Path | None) -> tuple[list[Row], dict[str, Any]]:
    import dataclasses

    from min_llm.evals.figure import draw

    if picture is not None:
        draw(grid, f"Needles found by {about}").savefig(picture, dpi=130)
    rows = [accuracy(f"recall, {length:,} tokens", grid.at(length)) for length in grid.lengths]
    return rows, {"questions": sum(grid.at(length).count for length in grid.lengths)} | dataclasses.asdict(
        grid
    )


def accuracy(what: str, found: Accuracy) -> Row:
    return what, found.value, found.interval
