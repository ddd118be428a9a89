"""Trains the user's own checkout of nanoGPT, unchanged but for its seed, and scores a whole validation split.

nanoGPT's train.py fixes its seed (1337), so its text is read, that one number replaced, and the result run
with the command-line settings of shakespeare_char on a CPU, in a temporary folder: the checkout stays.
"""

import os
import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = {
    "device": "cpu",
    "dtype": "float32",
    "compile": False,
    "eval_iters": 20,
    "log_interval": 100,
    "block_size": 64,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "max_iters": 2000,
    "lr_decay_iters": 2000,
    "dropout": 0.0,
}
SEED_LINE = "torch.manual_seed(1337 + seed_offset)"


def split(text: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """nanoGPT's character ids (uint16) of the first 90% and the last 10% of `text`, and the characters."""
    characters = sorted(set(text))
    ids = {character: i for i, character in enumerate(characters)}
    cut = int(len(text) * 0.9)
    train, val = (np.array([ids[c] for c in part], dtype=np.uint16) for part in (text[:cut], text[cut:]))
    return train, val, characters


def _lay_out(folder: Path, checkout: Path, text: str) -> np.ndarray:
    """The files train.py reads, in `folder`; returns the validation ids."""
    data = folder / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    train, val, characters = split(text)
    train.tofile(data / "train.bin")
    val.tofile(data / "val.bin")
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(characters)}))
    for name in ("configurator.py", "config"):
        (folder / name).symlink_to(checkout / name)
    return val


def score(model: Any, tokens: np.ndarray, window: int, rows: int = 256) -> float:
    """Mean nats per token over every target once.

    Window i reads tokens [i*window, (i+1)*window) and predicts the next ones; the last window may be shorter.
    """
    import torch
    import torch.nn.functional as F

    ids = torch.from_numpy(tokens.astype(np.int64))
    full = (len(ids) - 1) // window
    inputs = ids[: full * window].view(full, window)
    targets = ids[1 : full * window + 1].view(full, window)
    pieces = [(inputs[i : i + rows], targets[i : i + rows]) for i in range(0, full, rows)]
    if full * window < len(ids) - 1:
        pieces.append((ids[full * window : -1][None], ids[full * window + 1 :][None]))
    total = 0.0
    model.eval()
    with torch.no_grad():
        for x, y in pieces:
            logits, _ = model(x, y)  # with targets nanoGPT returns the logits of every position
            total += F.cross_entropy(logits.flatten(0, 1).double(), y.flatten(), reduction="sum").item()
    return total / (len(ids) - 1)


def train_and_score(
    checkout: str, text: str, seed: int, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Validation nats per character of nanoGPT trained with `seed`, its parameters and training seconds."""
    source = (Path(checkout) / "train.py").read_text()
    if source.count(SEED_LINE) != 1:
        raise ValueError(
            f"{checkout}/train.py does not hold the line `{SEED_LINE}` once; is this nanoGPT's train.py?"
        )
    source = source.replace(SEED_LINE, f"torch.manual_seed({seed})")
    chosen = {**SETTINGS, **(settings or {})}
    before = os.getcwd(), list(sys.argv), list(sys.path)
    with tempfile.TemporaryDirectory() as folder:
        val = _lay_out(Path(folder), Path(checkout).absolute(), text)
        flags = [f"--{key}={value}" for key, value in chosen.items()]
        sys.path.insert(0, str(Path(checkout).absolute()))
        sys.argv = ["train.py", "config/train_shakespeare_char.py", *flags]
        os.chdir(folder)
        space: dict[str, Any] = {"__name__": "nanogpt_train", "__file__": "train.py"}
        began = time.perf_counter()
        try:
            exec(compile(source, "train.py", "exec"), space)
        finally:
            os.chdir(before[0])
            sys.argv, sys.path[:] = before[1], before[2]
    seconds = time.perf_counter() - began
    model = space["raw_model"]
    return {
        "val_loss": score(model, val, chosen["block_size"]),
        "targets": len(val) - 1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": seconds,
        "updates": space["local_iter_num"],
        "settings": chosen,
    }
