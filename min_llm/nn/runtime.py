"""How a model is executed, apart from what it computes: dtype, attention implementation, scan, remat, loss chunks.

`RuntimeConfig` is what a user may set ("auto" by default); `resolve` turns it into a `Runtime`, the hashable facts
that jitted functions take as static, choosing by what was measured on this machine.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from min_llm.config import option

Remat = Literal["none", "selective", "full", "offload"]
Context = Literal["gather", "ring"]

# Unrolled layers run up to 1.2x faster on CPU and GPU, scanned ones compile faster. From so many layers on they are
# scanned.
SCAN_FROM_LAYERS = {"cpu": 16, "gpu": 32}
LOGITS_PER_CHUNK = 2**25  # logits held at once by the loss on CPU: 64 MiB in bfloat16
ACCELERATOR_LOGITS = 2**28  # elsewhere; every chunk adds a pass over the gradient of the head


@dataclasses.dataclass(frozen=True)
class Runtime:
    dtype: str = "float32"
    attention: str = "xla"
    scan: bool = False
    remat: Remat = "none"
    logits_per_chunk: int = LOGITS_PER_CHUNK
    # on a mesh (parallel.mesh.ParallelConfig)
    context: Context = "gather"
    keep_gathered: bool = False
    pipeline_parts: int = 1
    pipeline_rounds: int = 1


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "compute dtype; parameters, optimizer and accumulation are float32 always"
    )
    attention: Literal["auto", "reference", "xla", "blockwise", "amx", "cudnn"] = option(
        "auto", "attention implementation"
    )
    layers: Literal["auto", "scan", "unroll"] = option("auto", "run layers by lax.scan or unrolled")
    remat: Remat = option(
        "none", "what the backward pass recomputes: nothing, cheap operations, all, or offload"
    )
    logits_per_chunk: int = option(
        0, "logits the chunked loss holds at once; 0: 2**25 on CPU, 2**28 on accelerators"
    )


def resolve(cfg: RuntimeConfig, n_layers: int) -> Runtime:
    """Replace every "auto" by what is fastest here."""
    import jax

    from min_llm.kernels import attention, peaks

    backend = jax.default_backend()
    scan = n_layers >= SCAN_FROM_LAYERS.get(backend, 0) if cfg.layers == "auto" else cfg.layers == "scan"
    dtype = peaks.fast_dtype() if cfg.dtype == "auto" else cfg.dtype
    return Runtime(
        dtype=dtype,
        attention=attention.fastest(dtype) if cfg.attention == "auto" else cfg.attention,
        scan=scan,
        remat=cfg.remat,
        logits_per_chunk=cfg.logits_per_chunk
        or (LOGITS_PER_CHUNK if backend == "cpu" else ACCELERATOR_LOGITS),
    )
