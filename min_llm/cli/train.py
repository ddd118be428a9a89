"""`min-llm train`: wire configuration, data, sampling and report around the training loop."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from min_llm.config import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from min_llm.data.prepared import Corpus
    from min_llm.train.config import RunConfig
    from min_llm.train.loop import Hook
    from min_llm.train.pretrain import Task


def _help(asked: bool) -> None:
    """Every setting with its default: the configuration classes are the documentation."""
    if not asked:
        return
    from rich.console import Console
    from rich.table import Table

    from min_llm import models
    from min_llm.config import fields_help
    from min_llm.train.config import RunConfig

    console = Console()
    console.print(
        "[bold]Usage:[/] min-llm train [CONFIG.yaml] [key=value ...]\n\n"
        "Trains the run that CONFIG describes, with settings changed by key=value (for example train.steps=100). "
        "If its folder exists, the run resumes. SIGTERM and Ctrl-C save a checkpoint first (exit status 143).\n"
    )
    table = Table("setting", "default", "meaning", box=None, header_style="bold", pad_edge=False)
    sections = [r for r in fields_help(RunConfig) if not r[0].startswith("model.")]
    for key, kind, default, text in sections:
        if key != "model":
            table.add_row(key, default or '""', f"{text} [dim]({kind})[/]")
    for family in models.FAMILIES:
        for key, kind, default, text in fields_help(models.module(family).Config, "model."):
            table.add_row(f"{key}", default, f"{text or family} [dim]({kind}; family {family})[/]")
    console.print(table)
    console.print(f"\nmodel.preset: {', '.join(models.presets())}")
    raise typer.Exit


def train(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG.yaml] [key=value ...]", show_default=False)
    ] = None,
    help: Annotated[bool, typer.Option("--help", "-h", callback=_help, is_eager=True)] = False,
) -> None:
    """Train a model, or resume its run."""
    from min_llm import config as config_lib
    from min_llm import platform
    from min_llm.parallel import processes
    from min_llm.reporting import reporter
    from min_llm.train.config import RunConfig

    if not settings:
        raise UserError("Give a configuration, for example: min-llm train apps/shakespeare/config.yaml")
    cfg = config_lib.from_words(RunConfig, settings)
    platform.run_in_turn()
    with processes.joined():
        platform.use_compilation_cache()
        finished, folder = run(cfg)
        if not finished:
            sys.exit(143)  # 128 + SIGTERM: a scheduler sees that the job has more to do
    reporter().info(f"Done. Report: {folder / 'report.html'}   Sample: min-llm sample {folder} --prompt TEXT")


def run(cfg: RunConfig) -> tuple[bool, Path]:
    """Train `cfg` to its end or to a signal; (finished, run folder). The report is written either way."""
    from min_llm.parallel import mesh as meshes

    with meshes.use(cfg.parallel.mesh) as mesh:
        return run_on(mesh, cfg)


def run_on(mesh: Mesh | None, cfg: RunConfig) -> tuple[bool, Path]:
    """`run` on the mesh in use, None on one device."""
    from min_llm.evals.baselines import baselines
    from min_llm.kernels import cpu
    from min_llm.parallel import processes
    from min_llm.platform import write_atomic
    from min_llm.reporting import reporter
    from min_llm.train.loop import Hook
    from min_llm.train.loop import train as train_loop
    from min_llm.train.pretrain import pretraining
    from min_llm.train.report import write_report
    from min_llm.train.run import begun_with, open_run

    cfg, task, data = pretraining(cfg, begun_with(cfg), mesh)
    if cpu.available() and not cpu.keep_blocks():
        reporter().info(
            "XLA's large blocks of memory are not kept from step to step: its library has changed"
        )
    with (
        disk_errors(Path(cfg.out) / cfg.name),
        open_run(cfg) as opened,
        reporter().log_to(opened.folder / "log.txt"),
    ):
        folder = opened.folder
        if processes.primary():
            data.tokenizer.save(folder / "tokenizer.json")
            write_atomic(
                folder / "data.json", json.dumps({"lines": data.describe()}, indent=1, ensure_ascii=False)
            )
        reporter().info(describe(cfg, task))

        def report(_: int, __: Any) -> None:
            if processes.primary():
                write_report(folder, running=True)

        hooks = [Hook("report", cfg.train.eval_every, report)]
        if cfg.sample.prompts:
            hooks.insert(0, sampling_hook(folder, cfg, task, data))
        if (final := task.final) is not None:
            hooks.insert(0, Hook("final", 0, lambda _, params: final(params)))
        try:
            outcome = train_loop(opened, task, hooks)
            if outcome.finished and cfg.log.baselines and processes.primary():
                reporter().info("Bits per byte of xz -9 and a 5-gram on the same text, to compare with")
                each = {name: baselines(part) for name, part in data.parts.items()}
                found = {"sources": each} if cfg.data.mix else each["text"]
                write_atomic(folder / "baselines.json", json.dumps(found, indent=1))
        finally:
            if processes.primary():
                write_report(folder, running=False)
    return outcome.finished, folder


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full or failing disk becomes a sentence with the way out, whichever file met it first."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise
        raise UserError(
            f"{folder} cannot be written: {error.strerror}. Make room or give another folder with out=FOLDER, then "
            "start the same command again; a run resumes from its last checkpoint."
        ) from error


def describe(cfg: RunConfig, task: Task) -> str:
    from min_llm import spec
    from min_llm.train.ramp import Ramp

    n, t = spec.count(task.spec), cfg.train
    return (
        f"{cfg.model.family} with {n:,} parameters, {t.steps:,} steps of {Ramp.of(t).words()} tokens, "
        f"run folder {Path(cfg.out) / cfg.name}"
    )


def sampling_hook(folder: Path, cfg: RunConfig, task: Task, data: Corpus) -> Hook:
    """Continue the prompts and append what comes to samples.md."""
    from min_llm.infer.request import Sampling
    from min_llm.infer.sample import check, generate
    from min_llm.infer.text import opening, prompt_tokens
    from min_llm.parallel import processes
    from min_llm.parallel.mesh import alone
    from min_llm.reporting import reporter
    from min_llm.train.loop import Hook

    tokenizer, s = data.tokenizer, cfg.sample
    prompts = [prompt_tokens(tokenizer, text, opening(tokenizer)) for text in s.prompts]
    sampling = Sampling(s.temperature)
    check(cfg.model, prompts, s.max_tokens)  # now, not after hours of training

    def call(step: int, params: Any) -> None:
        with alone(params) as whole:
            if not processes.primary():
                return
            out = generate(
                whole,
                cfg.model,
                task.runtime,
                prompts,
                s.max_tokens,
                sampling,
                step,
                tokenizer.eos,
                tokenizer.vocab_size,
            )
        with (folder / "samples.md").open("a", encoding="utf-8") as file:
            file.write(f"## Step {step}\n\n")
            for prompt, ids in zip(s.prompts, out, strict=True):
                text = prompt + tokenizer.decode(ids)
                file.write("```text\n" + text.replace("```", "'''") + "\n```\n\n")
        reporter().sample(step, text)

    return Hook("sample", s.every, call)
