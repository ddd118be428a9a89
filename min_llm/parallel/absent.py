"""Devices that are not here: XLA compiles for them all the same, where JAX's CUDA plugin is installed.

    devices("h100", 8)       # one host with 8; every further 8 are another host

The compiler wants to know the chip; what it reads of it is in `CHIPS`. Nothing can be run, and no kernel is timed, so
XLA chooses tiles by its cost model, and may choose others on the card.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

from min_llm.config import UserError, nearest

NEAR = 8  # devices of a host


@dataclasses.dataclass(frozen=True)
class Chip:
    """What XLA's compiler is told of a GPU (its GpuTargetConfig). clock: GHz; bandwidth: B/s; memory, l2: bytes, memory
    as the driver gives it; major: of the compute capability."""

    name: str
    cores: int
    clock: float
    bandwidth: int
    memory: int
    l2: int
    major: int

    @property
    def text(self) -> str:
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
              shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              core_count: {self.cores} fpus_per_core: 128 clock_rate_ghz: {self.clock}
              memory_bandwidth: {self.bandwidth} device_memory_size: {self.memory} l2_cache_size: {self.l2}
              cuda_compute_capability {{ major: {self.major} }}
            }}
            platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{self.name}"
        """


# SXM boards, as their drivers report themselves.
CHIPS = {
    "h100": Chip("NVIDIA H100 80GB HBM3", 132, 1.98, 3_352_320_000_000, 84_942_979_072, 52_428_800, 9),
    "h200": Chip("NVIDIA H200", 132, 1.98, 4_800_000_000_000, 151_397_597_184, 52_428_800, 9),
    "b200": Chip("NVIDIA B200", 148, 1.965, 7_672_320_000_000, 191_514_411_008, 132_644_864, 10),
}


def parse(text: str) -> tuple[str, int]:
    """("h100", 8) of "h100x8"; "h100" is one."""
    match = re.fullmatch(r"(\w+?)(?:x(\d+))?", text)
    name, count = (match[1], int(match[2] or 1)) if match else (text, 0)
    if name not in CHIPS or count < 1 or (count > NEAR and count % NEAR):
        raise UserError(
            f"--compile {text} names no devices; give a chip and how many, like h100x8 (up to {NEAR}, or whole hosts "
            f"of {NEAR}). Chips: {', '.join(CHIPS)}.{nearest(name, tuple(CHIPS))}"
        )
    return name, count


def devices(name: str, count: int) -> list[Any]:
    """Such devices to compile for; they hold no arrays and run nothing."""
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise UserError(
            "Compiling for a GPU that is not here needs JAX's CUDA plugin, which runs without one: pip install "
            "'min_llm[cuda]'. Without --compile the plan needs nothing."
        )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # which asks the driver
    from jax.experimental import topologies

    shape = f"1x{-(-count // NEAR)}x{min(count, NEAR)}"  # slices, hosts, devices of a host
    found = topologies.get_topology_desc(
        platform="cuda", topology_name=name, target_config=CHIPS[name].text, topology=shape
    )
    return list(found.devices)
