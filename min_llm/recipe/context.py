"""The long-context stage of Llama 3 (section 3.4.2, L3-4.4): rows grow in steps, and each step must pass two gates.

    1. short context: the loss in rows of the length before the first stage has come back to what it was
    2. long context: needles are found at every length up to the new one, all of them

Each stage is an ordinary run that begins with the weights of the one before, with a larger base of its rotary embedding
and fresh moments of its optimizer. A stage whose gates stay closed is trained further, by a stated share of its tokens
and a stated number of times; then the extension stops and says what it measured. The paper goes from 8K to 128K in six
steps; it does not say which (F1f): any list of lengths is the user's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from min_llm.config import UserError, option
from min_llm.data.prepare import DataConfig
from min_llm.recipe.journal import Facts, Journal, Stopped
from min_llm.reporting import reporter
from min_llm.train.config import RunConfig, check


@dataclasses.dataclass(frozen=True)
class ContextConfig:
    lengths: tuple[int, ...] = option((), "context of each stage in tokens, growing")
    rows: float = option(
        1.5,
        "a stage's rows are so many times its context: in rows as long, its longest distances hardly occur",
    )
    thetas: tuple[float, ...] = option((), "base of the rotary embedding in each stage; empty: the model's")
    tokens: int = option(1_000_000, "training tokens of a stage")
    more: float = option(0.5, "a stage that fails a gate is trained on, by this share of its tokens")
    tries: int = option(2, "how often; then the extension stops")
    recover: float = option(
        0.01, "share by which the short-context loss may lie above that before the stages"
    )
    recall: float = option(
        1.0, "share of the needles to be found at each length; 0: they are looked for and do not decide"
    )
    lr: float = option(0.3, "constant learning rate, as a share of the run's peak")
    warmup: int = option(20, "steps of its warmup: the optimizer's moments begin anew")

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip(self.lengths, self.lengths[1:], strict=False)):
            raise UserError(f"'lengths' is {list(self.lengths)}; each stage is longer than the one before.")
        if self.thetas and len(self.thetas) != len(self.lengths):
            raise UserError(
                f"'thetas' has {len(self.thetas)} values for {len(self.lengths)} lengths; give one for each, or none."
            )
        if (
            self.tokens < 1
            or self.more <= 0
            or self.tries < 0
            or not 0 <= self.recall <= 1
            or self.recover < 0
        ):
            raise UserError(
                "'tokens' and 'more' must be above 0, 'tries' and 'recover' 0 or more, 'recall' from 0 to 1."
            )


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the gates look at. short: validation loss in short rows, nats per token. recall: share of the needles found
    in contexts of each length."""

    short: float
    recall: Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage, passed: its length, and the run that the next one begins with."""

    length: int
    run: RunConfig
    measured: Measured


class GateClosed(UserError):
    """A stage has been extended as often as it may be, and does not pass. passed: the stages before it."""

    def __init__(self, text: str, passed: list[Stage]) -> None:
        super().__init__(text)
        self.passed = passed


def extend(
    cfg: ContextConfig,
    start: RunConfig,
    journal: Journal,
    text: Callable[[int], DataConfig],
    train: Callable[[RunConfig], bool],
    measure: Callable[[RunConfig, tuple[int, ...]], Measured],
) -> list[Stage]:
    """Train the stages after the run `start`, in order.

    text: what a stage of this length is trained on. train: runs or resumes a configuration, False when a signal stopped
    it, which raises `Stopped`. measure: of a finished run, at these lengths of needles. They are asked again only for
    what the journal lacks. Raises GateClosed.
    """

    def facts(run: RunConfig, lengths: tuple[int, ...]) -> Facts:
        found = measure(run, lengths)
        return {"short": found.short, "recall": {str(n): share for n, share in found.recall.items()}}

    if not cfg.lengths:
        return []
    before = journal.step("context-before", lambda: facts(start, cfg.lengths))
    stages: list[Stage] = []
    run = start
    for number, length in enumerate(cfg.lengths):
        upto = cfg.lengths[: number + 1]
        for attempt in range(cfg.tries + 1):
            run = stage_run(cfg, start, run, number, attempt, text(length))

            def work(run: RunConfig = run, upto: tuple[int, ...] = upto) -> Facts:
                if not train(run):
                    raise Stopped
                return facts(run, upto)

            known = journal.step(run.name, work)
            measured = Measured(known["short"], {int(n): share for n, share in known["recall"].items()})
            closed = gates(cfg, before["short"], measured)
            reporter().info(f"{run.name}: {' '.join(closed) or 'both gates are open'}")
            if not closed:
                stages.append(Stage(length, run, measured))
                break
        else:
            raise GateClosed(
                f"The stage of {length} tokens was extended {cfg.tries} times by {cfg.more:.0%} and does not pass. "
                f"{' '.join(closed)} Allow more with 'tries' (finished runs are kept), or change the stages: remove "
                f"{journal.folder}/context-*.json, the facts of the steps after them, and their runs first.",
                stages,
            )
    return stages


def gates(cfg: ContextConfig, before: float, measured: Measured) -> list[str]:
    """The gates that are closed, as sentences. before: the short-context loss that must be recovered."""
    closed = []
    if measured.short > before * (1 + cfg.recover):
        closed.append(
            f"The short-context loss is {measured.short:.4f} and was {before:.4f} before the stages "
            f"({measured.short / before - 1:+.2%}; {cfg.recover:.2%} are allowed)."
        )
    if missed := {n: share for n, share in measured.recall.items() if share < cfg.recall}:
        shares = ", ".join(f"{share:.1%} at {n}" for n, share in missed.items())
        closed.append(f"Needles found: {shares} ({cfg.recall:.0%} are wanted).")
    return closed


def row_length(cfg: ContextConfig, number: int) -> int:
    """Tokens of a row of a stage."""
    return round(cfg.rows * cfg.lengths[number])


def stage_run(
    cfg: ContextConfig, start: RunConfig, last: RunConfig, number: int, attempt: int, text: DataConfig
) -> RunConfig:
    """The run of a stage (attempt 0), or of its extension. It has as many tokens a step as `start`, and other text."""
    length = row_length(cfg, number)
    t = start.train
    rows = max(1, t.batch_size * t.seq_len // length)
    share = cfg.more if attempt else 1.0
    model: Any = dataclasses.replace(start.model, max_seq_len=max(length, start.model.max_seq_len))
    if cfg.thetas:
        model = dataclasses.replace(model, rope_theta=cfg.thetas[number])
    more = f"-more{attempt}" if attempt else ""
    return check(
        dataclasses.replace(
            start,
            name=f"context-{cfg.lengths[number]}{more}",
            seed=start.seed + 100 * (number + 1) + attempt,
            init_from=str(Path(last.out) / last.name),
            model=model,
            data=text,
            optim=dataclasses.replace(
                start.optim, lr=start.optim.lr * cfg.lr, schedule="constant", over="steps", warmup=cfg.warmup
            ),
            train=dataclasses.replace(
                t,
                ramp=(),
                steps=max(1, round(share * cfg.tokens / (rows * length))),
                batch_size=rows,
                seq_len=length,
            ),
        )
    )
