"""XLA flags: added where they were tried, never over the user's, said when too late; and products that stay right
under them."""

import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from min_llm import platform

ONEDNN = "--xla_cpu_use_onednn=true"


@pytest.fixture
def linux(monkeypatch):
    """A Linux machine of a jaxlib version whose JAX has not started; returns set_xla_flags' XLA_FLAGS."""

    def flags(version, given="", machine="x86_64", system="linux", started=False, compiler=None):
        monkeypatch.setattr(platform, "jaxlib_version", lambda: version)
        monkeypatch.setattr(platform.host, "machine", lambda: machine)
        monkeypatch.setattr(platform.sys, "platform", system)
        monkeypatch.setattr(platform, "_backend_started", lambda: started)
        monkeypatch.setattr(platform, "compiler_for_kernels", lambda: compiler)
        monkeypatch.setattr(platform, "flags_note", "")
        monkeypatch.setenv("XLA_FLAGS", given)
        platform.set_xla_flags()
        return platform.os.environ["XLA_FLAGS"]

    return flags


def test_flags_are_added_for_versions_they_were_tried_on(linux):
    assert linux((0, 12)).split() == [flag for _, flag in platform.CPU_FLAGS + platform.ONEDNN_FLAGS]
    assert ONEDNN in platform.flags_note


def test_onednn_is_left_out_where_our_own_kernels_multiply(linux):
    assert linux((0, 12), compiler="/usr/bin/g++").split() == [flag for _, flag in platform.CPU_FLAGS]


@pytest.mark.parametrize("version", [(0, 0), (0, 10), (0, 11), (0, 13), (1, 0)])
def test_other_versions_get_none(linux, version):
    """An unknown flag would abort XLA, and old versions gain nothing."""
    assert linux(version) == ""
    assert "none" in platform.flags_note


@pytest.mark.parametrize(
    ("machine", "system"), [("aarch64", "linux"), ("x86_64", "darwin"), ("AMD64", "win32")]
)
def test_other_machines_get_none(linux, machine, system):
    assert linux((0, 12), machine=machine, system=system) == ""


def test_the_flags_of_the_user_are_kept(linux):
    given = "--xla_cpu_use_onednn=false --xla_force_host_platform_device_count=2"
    flags = linux((0, 12), given).split()
    assert flags[:2] == given.split()
    assert ONEDNN not in flags
    assert len({flag.split("=")[0] for flag in flags}) == len(flags)  # none twice
    assert given in platform.flags_note


def test_setting_them_twice_changes_nothing(linux):
    once = linux((0, 12))
    assert linux((0, 12), once) == once


def test_a_jax_that_has_started_is_warned_about(linux):
    with pytest.warns(UserWarning, match="initialised before min_llm was imported.*Import min_llm first"):
        assert linux((0, 12), started=True) == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # with nothing to add there is nothing to say
        linux((0, 10), started=True)


def test_in_a_process_of_its_own(run_python):
    """The order of imports is what counts, and only a started backend is too late."""
    late = "import jax; jax.devices(); import min_llm, os; print(os.environ.get('XLA_FLAGS', ''))"
    early = "import jax, min_llm, os; jax.devices(); print(os.environ.get('XLA_FLAGS', ''))"
    wanted = [
        flag
        for since, flag in platform.CPU_FLAGS
        + ([] if platform.compiler_for_kernels() else platform.ONEDNN_FLAGS)
        if since <= platform.jaxlib_version() <= platform.NEWEST_TRIED
    ]
    if platform.host.machine() != "x86_64" or platform.sys.platform != "linux":
        wanted = []
    done = run_python(late, env={"XLA_FLAGS": ""})
    assert ("JAX was initialised before min_llm" in done.stderr) == bool(wanted)
    assert done.stdout.split() == []
    done = run_python(early, env={"XLA_FLAGS": ""})
    assert "initialised before" not in done.stderr
    assert done.stdout.split() == wanted


# What follows a product, in the model and in its gradients. XLA may fold it into the product.
# (In this process with its flags; `test_products_are_right_with_onednn` repeats it with oneDNN's.)
AFTER = {
    "nothing": lambda y, r, bias, g: y,
    "a constant": lambda y, r, bias, g: y * jnp.asarray(0.01, y.dtype),
    "a scalar": lambda y, r, bias, g: y * g.astype(y.dtype),
    "a scalar, in float32": lambda y, r, bias, g: y.astype(jnp.float32) * g,
    "a factor": lambda y, r, bias, g: y * r.astype(y.dtype),
    "a residual": lambda y, r, bias, g: y + r.astype(y.dtype),
    "a bias": lambda y, r, bias, g: y + bias.astype(y.dtype),
    "a bias and its gelu": lambda y, r, bias, g: jax.nn.gelu(y + bias.astype(y.dtype)),
}
LAYOUTS = ("mk,kn->mn", "km,kn->mn", "mk,nk->mn", "km,nk->mn")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [64, 257, 600, 1024, 2048])
def test_products_are_right_whatever_follows_them(length, dtype):
    """With the package's flags, every layout of a product of contraction `length` equals NumPy's. (jaxlib 0.12.0 with
    oneDNN fusions of type "dot" returned garbage here for lengths above about 512 and a following scalar.)"""
    size = {"m": 33, "k": length, "n": 48}
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    r, bias, g = normal(33, 48), normal(48), np.float32(0.01)
    pairs = [
        [normal(*(size[c] for c in side)) for side in eq.split("->")[0].split(",")]
        for eq in LAYOUTS
        for _ in AFTER
    ]
    pairs = [[np.asarray(jnp.asarray(x, dtype), np.float32) for x in pair] for pair in pairs]

    @jax.jit
    def products(pairs, r, bias, g):  # operands of their own for each, or XLA would merge the products
        whole = iter(pairs)
        return [
            after(jnp.einsum(eq, *(x.astype(dtype) for x in next(whole))), r, bias, g)
            for eq in LAYOUTS
            for after in AFTER.values()
        ]

    whole = iter(pairs)
    for (eq, name), got in zip(
        [(eq, name) for eq in LAYOUTS for name in AFTER], products(pairs, r, bias, g), strict=True
    ):
        exact = jnp.asarray(np.einsum(eq, *(np.float64(x) for x in next(whole))), jnp.float32)
        want = np.asarray(AFTER[name](exact, r, bias, g))
        error = np.abs(np.asarray(got, np.float32) - want).max() / np.abs(want).max()
        assert error < (1e-5 if dtype == "float32" else 0.01), (eq, name, error)


@pytest.mark.skipif(platform.compiler_for_kernels() is None, reason="this process has oneDNN's flags already")
def test_products_are_right_with_onednn():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", __file__]
    env = {**os.environ, "MIN_LLM_NATIVE": "0", "XLA_FLAGS": ""}
    done = subprocess.run(
        [*command, "-k", "whatever_follows"], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_an_atomic_write_leaves_nothing_beside(tmp_path):
    platform.write_atomic(tmp_path / "new" / "a.txt", "ö")
    platform.write_atomic(tmp_path / "new" / "a.txt", "x")
    assert [(p.name, p.read_text()) for p in (tmp_path / "new").iterdir()] == [("a.txt", "x")]
