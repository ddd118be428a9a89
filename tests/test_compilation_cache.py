"""The persistent compilation cache: programs come back from disk, and what cannot be kept is not complained of."""

import pytest

PROGRAM = """
import sys, warnings
from min_llm import platform
import jax, jax.numpy as jnp

platform.use_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
dtype = sys.argv[1]
f = jax.jit(lambda x: jnp.tanh(x @ x))
print(float(f(jnp.full((256, 256), 0.01, dtype))[0, 0]))
warnings.warn("Error writing persistent compilation cache entry for 'f': OSError: No space left on device")
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_programs_that_cannot_be_kept_are_no_warning(run_python, tmp_path, dtype):
    """jaxlib 0.12 cannot write programs with oneDNN products; a disk that is full is worth a word."""
    done = run_python(PROGRAM, dtype, env={"MIN_LLM_HOME": str(tmp_path)})
    assert "ToProto" not in done.stderr
    assert done.stderr.count("UserWarning: Error writing persistent compilation cache entry") == 1
    assert "No space left on device" in done.stderr
    assert list((tmp_path / "xla").iterdir())  # the others are kept


def test_entries_that_a_kill_cut_off_are_compiled_again(run_python, tmp_path):
    first = run_python(PROGRAM, "float32", env={"MIN_LLM_HOME": str(tmp_path)})
    for entry in (tmp_path / "xla").glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[:100])
    second = run_python(PROGRAM, "float32", env={"MIN_LLM_HOME": str(tmp_path)})
    assert second.stdout == first.stdout
