"""Models in GGUF files (llama.cpp): their metadata and our configurations, their tensors and ours.

Three things differ from Hugging Face's layout: for the architecture "llama" the rows of queries and keys are permuted
so that rotated pairs lie side by side, GPT-2's matrices are [out, in] as all others, and Llama 3.1's stretched
frequencies are a tensor of factors instead of four settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from min_llm.config import UserError
from min_llm.formats import gguf, tables
from min_llm.models import ModelConfig, gpt2, llama
from min_llm.nn.rope import OWN_FIELDS, RopeScaling, frequencies
from min_llm.quant.quantize import is_quantized

ARCHITECTURES = ("llama", "qwen2", "gpt2")
FREQUENCIES = "rope_freqs.weight"
SCALINGS = (RopeScaling(8.0), RopeScaling(32.0))  # Llama 3.1 and 3.2: what models are published with
GGUF_FIELDS = {"factor": "rope.scaling.factor", "original_context": "rope.scaling.original_context_length",
               "beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}  # fmt: skip
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # general.file_type


def read(path: Path, dtype: str = "float32") -> tuple[ModelConfig, Any, dict[str, Any]]:
    """Configuration, parameters in `dtype`, and the file's metadata (its tokenizer is in there)."""
    file = gguf.read(path)
    cfg = config_of(file, path)
    known: dict[str, tuple[str, tables.Line, str]] = {}  # by Hugging Face's names
    for row in tables.rows(cfg):
        for i in row.layers or [0]:
            known[row.theirs(i)] = (row.line.gguf.format(i=i), row.line, row.leaf)
    theirs = {there: name for name, (there, _, _) in known.items()}

    def tensor(name: str) -> np.ndarray:
        there, line, leaf = known[name]
        array = file.tensors[there].array()
        if leaf in ("wq", "wk") and _permuted(file.metadata):
            array = unpermuted(array, cfg.n_heads if leaf == "wq" else cfg.n_kv_heads)  # type: ignore[attr-defined]
        return array.T if line.kind == "in, out" else array

    names = [theirs.get(name, name) for name in file.tensors if name != FREQUENCIES]
    return cfg, tables.read(cfg, names, tensor, path, dtype), file.metadata


def _permuted(metadata: Mapping[str, Any]) -> bool:
    return bool(metadata["general.architecture"] == "llama")


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """[heads · k, in] with pairs (2i, 2i + 1) of a head, to pairs (i, i + k/2)."""
    if rows.ndim != 2 or rows.shape[0] % (2 * heads):
        return rows  # misshapen: tables.read says so
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `unpermuted`."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def config_of(file: gguf.File, path: Path) -> ModelConfig:
    metadata = file.metadata
    kind = metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise UserError(f"{path} holds a {kind!r} model; these can be read: {', '.join(ARCHITECTURES)}.")

    def value(name: str, *default: Any) -> Any:
        found = metadata.get(f"{kind}.{name}", *default)
        if found is None and not default:
            raise UserError(f"{path} lacks {kind}.{name}, without which the model is not known.")
        return found

    if "token_embd.weight" not in file.tensors:
        raise UserError(
            f"{path} has no token_embd.weight: it is no language model, or a part of a split one."
        )
    vocab, dim = file.tensors["token_embd.weight"].shape
    heads = value("attention.head_count")
    common = dict(vocab_size=vocab, max_seq_len=value("context_length"), n_layers=value("block_count"), dim=dim,
                  n_heads=heads, hidden_dim=value("feed_forward_length"))  # fmt: skip
    if kind == "gpt2":
        return gpt2.Config(**common, norm_eps=_decimal(value("attention.layer_norm_epsilon"))).checked(
            str(path)
        )
    head_dim = value("attention.key_length", dim // heads)
    if value("rope.dimension_count", head_dim) != head_dim or value("expert_count", 0):
        raise UserError(
            f"{path} rotates a part of each head, or is a mixture of experts; neither can be read."
        )
    theta = float(value("rope.freq_base", 10_000.0))
    return llama.Config(
        **common,
        n_kv_heads=value("attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=_scaling(file, value, head_dim, theta, path),
        norm_eps=_decimal(value("attention.layer_norm_rms_epsilon")),
        tie_embeddings="output.weight" not in file.tensors,
        qkv_bias=kind == "qwen2",
    ).checked(str(path))


def _decimal(x: float) -> float:
    """The number as it was written down before it became a float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(x)))


def _scaling(
    file: gguf.File, value: Callable[..., Any], head_dim: int, theta: float, path: Path
) -> RopeScaling | None:
    """The settings that the file says, or whose factors are those of the file."""
    kind: Any = value("rope.scaling.type", "none") or "none"
    if kind not in ("none", "linear", "yarn"):
        raise UserError(f"{path} scales its rotary embedding by {kind!r}, which is not read.")
    grows = ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor")
    if any(value(name, 1.0) != 1 for name in grows) or (kind != "none" and FREQUENCIES in file.tensors):
        raise UserError(
            f"{path} scales its rotary embedding by {kind!r} with factors of its own, which are not read."
        )
    if kind != "none":
        own = [name for name in OWN_FIELDS[kind] if value(GGUF_FIELDS[name], None) is not None]
        settings: dict[str, Any] = {name: _decimal(value(GGUF_FIELDS[name])) for name in ("factor", *own)}
        if kind == "yarn":
            settings["original_context"] = int(settings.get("original_context", value("context_length")))
        return RopeScaling(kind=kind, **settings)
    if FREQUENCIES not in file.tensors:
        return None
    found = file.tensors[FREQUENCIES].array()
    for scaling in SCALINGS:
        if found.shape == (head_dim // 2,) and np.allclose(
            found, factors(head_dim, theta, scaling), rtol=1e-4
        ):
            return scaling
    raise UserError(
        f"{path} stretches its rotary frequencies as neither Llama 3.1 nor 3.2 does ({FREQUENCIES})."
    )


def factors(head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """By how much each frequency is divided."""
    return (frequencies(head_dim, theta) / frequencies(head_dim, theta, scaling)).astype(np.float32)


def write(
    path: Path, cfg: ModelConfig, params: Any, kind: str = "F16", tokenizer: Mapping[str, Any] | None = None
) -> None:
    """Write a model as llama.cpp reads it. kind: of matrices whose rows are whole blocks (F32, F16, BF16, Q8_0, Q4_0);
    the others are F16 and vectors F32. tokenizer: metadata ("tokenizer.ggml.…") that goes with it."""
    if kind not in FILE_TYPES:
        raise UserError(f"A GGUF file is written in {', '.join(FILE_TYPES)}, not {kind!r}.")
    if is_quantized(params):
        raise UserError(
            "A quantized model is written as a folder, not as GGUF. Export the one that it was made of, with --dtype "
            "Q8_0 or Q4_0."
        )
    cfg, params = tables.with_biases(cfg, params)
    metadata = metadata_of(cfg) | {"general.file_type": FILE_TYPES[kind]} | dict(tokenizer or {})
    by_name = {row.line.name: (row.line, row.leaf) for row in tables.rows(cfg)}
    arch = metadata["general.architecture"]
    entries: dict[str, tuple[tuple[int, ...], str]] = {}
    makers: dict[str, Any] = {}
    for name, shape, make in tables.write(cfg, params):
        layer = name.split(".layers." if arch != "gpt2" else ".h.")
        i = layer[1].split(".")[0] if len(layer) > 1 else ""
        line, leaf = by_name[name.replace(f".{i}.", ".{i}.", 1) if i else name]

        def made(make: Any = make, line: tables.Line = line, leaf: str = leaf) -> np.ndarray:
            array = np.asarray(make(), np.float32)
            if leaf in ("wq", "wk") and arch == "llama":
                array = permuted(array, cfg.n_heads if leaf == "wq" else cfg.n_kv_heads)  # type: ignore[attr-defined]
            return np.ascontiguousarray(array.T if line.kind == "in, out" else array)

        shape = shape[::-1] if line.kind == "in, out" else shape
        there = line.gguf.format(i=i)
        entries[there], makers[there] = (shape, _kind(shape, kind)), made
    scaling = getattr(cfg, "rope_scaling", None)
    if scaling is not None and scaling.kind == "llama3":
        k, theta = cfg.head_dim, cfg.rope_theta  # type: ignore[attr-defined]
        entries[FREQUENCIES] = ((k // 2,), "F32")
        makers[FREQUENCIES] = lambda: factors(k, theta, scaling)
    gguf.write(path, metadata, entries, lambda name: makers[name]())


def _kind(shape: tuple[int, ...], wanted: str) -> str:
    if len(shape) == 1:
        return "F32"
    return "F16" if wanted.startswith("Q") and shape[-1] % 32 else wanted


def metadata_of(cfg: ModelConfig) -> dict[str, Any]:
    """What llama.cpp wants to know of the architecture. Raises UserError for what it cannot be told."""
    c: Any = cfg
    extra: dict[str, Any]
    if isinstance(cfg, gpt2.Config):
        arch, extra = "gpt2", {"attention.layer_norm_epsilon": np.float32(cfg.norm_eps)}
    elif type(cfg) is llama.Config:
        if cfg.window or cfg.qk_norm or not cfg.gated:
            raise UserError(
                "A llama with window or qk_norm, or without a gate, is not written as GGUF. With a gate it can be a "
                "folder."
            )
        arch = "qwen2" if cfg.qkv_bias else "llama"
        extra = {
            "attention.head_count_kv": cfg.n_kv_heads,
            "attention.key_length": cfg.head_dim,
            "attention.value_length": cfg.head_dim,
            "attention.layer_norm_rms_epsilon": np.float32(cfg.norm_eps),
            "rope.freq_base": np.float32(cfg.rope_theta),
            "rope.dimension_count": cfg.head_dim,
            "vocab_size": cfg.vocab_size,
        } | _scaling_metadata(cfg.rope_scaling)
    else:
        raise UserError(f"A {cfg.family} cannot be written as GGUF yet; llama and gpt2 can.")
    common = {"context_length": c.max_seq_len, "block_count": c.n_layers, "embedding_length": c.dim,
              "feed_forward_length": c.hidden_dim, "attention.head_count": c.n_heads}  # fmt: skip
    settings = {f"{arch}.{name}": value for name, value in (common | extra).items()}
    return {"general.architecture": arch, "general.name": cfg.family} | settings


def _scaling_metadata(scaling: RopeScaling | None) -> dict[str, Any]:
    """Llama 3.1's is a tensor instead (FREQUENCIES)."""
    if scaling is None or scaling.kind == "llama3":
        return {}
    made: dict[str, Any] = {"rope.scaling.type": scaling.kind}
    for name in ("factor", *OWN_FIELDS[scaling.kind]):
        number = getattr(scaling, name)
        made[GGUF_FIELDS[name]] = number if isinstance(number, int) else np.float32(number)
    return made
