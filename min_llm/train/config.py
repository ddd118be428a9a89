"""Everything that describes a training run, with its defaults."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from min_llm.config import UserError, option
from min_llm.data.prepare import DataConfig
from min_llm.models import ModelConfig
from min_llm.models.llama import Config as LlamaConfig
from min_llm.nn.runtime import RuntimeConfig
from min_llm.parallel.mesh import ParallelConfig

Role = Literal["matrix", "embedding", "head", "norm", "bias"]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    name: Literal["adamw", "muon", "lion", "adafactor"] = option(
        "adamw",
        "optimizer; muon: matrices of layers by Muon, the rest by AdamW, at AdamW's rate; lion: a third of it or less",
    )
    lr: float = option(1e-3, "peak learning rate")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = option("cosine", "shape after the warmup")
    over: Literal["steps", "tokens"] = option("steps", "what warmup and decay_steps count")
    warmup: int = option(100, "steps (or tokens) of linear warmup from 0")
    min_lr: float = option(0.1, "final learning rate as a fraction of the peak")
    decay_steps: int = option(0, "step (or token) at which the final rate is reached; 0: the last one")
    wsd_decay: float = option(0.2, "fraction of the steps (or tokens) that decay in the wsd schedule")
    beta1: float = option(0.9, "first-moment decay of AdamW; Lion's weight of the momentum in its sign")
    beta2: float = option(0.95, "second-moment decay of AdamW; Lion's momentum decay")
    momentum: float = option(0.95, "Muon's momentum")
    eps: float = option(1e-8, "AdamW epsilon")
    weight_decay: float = option(0.1, "decoupled weight decay")
    decay_with_lr: bool = option(
        True,
        "a step takes weight_decay x its learning rate off a weight; false: weight_decay, whatever the rate",
    )
    decay_roles: tuple[Role, ...] = option(
        ("matrix", "embedding", "head"), "parameter roles that are decayed"
    )
    clip: float = option(1.0, "largest global gradient norm; 0: no clipping")


@dataclasses.dataclass(frozen=True)
class Phase:
    """Batches of batch_size rows of seq_len tokens, until so many tokens were seen (`train.ramp`)."""

    until_tokens: int
    batch_size: int
    seq_len: int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int = option(1000, "optimizer steps")
    batch_size: int = option(16, "rows of a step's batch, over all devices and micro-batches")
    seq_len: int = option(256, "tokens of a row")
    ramp: tuple[Phase, ...] = option(
        (), "phases {until_tokens, batch_size, seq_len} before that, in order: smaller batches, shorter rows"
    )
    micro_batches: int = option(1, "gradient accumulation: parts the batch is cut into, inside jit")
    order: Literal["shuffled", "random"] = option(
        "shuffled", "windows of an epoch in a shuffled order, or random offsets as nanoGPT takes them"
    )
    log_every: int = option(10, "steps between lines of metrics")
    eval_every: int = option(200, "steps between validations; 0: only at the end")
    eval_tokens: int = option(0, "validation tokens a validation scores; 0: the whole split")
    probe: bool = option(False, "record activation, gradient and weight statistics and attention entropy")
    probe_every: int = option(50, "steps between probes")
    profile: str = option("", "steps to trace with JAX's profiler, as FIRST-LAST")
    spike_z: float = option(6.0, "standard deviations above the recent mean that make a loss spike; 0: off")
    spike_skip: bool = option(
        False, "leave out the update of a step whose loss or gradient norm is such a spike (inside jit)"
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = option(200, "steps between checkpoints; 0: only at the end")
    keep: int = option(2, "how many of the latest to keep")
    keep_every: int = option(0, "also keep each checkpoint at a multiple of this, for ever; 0: none")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    every: int = option(200, "steps between samples during training; 0: only at the end")
    prompts: tuple[str, ...] = option(("\n",), "what each sample continues; empty: no samples")
    max_tokens: int = option(100, "tokens of a sample")
    temperature: float = option(0.8, "0: greedy")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    baselines: bool = option(
        False, "after training, measure xz -9 and a 5-gram on the validation text, for the report"
    )
    tensorboard: bool = option(True, "write TensorBoard event files to tensorboard/")
    wandb: bool = option(False, "log to Weights & Biases (extra: wandb)")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    name: str = option("run", "name of the run: its folder is OUT/NAME")
    out: str = option("runs", "folder of all runs")
    seed: int = option(0, "of initialisation, data order and dropout")
    init_from: str = option("", "begin with these weights: run or Hugging Face folder, GGUF file, or name")
    model: ModelConfig = option(LlamaConfig(), "family or preset, and its fields")
    data: DataConfig = option(DataConfig(), "")
    optim: OptimConfig = option(OptimConfig(), "")
    train: TrainConfig = option(TrainConfig(), "")
    runtime: RuntimeConfig = option(RuntimeConfig(), "")
    parallel: ParallelConfig = option(ParallelConfig(), "")
    checkpoint: CheckpointConfig = option(CheckpointConfig(), "")
    sample: SampleConfig = option(SampleConfig(), "")
    log: LogConfig = option(LogConfig(), "")


# What may change when a run is resumed: none of it touches the numbers, apart from the mesh, which changes the order of
# sums and with it their last bits.
FREE_ON_RESUME = (
    "name",
    "out",
    "log.",
    "sample.",
    "checkpoint.",
    "parallel.",
    "train.profile",
    "train.log_every",
    "data.home",
)


def check(cfg: RunConfig) -> RunConfig:
    """The config, or a sentence about settings that cannot work together."""
    t = cfg.train
    for key, value in (("steps", t.steps), ("batch_size", t.batch_size), ("seq_len", t.seq_len),
                       ("micro_batches", t.micro_batches), ("log_every", t.log_every)):  # fmt: skip
        if value < 1:
            raise UserError(f"'train.{key}' is {value}; it must be at least 1.")
    for where, rows, length in (
        *((f"train.ramp[{i}]", p.batch_size, p.seq_len) for i, p in enumerate(t.ramp)),
        ("train", t.batch_size, t.seq_len),
    ):
        if rows < 1 or length < 1:
            raise UserError(f"'{where}' has batches of {rows} x {length} tokens; both must be at least 1.")
        if rows % t.micro_batches:
            raise UserError(
                f"'{where}.batch_size' ({rows}) must be a multiple of 'train.micro_batches' ({t.micro_batches})."
            )
        if length > cfg.model.max_seq_len:
            raise UserError(
                f"'{where}.seq_len' is {length}, longer than 'model.max_seq_len' ({cfg.model.max_seq_len}). "
                "Shorten one or raise the other."
            )
    if t.spike_skip and not t.spike_z:
        raise UserError("'train.spike_skip' needs 'train.spike_z', which is 0: nothing would be a spike.")
    if cfg.optim.lr <= 0:
        raise UserError(f"'optim.lr' is {cfg.optim.lr}; it must be above 0.")
    if not cfg.name or "/" in cfg.name or cfg.name.startswith("."):
        raise UserError(f"'name' is {cfg.name!r}; it names a folder, so no '/' and no leading dot.")
    if t.profile:
        profile_steps(t.profile)
    return cfg


def profile_steps(text: str) -> tuple[int, int]:
    """ "10-12" -> (10, 12). No colon: YAML reads 10:12 as a number in base 60."""
    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise UserError(
            f"'train.profile' is {text!r}; give the steps to trace as FIRST-LAST, for example 10-12."
        )
    return int(first), int(last)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Settings that differ and must not when a run is resumed, as "key: old -> new"."""
    keys = [k for k in sorted(old.keys() | new.keys()) if not k.startswith(FREE_ON_RESUME)]
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys if old.get(k) != new.get(k)]
