"""Measured peaks of this machine, and the compute dtype that follows from them."""

from __future__ import annotations

import functools
import json
import os
import time
from typing import TYPE_CHECKING, Any

from min_llm import platform
from min_llm.kernels import cpu
from min_llm.kernels.product import product

if TYPE_CHECKING:
    import jax


@functools.cache
def measure(repeats: int = 5) -> dict[str, float]:
    """Measured peaks of this machine, cached on disk under $MIN_LLM_HOME by device, jaxlib and flags.

    Keys: flops_float32, flops_bfloat16 (FLOP/s of a square matrix product), bytes (B/s of a large copy, read plus
    write). Takes about a second on two CPU cores, the first time only; where other processes kept the machine busy
    meanwhile (key "busy": how often) the next two processes measure again and the higher figures stay.
    """
    import jax

    machine = [platform.device_kind(), platform.cpu_features(), jax.device_count(), os.cpu_count()]
    software = [jax.__version__, os.environ.get("XLA_FLAGS", ""), "kernels" if cpu.available() else ""]
    key = "|".join(map(str, machine + software))
    file = platform.home() / "hardware.json"
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    before = known.get(key, {})
    if before and not 0 < before["busy"] < 3:
        return before
    n = 1024 if jax.default_backend() == "cpu" else 8192
    busy = os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1) if hasattr(os, "getloadavg") else False
    with platform.first_device():
        found = {
            "flops_float32": _matmul_flops(n, "float32", repeats),
            "flops_bfloat16": _matmul_flops(n, "bfloat16", repeats),
            "bytes": _copy_bytes(repeats),
        }
    known[key] = {name: max(value, before.get(name, 0.0)) for name, value in found.items()} | {
        "busy": before.get("busy", 0.0) + 1 if busy else 0.0
    }
    platform.write_atomic(file, json.dumps(known, indent=1))
    return known[key]


def _matmul_flops(n: int, dtype: str, repeats: int) -> float:
    import jax
    import jax.numpy as jnp

    a = jnp.ones((n, n), dtype) * 0.01
    f = jax.jit(lambda a: product(a, a))
    return 2 * n**3 / _fastest(f, a, repeats)


def _copy_bytes(repeats: int) -> float:
    import jax
    import jax.numpy as jnp

    n = 2**26 if jax.default_backend() == "cpu" else 2**30
    x = jnp.ones((n,), jnp.float32)
    return 2 * 4 * n / _fastest(jax.jit(lambda x: x + 1), x, repeats)


_alive: list[Any] = []  # jaxlib 0.12 may abort when a oneDNN program is freed the moment its result is ready


def _fastest(f: Any, x: jax.Array, repeats: int) -> float:
    _alive.append(f)
    f(x).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


def fast_dtype() -> str:
    """The compute dtype that is fast here: bfloat16 where it multiplies at least 1.3x as fast as float32."""
    peaks = measure()
    return "bfloat16" if peaks["flops_bfloat16"] > 1.3 * peaks["flops_float32"] else "float32"
