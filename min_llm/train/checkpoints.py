"""Checkpoints: whole or absent, verified before they are read, written while training goes on.

`checkpoints/<step>/` holds Orbax's array files, `meta.json` and `manifest.json` (size and CRC-32 of every file). It is
written by a background thread under a name that starts with a dot and renamed when everything is on disk, so a kill
or a full disk leaves the last complete checkpoint. Orbax itself restores a flipped bit without a word; the manifest
is checked first.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from min_llm.config import UserError
from min_llm.parallel import processes
from min_llm.spec import leaves

FORMAT, VERSION = "min_llm.checkpoint", 1


class Checkpoints:
    """The checkpoints of one run. `keep` latest ones stay, and for ever those at multiples of `keep_every`."""

    def __init__(self, folder: Path, keep: int = 2, keep_every: int = 0) -> None:
        self.folder, self.keep, self.keep_every = folder, max(keep, 1), keep_every
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and p.is_dir())

    def latest(self) -> int | None:
        steps = self.steps()
        return steps[-1] if steps else None

    def clean(self) -> None:
        """Remove what a killed process left half-written or half-deleted."""
        for ending in ("saving", "deleting"):
            for path in self.folder.glob(f".*.{ending}"):
                shutil.rmtree(path, ignore_errors=True)

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Write the checkpoint of `step` in the background; an earlier one is waited for, its error raised here.

        The state is copied on the device first, because the training loop donates the original to its next step;
        meta is written down at once. Several processes write their own parts of the arrays and wait for each other:
        what they do with devices must come in the same order in all of them, so nothing is left to a thread.
        """
        self.wait()
        text = json.dumps(
            {"format": FORMAT, "version": VERSION, **meta}
        )  # now: the loop goes on changing its lists
        if processes.count() > 1:
            self._write(step, state, text)
            self.wait()
            return
        snapshot = jax.tree.map(jnp.copy, state)
        jax.block_until_ready(snapshot)
        self._thread = threading.Thread(
            target=self._write, args=(step, snapshot, text), name=f"checkpoint-{step}"
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written; raise what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, step: int, state: Any, meta: str) -> None:
        temporary, primary = self.folder / f".{step}.saving", processes.primary()
        try:
            if primary:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            processes.barrier()
            _save_arrays(temporary / "arrays", state)
            processes.barrier()
            if primary:
                self._complete(step, temporary, meta)
            processes.barrier()
        except BaseException as error:
            _remove(temporary)
            last = self.latest()
            self._error = UserError(
                f"The checkpoint of step {step} could not be written to {self.folder}: {_first_line(error)}. "
                + (f"The last complete one is step {last}. " if last is not None else "There is none yet. ")
                + "Make room or give another folder, then start the same command again; it resumes."
            )
            self._error.__cause__ = error

    def _complete(self, step: int, temporary: Path, meta: str) -> None:
        """The arrays are written: what describes them, then the rename."""
        (temporary / "meta.json").write_text(meta)
        (temporary / "manifest.json").write_text(json.dumps(_manifest(temporary), indent=0))
        _sync(temporary)
        final = self.folder / str(step)
        if final.exists():  # the same step saved twice holds the same state
            self._delete(step)
        os.replace(temporary, final)
        _sync_folder(self.folder)
        self._retire()

    def _retire(self) -> None:
        steps = self.steps()
        for step in steps[: -self.keep]:
            if not (self.keep_every and step % self.keep_every == 0):
                self._delete(step)

    def _delete(self, step: int) -> None:
        """Gone in one rename, so that a kill meanwhile leaves no half checkpoint under its name."""
        doomed = self.folder / f".{step}.deleting"
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(self.folder / str(step), doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def restore(self, step: int, target: Any, spec: Any) -> tuple[Any, dict[str, Any]]:
        """(state, meta) of a checkpoint, every byte of it compared with the manifest first.

        target: the state's tree with arrays or ShapeDtypeStructs. spec: of its parameters; a checkpoint of other
        ones is another model's.
        """
        folder, others = self.folder / str(step), self._others(step)
        meta = self.read_meta(step)
        if processes.primary():
            _verify(folder, others)
        processes.barrier()
        if found := _difference(meta.get("parameters", {}), describe(spec)):
            raise UserError(
                f"{folder} holds another model than the configuration describes: {found}. {others}"
            )
        return _load_arrays(folder / "arrays", target, others), meta

    def read_meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays."""
        folder = self.folder / str(step)
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} is not a min_llm checkpoint: its meta.json cannot be read ({_first_line(error)}). "
                + self._others(step)
            ) from error
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise UserError(
                f"{folder} was not written by min_llm. Point to a folder made by `min-llm train`."
            )
        version = meta.get("version")
        if not isinstance(version, int) or version > VERSION:
            raise UserError(
                f"{folder} is of format version {version!r}; this min_llm reads up to {VERSION}. Update min_llm."
            )
        return meta

    def _others(self, step: int) -> str:
        others = [s for s in self.steps() if s != step]
        if not others:
            return "There is no other checkpoint in this run; start it again under a new name."
        return f"Remove {self.folder / str(step)} to continue from step {others[-1]}."


def _orbax() -> Any:
    """Orbax, quiet: what it cannot do it raises, and logs as well in pages of internals."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    if _not_orbax not in logger.filters:
        logger.addFilter(_not_orbax)
    return ocp


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _remove(folder: Path) -> None:
    """Remove what a failed save left, until it stays away: the library's other writers may still be at work in it."""
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def _save_arrays(path: Path, state: Any) -> None:
    ocp = _orbax()
    with ocp.StandardCheckpointer() as saver:
        saver.save(path.absolute(), state)
        saver.wait_until_finished()


def _load_arrays(path: Path, target: Any, advice: str) -> Any:
    """Arrays are found by name: Orbax also writes down where a tree has None, and a field that a later version of a
    model adds, None unless it is asked for, must not make older checkpoints unreadable."""
    ocp = _orbax()
    wanted = _by_name(target)

    def abstract(at: Any, _: Any) -> jax.ShapeDtypeStruct:
        x = wanted[_name(at)]
        sharding = getattr(x, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    try:
        with ocp.StandardCheckpointer() as loader:
            stored = loader.metadata(path.absolute()).item_metadata.tree
            found = _by_name(
                loader.restore(path.absolute(), jax.tree_util.tree_map_with_path(abstract, stored))
            )
        return jax.tree.unflatten(jax.tree.structure(target), [found[name] for name in wanted])
    except KeyError as error:
        raise UserError(
            f"{path.parent} holds another state than this run's: it and the run differ in {error}. {advice}"
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path.parent} holds another state than this run's: {_first_line(error)}. {advice}"
        ) from error


def _by_name(tree: Any) -> dict[str, Any]:
    """Arrays by name ("params.layers.0.wq"), in the order of the tree."""
    return {_name(at): x for at, x in jax.tree_util.tree_leaves_with_path(tree)}


def _name(at: Any) -> str:
    return jax.tree_util.keystr(at, simple=True, separator=".")


def _manifest(folder: Path) -> dict[str, list[int]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(folder)): [p.stat().st_size, _crc(p)] for p in files}


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def _verify(folder: Path, advice: str) -> None:
    """Every file of the manifest is there, whole and unchanged; a sentence otherwise."""
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        manifest = [(str(name), int(size), int(crc)) for name, (size, crc) in json.loads(text).items()]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} has no readable manifest.json; it is not a whole checkpoint. {advice}"
        ) from error
    for name, size, crc in manifest:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{folder} is damaged: {name} is missing. {advice}")
        if path.stat().st_size != size:
            raise UserError(
                f"{folder} is damaged: {name} has {path.stat().st_size} bytes, not {size}. {advice}"
            )
        if _crc(path) != crc:
            raise UserError(
                f"{folder} is damaged: the contents of {name} have changed since it was written. {advice}"
            )


def _sync(folder: Path) -> None:
    """Everything below the folder is on disk when this returns."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300].rstrip(".")


def describe(spec: Any) -> dict[str, list[int]]:
    """Name and shape of every parameter, for the checkpoint's meta.json."""
    return {name: list(p.shape) for name, p in leaves(spec)}


def _difference(found: dict[str, list[int]], expected: dict[str, list[int]]) -> str:
    """The first parameter that differs, in words; "" when none does."""
    for name in {**expected, **found}:
        ours, theirs = expected.get(name), found.get(name)
        if ours != theirs:
            return f"{name} has shape {theirs or 'none'}, not {ours or 'none'}"
    return ""
