"""Hardware that the planner knows by name, and this machine as measured.

Peaks are of one device, dense (no sparsity), bf16 inputs with float32 accumulation: what a matrix product can use.
A figure is here only where a source says it; a machine that is not here is given by its numbers or measured.
"""

from __future__ import annotations

import dataclasses
import os

from min_llm import platform
from min_llm.config import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One device. flops_*: peak FLOP/s of a dense product. bandwidth: B/s to the main memory. memory: bytes, 0 where
    unknown. kinds: how JAX names the device (`device_kind`)."""

    name: str
    flops_bfloat16: float
    bandwidth: float
    memory: int
    flops_float32: float = 0.0
    kinds: tuple[str, ...] = ()

    def peak(self, dtype: str = "bfloat16") -> float:
        """FLOP/s of products whose weights are stored as `dtype`. Integer and float8 weights are unpacked and
        multiplied in bf16, or in float32 where that is faster."""
        if dtype != "float32":
            return (
                self.flops_bfloat16 if dtype == "bfloat16" else max(self.flops_bfloat16, self.flops_float32)
            )
        if not self.flops_float32:
            raise UserError(
                f"The float32 peak of {self.name} is not listed. Take another dtype, or measure it there "
                "(--hardware measured)."
            )
        return self.flops_float32


# Sources: [L3] Llama 3 paper's MFU (published-numbers.md section 6); [N] NVIDIA's product pages and datasheets, whose
# headline numbers are with sparsity and twice these; [T] docs.cloud.google.com/tpu; [K] the Transformer Inference
# Arithmetic post; [C] the Throughput-is-all-you-need post. Gigabytes are decimal, as vendors give them.
NAMED = {
    hardware.name: hardware
    for hardware in (
        # SXM. [L3] 989.4; [N] 3.35 TB/s, 80 GB HBM3
        Hardware("h100", 989.4e12, 3.35e12, 80 * 10**9, kinds=("NVIDIA H100 80GB HBM3",)),
        # [N] the same die as the H100; 4.8 TB/s, 141 GB HBM3e
        Hardware("h200", 989.4e12, 4.8e12, 141 * 10**9, kinds=("NVIDIA H200",)),
        # [N] 8 devices: 36 PFLOP/s bf16 with sparsity (HGX B200), 64 TB/s and 1,440 GB (DGX B200)
        Hardware("b200", 2.25e15, 8.0e12, 180 * 10**9, kinds=("NVIDIA B200",)),
        # [N], [K] 312 TFLOP/s; 1,555 GB/s with 40 GB, 2,039 GB/s with 80 GB
        Hardware("a100-40gb", 312e12, 1.555e12, 40 * 10**9, kinds=("NVIDIA A100-SXM4-40GB",)),
        Hardware("a100-80gb", 312e12, 2.039e12, 80 * 10**9, kinds=("NVIDIA A100-SXM4-80GB",)),
        # [N] Ada whitepaper: 165.2 TFLOP/s with float32 accumulation (twice that with float16); [C] 1,008 GB/s, 24 GB
        Hardware("rtx-4090", 165.2e12, 1.008e12, 24 * 10**9, kinds=("NVIDIA GeForce RTX 4090",)),
        # [T] v5e: 197 TFLOP/s, 819 GB/s, 16 GB
        Hardware("tpu-v5e", 197e12, 8.19e11, 16 * 10**9, kinds=("TPU v5 lite", "TPU v5e")),
        # [T] v5p: 459 TFLOP/s, 2,765 GB/s, 95 GB
        Hardware("tpu-v5p", 459e12, 2.765e12, 95 * 10**9, kinds=("TPU v5", "TPU v5p")),
        # [T] v6e: 918 TFLOP/s, 1,638 GB/s (older pages: 1,600 and 1,640), 32 GB
        Hardware("tpu-v6e", 918e12, 1.638e12, 32 * 10**9, kinds=("TPU v6 lite", "TPU v6e")),
    )
}


def named(name: str) -> Hardware:
    """The hardware of that name; "measured" is this machine."""
    if name == "measured":
        return measured()
    if name not in NAMED:
        raise UserError(f"There is no hardware {name!r}.{nearest(name, [*NAMED, 'measured'])}")
    return NAMED[name]


def datasheet(device_kind: str) -> Hardware | None:
    """The named hardware that JAX calls `device_kind`, or None: MFU is printed against it and against the measured
    peak."""
    return next((hardware for hardware in NAMED.values() if device_kind in hardware.kinds), None)


def measured() -> Hardware:
    """This machine: one device's peaks from `peaks.measure` (cached on disk), and its memory."""
    from min_llm.kernels import peaks

    top = peaks.measure()
    return Hardware(
        name=platform.device_kind(),
        flops_bfloat16=top["flops_bfloat16"],
        flops_float32=top["flops_float32"],
        bandwidth=top["bytes"],
        memory=device_memory(),
    )


def device_memory() -> int:
    """Bytes of the first device's memory: what JAX may allocate of it, or the host's physical memory on CPU."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            return 0
    return int((device.memory_stats() or {}).get("bytes_limit", 0))
