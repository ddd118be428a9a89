"""Hardware that the planner knows by name, and this machine as measured.

Peaks are of one device, dense (no sparsity), bf16 inputs with float32 accumulation: what a matrix product can use.
A figure is here only where a source says it; a machine that is not here is given by its numbers or measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

from min_llm import platform
from min_llm.config import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One device. flops_*: peak FLOP/s of a dense product. bandwidth: B/s to the main memory. memory: bytes, 0 where
    unknown. kinds: how JAX names the device (`device_kind`).

    links: B/s that it sends to its neighbours on one axis of a mesh, 0 where unknown; near: how many devices such links
    join; network: B/s that it sends beyond them. shared: several devices are virtual and share all of these numbers.
    here: it is this machine.
    """

    name: str
    flops_bfloat16: float
    bandwidth: float
    memory: int
    flops_float32: float = 0.0
    kinds: tuple[str, ...] = ()
    links: float = 0.0
    near: int = 1
    network: float = 0.0
    shared: bool = False
    here: bool = False

    @property
    def backend(self) -> str:
        """What JAX calls its kind."""
        return platform.backend() if self.here else "tpu" if self.name.startswith("tpu") else "gpu"

    @contextlib.contextmanager
    def planned(self) -> Iterator[None]:
        """Within the body what depends on the backend is as it would be on this hardware."""
        with contextlib.nullcontext() if self.here else platform.compiling_for(self.backend):
            yield

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

    def sends(self, devices: int, stride: int) -> float:
        """B/s that one device sends along an axis of `devices`, each `stride` devices from the next.

        A ring among near devices runs over their links. One that goes beyond them leaves through the network adapters
        of those of its members that are near each other, all at once, and is no faster than the links.
        """
        inside = max(1, min(devices, self.near // stride))
        if inside == devices and self.links:
            return self.links
        if not self.network:
            raise UserError(
                f"How fast {self.name} sends to {devices * stride} devices is not known: "
                f"{self.near} are joined directly, and no network is listed."
            )
        return self.network if inside == 1 else min(self.links, self.network * inside)

    def among(self, devices: int) -> Hardware:
        """One of so many devices: virtual ones have a part of the machine."""
        if not self.shared or devices == 1:
            return self
        part = {
            name: getattr(self, name) / devices
            for name in ("flops_bfloat16", "flops_float32", "bandwidth", "links")
        }
        return dataclasses.replace(self, memory=self.memory // devices, **part)


# Sources: [L3] Llama 3 paper's MFU (published-numbers.md section 6); [N] NVIDIA's product pages and datasheets, whose
# headline numbers are with sparsity and twice these; [T] docs.cloud.google.com/tpu; [K] the Transformer Inference
# Arithmetic post; [C] the Throughput-is-all-you-need post. Gigabytes are decimal, as vendors give them.
# Links, one way, half of what vendors print. NVLink [N]: 900 GB/s for the H100 and H200, 1,800 for the B200, 600 for
# the A100, all 8 devices of a machine; PCIe 4.0 x16: 64. Network, one adapter a device: 400 Gb/s for the H100 (DGX
# H100; [L3] section 3.3.1), H200 and B200, 200 Gb/s for the A100 (DGX A100). TPUs [T]: a chip's 400, 1,200 and 800 GB/s
# both ways over 4, 6 and 4 ports, of which a ring on one dimension of the torus uses two; pods of 256, 8,960 and 256
# chips. Between pods: 6.4 Tb/s a v5e pod, 50 Gb/s a v5p chip.
NAMED = {
    hardware.name: hardware
    for hardware in (
        # SXM. [L3] 989.4; [N] 3.35 TB/s, 80 GB HBM3
        Hardware(
            "h100",
            989.4e12,
            3.35e12,
            80 * 10**9,
            kinds=("NVIDIA H100 80GB HBM3",),
            links=450e9,
            near=8,
            network=50e9,
        ),
        # [N] the same die as the H100; 4.8 TB/s, 141 GB HBM3e
        Hardware(
            "h200", 989.4e12, 4.8e12, 141 * 10**9, kinds=("NVIDIA H200",), links=450e9, near=8, network=50e9
        ),
        # [N] 8 devices: 36 PFLOP/s bf16 with sparsity (HGX B200), 64 TB/s and 1,440 GB (DGX B200)
        Hardware(
            "b200", 2.25e15, 8.0e12, 180 * 10**9, kinds=("NVIDIA B200",), links=900e9, near=8, network=50e9
        ),
        # [N], [K] 312 TFLOP/s; 1,555 GB/s with 40 GB, 2,039 GB/s with 80 GB
        Hardware(
            "a100-40gb",
            312e12,
            1.555e12,
            40 * 10**9,
            kinds=("NVIDIA A100-SXM4-40GB",),
            links=300e9,
            near=8,
            network=25e9,
        ),
        Hardware(
            "a100-80gb",
            312e12,
            2.039e12,
            80 * 10**9,
            kinds=("NVIDIA A100-SXM4-80GB",),
            links=300e9,
            near=8,
            network=25e9,
        ),
        # [N] Ada whitepaper: 165.2 TFLOP/s with float32 accumulation (twice that with float16); [C] 1,008 GB/s, 24 GB
        Hardware(
            "rtx-4090", 165.2e12, 1.008e12, 24 * 10**9, kinds=("NVIDIA GeForce RTX 4090",), links=32e9, near=8
        ),
        # [T] v5e: 197 TFLOP/s, 819 GB/s, 16 GB
        Hardware(
            "tpu-v5e",
            197e12,
            8.19e11,
            16 * 10**9,
            kinds=("TPU v5 lite", "TPU v5e"),
            links=100e9,
            near=256,
            network=3.1e9,
        ),
        # [T] v5p: 459 TFLOP/s, 2,765 GB/s, 95 GB
        Hardware(
            "tpu-v5p",
            459e12,
            2.765e12,
            95 * 10**9,
            kinds=("TPU v5", "TPU v5p"),
            links=200e9,
            near=8960,
            network=6.25e9,
        ),
        # [T] v6e: 918 TFLOP/s, 1,638 GB/s (older pages: 1,600 and 1,640), 32 GB
        Hardware(
            "tpu-v6e", 918e12, 1.638e12, 32 * 10**9, kinds=("TPU v6 lite", "TPU v6e"), links=200e9, near=256
        ),
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
    virtual = platform.device_kind() == platform.cpu_name()  # further devices are virtual
    return Hardware(
        name=platform.device_kind(),
        flops_bfloat16=top["flops_bfloat16"],
        flops_float32=top["flops_float32"],
        bandwidth=top["bytes"],
        memory=device_memory(),
        links=top["bytes"] / 2 if virtual else 0.0,  # what is sent is read and written
        near=2**30 if virtual else 1,
        shared=virtual,
        here=True,
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
