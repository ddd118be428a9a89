"""The registry of attention implementations.

Every implementation has one signature and equals `reference` for every mask it accepts (tests/kernels); one that
cannot honour a mask raises `Unsupported`, or hands it to `xla`, and never ignores it.

    attention(q [B, S, H, K], k [B, T, G, K], v [B, T, G, K], mask) -> [B, S, H, K]

H query heads share G key-value heads (grouped-query attention, Llama 3 section 3.2): query head h reads key-value
head h // (H // G), and keys and values are never repeated in memory.
"""

from __future__ import annotations

import importlib
from typing import Protocol

from jaxtyping import Array, Float

from min_llm.config import UserError, nearest
from min_llm.kernels.mask import Mask


class Unsupported(NotImplementedError):
    """This implementation cannot honour the mask it was given."""


class Attention(Protocol):
    def __call__(
        self, q: Float[Array, "b s h k"], k: Float[Array, "b t g k"], v: Float[Array, "b t g k"], mask: Mask
    ) -> Float[Array, "b s h k"]: ...


IMPLEMENTATIONS = ("reference", "xla", "blockwise", "amx", "cudnn")


def get(name: str) -> Attention:
    """The implementation of that name; its module is imported on first use."""
    if name not in IMPLEMENTATIONS:
        raise UserError(f"There is no attention implementation {name!r}.{nearest(name, IMPLEMENTATIONS)}")
    return importlib.import_module(f"{__name__}.{name}").attention


def fastest(dtype: str) -> str:
    """The implementation that is fastest on this machine in this compute dtype."""
    from min_llm.kernels import cpu
    from min_llm.kernels.attention import cudnn

    if dtype == "bfloat16" and cpu.available():
        return "amx"
    return "cudnn" if dtype in ("bfloat16", "float16") and cudnn.available() else "xla"
