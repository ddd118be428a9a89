"""The pretraining task: next-token loss over packed documents, and validation over a whole held-out split."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from min_llm import models
from min_llm.config import UserError
from min_llm.data.loader import validation_batches
from min_llm.data.prepare import Corpus, prepare_corpus
from min_llm.models import ModelConfig
from min_llm.nn.batch import Batch
from min_llm.nn.runtime import Runtime, RuntimeConfig, resolve
from min_llm.parallel import mesh as meshes
from min_llm.parallel import processes
from min_llm.reporting import reporter
from min_llm.train import begin
from min_llm.train.config import RunConfig, check
from min_llm.train.evaluate import Evaluator, bits_per_byte
from min_llm.train.ramp import Ramp
from min_llm.train.step import LossSum, language_model_loss
from min_llm.train.stream import Stream


@dataclasses.dataclass(frozen=True)
class Task:
    """What the loop trains: it knows nothing of text, models or preferences."""

    model: ModelConfig
    spec: Any
    runtime: Runtime
    loss_sum: LossSum
    batch: Callable[[int], Batch]  # the batch of a step, a pure function
    validate: Callable[[Any], dict[str, float]]  # parameters -> a row of metrics
    final: Callable[[Any], dict[str, float]] | None = (
        None  # once at the end, where validation scores only a part
    )
    account: Callable[[int], dict[str, float]] | None = None  # steps -> what each source of a mix has given
    initial: Callable[[], Any] | None = None  # the parameters of step 0; random ones without it


def pretraining(
    cfg: RunConfig, begun_with: Mapping[str, Any] | None = None, mesh: Mesh | None = None
) -> tuple[RunConfig, Task, Corpus]:
    """The configuration with the tokenizer's vocabulary filled in, the task, and its data.

    begun_with: the runtime of a run that goes on (`run.begun_with`); it stands where the configuration says "auto".
    mesh: what `parallel.mesh.use` yields.
    """
    cfg = begin.with_model(cfg)
    check(cfg)  # a setting that cannot work is refused before minutes of preparation
    if not processes.primary():  # on a shared disk it finds what the primary has made
        processes.barrier()
    data = prepare_corpus(cfg.data)
    if processes.primary():
        processes.barrier()
    begin.check_tokenizer(cfg, data.tokenizer)
    cfg = with_vocabulary(cfg, data.tokenizer.vocab_size)
    spec = models.spec(cfg.model)
    for span in Ramp.of(cfg.train).spans:
        rows = span.batch_size // cfg.train.micro_batches
        meshes.check(cfg.parallel.mesh, cfg.model, spec, rows, span.seq_len)
    runtime = keep(resolve(cfg.runtime, getattr(cfg.model, "n_layers", 1)), cfg.runtime, begun_with or {})
    runtime = Runtime(**processes.share(vars(cfg.parallel.choose(runtime))))  # measured by one, used by all
    place = meshes.placement(cfg.parallel.mesh, mesh)
    evaluator = Evaluator(cfg.model, runtime)

    stream = Stream(cfg, data)
    for line in stream.plan():
        reporter().info(f"mix: {line}")

    def validate(params: Any, tokens: int = cfg.train.eval_tokens) -> dict[str, float]:
        rows, length = cfg.train.batch_size, cfg.train.seq_len
        return score(lambda p, parts: evaluator(p, map(place, parts)), params, data, rows, length, tokens)

    task = Task(
        cfg.model,
        spec,
        runtime,
        language_model_loss(cfg.model, runtime),
        lambda step: place(stream.batch(step)),
        validate,
        (lambda params: validate(params, 0)) if cfg.train.eval_tokens else None,
        stream.account if cfg.data.mix else None,
        lambda: begin.weights(cfg, spec),
    )
    return cfg, task, data


def keep(runtime: Runtime, given: RuntimeConfig, began: Mapping[str, Any]) -> Runtime:
    """The runtime with what was "auto" as it was when the run began; it is said where this machine would choose
    otherwise today."""
    free = {
        "dtype": given.dtype == "auto",
        "attention": given.attention == "auto",
        "scan": given.layers == "auto",
        "logits_per_chunk": given.logits_per_chunk == 0,
    }
    kept = {
        k: began[k] for k, auto in free.items() if auto and k in began and began[k] != getattr(runtime, k)
    }
    for name, value in kept.items():
        reporter().info(
            f"The run began with {name} {value} and keeps it; chosen today it would be {getattr(runtime, name)}"
        )
    return dataclasses.replace(runtime, **kept)


def with_vocabulary(cfg: RunConfig, size: int) -> RunConfig:
    """The tokenizer's vocabulary size, unless the configuration gives a larger one (padding)."""
    given = cfg.model.vocab_size
    if given and given < size:
        raise UserError(
            f"'model.vocab_size' is {given}, but the tokenizer has {size} tokens. Remove the key to use {size}."
        )
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=given or size))


def score(
    evaluator: Callable[..., tuple[float, int]],
    params: Any,
    data: Corpus,
    rows: int,
    seq_len: int,
    tokens: int = 0,
) -> dict[str, float]:
    """Validation loss in nats per token, and bits per byte where the whole split is scored; of several sources also
    of each (loss/NAME, bits_per_byte/NAME). tokens: so many are scored, of each source in proportion; 0: all."""
    values: dict[str, float] = {}
    nats = count = size = 0.0
    total = sum(part.val.n_targets for part in data.parts.values())
    for name, part in data.parts.items():
        batches = validation_batches(part.val, rows, seq_len)
        if tokens:
            batches = itertools.islice(batches, -(-tokens * part.val.n_targets // (total * rows * seq_len)))
        loss, scored = evaluator(params, batches)
        nats, count, size = nats + loss * scored, count + scored, size + part.val.scored_bytes
        if len(data.parts) > 1:
            values[f"loss/{name}"] = loss
            if not tokens and part.val.scored_bytes:
                values[f"bits_per_byte/{name}"] = bits_per_byte(loss, scored, part.val.scored_bytes)
    values = {"loss": nats / count, "tokens": int(count)} | values
    if not tokens and size:
        values["bits_per_byte"] = bits_per_byte(nats / count, int(count), int(size))
    return values
