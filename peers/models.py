"""transformers' Llama, Mixtral and GPT-2 on our parameters: logits, loss, gradients, and a trace of AdamW steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from peers import convert

TENSORS = {
    "llama": convert.llama_tensors,
    "mixtral": convert.mixtral_tensors,
    "gpt2": convert.gpt2_tensors,
}
# Read as two-dimensional by nanoGPT and by us: what weight decay applies to, unless the request names leaves.
MATRICES = ("embed", "positions", "head", "wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")


def decoder_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that transformers' Llama and Mixtral share, from our names: dim, n_layers, n_heads, n_kv_heads,
    head_dim, hidden_dim, vocab_size, rope_theta, norm_eps, tie_embeddings, max_seq_len, and rope_scaling: None or
    the fields of RopeScaling."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(config["rope_theta"])}
    if scaling := config.get("rope_scaling"):
        settings = {
            "llama3": ("low_freq_factor", "high_freq_factor"),
            "linear": (),
            "yarn": ("beta_fast", "beta_slow"),
        }[scaling["kind"]]
        rope |= {"rope_type": scaling["kind"]} | {
            name: float(scaling[name]) for name in ("factor", *settings)
        }
        if settings:
            rope["original_max_position_embeddings"] = int(scaling["original_context"])
    return dict(
        vocab_size=config["vocab_size"],
        hidden_size=config["dim"],
        intermediate_size=config["hidden_dim"],
        num_hidden_layers=config["n_layers"],
        num_attention_heads=config["n_heads"],
        num_key_value_heads=config["n_kv_heads"],
        head_dim=config["head_dim"],
        max_position_embeddings=config["max_seq_len"],
        rms_norm_eps=config["norm_eps"],
        rope_parameters=rope,
        tie_word_embeddings=config["tie_embeddings"],
        use_cache=False,
    )


def llama(config: dict[str, Any], attention: str = "eager") -> LlamaForCausalLM:
    """A Llama from our fields (`decoder_fields`)."""
    made = LlamaConfig(**decoder_fields(config))
    made._attn_implementation = attention
    return LlamaForCausalLM(made)


def mixtral(config: dict[str, Any]) -> MixtralForCausalLM:
    """A Mixtral from Llama's fields, n_experts and experts_per_token; no jitter and no balancing loss."""
    made = MixtralConfig(
        **decoder_fields(config),
        num_local_experts=config["n_experts"],
        num_experts_per_tok=config["experts_per_token"],
    )
    made._attn_implementation = "eager"
    made._experts_implementation = "eager"
    return MixtralForCausalLM(made)


def gpt2(config: dict[str, Any], attention: str = "eager") -> GPT2LMHeadModel:
    """A GPT-2 from dim, n_layers, n_heads, hidden_dim, vocab_size, max_seq_len and norm_eps; no dropout."""
    made = GPT2Config(
        vocab_size=config["vocab_size"],
        n_positions=config["max_seq_len"],
        n_embd=config["dim"],
        n_layer=config["n_layers"],
        n_head=config["n_heads"],
        n_inner=config["hidden_dim"],
        layer_norm_epsilon=config["norm_eps"],
        activation_function="gelu_new",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    made._attn_implementation = attention
    return GPT2LMHeadModel(made)


MODELS = {"llama": llama, "mixtral": mixtral, "gpt2": gpt2}


def build(family: str, config: dict[str, Any], params: dict[str, Any]) -> nn.Module:
    """The peer's model holding our parameters, f32, in evaluation mode (it has no dropout)."""
    model = MODELS[family](config)
    convert.load(TENSORS[family](model, lambda parameter: parameter), params)
    return model.eval()


def document_mask(segment_ids: np.ndarray) -> Tensor:
    """Additive [B,1,S,S] mask: causal, and only within a document."""
    ids = torch.from_numpy(segment_ids)
    same = ids[:, :, None] == ids[:, None, :]
    allowed = same & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None]


def logits_of(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """[B,S,V] of batch {tokens, positions or None, segment_ids or None}."""
    options: dict[str, Any] = {}
    if batch.get("positions") is not None:
        options["position_ids"] = torch.from_numpy(batch["positions"]).long()
    if batch.get("segment_ids") is not None:
        options["attention_mask"] = document_mask(batch["segment_ids"])
    return model(input_ids=torch.from_numpy(batch["tokens"]).long(), **options).logits


def loss_of(logits: Tensor, batch: dict[str, Any]) -> Tensor:
    """sum(weights * nll) / sum(weights), nats; weights are ones when the batch has none."""
    targets = torch.from_numpy(batch["targets"]).long()
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    if batch.get("weights") is None:
        return nll.mean()
    weights = torch.from_numpy(batch["weights"]).flatten()
    return (weights * nll).sum() / weights.sum()


def forward(
    family: str, config: dict[str, Any], params: dict[str, Any], batch: dict[str, Any]
) -> dict[str, Any]:
    """Logits; with targets in the batch also the loss and its gradients in our layout."""
    model = build(family, config, params)
    logits = logits_of(model, batch)
    answer: dict[str, Any] = {"logits": logits.detach().numpy()}
    if batch.get("targets") is not None:
        loss = loss_of(logits, batch)
        loss.backward()
        gradients = TENSORS[family](model, lambda parameter: parameter.grad)  # type: ignore
        answer |= {"loss": loss.item(), "gradients": convert.dump(gradients, params)}
    return answer


def adamw_trace(
    family: str,
    config: dict[str, Any],
    params: dict[str, Any],
    batch: dict[str, Any],
    steps: int = 10,
    learning_rate: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    decayed: Sequence[str] = MATRICES,
    clip: float = 1.0,
) -> dict[str, Any]:
    """torch.optim.AdamW on one batch: the loss before each step, the gradient norms, parameters after.

    `decayed` names our leaves that weight decay applies to; `clip` bounds the global norm (0 for none).
    """
    model = build(family, config, params)
    names = {id(p): name for name, p in _parameter_names(family, model)}
    used = [p for p in model.parameters() if names[id(p)] in _given(params)]
    groups = [
        {"params": [p for p in used if names[id(p)] in decayed], "weight_decay": weight_decay},
        {"params": [p for p in used if names[id(p)] not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), eps=eps)
    losses, norms = [], []
    for _ in range(steps):
        model.zero_grad(set_to_none=True)
        loss = loss_of(logits_of(model, batch), batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(used, clip if clip else float("inf"))
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    after = convert.dump(TENSORS[family](model, lambda parameter: parameter), params)
    return {"losses": losses, "grad_norms": norms, "params": after}


def _given(params: dict[str, Any]) -> set[str]:
    return set(params["layers"]) | set(params) - {"layers"}


def _parameter_names(family: str, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Which of our leaves each of the peer's parameters is (wq for the fused q, k and v)."""
    order: list[nn.Parameter] = []

    def note(parameter: nn.Parameter) -> Tensor:
        order.append(parameter)
        return torch.full_like(parameter, len(order) - 1)

    tree = TENSORS[family](model, note)
    found: dict[int, str] = {}
    for name, _, tensor in convert.leaves(tree):
        found.setdefault(id(order[int(tensor.flatten()[0])]), name)
    return [(found[id(p)], p) for p in model.parameters()]
