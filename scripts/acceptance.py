"""Runs the long proofs: `python -m scripts.acceptance [PART ...]`; all without a name, `list` names them.

A part is a file tests/acceptance/<part>.py: its docstring says what it proves and how long it takes, and its
function `run()` returns or yields claims (`scripts.evidence.claim`). The evidence is written whatever
happens: a part that raises leaves a failed claim. Measure a clean checkout and send its evidence where it is
committed: `python -m scripts.acceptance kill --into /path/to/checkout/docs/evidence`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

from scripts import evidence


def run_part(part: str, folder: Path) -> bool:
    """Run one part, print its claims as they come, write its evidence; True when it passed."""
    module = importlib.import_module(f"tests.acceptance.{part}")
    print(f"== {part}: {(module.__doc__ or '').strip().splitlines()[0]}", flush=True)
    started, at, claims = time.monotonic(), evidence.commit(), []
    if at.endswith("+changes"):
        print("   note: the tree has uncommitted changes; this evidence will not count", flush=True)
    try:
        for row in module.run():
            claims.append(row)
            mark = {True: "ok", False: "FAILED", None: "not measured"}[row["passed"]]
            print(
                f"   {mark}: {row['claim']}: {row['figure']} {row['unit']} (required: {row['bound']})",
                flush=True,
            )
    except Exception as error:  # the evidence must say that the part broke
        traceback.print_exc()
        claims.append(evidence.claim("the part runs to its end", repr(error), "no exception", False))
    seconds = time.monotonic() - started
    command = f"make acceptance PART={part}"
    file = evidence.write(part, claims, command=command, seconds=seconds, measured_commit=at, folder=folder)
    failed = sum(row["passed"] is False for row in claims)
    print(
        f"== {part}: {len(claims) - failed} claims hold, {failed} failed, {seconds:.0f} s; {file}", flush=True
    )
    return bool(claims) and not failed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="names of parts, or list")
    parser.add_argument("--into", type=Path, default=evidence.EVIDENCE, help="folder of the evidence files")
    arguments = parser.parse_args()
    known = evidence.parts()
    if arguments.parts == ["list"]:
        for part in known:
            module = importlib.import_module(f"tests.acceptance.{part}")
            print(f"{part:14} {(module.__doc__ or '').strip().splitlines()[0]}")
        return 0
    unknown = [part for part in arguments.parts if part not in known]
    if unknown:
        print(f"there is no acceptance part {unknown[0]!r}; there are: {', '.join(known) or 'none yet'}")
        return 2
    passed = [run_part(part, arguments.into) for part in arguments.parts or known]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
