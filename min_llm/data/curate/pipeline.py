"""`min-llm data curate`: shards of text -> steps -> shards of text and a report, in parallel and resumably.

`curate(cfg)` fills `cfg.output`:

    00000.jsonl.gz, …     what is left, a file for each shard of the input
    report.html           what was dropped, by what, with samples
    report.json           the same for programs; it is written last
    work/                 while it runs (walk.py)

A killed run goes on where it was when the same command is given again, with any number of workers, here or on Ray
(execute.py), and its output has the bytes of a run that was never stopped.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from min_llm.config import UserError, dump
from min_llm.data import sources
from min_llm.data.curate import report, steps
from min_llm.data.curate.execute import executor
from min_llm.data.curate.read import Shard, shards
from min_llm.data.curate.settings import CurateConfig
from min_llm.data.curate.tally import Tally
from min_llm.data.curate.walk import Task, decide, output_name
from min_llm.fetch import file_digest
from min_llm.platform import write_atomic
from min_llm.reporting import reporter

VERSION = 2  # of what a configuration makes; raise it when a step's outcome changes
WHERE: dict[str, Any] = {"workers": 0, "executor": "processes"}  # settings that change nothing of it


def curate(cfg: CurateConfig) -> Path:
    """Run the steps over the inputs; returns the folder of the result. Raises UserError for inputs that are not there
    or cannot be read at all, a folder that holds something else, a full disk, and a worker that died."""
    found = tuple(shards(cfg))
    folder = Path(cfg.output).expanduser()
    identity = _identity(cfg, found)
    with _disk_errors(folder), _locked(folder):
        if _is_complete(folder, identity):
            reporter().info(f"{folder} is complete: the same inputs and steps have been curated there.")
        else:
            _run(cfg, folder, found, identity)
        shutil.rmtree(folder / "work", ignore_errors=True)
    return folder


def _run(cfg: CurateConfig, folder: Path, found: tuple[Shard, ...], identity: str) -> None:
    work = folder / "work"
    write_atomic(work / "identity", identity)
    for part in work.glob("*/.*"):  # what a killed run was at
        shutil.rmtree(part, ignore_errors=True)
    total, walks = Tally(), steps.passes(cfg.steps)
    with executor(cfg.executor, min(cfg.workers or os.cpu_count() or 1, len(found))) as mapped:
        for number in range(len(walks)):
            done = work / f"{number}.json"
            tasks = [Task(cfg, work, number, index, shard) for index, shard in enumerate(found)]
            if not done.is_file():
                with reporter().progress(len(tasks), f"pass {number + 1} of {len(walks)}") as progress:
                    for _ in mapped(tasks):
                        progress.advance()
                write_atomic(done, json.dumps(decide(cfg, work, number, len(found)).to_json()))
            total.add(Tally.from_json(json.loads(done.read_text(encoding="utf-8"))))
            if number:
                shutil.rmtree(work / str(number - 1), ignore_errors=True)
    name = output_name(cfg, last=True)
    files = []
    for task in tasks:
        path = folder / f"{task.index:05d}.{cfg.format}"
        if (task.folder / name).is_file():
            os.replace(task.folder / name, path)
        files.append({"name": path.name, "bytes": path.stat().st_size, "sha256": file_digest(path)})
    about = {"version": VERSION, "identity": identity, "config": dump(replace(cfg, **WHERE))}
    report.write(folder, about, total, [named.name for named in cfg.steps.steps], files)


def _identity(cfg: CurateConfig, found: tuple[Shard, ...]) -> str:
    """A hash of what the result depends on: inputs, settings, the files that steps read."""
    inputs: list[Any] = []
    for shard in found:
        stats = [(file, os.stat(file)) for file in shard.files]
        named = sources.resolve(shard.named, cfg.fields.text).identity() if shard.named else None
        inputs.append([asdict(shard), named, [[s.st_size, s.st_mtime_ns] for _, s in stats]])
    read = []
    for name, step, _ in cfg.steps.steps:
        for path in step.files() if isinstance(step, steps.ReadsFiles) else ():
            if not path.exists():
                raise UserError(f"steps.{name}: there is no file {str(path)!r}.")
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
            read += [[name, file_digest(file)] for file in files]
    settings = dump(replace(cfg, output="", **WHERE))
    order = [named.name for named in cfg.steps.steps]
    text = json.dumps([VERSION, settings, order, inputs, read], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_complete(folder: Path, identity: str) -> bool:
    """Whether the result is there. Refuses a folder that holds another one."""
    advice = "Give another output, or remove the folder."
    complete, begun = folder / "report.json", folder / "work" / "identity"
    if complete.is_file():
        if json.loads(complete.read_text(encoding="utf-8")).get("identity") != identity:
            raise UserError(f"{folder} holds what other inputs or steps have made. {advice}")
        return True
    if begun.is_file():
        if begun.read_text(encoding="utf-8") != identity:
            raise UserError(f"{folder} holds the unfinished run of other inputs or steps. {advice}")
    elif any(path.name not in ("lock", "work") for path in folder.iterdir()):
        raise UserError(f"{folder} is not empty, and what is in it was not curated. {advice}")
    return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One run at a time in a folder; the lock goes with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"Another process is curating to {folder}. Wait for it, or give another output."
            ) from error
        yield


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A full or read-only disk, in this process or a worker, becomes a sentence with the way out."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"The disk is full: no room in {folder}. Make room and run the same command again: finished shards are "
                "kept. Or give another output."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"{folder} cannot be written to: {error.strerror}. Give another output."
            ) from error
        raise
