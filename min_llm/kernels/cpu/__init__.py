"""Kernels in C++ for CPUs with AMX, called through XLA's foreign function interface.

XLA's CPU backend multiplies bfloat16 matrices at a third to three quarters of what the tile instructions give, writes
every intermediate of attention to memory, and cannot keep programs with oneDNN products in the compilation cache.
These kernels are compiled once a machine, on first use, with the system's C++ compiler; where there is none, or no
AMX, everything runs in plain JAX.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from min_llm import platform

SOURCES = Path(__file__).parent
TARGETS = (
    "min_llm_product",
    "min_llm_rows",
    "min_llm_gated",
    "min_llm_paged",
    "min_llm_draw",
    "min_llm_kept",
    "min_llm_attention",
    "min_llm_attention_gradient",
    "min_llm_cross_entropy",
    "min_llm_rms_norm",
    "min_llm_rms_norm_gradient",
    "min_llm_layer_norm",
    "min_llm_layer_norm_gradient",
    "min_llm_swiglu",
    "min_llm_swiglu_gradient",
    "min_llm_gelu",
    "min_llm_gelu_gradient",
    "min_llm_rotate",
)
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-DNDEBUG", "-w")


def available() -> bool:
    """Whether the kernels run here; they are compiled and registered with JAX when this is first asked."""
    return unavailable() is None and not platform.elsewhere()


def takes_over() -> bool:
    """Whether the program that is being traced can call them: they run here, and it is not spread over a mesh."""
    import jax

    return not jax.sharding.get_abstract_mesh().axis_names and available()


@functools.cache
def unavailable() -> str | None:
    """Why the kernels are not used; None when they are."""
    import jax

    if os.environ.get("MIN_LLM_NATIVE", "1") == "0":
        return "MIN_LLM_NATIVE=0"
    if jax.default_backend() != "cpu":
        return f"the backend is {jax.default_backend()}"
    if sys.platform != "linux" or "amx_bf16" not in platform.cpu_features():
        return "this processor has no AMX, or this is not Linux"
    compiler = platform.compiler_for_kernels()
    if compiler is None:
        return "there is no C++ compiler (install g++)"
    try:
        library = ctypes.CDLL(str(build(compiler)))
    except (subprocess.SubprocessError, OSError) as error:
        return f"{compiler} could not compile them: {getattr(error, 'stderr', '') or error}".strip()[:500]
    if library.min_llm_request_tiles() != 0:
        return "the operating system does not give out the tile registers"
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    _loaded.append(library)
    return None


_loaded: list[ctypes.CDLL] = []


@functools.cache
def keep_blocks() -> bool:
    """Keep the large blocks that XLA frees in this process, in huge pages, for its next request of their size
    (blocks.cc); False where the kernels do not run, and everything stays as it is."""
    return available() and _loaded[0].min_llm_keep_blocks(b"libjax_common") == 0


def build(compiler: str) -> Path:
    """The compiled library, from the cache or made now: half a minute of one processor, shared by all of them."""
    import jax

    files = sorted(p for p in SOURCES.iterdir() if p.suffix in (".cc", ".h"))
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    facts = [
        version,
        str(FLAGS),
        str(platform.jaxlib_version()),
        platform.cpu_name(),
        platform.cpu_features(),
    ]
    key = hashlib.sha256("\n".join([*facts, *(p.read_text(encoding="utf-8") for p in files)]).encode())
    library = platform.home() / "kernels" / f"cpu-{key.hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / "cpu.so"
            include = f"-I{jax.ffi.include_dir()}"
            objects = {p: Path(folder) / f"{p.stem}.o" for p in files if p.suffix == ".cc"}

            def compile_one(source: Path) -> None:
                _run([compiler, *FLAGS, include, "-c", str(source), "-o", str(objects[source])])

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(compile_one, sorted(objects, key=lambda p: -p.stat().st_size)))
            _run([compiler, *FLAGS, *map(str, objects.values()), "-o", str(made)])
            os.replace(made, library)
    return library


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
