"""peft's own adapters: random ones written for a model's folder, and what a model says with any of them."""

from typing import Any

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM


def _model(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def make(model: str, config: dict[str, Any], folder: str, seed: int = 0) -> None:
    """Write a random adapter with these fields of LoraConfig; B, too, is random."""
    torch.manual_seed(seed)
    made = peft.get_peft_model(_model(model), peft.LoraConfig(**config))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    made.save_pretrained(folder)


def logits(model: str, folder: str, tokens: np.ndarray) -> np.ndarray:
    """[B, S, V] in float32 of a model with an adapter."""
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(_model(model), folder)
        return adapted(input_ids=torch.from_numpy(tokens).long()).logits.numpy()
