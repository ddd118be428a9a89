"""nanoGPT itself, trained at its shakespeare_char CPU setting and scored on the whole validation split.

    python -m bench.nanogpt --nanogpt PATH [--seeds 1337,1338,1339] [--text FILE]

PATH is your checkout of karpathy/nanoGPT; it is read, never changed. Needs `make env-peers`. Our values come
from apps/nanogpt/results.json where that file has a row of the same case.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from bench import results
from peers import client

CASE = "shakespeare_char cpu"
OURS = results.ROOT / "apps" / "nanogpt" / "results.json"
TEXT = results.ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"


def our_value(file: Path = OURS) -> float | None:
    """Our GPT-2's mean validation loss in this case, or None while the app has no such row."""
    if not file.exists():
        return None
    found = [r for r in json.loads(file.read_text()) if r["case"] == CASE and r["metric"] == "val_loss"]
    return found[0]["ours"] if found else None


def rows_of(answers: dict[int, dict[str, Any]], ours: float | None) -> list[results.Row]:
    """One row a seed, and the row of the mean (spread: lowest and highest seed)."""
    note = "final weights; every target once, windows of 64; 2,001 updates as nanoGPT counts max_iters=2000"
    made = [
        results.row(
            f"{CASE} seed {seed}",
            "val_loss",
            "nats/char",
            "float32",
            None,
            peer_name="nanoGPT",
            peer=answer["val_loss"],
            better="lower",
            seed=seed,
            note=note,
            train_seconds=answer["train_seconds"],
            parameters=answer["parameters"],
        )
        for seed, answer in answers.items()
    ]
    losses = [answer["val_loss"] for answer in answers.values()]
    made.append(
        results.row(
            CASE,
            "val_loss",
            "nats/char",
            "float32",
            ours,
            peer_name="nanoGPT",
            peer=statistics.mean(losses),
            better="lower",
            runs=len(losses),
            spread=[min(losses), max(losses)],
            seed=list(answers),
            note=note,
        )
    )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", required=True, help="checkout of karpathy/nanoGPT (a work tree)")
    parser.add_argument("--seeds", default="1337,1338,1339")
    parser.add_argument(
        "--threads", type=int, default=results.cores(), help="fewer where others use the machine"
    )
    parser.add_argument("--text", type=Path, default=TEXT, help="tinyshakespeare.txt, 1,115,394 bytes")
    options = parser.parse_args()
    checkout = Path(options.nanogpt).absolute()
    for needed in (checkout / "train.py", checkout / "configurator.py", options.text):
        if not needed.exists():
            parser.error(f"{needed} does not exist")
    answers: dict[int, dict[str, Any]] = {}
    with client.start("nanoGPT", show_stderr=True) as child:
        versions = child.call("versions")
        for seed in map(int, options.seeds.split(",")):
            answers[seed] = child.call(
                "nanogpt",
                timeout=3600,
                checkout=str(checkout),
                text=options.text.read_text(),
                seed=seed,
                threads=options.threads,
            )
            print(f"seed {seed}: {answers[seed]['val_loss']:.4f} nats/char", file=sys.stderr)
    peer_versions = {f"peer_{name}": number for name, number in versions.items()}
    file = results.write("nanogpt", rows_of(answers, our_value()), versions=peer_versions)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
