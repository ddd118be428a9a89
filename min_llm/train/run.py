"""The run folder: `runs/<name>/` holds everything about a run, and starting the run again resumes it.

config.yaml       complete and re-runnable        checkpoints/<step>/   whole or absent
metrics.jsonl     one row a measurement           samples.md            text written during training
log.txt           what the terminal showed        report.html           made from the above
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from min_llm import config as config_lib
from min_llm.config import UserError
from min_llm.nn.runtime import Runtime
from min_llm.parallel import processes
from min_llm.platform import write_atomic
from min_llm.reporting import reporter
from min_llm.train.checkpoints import Checkpoints
from min_llm.train.config import RunConfig, check, differences
from min_llm.train.environment import software

ON_A_MESH = ("context", "keep_gathered", "pipeline_parts", "pipeline_rounds")
TRUNCATED = ("metrics.jsonl", "samples.md")  # cut back to the checkpoint when a run resumes


class Run:
    """One run folder, open for training."""

    def __init__(self, folder: Path, cfg: RunConfig) -> None:
        self.folder, self.cfg = folder, cfg
        self.checkpoints = Checkpoints(folder / "checkpoints", cfg.checkpoint.keep, cfg.checkpoint.keep_every)

    def sizes(self) -> dict[str, int]:
        """Bytes of the files that a resume cuts back, flushed to disk: part of a checkpoint's meta."""
        sizes = {}
        for name in TRUNCATED:
            path = self.folder / name
            if path.exists() and processes.primary():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            sizes[name] = path.stat().st_size if path.exists() else 0
        return sizes

    def truncate(self, sizes: dict[str, int]) -> int:
        """Forget what was written after the checkpoint; the bytes that were."""
        forgotten = 0
        if not processes.primary():
            return 0
        for name in TRUNCATED:
            path, size = self.folder / name, sizes.get(name, 0)
            have = path.stat().st_size if path.exists() else 0
            if have < size:
                reporter().warn(
                    f"{path} has lost {size - have} bytes since the checkpoint; the report will lack them."
                )
            elif have:
                os.truncate(path, size)
                forgotten += have - size
        return forgotten

    def agree(self, meta: dict[str, Any], runtime: Runtime) -> None:
        """A checkpoint goes on as it began: with other choices of runtime its numbers would change on the way
        (`begun_with` keeps them); other software changes them in the last bits, which is said."""
        began, now = meta.get("runtime", {}), numbers(runtime)
        if changed := [f"{k} {began[k]} -> {now[k]}" for k in now if k in began and began[k] != now[k]]:
            raise UserError(
                f"{self.folder} was trained with another runtime ({'; '.join(changed)}). Set runtime.* to what it "
                "began with, or give another name=NAME."
            )
        began, now = meta.get("software", {}), software()
        if changed := [f"{k} {began[k]} -> {now[k]}" for k in now if k in began and began[k] != now[k]]:
            reporter().warn(
                f"The run goes on elsewhere ({'; '.join(changed)}); its numbers may differ in the last bits."
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        return read_rows(self.folder)


@contextmanager
def open_run(cfg: RunConfig) -> Iterator[Run]:
    """The folder of a configuration, made or found, locked against a second trainer.

    An existing folder must hold the same configuration, settings that touch no number apart. Of several processes
    the primary locks it and is the only one that writes.
    """
    folder = Path(cfg.out) / cfg.name
    if not processes.primary():  # it reads what the primary has locked and cleaned
        processes.barrier()
        yield Run(folder, cfg)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"The run folder {folder} cannot be written: {error.strerror}. Give another with out=FOLDER."
        ) from error
    with lock:
        _lock(lock, folder)
        check_same(folder, check(cfg))
        write_atomic(folder / "config.yaml", config_lib.to_yaml(cfg))
        run = Run(folder, cfg)
        run.checkpoints.clean()
        processes.barrier()
        yield run


def _lock(file: IO[str], folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: nothing is locked
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(
            f"Another process is training in {folder}. Wait for it, or give another name=NAME."
        ) from error


def check_same(folder: Path, cfg: RunConfig) -> None:
    """Raises UserError where the folder holds a run whose settings would give other numbers than those of `cfg`."""
    path = folder / "config.yaml"
    now = config_lib.flatten(config_lib.dump(cfg))
    if changed := differences(_saved(path), now) if path.exists() else []:
        raise UserError(
            f"{folder} already holds a run with other settings ({'; '.join(changed[:5])}). "
            f"Give another name=NAME, or remove {folder} to start afresh."
        )


def _saved(path: Path) -> dict[str, Any]:
    """Settings of a run by name, with the defaults of those that did not exist when it began; of a file that names
    others as it stands."""
    try:
        return config_lib.flatten(config_lib.dump(config_lib.load(RunConfig, path)))
    except UserError:
        return config_lib.flatten(config_lib.read(path))


def numbers(runtime: Runtime) -> dict[str, Any]:
    """What of a runtime decides a run's numbers: all but how it is spread over devices."""
    return {name: value for name, value in vars(runtime).items() if name not in ON_A_MESH}


def begun_with(cfg: RunConfig) -> dict[str, Any]:
    """What "auto" meant when the run of this configuration began: the runtime of its latest checkpoint, {} before
    the first. A measurement that comes out otherwise today must not change the numbers of a run on its way."""
    run = Run(Path(cfg.out) / cfg.name, cfg)
    latest = run.checkpoints.latest()
    return {} if latest is None else run.checkpoints.read_meta(latest).get("runtime", {})


def load_config(folder: Path) -> RunConfig:
    """The configuration of an existing run."""
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder} is not a run: it has no config.yaml. Give a folder made by `min-llm train`."
        )
    return config_lib.load(RunConfig, folder / "config.yaml")


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of metrics.jsonl; a torn last line (a killed process) is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                if line.endswith("\n"):
                    raise UserError(
                        f"{path} line {number} is not JSON ({error}). Remove that line."
                    ) from error
