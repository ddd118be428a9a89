"""The GPU benchmark runs to its end on a CPU: nobody finds out on a lent card that it does not."""

import subprocess
import sys

import pytest


@pytest.mark.newest
def test_smoke_run_compares_with_the_oracle_and_measures_without_writing(tmp_path):
    command = [sys.executable, "-m", "bench.gpu", "--smoke", "--parts", "masks,correct,mfu,decode,engine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    worst = {
        dtype: [
            float(line.split()[-2]) for line in lines if "oracle_difference" in line and line.endswith(dtype)
        ]
        for dtype in ("float32", "bfloat16")
    }
    assert len(worst["float32"]) >= 6 and max(worst["float32"]) < 1e-5
    assert len(worst["bfloat16"]) >= 6 and max(worst["bfloat16"]) < 0.05
    assert sum("reference_difference" in line for line in lines) == 9
    assert sum("tokens_per_second" in line for line in lines) == 5
    parts = [line.split("largest_error") for line in lines if "largest_error" in line]
    errors = {case.strip(): float(figure.split()[0]) for case, figure in parts}
    assert len(errors) == 8
    assert all(
        error < (1e-5 if "attention" in case or "int4" in case else 0.1) for case, error in errors.items()
    )
    assert any("same_as_without_pages" in line and line.split()[-3] == "1" for line in lines)
    assert "wrote" not in done.stdout


def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], capture_output=True, text=True, timeout=100)
    assert done.returncode != 0 and "no GPU" in done.stderr
