"""Adapters as peft keeps them: a folder with adapter_config.json and adapter_model.safetensors.

Of a linear layer x · Wᵀ they hold lora_A [rank, in] and lora_B [out, rank], which add scale · x · Aᵀ · Bᵀ. The scale is
alpha / rank, or alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023). GPT-2's layers lie transposed, but not their adapters,
and its queries, keys and values share one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from min_llm.config import UserError
from min_llm.formats import tables
from min_llm.formats.huggingface import appearing, opened, read_json
from min_llm.formats.tables import Row
from min_llm.models import ModelConfig
from min_llm.nn.lora import Adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_TENSOR = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<which>[AB])\.weight")
# what says nothing about what the adapter computes, or is read here
KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "task_type",
    "use_rslora",
}  # fmt: skip
# ways to begin that leave the base as it is; others train beside a changed one
BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True)
class _Scales:
    """The fields of a configuration that say how much each module's adapter counts."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    root: bool

    @property
    def usual(self) -> float:
        return self._scale(self.alpha, self.rank)

    def of(self, module: str) -> tuple[int, float]:
        """Rank and scale of a module."""
        rank = _matching(self.ranks, module, self.rank)
        return rank, self._scale(_matching(self.alphas, module, self.alpha), rank)

    def _scale(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.root else rank)


def read(folder: Path, cfg: ModelConfig) -> Adapter:
    """The adapter of a folder for a model of this configuration, float32. UserError where it is damaged, made for
    another model, or of a kind that is not supported."""
    scales = _scales(given := read_json(folder / CONFIG), folder / CONFIG)
    targets = _targets(cfg)
    with opened(folder / WEIGHTS) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    found: dict[str, dict[str, np.ndarray]] = {}
    strange = []
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or match["module"] not in targets:
            strange.append(name)
        else:
            found.setdefault(match["module"], {})[match["which"]] = tensor.astype(np.float32)
    if strange:
        raise UserError(
            f"{folder / WEIGHTS} holds what adapts no matrix of this model's layers: {_some(strange)}. Adapters of "
            "other models, of embeddings and heads, and other kinds than LoRA cannot be used."
        )
    _check_complete(given, found, folder)
    for module, pair in found.items():
        _check_pair(module, pair, targets[module][0][0], scales.of(module)[0], folder)
    most = max(pair["A"].shape[0] for pair in found.values())
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for module, pair in found.items():
        rank, scale = scales.of(module)
        for row, i in targets[module]:
            assert row.layers is not None
            which, of = row.line.part
            one_a, one_b = pair["A"].T, np.split(pair["B"].T, of, axis=1)[which]
            if row.leaf not in pairs:
                sizes = (one_a.shape[0], most), (most, one_b.shape[1])
                a, b = (np.zeros((len(row.layers), *size), np.float32) for size in sizes)
                pairs[row.leaf] = a, b
            a, b = pairs[row.leaf]
            a[i, :, :rank], b[i, :rank] = one_a, one_b * np.float32(scale / scales.usual)
    return Adapter(pairs, scales.usual)


def write(folder: Path, cfg: ModelConfig, adapter: Adapter, base: str | None = None) -> Path:
    """A folder that peft reads. base: what the model is called that it adapts. It appears whole, or not at all."""
    rows = {row.leaf: row for some in _targets(cfg).values() for row, _ in some}
    fused = [name for name in adapter.pairs if rows[name].line.part[1] > 1]
    if fused:
        raise UserError(
            f"{fused[0]} is a part of a layer that other programs adapt as a whole; merge the adapter instead, and "
            "write the model."
        )
    tensors = {}
    for name, (a, b) in adapter.pairs.items():
        for i in range(len(a)):
            module = PREFIX + _module(rows[name], i)
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(a[i].T, np.float32)
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(b[i].T, np.float32)
    ranks = {_module(rows[name], 0).rpartition(".")[2]: a.shape[-1] for name, (a, _) in adapter.pairs.items()}
    given = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": adapter.rank,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != adapter.rank},
        "lora_alpha": adapter.scale * adapter.rank,
        "alpha_pattern": {name: adapter.scale * rank for name, rank in ranks.items() if rank != adapter.rank},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(ranks),
    }
    with appearing(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(given, indent=2) + "\n")
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
    return folder


def _targets(cfg: ModelConfig) -> dict[str, list[tuple[Row, int]]]:
    """Every linear layer by its name, with the leaves of ours that it holds and their place in the stack."""
    found: dict[str, list[tuple[Row, int]]] = {}
    for row in tables.rows(cfg):
        if row.layers is not None and row.line.kind in ("out, in", "in, out"):
            for i in row.layers:
                found.setdefault(_module(row, i), []).append((row, i))
    return found


def _module(row: Row, i: int) -> str:
    return row.theirs(i).removesuffix(".weight")


def _scales(given: Mapping[str, Any], where: Path) -> _Scales:
    if given.get("peft_type") != "LORA":
        raise UserError(f"{where} says peft_type {given.get('peft_type')!r}; only LORA adapters are read.")
    if given.get("bias", "none") != "none":
        raise UserError(f"{where} says bias {given['bias']!r}; an adapter may have no biases (bias: none).")
    if given.get("init_lora_weights", True) not in BEGINNINGS:
        raise UserError(
            f"{where} says init_lora_weights {given['init_lora_weights']!r}, which changes the model beneath. Convert "
            "it with peft (path_initial_model_for_weight_conversion)."
        )
    for name, value in given.items():
        if name not in KNOWN and name not in ("bias", "init_lora_weights") and value:
            raise UserError(f"{where} asks for {name} ({value!r}), which is not supported.")
    rank, alpha = given.get("r"), given.get("lora_alpha")
    ranks, alphas = given.get("rank_pattern") or {}, given.get("alpha_pattern") or {}
    if not (isinstance(ranks, dict) and isinstance(alphas, dict)):
        raise UserError(f"{where}: rank_pattern and alpha_pattern must be objects.")
    for value in (rank, *ranks.values()):
        if type(value) is not int or value < 1:
            raise UserError(f"{where} gives a rank of {value!r}; it must be a whole number of at least 1.")
    for value in (alpha, *alphas.values()):
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UserError(f"{where} gives a lora_alpha of {value!r}; it must be a number.")
    made = _Scales(rank, alpha, ranks, alphas, bool(given.get("use_rslora")))  # type: ignore[arg-type]
    if made.usual == 0:
        raise UserError(f"{where} gives a lora_alpha of 0: this adapter does nothing.")
    return made


def _matching(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern, a regular expression, that a module's name or the end of it matches."""
    for expression, value in pattern.items():
        try:
            if re.fullmatch(rf"(.*\.)?({expression})", module):
                return value
        except re.error as error:
            raise UserError(f"The pattern {expression!r} is no regular expression: {error}.") from error
    return default


def _check_complete(given: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> None:
    """That each of the modules that a list names has an adapter somewhere."""
    targets = given.get("target_modules")
    named = targets if isinstance(targets, list) else []
    absent = [name for name in named if not any(f".{module}".endswith(f".{name}") for module in found)]
    if absent or not found:
        raise UserError(
            f"{folder / WEIGHTS} holds nothing for {_some(absent) or 'any module'}, which {CONFIG} names as adapted. "
            "Copy or download it again."
        )


def _check_pair(module: str, pair: Mapping[str, np.ndarray], row: Row, rank: int, folder: Path) -> None:
    whole = row.line.shape(row.shape)
    wide, high = whole if row.line.kind == "in, out" else whole[::-1]
    for which, shape in (("A", (rank, wide)), ("B", (high, rank))):
        if which not in pair:
            raise UserError(f"{folder / WEIGHTS} lacks lora_{which} of {module}. Copy or download it again.")
        if pair[which].shape != shape:
            raise UserError(
                f"{folder / WEIGHTS}: lora_{which} of {module} is {list(pair[which].shape)}, not {list(shape)}. "
                "The adapter was made for another model, or its configuration is another one's."
            )
        if not np.isfinite(pair[which]).all():
            raise UserError(
                f"{folder / WEIGHTS}: lora_{which} of {module} holds numbers that are not finite."
            )


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(sorted(names)[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
