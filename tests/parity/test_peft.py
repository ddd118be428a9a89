"""Adapters against peft: theirs read here, ours read there."""

import numpy as np
import pytest

from min_llm import models
from min_llm.formats import huggingface, peft
from min_llm.nn.batch import Batch
from min_llm.nn.lora import adapt, merge
from min_llm.nn.runtime import Runtime
from tests.parity.test_folders import GPT2, MODELS, SIZES, TOKENS

pytestmark = pytest.mark.peers

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "all matrices": ("Llama", SIZES, {"r": 4, "lora_alpha": 8, "target_modules": ALL}),
    "rsLoRA": ("Llama", SIZES, {"r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    "patterns": ("Llama", SIZES, {
        "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 3, r".*\.0\..*q_proj": 5},
    }),
    "some layers": ("Llama", SIZES, {"r": 2, "target_modules": ["k_proj"], "layers_to_transform": [1]}),
    "a regular expression": ("Llama", SIZES, {"r": 2, "target_modules": r".*\.0\..*proj"}),
    "qwen2, biases": (*MODELS["qwen2, biases"], {"r": 3, "target_modules": ["q_proj", "k_proj", "o_proj"]}),
    "gpt2, transposed and fused": ("GPT2", GPT2, {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_their_adapter_here_and_ours_there(peer, tmp_path, name):
    """Logits within 1e-4 in float32."""
    if "peft" not in peer.call("versions"):
        pytest.skip("the peers' environment has no peft yet; `make env-peers` installs it")
    architecture, config, fields = CASES[name]
    model, theirs, ours = (tmp_path / n for n in ("model", "theirs", "ours"))
    peer.call("make_folder", architecture=architecture, config=config, folder=str(model))
    peer.call("make_adapter", model=str(model), config=fields, folder=str(theirs))
    want = peer.call("adapter_logits", model=str(model), folder=str(theirs), tokens=TOKENS)
    cfg, params = huggingface.read(model)

    def logits(params):
        return np.asarray(models.logits(params, cfg, Batch(TOKENS), Runtime("float32"))[0])

    adapter = peft.read(theirs, cfg)
    assert np.abs(logits(params) - want).max() > 1e-2
    for adapted in (adapt(params, adapter), merge(adapt(params, adapter))):
        assert np.abs(logits(adapted) - want).max() < 1e-4
    if architecture != "GPT2":
        peft.write(ours, cfg, adapter)
        again = peer.call("adapter_logits", model=str(model), folder=str(ours), tokens=TOKENS)
        assert np.abs(again - want).max() < 1e-5
