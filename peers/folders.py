"""transformers' own folders: tiny random models written, and any folder's logits."""

from typing import Any

import numpy as np
import torch
import transformers


def make(
    architecture: str,
    config: dict[str, Any],
    folder: str,
    seed: int = 0,
    shard_size: str = "5GB",
    dtype: str = "float32",
) -> None:
    """Write a random model, e.g. architecture "Qwen2"."""
    model = random_model(architecture, config, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard_size)


def random_model(architecture: str, config: dict[str, Any], seed: int = 0) -> transformers.PreTrainedModel:
    """Biases and norms too are random, so that none can be missed."""
    made = getattr(transformers, f"{architecture}Config")(**config)
    name = "GPT2LMHeadModel" if architecture == "GPT2" else f"{architecture}ForCausalLM"
    torch.manual_seed(seed)
    model = getattr(transformers, name)(made)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits(folder: str, tokens: np.ndarray) -> dict[str, Any]:
    """[B, S, V] in float32, whatever the folder's dtype; and the names of what was not in the files."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    with torch.no_grad():
        found = model(input_ids=torch.from_numpy(tokens).long()).logits
    return {"logits": found.float().numpy(), **wrong(info)}


def wrong(info: dict[str, Any]) -> dict[str, list[str]]:
    """Names of parameters that a folder lacked, or had too many, or of other shapes."""
    return {
        key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
