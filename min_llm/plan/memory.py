"""Bytes: parameters, gradients, optimizer, key-value cache, and what a training step keeps for its backward pass.

Per token and layer, with D model dimension, H·K and G·K the widths of queries and of keys, F hidden width, and c the
bytes of the compute dtype, the backward pass of a dense decoder keeps (counted from what JAX saves):

    two norms        2 · (2·D·4 + D·c)        the input and the normalised input in float32, the output
    projections      (3·H·K + A·G·K) · c      rotated queries, attention output before and after its transpose;
                                              A = 2, keys and values, and more where each query block keeps a copy
    probabilities    H·P · c                  P keys a query: about S/2 for "xla"; 2·S for "reference", in float32;
                                              none for "blockwise", which computes them again
    feed-forward     6·F·c for SwiGLU, 2·F·c for GELU; k · (2·D + 3·F) · c for a mixture with k experts a token

remat "none" keeps all of it; "selective" the products with weights, (2·D + H·K + 2·G·K + 2·F) · c, of a mixture
k · (D + 2·F) instead of 2·F; "full" and, on the device, "offload" D·c. On top, one layer's worth times `WORKSPACE` is
alive at the peak of its backward pass. The loss holds `2 · 4` bytes for each logit of a chunk and the gradient of the
head, while the layers' residuals wait. The larger of those two moments is the peak. tests/plan compares all this with
XLA's own figure: within 10 % for most of 60 configurations, within 18 % for all. Dropout masks are not counted, nor the
float32 copies that XLA makes where a processor has no bf16 products.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from min_llm import models, platform
from min_llm.config import UserError, nearest
from min_llm.nn.runtime import Runtime
from min_llm.spec import Param, count, leaves

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "float8": 1.0, "int8": 1.0, "int4": 0.5}
WORKSPACE = {"none": 1.25, "selective": 1.25, "full": 1.55, "offload": 1.55}  # in layers, measured on CPU
MIXTURE_WORKSPACE = 2.2  # the same of a mixture of experts, with every remat


def optimizer_bytes(p: Param, optimizer: str = "adamw") -> float:
    """Bytes of state that an optimizer (`train.optim`) keeps for a parameter, all float32. Counters are not counted."""
    if optimizer == "adafactor" and p.role not in ("norm", "bias"):
        values = sum(p.size / math.prod(p.shape[i] for i in side) for side in p.sides)
    else:
        one = optimizer in ("lion", "adafactor") or (optimizer == "muon" and p.role == "matrix")
        values = p.size if one else 2 * p.size
    return values * BYTES["float32"]


def bytes_of(values: float, dtype: str) -> float:
    """Bytes of that many values. Scales of quantised formats are not counted."""
    if dtype not in BYTES:
        raise UserError(f"There is no dtype {dtype!r}.{nearest(dtype, list(BYTES))}")
    return values * BYTES[dtype]


def kv_bytes_per_token(cfg: models.ModelConfig, dtype: str = "bfloat16") -> float:
    """Bytes that one token adds to the key-value cache of all layers: 2·L·G·K values."""
    return bytes_of(2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim, dtype)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device at the peak of a training step. Parameters, gradients and optimizer state are float32."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float  # kept for the backward pass by all layers
    workspace: float  # alive beside them at the peak: one layer's backward pass, or the loss
    logits: float  # of one chunk of the loss; part of the workspace where the loss is the peak
    gathered: float = (
        0.0  # parameters whole over fsdp, beyond those of the layer that runs (plan.mesh_memory)
    )

    @property
    def total(self) -> float:
        held = self.parameters + self.gradients + self.optimizer + self.gathered
        return held + self.activations + self.workspace


def training(
    cfg: models.ModelConfig,
    rows: int,
    seq_len: int,
    runtime: Runtime,
    micro_batches: int = 1,
    optimizer: str = "adamw",
) -> TrainingMemory:
    """The memory of a step over `rows` rows of `seq_len` tokens, cut into micro-batches."""
    from min_llm.kernels import cpu

    spec = models.spec(cfg)
    parameters = bytes_of(count(spec), "float32")
    tokens = rows // micro_batches * seq_len
    layer = tokens * layer_bytes(cfg, seq_len, dataclasses.replace(runtime, remat="none"))
    n_layers: int = cfg.n_layers  # type: ignore[attr-defined]
    activations = n_layers * tokens * layer_bytes(cfg, seq_len, runtime)
    own_kernels = runtime.dtype == "bfloat16" and cpu.available()
    if runtime.scan and runtime.remat == "none" and runtime.dtype != "float32" and not own_kernels:
        # the cast of the stacked weights happens before the scan and is kept for the backward pass
        activations += n_layers * bytes_of(count(_layer(cfg), "matrix"), runtime.dtype)
    per_logit = 2 if own_kernels else logit_bytes(runtime.dtype)
    logits = chunk_logits(cfg.vocab_size, tokens, runtime.logits_per_chunk)
    head = bytes_of(count(spec, "head"), "float32")  # a tied one adds to a gradient that XLA makes later
    factor = MIXTURE_WORKSPACE if hasattr(cfg, "n_experts") else WORKSPACE[runtime.remat]
    backward = factor * layer + parameters
    loss = logits * per_logit + head
    # With micro-batches the gradient so far and that of this part are both there.
    gradients = parameters * (1 if micro_batches == 1 else 2)
    return TrainingMemory(
        parameters=parameters,
        gradients=gradients,
        optimizer=sum(optimizer_bytes(p, optimizer) for _, p in leaves(spec)),
        activations=activations,
        workspace=max(backward, loss) - parameters,
        logits=logits * per_logit,
    )


def logit_bytes(dtype: str) -> int:
    """Of a logit and the gradient of the softmax: both in float32, but for GPUs XLA fuses all of it into one pass over
    the product's result."""
    return 2 if dtype == "bfloat16" and platform.backend() == "gpu" else 8


def chunk_logits(vocab_size: int, tokens: int, logits_per_chunk: int) -> int:
    """Logits that the chunked loss holds at once: equal chunks of at most `logits_per_chunk`."""
    rows = max(1, min(tokens, logits_per_chunk // vocab_size))
    chunks = -(-tokens // rows)
    return -(-tokens // chunks) * vocab_size


def layer_bytes(cfg: models.ModelConfig, seq_len: int, runtime: Runtime) -> float:
    """Bytes a token that one layer keeps for its backward pass."""
    c: Any = cfg
    d, hk, gk, f = c.dim, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.hidden_dim
    ups = sum(1 for p in _matrices(cfg) if p.axes[-1] == "hidden")  # 2 with a gate, else 1
    k: int = getattr(cfg, "experts_per_token", 0)
    size = BYTES[runtime.dtype]
    if runtime.remat in ("full", "offload"):
        return d * size
    if runtime.remat == "selective":
        return (2 * d + hk + 2 * gk + (k * (d + ups * f) if k else ups * f)) * size
    copies, keys = attention_values(seq_len, runtime.attention, getattr(cfg, "window", None))
    probabilities = c.n_heads * keys * (BYTES["float32"] if runtime.attention == "reference" else size)
    feed_forward = k * (2 * d + 3 * f) if k else (6 if ups == 2 else 2) * f
    normed = hk + gk if getattr(cfg, "qk_norm", False) else 0  # queries and keys before their norms
    values = 2 * d + 3 * hk + copies * gk + normed + feed_forward
    return 4 * d * BYTES["float32"] + values * size + probabilities


def attention_values(seq_len: int, attention: str, window: int | None) -> tuple[float, float]:
    """(key and value copies a token, probabilities a query and head) that an implementation keeps."""
    if attention in ("blockwise", "amx", "cudnn"):
        return 2.0, 0.0
    if attention == "reference":
        return 2.0, 2.0 * seq_len
    from min_llm.kernels.attention.xla import query_blocks
    from min_llm.kernels.mask import Mask

    blocks = query_blocks(seq_len, seq_len, Mask(window=window))
    keys = sum(k.stop - k.start for _, k in blocks)
    products = sum((q.stop - q.start) * (k.stop - k.start) for q, k in blocks)
    return 2 * keys / seq_len, products / seq_len


def _layer(cfg: models.ModelConfig) -> Any:
    return models.of(cfg).layer_spec(cfg)


def _matrices(cfg: models.ModelConfig) -> list[Param]:
    return [p for _, p in leaves(_layer(cfg)) if p.role == "matrix"]
