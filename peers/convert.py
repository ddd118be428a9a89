"""Parameters between our layout (NumPy, one layer stacked on axis 0) and transformers' modules.

Our Llama: embed [V,D]; layers: attn_norm [L,D], wq [L,D,H,K], wk and wv [L,D,G,K], wo [L,H,K,D], mlp_norm
[L,D], w_gate and w_up [L,D,F], w_down [L,F,D]; final_norm [D]; head [D,V], absent when tied. RoPE is
half-split on both sides, so nothing is permuted. Our Mixtral: router [L,D,E] and an axis of experts in w_gate, w_up
[L,E,D,F] and w_down [L,E,F,D]. `llama_tensors`, `mixtral_tensors` and `gpt2_tensors` give views of a module's own
tensors (weights or gradients) in our layout: one table serves loading, reading gradients and naming leaves.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Pick = Callable[[nn.Parameter], Tensor]
Tree = dict[str, Any]


def swiglu_tensors(mlp: Any, pick: Pick) -> Tree:
    return {
        "w_gate": pick(mlp.gate_proj.weight).T,
        "w_up": pick(mlp.up_proj.weight).T,
        "w_down": pick(mlp.down_proj.weight).T,
    }


def moe_tensors(mlp: Any, pick: Pick) -> Tree:
    """Gate and up are one tensor there, one above the other."""
    gate, up = pick(mlp.experts.gate_up_proj).mT.chunk(2, dim=-1)
    down = pick(mlp.experts.down_proj).mT
    return {"router": pick(mlp.gate.weight).T, "w_gate": gate, "w_up": up, "w_down": down}


def llama_tensors(model: nn.Module, pick: Pick, mlp: Callable[[Any, Pick], Tree] = swiglu_tensors) -> Tree:
    """Our tree of a LlamaForCausalLM; `pick` gives a parameter's tensor (itself, or its gradient)."""
    config: Any = model.config
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads

    def layer(block: Any) -> dict[str, Tensor]:
        attention = block.self_attn
        return {
            "attn_norm": pick(block.input_layernorm.weight),
            "wq": pick(attention.q_proj.weight).T.unflatten(1, (heads, -1)),
            "wk": pick(attention.k_proj.weight).T.unflatten(1, (kv_heads, -1)),
            "wv": pick(attention.v_proj.weight).T.unflatten(1, (kv_heads, -1)),
            "wo": pick(attention.o_proj.weight).T.unflatten(0, (heads, -1)),
            "mlp_norm": pick(block.post_attention_layernorm.weight),
            **mlp(block.mlp, pick),
        }

    inner: Any = model.model
    tree: Tree = {
        "embed": pick(inner.embed_tokens.weight),
        "layers": [layer(block) for block in inner.layers],
        "final_norm": pick(inner.norm.weight),
    }
    if not config.tie_word_embeddings:
        tree["head"] = pick(model.lm_head.weight).T  # type: ignore[operator,union-attr]
    return tree


def mixtral_tensors(model: nn.Module, pick: Pick) -> Tree:
    """Our tree of a MixtralForCausalLM."""
    return llama_tensors(model, pick, moe_tensors)


def gpt2_tensors(model: nn.Module, pick: Pick) -> Tree:
    """Our tree of a GPT2LMHeadModel, whose Conv1D weights are [in, out] q, k and v side by side."""
    heads = model.config.n_head  # type: ignore[union-attr]

    def layer(block: Any) -> dict[str, Tensor]:
        fused, fused_bias = pick(block.attn.c_attn.weight), pick(block.attn.c_attn.bias)
        wq, wk, wv = (part.unflatten(1, (heads, -1)) for part in fused.chunk(3, dim=1))
        bq, bk, bv = (part.unflatten(0, (heads, -1)) for part in fused_bias.chunk(3))
        return {
            "attn_norm_scale": pick(block.ln_1.weight), "attn_norm_bias": pick(block.ln_1.bias),
            "wq": wq, "wk": wk, "wv": wv, "bq": bq, "bk": bk, "bv": bv,
            "wo": pick(block.attn.c_proj.weight).unflatten(0, (heads, -1)),
            "bo": pick(block.attn.c_proj.bias),
            "mlp_norm_scale": pick(block.ln_2.weight), "mlp_norm_bias": pick(block.ln_2.bias),
            "w_up": pick(block.mlp.c_fc.weight), "b_up": pick(block.mlp.c_fc.bias),
            "w_down": pick(block.mlp.c_proj.weight), "b_down": pick(block.mlp.c_proj.bias),
        }  # fmt: skip

    inner: Any = model.transformer
    return {
        "embed": pick(inner.wte.weight),
        "positions": pick(inner.wpe.weight),
        "layers": [layer(block) for block in inner.h],
        "final_norm_scale": pick(inner.ln_f.weight),
        "final_norm_bias": pick(inner.ln_f.bias),
    }


BIASES = ("attn_norm_bias", "mlp_norm_bias", "final_norm_bias", "bq", "bk", "bv", "bo", "b_up", "b_down")


def leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, int | None, Tensor]]:
    """(name, layer or None, tensor) of every leaf of a tree made above."""
    for name, value in tree.items():
        if name == "layers":
            for index, layer in enumerate(value):
                yield from ((leaf, index, tensor) for leaf, tensor in layer.items())
        else:
            yield name, None, value


def load(tree: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Copy `params` (our layout, layers stacked) into the views of `tree`; biases we do not have become zero.

    Raises ValueError for a leaf that is missing, unknown or of another shape.
    """
    given = {**params["layers"], **{name: value for name, value in params.items() if name != "layers"}}
    known = {name for name, _, _ in leaves(tree)}
    if unknown := sorted(set(given) - known):
        raise ValueError(
            f"unknown parameters {', '.join(unknown)}; this model has {', '.join(sorted(known))}"
        )
    with torch.no_grad():
        for name, index, view in leaves(tree):
            if name not in given and name in BIASES:
                view.zero_()
                continue
            if name not in given:
                raise ValueError(f"the parameter {name} is missing")
            value = torch.from_numpy(
                np.asarray(given[name] if index is None else given[name][index], np.float32)
            )
            if value.shape != view.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, the peer's is {tuple(view.shape)}")
            view.copy_(value)


def dump(tree: Mapping[str, Any], like: Mapping[str, Any]) -> Tree:
    """The tree as NumPy arrays, layers stacked, with the leaves that `like` has."""

    def array(tensor: Tensor) -> np.ndarray:
        return tensor.detach().float().contiguous().numpy()

    tops = {name: array(value) for name, value in tree.items() if name != "layers" and name in like}
    stacked = {name: np.stack([array(layer[name]) for layer in tree["layers"]]) for name in like["layers"]}
    return {**tops, "layers": stacked}
