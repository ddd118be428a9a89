"""The machine below: XLA flags, how JAX runs programs, the device's name and features.

Nothing here imports JAX at module level: the flags must be set before JAX starts its backend.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.metadata
import os
import platform as host
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# Flags for XLA's CPU backend, by the first jaxlib version that profits from them. An unknown flag aborts XLA, so
# none is set for a version it was not tried on. Vectors of 512 bits make elementwise code 2-3 % faster.
CPU_FLAGS: list[tuple[tuple[int, int], str]] = [((0, 12), "--xla_cpu_prefer_vector_width=512")]
# Where our own kernels (kernels/cpu) do not run, oneDNN's products in bf16 are 1.3-7x faster than XLA's; both flags are
# needed. The fusion type is "individual_dot" and not "dot": with "dot", jaxlib 0.12.0 folds a following multiplication
# by a scalar into the product and returns garbage when the contraction is longer than about 512 (test_platform.py).
ONEDNN_FLAGS: list[tuple[tuple[int, int], str]] = [
    ((0, 12), "--xla_cpu_use_onednn=true"),
    ((0, 12), "--xla_cpu_experimental_onednn_fusion_type=individual_dot"),
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
    flags = CPU_FLAGS if compiler_for_kernels() else CPU_FLAGS + ONEDNN_FLAGS
    wanted = [flag for since, flag in flags if known and version >= since]
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


def compiler_for_kernels() -> str | None:
    """The C++ compiler with which our kernels for CPUs with AMX can be built here; None where they cannot run."""
    if (
        os.environ.get("MIN_LLM_NATIVE", "1") == "0"
        or sys.platform != "linux"
        or "amx_bf16" not in cpu_features()
    ):
        return None
    return shutil.which("g++") or shutil.which("clang++")


_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


def backend() -> str:
    """What the program that is being made will run on: "cpu", "gpu" or "tpu"."""
    import jax

    return _target.get() or jax.default_backend()


def elsewhere() -> bool:
    """Whether it is being made for devices that are not here."""
    return _target.get() is not None


@contextlib.contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Within the body programs are made for another backend than this process computes on (train/ahead.py)."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def run_in_turn() -> None:
    """Run every program on CPU to its end in the thread that calls it. To be called before JAX starts its backend.

    Otherwise JAX takes the temporary memory of a step before it has given back that of the one before: twice or three
    times as much, for the one or two milliseconds of Python that could run meanwhile.
    """
    if _backend_started():
        import warnings

        warnings.warn("JAX has started already, so programs keep running asynchronously.", stacklevel=2)
        return
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


@contextlib.contextmanager
def first_device() -> Iterator[None]:
    """Run the body on this process's first device, whatever the mesh in use: on a mesh arrays live on every device."""
    import jax
    from jax.sharding import AxisType

    one = jax.make_mesh((1,), ("one",), axis_types=(AxisType.Explicit,), devices=jax.local_devices()[:1])
    with jax.set_mesh(one):
        yield


def trim() -> None:
    """Give freed memory of the C library's heap back to the system (glibc; elsewhere nothing happens)."""
    import ctypes

    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _backend_started() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bool(getattr(bridge, "_backends", None))


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, so that the second start of a run compiles nothing.

    jaxlib 0.12 cannot serialise programs with oneDNN products, which are the large ones on CPUs without our kernels:
    they are compiled at every start. JAX warns of it at each of them, and there is nothing a user could do.
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


def emit_dtype(dtype: Any, wanted: Any = None) -> Any:
    """The dtype that a product of operands in `dtype` should emit where `wanted` (default: float32 or wider) is to
    come of it. Accelerators accumulate in float32 and write either at no cost; on CPU it is the operands' own, because
    a bf16 product with float32 output falls off the AMX path and costs 5x."""
    import jax.numpy as jnp

    if backend() == "cpu":
        return jnp.dtype(dtype)
    return jnp.promote_types(dtype, jnp.float32 if wanted is None else wanted)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file under another name that takes the place of `path` when all of it is on the disk, and leaves nothing where
    the body fails. Raises OSError."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file so that a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
