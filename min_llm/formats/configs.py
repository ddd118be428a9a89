"""Hugging Face's config.json and our configurations, both ways.

What would change the numbers and is not known here is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from min_llm.config import UserError, nearest
from min_llm.models import ModelConfig, gpt2, llama
from min_llm.nn.rope import OWN_FIELDS, RopeScaling

LLAMAS = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2",
          "Qwen3ForCausalLM": "qwen3"}  # fmt: skip
ARCHITECTURES = (*LLAMAS, "GPT2LMHeadModel")
ROPE_FIELDS = {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
               "original_context": "original_max_position_embeddings", "beta_fast": "beta_fast",
               "beta_slow": "beta_slow"}  # fmt: skip
NEEDED = ("vocab_size", "max_position_embeddings", "num_hidden_layers", "hidden_size", "num_attention_heads",
          "intermediate_size")  # fmt: skip
NEEDED_GPT2 = ("vocab_size", "n_layer", "n_embd", "n_head", "n_positions")


def from_json(given: Mapping[str, Any], where: Any) -> ModelConfig:
    """Our configuration. Raises UserError for what this library does not have, naming the setting."""
    names = given.get("architectures") or [_of_type(given.get("model_type"))]
    architecture = names[0] if isinstance(names, list) and names else None
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{where} is of the architecture {architecture!r}; these can be read: {', '.join(ARCHITECTURES)}."
            f"{nearest(str(architecture), ARCHITECTURES)}"
        )
    for name in NEEDED_GPT2 if architecture == "GPT2LMHeadModel" else NEEDED:
        if name not in given:
            raise UserError(f"{where} lacks the setting {name!r}, without which the model is not known.")
        if not isinstance(given[name], int) or isinstance(given[name], bool) or given[name] < 1:
            raise UserError(f"{where}: {name!r} must be a number of at least 1, not {given[name]!r}.")
    made = _gpt2(given, where) if architecture == "GPT2LMHeadModel" else _llama(given, where)
    return made.checked(str(where))


def _of_type(model_type: Any) -> str | None:
    by_type = {kind: name for name, kind in LLAMAS.items()} | {"gpt2": "GPT2LMHeadModel"}
    return by_type.get(model_type)


def _only(given: Mapping[str, Any], where: Any, **allowed: tuple[Any, ...]) -> None:
    """Refuse settings with values other than these; one that is not given is fine."""
    for name, values in allowed.items():
        if name in given and given[name] not in values:
            raise UserError(
                f"{where} has {name}: {given[name]!r}, which is not implemented here "
                f"({' or '.join(repr(v) for v in values)} is)."
            )


def _llama(given: Mapping[str, Any], where: Any) -> llama.Config:
    kind = _kind(given)
    _only(given, where, hidden_act=("silu",), mlp_bias=(False,), pretraining_tp=(1,))
    if kind != "qwen2":  # Qwen2 has them for queries, keys and values without saying so
        _only(given, where, attention_bias=(False,))
    heads, dim = given["num_attention_heads"], given["hidden_size"]
    window, qwen = given.get("sliding_window") if kind != "llama" else None, kind.startswith("qwen")
    if qwen and not given.get("use_sliding_window", False):
        window = None
    elif qwen and window and given.get("max_window_layers", 28) < given["num_hidden_layers"]:
        raise UserError(
            f"{where} has a sliding window in some layers only (max_window_layers "
            f"{given.get('max_window_layers', 28)} of {given['num_hidden_layers']}), which is not implemented here."
        )
    elif qwen:  # layers below max_window_layers see everything
        window = None
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    return llama.Config(
        vocab_size=given["vocab_size"],
        max_seq_len=given["max_position_embeddings"],
        n_layers=given["num_hidden_layers"],
        dim=dim,
        n_heads=heads,
        n_kv_heads=given.get("num_key_value_heads") or heads,
        head_dim=given.get("head_dim") or (128 if kind == "qwen3" else dim // heads),
        hidden_dim=given["intermediate_size"],
        rope_theta=float(given.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
        rope_scaling=_scaling(rope, given, where),
        norm_eps=given.get("rms_norm_eps", 1e-6),
        tie_embeddings=bool(given.get("tie_word_embeddings", False)),
        window=window,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )


def _kind(given: Mapping[str, Any]) -> str:
    return LLAMAS[(given.get("architectures") or [_of_type(given.get("model_type"))])[0]]


def _scaling(rope: Mapping[str, Any], given: Mapping[str, Any], where: Any) -> RopeScaling | None:
    kind: Any = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if str(kind) not in OWN_FIELDS:
        raise UserError(
            f"{where} scales its rotary embedding by {kind!r}, which is not implemented here "
            f"({', '.join(OWN_FIELDS)} are)."
        )
    fields = {ours: theirs for ours, theirs in ROPE_FIELDS.items() if ours in ("factor", *OWN_FIELDS[kind])}
    try:
        settings: dict[str, Any] = {
            ours: float(rope[theirs]) for ours, theirs in fields.items() if rope.get(theirs) is not None
        }
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where} has a setting of its {kind} rotary embedding that is no number: {error}."
        ) from error
    if "original_context" in fields:  # transformers: the context where nothing else is said
        settings.setdefault("original_context", given["max_position_embeddings"])
        settings["original_context"] = int(settings["original_context"])
    required = ("factor", "low_freq_factor", "high_freq_factor")
    if missing := [fields[name] for name in required if name in fields and name not in settings]:
        raise UserError(f"{where} scales its rotary embedding by {kind!r} and lacks {missing[0]!r}.")
    scaling = RopeScaling(kind=kind, **settings)
    _only(rope, where, mscale=(None,), mscale_all_dim=(None,), truncate=(True, None))
    _only(rope, where, partial_rotary_factor=(1.0, None))
    _only(rope, where, attention_factor=(None, scaling.attention_factor))
    return scaling


def _gpt2(given: Mapping[str, Any], where: Any) -> gpt2.Config:
    _only(given, where, activation_function=("gelu_new", "gelu_pytorch_tanh"), scale_attn_weights=(True,))
    _only(given, where, add_cross_attention=(False,), scale_attn_by_inverse_layer_idx=(False,))
    _only(given, where, tie_word_embeddings=(True,))
    return gpt2.Config(
        vocab_size=given["vocab_size"],
        max_seq_len=given["n_positions"],
        n_layers=given["n_layer"],
        dim=given["n_embd"],
        n_heads=given["n_head"],
        hidden_dim=given.get("n_inner") or 4 * given["n_embd"],
        norm_eps=given.get("layer_norm_epsilon", 1e-5),
    )


def to_json(cfg: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json for the model, as any version of transformers reads it."""
    if isinstance(cfg, gpt2.Config):
        return {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": cfg.vocab_size,
            "n_positions": cfg.max_seq_len, "n_ctx": cfg.max_seq_len, "n_embd": cfg.dim, "n_layer": cfg.n_layers,
            "n_head": cfg.n_heads, "n_inner": cfg.hidden_dim, "layer_norm_epsilon": cfg.norm_eps,
            "activation_function": "gelu_new", "torch_dtype": dtype,
        }  # fmt: skip
    if type(cfg) is not llama.Config:
        raise UserError(f"A {cfg.family} cannot be written as a Hugging Face folder yet; llama and gpt2 can.")
    marks = {"qwen2": cfg.qkv_bias, "qwen3": cfg.qk_norm, "mistral": cfg.window}
    kind, *others = [name for name, has in marks.items() if has] or ["llama"]
    if others or not cfg.gated:
        raise UserError(
            "A llama without a gate, or with two of window, qkv_bias and qk_norm, is no architecture of others, and no "
            "Hugging Face folder can hold it."
        )
    architecture = next(name for name, known in LLAMAS.items() if known == kind)
    made: dict[str, Any] = {
        "architectures": [architecture], "model_type": kind, "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.max_seq_len, "num_hidden_layers": cfg.n_layers, "hidden_size": cfg.dim,
        "num_attention_heads": cfg.n_heads, "num_key_value_heads": cfg.n_kv_heads, "head_dim": cfg.head_dim,
        "intermediate_size": cfg.hidden_dim, "rope_theta": cfg.rope_theta, "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings, "hidden_act": "silu", "torch_dtype": dtype,
    }  # fmt: skip
    if kind == "mistral":
        made["sliding_window"] = cfg.window
    if cfg.rope_scaling is not None:
        s = cfg.rope_scaling
        own = ("factor", *OWN_FIELDS[s.kind])
        made["rope_scaling"] = {"rope_type": s.kind} | {ROPE_FIELDS[name]: getattr(s, name) for name in own}
    return made
