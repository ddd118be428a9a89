"""Quantized models in Hugging Face folders, as compressed-tensors has them (what llm-compressor writes and vLLM reads).

config.json says in `quantization_config` how all quantized layers are quantized; a layer is one when its weight has a
scale beside it. Of a linear layer X with weights [out, in]:

    method   format           tensors
    w8a8     int-quantized    X.weight int8 [out, in], X.weight_scale [out, 1]
    fp8      float-quantized  X.weight e4m3fn [out, in], X.weight_scale [out, 1]
    int8     pack-quantized   X.weight_packed int32 [out, in / 4], X.weight_scale [out, 1], X.weight_shape [2]
    int4     pack-quantized   X.weight_packed int32 [out, in / 8], X.weight_scale [out, in / group], X.weight_shape [2]

Packed values are without sign, plus 128 or 8, the first in the lowest bits. Activations of w8a8 and fp8 are rounded as
they come, a scale a token; the bound of fp8 (quant/leaves.py) has no place in a file, and is ours alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from min_llm.config import UserError
from min_llm.formats import tables
from min_llm.models import ModelConfig
from min_llm.nn.leaves import is_leaf
from min_llm.quant.leaves import METHODS, GroupsInt4, Quantized
from min_llm.quant.quantize import is_quantized
from min_llm.quant.rounding import FP8

KEY = "quantization_config"
PACKED, SCALE, SHAPE = "_packed", "_scale", "_shape"  # after "X.weight"
FORMATS = {
    "w8a8": "int-quantized",
    "fp8": "float-quantized",
    "int8": "pack-quantized",
    "int4": "pack-quantized",
}
ROUNDED = ("w8a8", "fp8")  # activations too
ZERO_NIBBLES = 0x88


def untied(cfg: ModelConfig, params: Any) -> ModelConfig:
    """The configuration of a model whose head has become a matrix of its own. Raises UserError for a quantized model
    that compressed-tensors cannot have."""
    if not is_quantized(params):
        return cfg
    if cfg.family != "llama":
        raise UserError(
            f"A quantized {cfg.family} cannot be written: compressed-tensors' folders have linear layers of the Llama "
            "kind only. Quantize it where it is used, or export it unquantized."
        )
    tied = getattr(cfg, "tie_embeddings", False) and params.head is None
    return dataclasses.replace(cfg, tie_embeddings=tied)  # type: ignore[call-arg]


def to_json(cfg: ModelConfig, params: Any) -> dict[str, Any]:
    """The entry of config.json; empty where nothing is quantized."""
    quantized: list[Quantized] = []
    ignored = set()
    for row, leaf in tables.placed(cfg, params):
        if is_leaf(leaf):
            quantized.append(leaf)
        elif row.line.kind == "out, in":
            ignored |= {row.theirs(i).removesuffix(".weight") for i in row.layers or [0]}
    if not quantized:
        return {}
    if getattr(cfg, "tie_embeddings", False):
        ignored.add("lm_head")  # a linear layer of theirs, whose weight is the embedding table
    some = quantized[0]
    kind = {"type": "float" if some.method == "fp8" else "int", "num_bits": 4 if some.method == "int4" else 8}
    weights = {**kind, "symmetric": True, "dynamic": False, "strategy": "channel"}
    if isinstance(some, GroupsInt4):
        weights |= {"strategy": "group", "group_size": some.group}
    inputs = {**kind, "symmetric": True, "dynamic": True, "strategy": "token"}
    group = {"targets": ["Linear"], "weights": weights, "output_activations": None,
             "input_activations": inputs if some.method in ROUNDED else None}  # fmt: skip
    made = {
        "quant_method": "compressed-tensors", "format": FORMATS[some.method], "config_groups": {"group_0": group},
        "ignore": sorted(ignored), "kv_cache_scheme": None, "quantization_status": "compressed",
    }  # fmt: skip
    return {KEY: made}


def tensors(name: str, leaf: Quantized) -> dict[str, np.ndarray]:
    """What "X.weight" is made of in a file, from the leaf of one layer."""
    values, scales = np.asarray(leaf.values), np.asarray(leaf.scales)
    if leaf.method in ROUNDED:
        return {name: values, name + SCALE: scales}
    out, k = len(values), math.prod(leaf.shape) // len(values)
    if leaf.method == "int8":
        rows = np.pad(values.view(np.uint8) ^ 0x80, [(0, 0), (0, -k % 4)])  # plus 128, modulo 256
    else:
        rows = values[:, : 4 * -(-k // 8)]
    words = np.ascontiguousarray(rows).view("<i4")
    return {name + PACKED: words, name + SCALE: scales, name + SHAPE: np.array([out, k], np.int64)}


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How all quantized layers of a folder are. group: of int4."""

    method: str
    group: int = 0


def scheme(given: Mapping[str, Any], where: Any) -> Scheme | None:
    """Of a config.json; None where nothing is quantized. Raises UserError for what cannot be read."""
    config = given.get(KEY)
    if config is None:
        return None
    if not isinstance(config, dict) or config.get("quant_method") != "compressed-tensors":
        kind = config.get("quant_method") if isinstance(config, dict) else config
        raise UserError(f"{where} is quantized by {kind!r}; only compressed-tensors can be read.")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise UserError(f"{where} quantizes its layers in several ways; only one way for all can be read.")
    group = next(iter(groups.values()))
    for method, known in FORMATS.items():
        if isinstance(group, dict) and config.get("format") == known and _is(method, group):
            return Scheme(method, group["weights"].get("group_size") or 0)
    raise UserError(
        f"{where} is quantized in a way that cannot be read ({config.get('format')!r}); there are "
        f"{', '.join(FORMATS)}, symmetric, a scale a row of the weights (int4: a group) and a token of activations."
    )


def _is(method: str, group: Mapping[str, Any]) -> bool:
    """Whether a group of the configuration is this method."""
    kind = ("float" if method == "fp8" else "int", 4 if method == "int4" else 8)

    def has(given: Any, strategy: str, dynamic: bool) -> bool:
        return (
            isinstance(given, dict)
            and (given.get("type", "int"), given.get("num_bits", 8)) == kind
            and given.get("strategy") == strategy
            and given.get("dynamic", False) is dynamic
            and given.get("symmetric", True) is True
            and given.get("actorder") is None
        )

    weights, inputs = group.get("weights"), group.get("input_activations")
    if method == "int4":
        size = weights.get("group_size") if isinstance(weights, dict) else None
        return (
            has(weights, "group", False)
            and inputs is None
            and type(size) is int
            and size > 0
            and size % 8 == 0
        )
    return has(weights, "channel", False) and (
        has(inputs, "token", True) if method in ROUNDED else inputs is None
    )


def read(
    cfg: ModelConfig,
    names: Iterable[str],
    tensor: Callable[[str], np.ndarray],
    where: Any,
    dtype: str,
    scheme: Scheme,
) -> Any:
    """`tables.read` of a quantized model: layers that are quantized alike lie in a stack together."""
    here = set(names)
    quantized = {name.removesuffix(SCALE) for name in here if name.endswith(".weight" + SCALE)}
    parts = {name + part for name in quantized for part in (PACKED, SCALE, SHAPE)}
    rows = [(row, {row.theirs(i): i for i in row.layers or [0]}) for row in tables.rows(cfg)]
    tables_of = sorted(
        quantized & {name for row, found in rows for name in found if row.line.kind != "out, in"}
    )
    if tables_of or cfg.family != "llama":
        raise UserError(
            f"{where} has quantized parameters that are no linear layers of the Llama kind, which cannot be read: "
            f"{', '.join(tables_of[:3]) or cfg.family}."
        )

    def one(name: str) -> Any:
        if name in quantized:
            return _leaf(name, tensor, scheme, where)
        array = tensor(name)
        if array.dtype in (np.int8, FP8):
            raise UserError(f"{where} does not hold this model: {name} lacks its scale, {name}{SCALE}.")
        return array

    layers = max(row.layers.stop for row, _ in rows if row.layers)
    kinds = [[row.leaf for row, _ in rows if row.theirs(i) in quantized] for i in range(layers)]
    sizes = [len(list(group)) for _, group in itertools.groupby(kinds)]
    return tables.read(cfg, sorted((here - parts) | quantized), one, where, dtype, sizes)


def _leaf(name: str, tensor: Callable[[str], np.ndarray], scheme: Scheme, where: Any) -> Quantized:
    """ "X.weight" as a leaf of Hugging Face's shape."""
    scales = np.asarray(tensor(name + SCALE), np.float32)
    if scheme.method in ROUNDED:
        values = tensor(name)
        shape, wanted = values.shape, values.shape
        right = values.dtype == (FP8 if scheme.method == "fp8" else np.int8)
    else:
        words, shape = tensor(name + PACKED), tuple(map(int, tensor(name + SHAPE)))
        right = words.dtype == np.int32 and len(shape) == 2
        per_word = 8 if scheme.method == "int4" else 4
        wanted, values = (shape[0], -(-shape[-1] // per_word)), words
    groups = -(-shape[-1] // scheme.group) if scheme.method == "int4" else 1
    if not right or values.shape != wanted or scales.shape != (shape[0], groups):
        raise UserError(
            f"{where} does not hold this model: {name} is {values.dtype.name} {list(values.shape)} with scales "
            f"{list(scales.shape)}, which is not {scheme.method} of a matrix {list(shape)}."
        )
    if scheme.method == "int8":
        values = (_bytes(values)[:, : shape[1]] ^ 0x80).view(np.int8)
    elif scheme.method == "int4":
        missing = groups * scheme.group // 2 - 4 * values.shape[1]
        values = np.pad(_bytes(values), [(0, 0), (0, missing)], constant_values=ZERO_NIBBLES)
    return METHODS[scheme.method](values, scales, shape)  # type: ignore[arg-type]  # NumPy's, until they are stacked


def _bytes(words: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(words).view(np.uint8)
