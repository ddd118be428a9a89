"""What the recipe is told: one file, of which a preset changes the sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from min_llm import config as config_lib
from min_llm.config import UserError, nearest, option
from min_llm.recipe.context import ContextConfig

HERE = Path(__file__).resolve().parent
MIXES = ("mix", "late_mix", "context_mix", "anneal_mix")
WHOLE = ("sources", "curate", *MIXES)
RETRIEVAL = "retrieval"  # the name under which the mixes weigh the made documents with needles


@dataclasses.dataclass(frozen=True)
class Rung:
    """A size that the scaling law may choose: settings of `model`, and the peak learning rate that goes with it."""

    model: dict[str, Any]
    lr: float


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Documents with needles (min_llm/data/needles.py), made of the training text of one source."""

    haystack: str = option("", "the source whose sentences stand between the needles")
    documents: int = option(2000, "of each length: so many times its bytes are made")
    asks: int = option(2, "questions about each needle")
    far: float = option(
        0.4, "share of the stages' needles that stand at the beginning and are asked for at the end"
    )


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The IsoFLOP grid (min_llm/scaling)."""

    budgets: tuple[float, ...] = option((), "training FLOPs of each curve")
    rungs: int = option(4, "it has so many of the smallest sizes")
    batch_sizes: tuple[int, ...] = option((), "rows of a batch of each budget; empty: run.train.batch_size")


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A phase of smaller batches or shorter rows, up to a share of the tokens."""

    until: float
    batch_size: int
    seq_len: int


@dataclasses.dataclass(frozen=True)
class Pretrain:
    flops: float = option(1e12, "training FLOPs, from which the law chooses size and tokens")
    min_lr: float = option(
        0.3, "learning rate at its end, as a share of the peak; the stages after it go below"
    )
    ramp: tuple[Ramp, ...] = option((), "phases before run.train's batch (L3-4.2)")
    late: float = option(0.5, "share of the tokens after which `late_mix` begins (L3-4.3)")


@dataclasses.dataclass(frozen=True)
class Anneal:
    """The last tokens: another mix, learning rate to zero, and a mean over the way (Llama 3 section 3.4.3)."""

    tokens: int = option(1_000_000, "of the annealing")
    checkpoints: int = option(5, "saved on the way; the final model is the mean of the last half of them")


@dataclasses.dataclass(frozen=True)
class Needles:
    """How the gates look for needles."""

    depths: int = option(5, "places in the context, from its beginning to its end")
    trials: int = option(8, "needles at each length and depth")


@dataclasses.dataclass(frozen=True)
class HerdConfig:
    sources: dict[str, Any]  # names for the mixes: registered sources, files or folders, or lists of them
    mix: dict[str, float]  # shares of the tokens of pretraining
    late_mix: dict[str, float]
    context_mix: dict[str, float]
    anneal_mix: dict[str, float]
    ladder: tuple[Rung, ...]
    name: str = option("herd-mini", "name of the recipe: its folder is OUT/NAME")
    out: str = option("runs", "folder of all runs")
    seed: int = option(0, "of everything drawn")
    take: float = option(1.0, "share of each source's curated documents that is used, drawn by their text")
    curate: dict[str, Any] = option({}, "steps of `min-llm data curate`; empty: the usual ones")
    tokenizer: str = option("bpe:2048", "learned from the training text")
    held_out: float = option(0.05, "share of the documents of each source that no model sees")
    run: dict[str, Any] = option({}, "settings that all trainings share, as for `min-llm train`")
    retrieval: Retrieval = option(Retrieval(), "")
    sweep: Sweep = option(Sweep(), "")
    pretrain: Pretrain = option(Pretrain(), "")
    context: ContextConfig = option(ContextConfig(), "")
    needles: Needles = option(Needles(), "")
    anneal: Anneal = option(Anneal(), "")
    gpt2: bool = option(True, "train a GPT-2 of the nearest size on as many tokens, to compare with")

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.name

    def __post_init__(self) -> None:
        names = [*self.sources, RETRIEVAL]
        for key in MIXES:
            for name in getattr(self, key):
                if name not in names:
                    raise UserError(f"'{key}' weighs {name!r}, which is no source.{nearest(name, names)}")
        if self.retrieval.haystack not in self.sources:
            raise UserError(
                f"'retrieval.haystack' is {self.retrieval.haystack!r}; name one of the sources: "
                f"{', '.join(self.sources)}."
            )
        if not 1 <= self.sweep.rungs <= len(self.ladder):
            raise UserError(f"'sweep.rungs' is {self.sweep.rungs}; the ladder has {len(self.ladder)}.")
        if self.anneal.checkpoints < 1:
            raise UserError(f"'anneal.checkpoints' is {self.anneal.checkpoints}; it must be at least 1.")


def load(words: Sequence[str]) -> HerdConfig:
    """From the words of a command line: [CONFIG.yaml] [preset=NAME] [key=value ...]. The preset's settings stand over
    the file's own, the words' over both."""
    paths = [w for w in words if "=" not in w]
    if len(paths) > 1:
        raise UserError(f"One configuration file at a time; given: {', '.join(paths)}.")
    given = config_lib.read(paths[0] if paths else HERE / "configs" / "herd.yaml")
    presets = given.pop("presets", {})
    chosen = given.pop("preset", "")
    for word in words:
        if word.startswith("preset="):
            chosen = word.removeprefix("preset=")
    if chosen not in presets:
        raise UserError(f"There is no preset {chosen!r}; the file has {', '.join(presets) or 'none'}.")
    said = [w for w in words if "=" in w and not w.startswith("preset=")]
    changes = config_lib.read(None, said)
    return config_lib.build(HerdConfig, over(over(given, presets[chosen] or {}), changes))


def over(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with the changes in it, section by section; what names sources or steps is replaced whole."""
    merged = dict(tree)
    for key, value in changes.items():
        below = merged.get(key)
        section = isinstance(value, Mapping) and isinstance(below, Mapping) and key not in WHOLE
        merged[key] = over(below, value) if section else value  # type: ignore[arg-type]
    return merged
