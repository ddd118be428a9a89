"""`min-llm <verb>`. Commands import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from min_llm.cli import data, models, scaling, tokenizer
from min_llm.cli.anneal_probe import anneal_probe
from min_llm.cli.average import average
from min_llm.cli.chat import chat
from min_llm.cli.coverage import coverage
from min_llm.cli.doctor import doctor
from min_llm.cli.eval import evaluate
from min_llm.cli.export import export
from min_llm.cli.goodput import goodput
from min_llm.cli.launch import launch
from min_llm.cli.plan import plan
from min_llm.cli.quantize import quantize
from min_llm.cli.report import probe_app, report
from min_llm.cli.sample import sample
from min_llm.cli.serve import serve
from min_llm.cli.train import train
from min_llm.config import UserError

app = typer.Typer(
    help="Train, sample and understand Llama 3-class models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(add_help_option=False)(train)
app.command()(launch)
app.command()(sample)
app.command()(chat)
app.command()(serve)
app.command("eval")(evaluate)
app.command()(export)
app.command()(average)
app.command()(quantize)
app.command()(report)
app.add_typer(probe_app, name="probe")
app.add_typer(data.app, name="data")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(scaling.app, name="scaling")
app.command()(anneal_probe)
app.command()(models.info)
app.command()(models.arithmetic)
app.command()(plan)
app.command()(goodput)
app.command()(coverage)
app.command()(doctor)


def _version(asked: bool) -> None:
    if asked:
        from min_llm import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point. Exit status: 0 done, 1 training stopped or a failure, 2 something the user can fix."""
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `min-llm … | head`
            sys.stderr.close()
            sys.exit(141)
        where = f" ({Path(error.filename)})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}.", 2)
    except RuntimeError as error:
        if type(error).__name__ != "TrainingStopped":
            raise
        _fail(str(error), 1)


def _fail(message: str, status: int) -> None:
    sys.stderr.write(f"min-llm: {message}\n")
    sys.exit(status)
