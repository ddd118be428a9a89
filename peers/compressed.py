"""compressed-tensors: quantized folders that it writes, and what it makes of any such folder, through transformers."""

from typing import Any

import numpy as np
import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams, is_module_quantized

from peers import folders


def make(folder: str, config: dict[str, Any], group: dict[str, Any], ignore: list[str]) -> None:
    """Write a random Llama quantized as `group` (of config_groups) says, with the scales of the package itself."""
    model = folders.random_model("Llama", config)
    made = QuantizationConfig(config_groups={"group_0": group}, ignore=ignore, quantization_status="frozen")
    apply_quantization_config(model, made, show_progress=False)
    for module in filter(is_module_quantized, model.modules()):
        args = module.quantization_scheme.weights
        rows = module.weight.detach().unflatten(-1, (-1, args.group_size or module.in_features))
        scales, _ = calculate_qparams(rows.amin(-1), rows.amax(-1), args)
        module.weight_scale.data.copy_(scales)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


def read(folder: str, tokens: np.ndarray) -> dict[str, Any]:
    """Of a quantized folder: the float32 weights that it is decompressed to, by name, and logits [B, S, V], for which
    activations are rounded where the folder says so; and what was not in the files."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(tokens).long()).logits  # it decompresses the weights first
    weights = {
        f"{name}.weight": module.weight.detach().float().numpy()
        for name, module in model.named_modules()
        if is_module_quantized(module)
    }
    return {"weights": weights, "logits": logits.float().numpy(), **folders.wrong(info)}
