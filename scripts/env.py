"""Makes the virtual environments of the project: `python3 scripts/env.py [main|oldest|peers]`.

Only the standard library, and only syntax of Python 3.8, because any Python may start it.

    main    .venv         the newest suitable CPython; min_llm editable with the dev extra
    oldest  .venv-oldest  Python 3.11 with JAX 0.10.2, the oldest pair that is supported
    peers   .venv-peers   Python 3.11 with torch (CPU), transformers, peft, llama.cpp, lm-eval, datatrove and fastText:
                          what min_llm is compared with

A finished environment carries a stamp: a hash of what it was made from. While the stamp fits, a second run
does nothing. An environment without a stamp was interrupted and is made anew; one whose stamp is out of date
is updated in place, or made anew when its interpreter changed. MIN_LLM_PYTHON=/path/to/python overrides the
search for main.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no lock, everything else works
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
STAMP = "min-llm-env.json"
OLDEST = (3, 11)
# In order of preference. 3.13 and 3.12 are tested; 3.14 has wheels but nobody has run it here; on 3.11 pip
# can only take JAX 0.10.2, which trains up to three times slower on CPUs with fast bf16.
PREFERRED = ((3, 13), (3, 12), (3, 14), (3, 11))
PROBE = (
    "import json, os, sys, sysconfig, platform, venv, ensurepip\n"
    "print(json.dumps({'version': list(sys.version_info[:3]),"
    "'final': sys.version_info.releaselevel == 'final',"
    "'cpython': platform.python_implementation() == 'CPython',"
    "'gil': not sysconfig.get_config_var('Py_GIL_DISABLED'), 'bits64': sys.maxsize > 2**32,"
    "'base': getattr(sys, '_base_executable', None) or sys.executable}))"
)

# folder: (versions of Python in order of preference, groups of packages that pip resolves together)
RECIPES = {
    "main": (".venv", PREFERRED, [["-e", ".[dev,parquet,serve]"]]),
    "oldest": (".venv-oldest", (OLDEST,), [["-e", ".[dev,parquet,serve]", "jax==0.10.2", "jaxlib==0.10.2"]]),
    "peers": (
        ".venv-peers",
        (OLDEST,),
        [
            ["torch==2.13.0"],
            ["torch==2.13.0", "transformers", "xllamacpp", "safetensors", "gguf", "tokenizers", "numpy"]
            + ["lm_eval[api]==0.4.13", "compressed-tensors==0.20.0", "peft"]
            + [
                "datatrove==0.10.1",
                "trafilatura",
                "lxml_html_clean",
                "spacy",
                "orjson",
                "xxhash",
                "fasttext-numpy2-wheel",
            ],
        ],
    ),
}


class EnvError(Exception):
    """What is wrong and what to do about it."""


def say(text):
    print("env: " + text, flush=True)


def candidates():
    """Paths of interpreters: on PATH, in pyenv, of uv, and where macOS installers put them."""
    names = ["python%d.%d" % version for version in PREFERRED] + ["python3", "python"]
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if folder and Path(folder).name != "shims":  # pyenv's shims: slow, and their targets are found below
            for name in names:
                yield Path(folder) / name
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv")
    for pattern in (
        str(pyenv / "versions/*/bin/python"),
        str(home / ".local/share/uv/python/*/bin/python3"),
        "/Library/Frameworks/Python.framework/Versions/*/bin/python3",
    ):
        anchor = Path(pattern).anchor
        for path in sorted(Path(anchor).glob(pattern[len(anchor) :]), reverse=True):
            yield path


def probe(path):
    """What the interpreter says about itself; None when it does not run or cannot make environments."""
    try:
        out = subprocess.run(
            [str(path), "-I", "-c", PROBE],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
            check=True,
        ).stdout
        return json.loads(out.decode())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def find_python(versions, override=None):
    """(path, version) of the newest interpreter of the most preferred version; `override` is the only one tried."""
    found = {}  # type: dict
    seen, rejected = set(), []  # type: set, list
    for path in [Path(override)] if override else candidates():
        if not path.exists():
            continue
        real = os.path.realpath(str(path))
        if real in seen:
            continue
        seen.add(real)
        info = probe(path)
        if info is None:
            rejected.append("%s (does not run, or has no venv and ensurepip)" % path)
            continue
        version = tuple(info["version"])
        if info["cpython"] and info["final"] and info["gil"] and info["bits64"] and version[:2] in versions:
            best = found.get(version[:2])
            if best is None or version > best[1]:
                found[version[:2]] = (info["base"], version)
        else:
            rejected.append("%s (%s)" % (path, ".".join(map(str, version))))
    for version in versions:
        if version in found:
            return found[version]
    wanted = " or ".join("%d.%d" % version for version in sorted(versions, reverse=True))
    if override:
        raise EnvError("MIN_LLM_PYTHON=%s is no CPython %s with venv and ensurepip." % (override, wanted))
    raise EnvError(
        "no 64-bit CPython %s with venv and ensurepip was found on PATH or in %s. Install one (for example "
        "`pyenv install 3.13`, or Debian's python3-venv), or name one with MIN_LLM_PYTHON=/path/to/python.%s"
        % (
            wanted,
            os.environ.get("PYENV_ROOT") or "~/.pyenv",
            " Found and not usable: %s." % ", ".join(sorted(set(rejected))) if rejected else "",
        )
    )


def installed_from(folder, groups):
    """A hash of what an installation depends on: the packaging half of pyproject.toml, the recipe, the place."""
    kept, keep = [], True
    for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            keep = line.startswith(("[build-system", "[project", "[tool.hatch"))
        if keep and "-e" in groups[-1] and line.strip() and not line.startswith("#"):
            kept.append(line)
    text = json.dumps([str(folder), groups, kept])
    return hashlib.sha256(text.encode()).hexdigest()


def read_stamp(folder):
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_stamp(folder, stamp):
    temporary = folder / (STAMP + ".tmp")
    temporary.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    os.replace(str(temporary), str(folder / STAMP))


@contextlib.contextmanager
def locked(folder):
    """One maker at a time: a second `make` waits instead of installing into the same folder."""
    with open(str(folder) + ".lock", "w") as handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("another process is making %s; waiting for it" % folder.name)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run(command):
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    done = subprocess.run([str(part) for part in command], cwd=str(ROOT), env=environment)
    if done.returncode:
        raise EnvError(
            "`%s` failed with exit status %d; the lines above say why. Once that is solved, run the same make "
            "target again: it starts from a clean folder." % (" ".join(map(str, command)), done.returncode)
        )


def pip(python, *arguments):
    return [python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]


def refuse_cuda_torch(python):
    """Asks pip what it would install for torch, before it downloads gigabytes of CUDA libraries."""
    command = pip(python, "install", "--dry-run", "--quiet", "--quiet", "--report", "-", "torch==2.13.0")
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=str(ROOT))
    if done.returncode:
        raise EnvError("pip finds no torch 2.13.0 for this Python; the lines above say why.")
    names = [item["metadata"]["name"] for item in json.loads(done.stdout.decode())["install"]]
    cuda = [name for name in names if name.startswith(("nvidia-", "cuda-")) or name == "triton"]
    if cuda:
        raise EnvError(
            "pip would install a CUDA build of torch (with %d packages such as %s). The peers run on the CPU: "
            "put the CPU wheel of torch 2.13.0 into a folder and set PIP_FIND_LINKS to it."
            % (len(cuda), cuda[0])
        )


def remove(folder, stamp):
    """Clears the way. The folder is renamed first, so a killed removal leaves no half of it under its name."""
    rubbish = Path(str(folder) + ".removing")
    shutil.rmtree(str(rubbish), ignore_errors=True)
    if not folder.exists():
        return
    if stamp is None and {path.name for path in folder.iterdir()} - {STAMP + ".tmp"}:
        raise EnvError(
            "%s exists and was not made by this project. Move it away, then run make again." % folder
        )
    say("removing the unfinished or outdated %s" % folder.name)
    os.replace(str(folder), str(rubbish))
    shutil.rmtree(str(rubbish))


def make(name):
    folder_name, versions, groups = RECIPES[name]
    folder = ROOT / folder_name
    python = folder / "bin" / "python"
    digest = installed_from(folder, groups)
    stamp = read_stamp(folder)
    override = os.environ.get("MIN_LLM_PYTHON") if name == "main" else None

    def fits(stamp):
        same_python = not override or stamp.get("asked") == override
        return stamp.get("ready") and same_python and python.exists() and Path(stamp["python"]).exists()

    if stamp and fits(stamp) and stamp["digest"] == digest:
        return False
    with locked(folder):
        stamp = read_stamp(folder)  # another process may have finished it while this one waited
        if stamp and fits(stamp) and stamp["digest"] == digest:
            return False
        started = time.time()
        if stamp and fits(stamp):
            say("pyproject.toml changed: updating %s" % folder_name)
            write_stamp(folder, dict(stamp, ready=False))
        else:
            base, version = find_python(versions, override)
            remove(folder, stamp)
            say("making %s with Python %s (%s)" % (folder_name, ".".join(map(str, version)), base))
            if version[:2] == OLDEST and name == "main":
                say(
                    "Python 3.11 gets JAX 0.10.2, slower on CPUs with fast bf16; install 3.12 or newer for speed"
                )
            folder.mkdir()
            stamp = {"ready": False, "python": base, "asked": override, "version": list(version)}
            write_stamp(folder, stamp)
            run([base, "-m", "venv", folder])
        if name == "peers":
            refuse_cuda_torch(python)
        for group in groups:
            say("installing %s" % " ".join(part for part in group if part != "-e"))
            run(pip(python, "install", "--quiet", "--quiet", *group))
        write_stamp(folder, dict(stamp, ready=True, digest=digest))
        say("%s is ready after %.0f s" % (folder_name, time.time() - started))
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="main", choices=sorted(RECIPES))
    arguments = parser.parse_args()
    if sys.version_info < (3, 8):
        say("this script needs Python 3.8 or newer to start; it was started by %s" % sys.version.split()[0])
        return 2
    try:
        if not make(arguments.name) and sys.stdout.isatty():
            say("%s is up to date" % RECIPES[arguments.name][0])
    except EnvError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next run starts again from a clean folder")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
