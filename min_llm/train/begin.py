"""What a run begins with: random weights, or those of another run or of other programs' files (`init_from`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from min_llm import models, tokenizers
from min_llm import spec as spec_lib
from min_llm.config import UserError
from min_llm.formats import model as other
from min_llm.models import ModelConfig
from min_llm.nn import axes
from min_llm.quant.quantize import is_quantized
from min_llm.reporting import reporter
from min_llm.tokenizers import Tokenizer
from min_llm.train.config import RunConfig
from min_llm.train.optim import optimizer
from min_llm.train.ramp import Ramp
from min_llm.train.run import Run, load_config
from min_llm.train.step import init_state

ROTARY = ("rope_theta", "rope_scaling")  # may change to learn a longer context (Llama 3 section 3.4.2)
FREE = ("dropout", "max_seq_len", "init_std", "vocab_size", *ROTARY)  # what may differ from the source's


def with_model(cfg: RunConfig) -> RunConfig:
    """The configuration with the model of `init_from`. Raises UserError where another one was asked for."""
    if not cfg.init_from:
        return cfg
    theirs = _config(cfg.init_from)
    if cfg.model == type(cfg.model)():  # nothing was said of it
        return dataclasses.replace(cfg, model=theirs)
    ours = cfg.model.to_mapping()
    other_way = {k: v for k, v in theirs.to_mapping().items() if k not in FREE and ours.get(k) != v}
    if other_way or (cfg.model.vocab_size and cfg.model.vocab_size != theirs.vocab_size):
        wrong = ", ".join(
            f"model.{k}={v}" for k, v in (other_way or {"vocab_size": theirs.vocab_size}).items()
        )
        raise UserError(
            f"init_from={cfg.init_from} is another model than the one configured. Leave out 'model', or set {wrong}."
        )
    given = theirs.to_mapping()
    for name in ROTARY:
        if ours.get(name) != given.get(name):
            reporter().info(f"model.{name}: {given[name]} in {cfg.init_from}, {ours[name]} from now on")
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=theirs.vocab_size))


def weights(cfg: RunConfig, spec: Any) -> Any:
    """The parameters of step 0, laid out over the mesh in use."""
    if not cfg.init_from:
        return models.init_spec(spec, cfg.seed)
    path = _other(cfg.init_from)
    read = read_run(*run_of(cfg.init_from))[2] if path is None else other.read(path)
    if is_quantized(read):
        raise UserError(
            f"{cfg.init_from} is quantized and cannot be trained. Begin with the model that it was made of."
        )
    if not axes.on_mesh():
        return read

    def lay(x: Any, target: jax.ShapeDtypeStruct) -> jax.Array:
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, target.sharding, lambda part: whole[part])

    return jax.tree.map(lay, read, axes.shapes(spec))


def read_run(folder: Path, step: int | None = None) -> tuple[RunConfig, int, Any]:
    """Configuration, step and parameters of a run's latest checkpoint (or that of `step`)."""
    cfg = load_config(folder)
    run = Run(folder, cfg)
    step = present(run, step)
    spec = models.spec(cfg.model)
    opt = optimizer(cfg.optim, spec, cfg.train.steps, Ramp.of(cfg.train))
    target = jax.eval_shape(lambda p: init_state(p, opt, cfg.train.spike_skip), spec_lib.shapes(spec))
    state, _ = run.checkpoints.restore(step, target, spec)
    return cfg, step, state.params


def run_of(source: str | Path) -> tuple[Path, int | None]:
    """(run folder, step) of a run folder or of RUN/checkpoints/STEP; the step of a run is None, for its latest."""
    path = Path(source).expanduser()
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def present(run: Run, step: int | None) -> int:
    """A step of which the run has a checkpoint: the one given, or the latest. Raises UserError where there is none."""
    have = run.checkpoints.steps()
    if not have or (step is not None and step not in have):
        wanted = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        raise UserError(
            f"{run.folder} does not have {wanted} (it has: {', '.join(map(str, have)) or 'none'}). Train it first."
        )
    return have[-1] if step is None else step


def check_tokenizer(cfg: RunConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError where the weights of `init_from` know other tokens by the ids of the data. A source without a
    tokenizer.json (a GGUF file, a folder of weights alone) says nothing of them."""
    if not cfg.init_from:
        return
    folder = _other(cfg.init_from) or run_of(cfg.init_from)[0]
    path = folder / tokenizers.FILE_NAME
    if path.is_file() and tokenizers.load(path).spelled != tokenizer.spelled:
        raise UserError(
            f"init_from={cfg.init_from} was trained with another tokenizer than data.tokenizer={cfg.data.tokenizer}, "
            f"so its weights know other tokens by the same ids. Set data.tokenizer={path}."
        )


def _other(source: str) -> Path | None:
    """The folder or file of another program's model; None for a run and for RUN/checkpoints/STEP."""
    return None if Path(source).parent.name == "checkpoints" else other.found(source)


def _config(source: str) -> ModelConfig:
    path = _other(source)
    return load_config(run_of(source)[0]).model if path is None else other.read_config(path)
