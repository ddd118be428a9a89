"""`min-llm data classifier`, `min-llm data distil`: train a classifier of texts for curation."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from min_llm.config import UserError

Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[CONFIG.yaml] [key=value ...]", show_default=False)
]


def _help_classifier(value: bool) -> None:
    if value:
        from min_llm.data.curate.train_linear import ClassifierConfig

        _help(
            ClassifierConfig,
            "[bold]Usage:[/] min-llm data classifier \\[CONFIG.yaml] \\[key=value ...]\n\n"
            "Trains a linear classifier of word and character n-grams on texts with labels, tests it on what it held "
            "out, and writes one file for the steps quality, kind, language and topic of `min-llm data curate`. For "
            "example:\n\n"
            "  min-llm data classifier name=quality output=quality.safetensors data.sources.reference=wiki-en "
            "'data.sources.other=\\[python-stdlib,spam-assassin]'\n",
        )


def _help_distil(value: bool) -> None:
    if value:
        from min_llm.data.curate.train_encoder import DistilConfig

        _help(
            DistilConfig,
            "[bold]Usage:[/] min-llm data distil \\[CONFIG.yaml] \\[key=value ...]\n\n"
            "Trains a small encoder on the scores that a larger model has given to texts, tests whether the two agree "
            "on what it held out, and writes one file for the step quality of `min-llm data curate`, whose labels are "
            "low and high. For example:\n\n"
            "  min-llm data distil scores=scores.jsonl teacher='bits per byte of SmolLM2' output=quality.safetensors\n",
        )


def _help(config: type, usage: str) -> None:
    """The usage and every setting; typer would only know [key=value ...]."""
    from rich.console import Console
    from rich.table import Table

    from min_llm.config import fields_help

    console = Console()
    console.print(usage)
    settings = Table("setting", "default", "meaning", box=None, header_style="bold", pad_edge=False)
    for key, _, default, text in fields_help(config):
        settings.add_row(key, default, text)
    console.print(settings)
    raise typer.Exit


def classifier(
    settings: Settings = None,
    help: Annotated[bool, typer.Option("--help", "-h", callback=_help_classifier, is_eager=True)] = False,
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


def distil(
    settings: Settings = None,
    help: Annotated[bool, typer.Option("--help", "-h", callback=_help_distil, is_eager=True)] = False,
) -> None:
    """Train a small encoder to score texts as a larger model has."""
    from min_llm.config import from_words

    if not settings:
        raise UserError("Give a configuration; `min-llm data distil --help` shows one.")

    from min_llm.data.curate.train_encoder import DistilConfig, train

    cfg = from_words(DistilConfig, settings)
    about = train(cfg).about
    found = about["held_out"]
    print(f"{cfg.output}: {about['texts']:,} texts, scores from {about['teacher']}")
    print(
        f"held-out texts: {found['accuracy']:.1%} of {found['texts']:,} as the teacher, AUC {found['auc']:.4f}"
    )


def _line(found: dict[str, Any]) -> str:
    recall = ", ".join(f"{label} {share:.1%}" for label, share in found["recall"].items())
    auc = f", AUC {found['auc']:.4f}" if "auc" in found else ""
    return f"{found['accuracy']:.1%} of {found['texts']:,} texts are right ({recall}){auc}"
