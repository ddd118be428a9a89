"""Builds the wheel and proves that it works alone: `python -m scripts.wheel`.

It must hold every file under min_llm/ that git tracks (presets and templates are easily forgotten), and start away
from the checkout. The dependencies are those of the running environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(command: list[str], cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise SystemExit(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
        run([*pip, "wheel", "--no-deps", "--wheel-dir", name, str(ROOT)], ROOT)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            inside = set(archive.namelist())
            archive.extractall(folder / "site")
        tracked = run(["git", "ls-files", "min_llm"], ROOT).split("\n")
        missing = sorted(path for path in tracked if path and path not in inside)
        if missing:
            raise SystemExit(f"{wheel.name} lacks {', '.join(missing)}")
        foreign = sorted(path for path in inside if not path.startswith(("min_llm/", "min_llm-")))
        if foreign:
            raise SystemExit(f"{wheel.name} holds files of no business: {', '.join(foreign)}")
        site = {"PYTHONPATH": str(folder / "site")}
        found = run([sys.executable, "-c", "import min_llm; print(min_llm.__file__)"], folder, **site)
        if not found.startswith(str(folder)):
            raise SystemExit(f"the wheel was not what got imported: {found}")
        run([sys.executable, "-c", "from min_llm.cli.main import main; main()", "--help"], folder, **site)
        print(f"{wheel.name}: {len(inside)} files, {wheel.stat().st_size / 1024:.0f} KiB, imports and starts")


if __name__ == "__main__":
    main()
