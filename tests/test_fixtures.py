"""The fixtures that other tests rely on."""

import pytest


@pytest.mark.devices
def test_run_python_gives_virtual_devices(run_python):
    done = run_python("import jax; print(jax.device_count(), jax.default_backend())", devices=8)
    assert done.stdout.split() == ["8", "cpu"]


def test_run_python_runs_a_module_with_arguments(run_python):
    assert run_python("json.tool", "--version", check=False).returncode == 2
    done = run_python("import sys, os; print(sys.argv[1:], os.environ['A'])", 3, env={"A": "b"})
    assert done.stdout == "['3'] b\n"


def test_run_python_shows_both_outputs_of_a_failure(run_python):
    with pytest.raises(pytest.fail.Exception, match=r"(?s)exit status 3.*told you"):
        run_python("import sys; print('told you'); sys.exit(3)")
