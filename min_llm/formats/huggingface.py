"""Hugging Face folders: config.json and safetensors, in one file or in shards with an index."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from min_llm.config import UserError
from min_llm.formats import compressed, configs, tables
from min_llm.models import ModelConfig
from min_llm.nn.leaves import is_leaf
from min_llm.quant.rounding import FP8

CONFIG, ONE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9


def is_folder(path: Path) -> bool:
    """Whether it is a Hugging Face folder: one of our runs has no config.json."""
    return (path / CONFIG).is_file()


def read_config(folder: Path) -> ModelConfig:
    return configs.from_json(read_json(folder / CONFIG), folder / CONFIG)


def read(folder: Path, dtype: str = "float32") -> tuple[ModelConfig, Any]:
    """Configuration and parameters in `dtype`, each file memory-mapped and each tensor read once."""
    given = read_json(folder / CONFIG)
    cfg = configs.from_json(given, folder / CONFIG)
    scheme = compressed.scheme(given, folder / CONFIG)
    places = _places(folder)
    with contextlib.ExitStack() as stack:
        files = {path: stack.enter_context(opened(path)) for path in sorted(set(places.values()))}

        def tensor(name: str) -> np.ndarray:
            try:
                file = files[places[name]]
                if file.get_slice(name).get_dtype() == "F8_E4M3":  # safetensors has no NumPy dtype for it
                    return _raw(places[name], name).view(FP8)
                return file.get_tensor(name)
            except (SafetensorError, TypeError, KeyError, AttributeError) as error:
                raise UserError(
                    f"{places[name]} does not give {name}: {error}. Copy or download it again."
                ) from error

        names = [name for file in files.values() for name in file.keys()]  # noqa: SIM118 (not a mapping)
        if scheme is not None:
            return cfg, compressed.read(cfg, names, tensor, folder, dtype, scheme)
        return cfg, tables.read(cfg, names, tensor, folder, dtype)


def _raw(path: Path, name: str) -> np.ndarray:
    """The bytes of a tensor of a safetensors file, in its shape: after 8 bytes with the length of the header comes the
    header, JSON, and then what the offsets count from."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        start, end = entry["data_offsets"]
        file.seek(8 + length + start)
        return np.frombuffer(file.read(end - start), np.uint8).reshape(entry["shape"])


def end_ids(folder: Path) -> list[int]:
    """Every token that ends an answer by generation_config.json or config.json, which may list several."""
    found: list[int] = []
    for path in (folder / "generation_config.json", folder / CONFIG):
        named = read_json(path).get("eos_token_id") if path.is_file() else None
        found += [i for i in (named if isinstance(named, list) else [named]) if type(i) is int]
    return list(dict.fromkeys(found))


def downloaded(name: str) -> Path:
    """The folder of OWNER/NAME on Hugging Face, in huggingface_hub's own cache; weights as safetensors only."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{name} is not a folder here. To look for it on Hugging Face: pip install 'min_llm[hf]'."
        ) from error
    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the library has many, none of them a common one
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{name} is neither a folder here nor could it be had from Hugging Face: {reason[0] if reason else error!r}"
        ) from error


def write(
    folder: Path,
    cfg: ModelConfig,
    params: Any,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    extra: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write a folder that transformers reads, with the texts of `extra` as further files. It appears whole, or not at
    all; one that is there is left alone. dtype: of what is not quantized."""
    cfg, params = tables.with_biases(compressed.untied(cfg, params), params)
    made = configs.to_json(cfg, dtype) | compressed.to_json(cfg, params)
    with appearing(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(made, indent=2) + "\n")
        for name, text in extra.items():
            (temporary / name).write_text(text, encoding="utf-8")
        _write_shards(temporary, cfg, params, dtype, shard_bytes)
    return folder


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write to that takes this name when all is written. One that is there is left alone. UserError where
    it is not empty, or cannot be written."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is there already and not empty. Choose another folder, or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written: {error.strerror or error}. Nothing of it is left."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_shards(folder: Path, cfg: ModelConfig, params: Any, dtype: str, most: int) -> None:
    """One file, or several with an index; in memory there is one at a time."""
    size, total, shards = jnp.dtype(dtype).itemsize, 0, [[]]  # type: ignore[var-annotated]
    held = 0
    for name, shape, make in tables.write(cfg, params):
        n = int(np.prod(shape)) * size
        if held and held + n > most:
            shards.append([])
            held = 0
        shards[-1].append((name, make))
        held += n  # at most: what is quantized is smaller
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = ONE if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        arrays: dict[str, np.ndarray] = {}
        for name, make in shard:
            leaf = make()
            arrays |= (
                compressed.tensors(name, leaf)
                if is_leaf(leaf)
                else {name: np.ascontiguousarray(leaf.astype(jnp.dtype(dtype)))}
            )
        save_file(arrays, folder / file, metadata={"format": "pt"})
        total += sum(array.nbytes for array in arrays.values())
        weight_map |= dict.fromkeys(arrays, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _places(folder: Path) -> Mapping[str, Path]:
    """The file of each tensor."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(
            isinstance(v, str) and "/" not in v for v in index.values()
        ):
            raise UserError(f"{folder / INDEX} has no weight_map from tensors to files beside it.")
        absent = sorted({file for file in index.values() if not (folder / file).is_file()})
        if absent:
            raise UserError(
                f"{folder} lacks {', '.join(absent)}, which its index names. Copy or download it again."
            )
        return {name: folder / file for name, file in index.items()}
    if (folder / ONE).is_file():
        with opened(folder / ONE) as file:
            return dict.fromkeys(file.keys(), folder / ONE)
    others = sorted(path.name for path in folder.glob("*.bin"))
    hint = (
        f" It has {others[0]}: pickled weights are not read; convert them with safetensors." if others else ""
    )
    raise UserError(f"{folder} has neither {ONE} nor {INDEX}.{hint}")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, memory-mapped. UserError where it is none, or not whole."""
    try:
        opened = safe_open(path, "numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is no whole safetensors file: {error}. Copy or download it again."
        ) from error
    with opened as file:
        yield file


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file of JSON holds. UserError where it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object.")
    return found
