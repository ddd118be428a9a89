"""`min-llm data curate`: filter and deduplicate text."""

from __future__ import annotations

from typing import Annotated

import typer

from min_llm.config import UserError


def _help(value: bool) -> None:
    """Every step with its settings; typer would only know [key=value ...]."""
    if not value:
        return
    from rich.console import Console
    from rich.table import Table

    from min_llm.config import fields_help
    from min_llm.data.curate.settings import CurateConfig
    from min_llm.data.curate.steps import STEPS, USUAL

    console = Console()
    console.print(
        "[bold]Usage:[/] min-llm data curate \\[CONFIG.yaml] \\[key=value ...]\n\n"
        "Writes what the steps leave of the inputs, and a report of what went; prints the folder. A stopped run goes "
        "on when the same command is given again. For example:\n\n"
        "  min-llm data curate inputs.web='crawl/*.jsonl.gz' output=curated steps.exact=null steps.minhash.bands=20\n"
    )
    settings = Table("setting", "default", "meaning", box=None, header_style="bold", pad_edge=False)
    for key, _, default, text in fields_help(CurateConfig):
        if not key.startswith("steps"):
            settings.add_row(key, default, text)
    console.print(settings)
    console.print(f"\nThe steps run in the order they are given in; without any: {', '.join(USUAL)}.\n")
    steps = Table("step", "default", "meaning", box=None, header_style="bold", pad_edge=False)
    for name, step in STEPS.items():
        steps.add_row(f"[bold]steps.{name}[/]", "", " ".join((step.__doc__ or "").split()))
        for key, _, default, text in fields_help(step):
            steps.add_row(f"  .{key}", default, text)
    steps.add_row("[bold]any step[/]")
    steps.add_row("  .sources", "all", "names of the inputs it is for")
    console.print(steps)
    raise typer.Exit


def curate(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.yaml] [key=value ...]", show_default=False)
    ] = None,
    help: Annotated[bool, typer.Option("--help", "-h", callback=_help, is_eager=True)] = False,
) -> None:
    """Filter and deduplicate text: JSON lines, Parquet, plain text, HTML."""
    from min_llm.config import from_words
    from min_llm.data.curate import pipeline
    from min_llm.data.curate.settings import CurateConfig

    if not settings:
        raise UserError("Give a configuration; `min-llm data curate --help` shows one.")
    print(pipeline.curate(from_words(CurateConfig, settings)))
