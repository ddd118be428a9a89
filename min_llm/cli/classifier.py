"""`min-llm data classifier`: train a classifier of texts for curation."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from min_llm.config import UserError


def _help(value: bool) -> None:
    """Every setting; typer would only know [key=value ...]."""
    if not value:
        return
    from rich.console import Console
    from rich.table import Table

    from min_llm.config import fields_help
    from min_llm.data.curate.train_linear import ClassifierConfig

    console = Console()
    console.print(
        "[bold]Usage:[/] min-llm data classifier \\[CONFIG.yaml] \\[key=value ...]\n\n"
        "Trains a linear classifier of word and character n-grams on texts with labels, tests it on what it held out, "
        "and writes one file for the steps quality, kind, language and topic of `min-llm data curate`. For example:\n\n"
        "  min-llm data classifier name=quality output=quality.safetensors data.sources.reference=wiki-en "
        "'data.sources.other=\\[python-stdlib,spam-assassin]'\n"
    )
    settings = Table("setting", "default", "meaning", box=None, header_style="bold", pad_edge=False)
    for key, _, default, text in fields_help(ClassifierConfig):
        settings.add_row(key, default, text)
    console.print(settings)
    raise typer.Exit


def classifier(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.yaml] [key=value ...]", show_default=False)
    ] = None,
    help: Annotated[bool, typer.Option("--help", "-h", callback=_help, is_eager=True)] = False,
) -> None:
    """Train a classifier of texts for curation: quality, code and maths, language, topic."""
    from min_llm.config import from_words

    if not settings:
        raise UserError("Give a configuration; `min-llm data classifier --help` shows one.")

    from min_llm.data.curate.train_linear import ClassifierConfig, train

    cfg = from_words(ClassifierConfig, settings)
    about = train(cfg).about
    print(f"{cfg.output}: {about['texts']:,} texts, labels from {about['teacher']}")
    for name, title in (("held_out", "held-out documents"), ("tested", "other sources")):
        if name in about:
            print(f"{title}: {_line(about[name])}")


def _line(found: dict[str, Any]) -> str:
    recall = ", ".join(f"{label} {share:.1%}" for label, share in found["recall"].items())
    auc = f", AUC {found['auc']:.4f}" if "auc" in found else ""
    return f"{found['accuracy']:.1%} of {found['texts']:,} texts are right ({recall}){auc}"
