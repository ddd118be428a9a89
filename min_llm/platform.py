"""The machine below: XLA flags, which compute dtype is fast here, measured peaks.

Nothing here imports JAX at module level: the flags must be set before JAX starts its backend.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform as host
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

# Flags for XLA's CPU backend, by the first jaxlib version that profits from them. An unknown flag aborts XLA, so
# none is set for a version it was not tried on. oneDNN dots reach AMX in bf16, 1.3-7x faster; both flags are needed.
# The fusion type is "individual_dot" and not "dot": with "dot", jaxlib 0.12.0 folds a following multiplication by a
# scalar into the product and returns garbage when the contraction is longer than about 512 (tests/test_platform.py).
# Vectors of 512 bits make elementwise code 2-3 % faster.
CPU_FLAGS: list[tuple[tuple[int, int], str]] = [
    ((0, 12), "--xla_cpu_use_onednn=true"),
    ((0, 12), "--xla_cpu_experimental_onednn_fusion_type=individual_dot"),
    ((0, 12), "--xla_cpu_prefer_vector_width=512"),
]
NEWEST_TRIED = (0, 12)

flags_note = ""  # what set_xla_flags did, for the log and `min-llm doctor`


def home() -> Path:
    """Where downloads, prepared data, the compilation cache and measurements live: $MIN_LLM_HOME."""
    return Path(os.environ.get("MIN_LLM_HOME") or Path.home() / ".cache" / "min_llm")


def jaxlib_version() -> tuple[int, int]:
    try:
        major, minor = importlib.metadata.version("jaxlib").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return (0, 0)
    return int(major), int(minor)


def set_xla_flags() -> None:
    """Add the CPU flags that measurement favours to XLA_FLAGS; flags the user already set are left alone."""
    global flags_note
    version = jaxlib_version()
    given = os.environ.get("XLA_FLAGS", "")
    names = {flag.split("=")[0] for flag in given.split()}
    known = host.machine() in ("x86_64", "AMD64") and sys.platform == "linux" and version <= NEWEST_TRIED
    wanted = [flag for since, flag in CPU_FLAGS if known and version >= since]
    added = [flag for flag in wanted if flag.split("=")[0] not in names]
    if added and _backend_started():
        import warnings

        warnings.warn(
            "JAX was initialised before min_llm was imported, so these XLA flags have no effect: "
            f"{' '.join(added)}. Import min_llm first, or set XLA_FLAGS yourself.",
            stacklevel=3,
        )
        flags_note = "no XLA flags added: JAX was already initialised"
        return
    if added:
        os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
    flags_note = f"XLA flags added for jaxlib {version[0]}.{version[1]}: {' '.join(added) or 'none'}" + (
        f"; yours: {given}" if given else ""
    )


def _backend_started() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bool(getattr(bridge, "_backends", None))


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, so that the second start of a run compiles nothing.

    jaxlib 0.12 cannot serialise programs with oneDNN products, which on CPU are the large ones: they are compiled at
    every start. JAX warns of it at each of them, and there is nothing a user could do.
    """
    import warnings

    import jax

    unserialisable = (
        "Error writing persistent compilation cache entry .*ToProto is not implemented for thunk kind"
    )
    warnings.filterwarnings("ignore", unserialisable, UserWarning)
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(home() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def device_kind() -> str:
    """The device's name: "NVIDIA H100 80GB HBM3", or the processor's model name."""
    import jax

    device = jax.devices()[0]
    return device.device_kind if device.platform != "cpu" else cpu_name()


@functools.cache
def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return host.processor() or host.machine()


def cpu_features() -> str:
    """The features of this processor that decide how fast it multiplies."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    words = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
    return " ".join(f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8") if f in words)


@functools.cache
def emit_dtype(dtype: Any) -> Any:
    """The dtype a low-precision dot should emit: float32 on accelerators, where it is free; the input's own on CPU,
    where a bf16 dot with float32 output falls off the AMX path and costs 5x."""
    import jax
    import jax.numpy as jnp

    return jnp.dtype(dtype) if jax.default_backend() == "cpu" else jnp.promote_types(dtype, jnp.float32)


@functools.cache
def measure(repeats: int = 5) -> dict[str, float]:
    """Measured peaks of this machine, cached on disk under $MIN_LLM_HOME by device, jaxlib and flags.

    Keys: flops_float32, flops_bfloat16 (FLOP/s of a square matrix product), bytes (B/s of a large copy, read plus
    write). Takes about a second on two CPU cores, the first time only; where other processes kept the machine busy
    meanwhile (key "busy": 1.0) the next process measures again and the higher figures stay.
    """
    import jax

    key = "|".join([device_kind(), cpu_features(), str(jax.device_count()), jax.__version__, str(os.cpu_count()),
                    os.environ.get("XLA_FLAGS", "")])  # fmt: skip
    file = home() / "hardware.json"
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    before = known.get(key, {})
    if before and not before.get("busy"):
        return before
    n = 1024 if jax.default_backend() == "cpu" else 8192
    busy = os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1) if hasattr(os, "getloadavg") else False
    found = {
        "flops_float32": _matmul_flops(n, "float32", repeats),
        "flops_bfloat16": _matmul_flops(n, "bfloat16", repeats),
        "bytes": _copy_bytes(repeats),
    }
    known[key] = {name: max(value, before.get(name, 0.0)) for name, value in found.items()} | {
        "busy": float(busy)
    }
    write_atomic(file, json.dumps(known, indent=1))
    return known[key]


def _matmul_flops(n: int, dtype: str, repeats: int) -> float:
    import jax
    import jax.numpy as jnp

    a = jnp.ones((n, n), dtype) * 0.01
    f = jax.jit(lambda a: a @ a)
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


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file so that a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
