"""The training loop: one for every stage.

It dispatches step n and, while an accelerator works on it, reads the metrics of step n − 1. At boundaries (validation,
samples, checkpoints) it waits for the step, so nothing is ever saved before its loss is known to be finite, and
everything a checkpoint's metrics say is on disk before the checkpoint is.
"""

from __future__ import annotations

import dataclasses
import math
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from min_llm import machine, models
from min_llm.config import dump
from min_llm.data.loader import Prefetcher
from min_llm.kernels import peaks
from min_llm.nn import axes
from min_llm.parallel import processes, stragglers
from min_llm.plan.flops import Flops, flops_per_token, mfu
from min_llm.reporting import reporter
from min_llm.train.checkpoints import describe
from min_llm.train.environment import record_start, software
from min_llm.train.history import read_rows
from min_llm.train.metrics import memory, open_metrics
from min_llm.train.monitor import SpikeMonitor
from min_llm.train.optim import optimizer
from min_llm.train.pretrain import Task
from min_llm.train.process import Clock, Trace, stop_signals
from min_llm.train.ramp import Ramp, Span
from min_llm.train.run import Run, numbers
from min_llm.train.schedules import schedule
from min_llm.train.step import State, compile_step, init_state, make_step


class TrainingStopped(RuntimeError):
    """Training cannot go on (a loss that is not finite). The message names the step and the last good checkpoint."""


@dataclasses.dataclass(frozen=True)
class Hook:
    """Something to do with the parameters every so many steps and at the end. What it returns becomes a row of
    metrics of this kind; None writes none."""

    kind: str
    every: int
    call: Callable[[int, Any], dict[str, Any] | None]

    def due(self, done: int, last: int) -> bool:
        return done == last or bool(self.every and done % self.every == 0)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: `done` steps of which `steps` were wanted; the final parameters."""

    done: int
    steps: int
    params: Any

    @property
    def finished(self) -> bool:
        return self.done == self.steps


def train(run: Run, task: Task, hooks: Sequence[Hook] = ()) -> Outcome:
    """Train to the last step, or to SIGTERM/SIGINT, which saves a checkpoint and returns."""
    return Loop(run, task, hooks).run_all()


class Loop:
    """The state of one training process."""

    def __init__(self, run: Run, task: Task, hooks: Sequence[Hook]) -> None:
        self.run, self.task, self.cfg = run, task, run.cfg
        cfg = self.cfg
        self.hooks = [Hook("val", cfg.train.eval_every, lambda _, params: task.validate(params)), *hooks]
        self.ramp = Ramp.of(cfg.train)
        self.optimizer = optimizer(cfg.optim, task.spec, cfg.train.steps, self.ramp)
        self.rate = jax.jit(schedule(cfg.optim, cfg.train.steps, self.ramp))
        self.monitor = SpikeMonitor(cfg.train.spike_z)
        self.losses: list[float] = []  # since the last row
        self.timed = 0  # steps of this process since then
        self.flops: Flops = flops_per_token(task.model, cfg.train.seq_len)
        self.peak = peaks.measure()["flops_" + task.runtime.dtype] * cfg.parallel.mesh.size
        self.compiled: dict[tuple[bool, Span], Any] = {}
        self.clock, self.slow = Clock(), stragglers.Stragglers()

    # Starting

    def start(self) -> tuple[State, int]:
        """Fresh state, or that of the latest checkpoint, and the steps already done."""
        latest = processes.share(self.run.checkpoints.latest())
        if latest is None:
            if self.run.truncate({}):
                reporter().info(f"{self.run.folder} has no checkpoint yet; starting from its first step")
            make = self.task.initial or (lambda: models.init_spec(self.task.spec, self.cfg.seed))
            return self.fresh(make()), 0
        shapes = axes.targets(jax.eval_shape(self.fresh, axes.shapes(self.task.spec)))
        state, meta = self.run.checkpoints.restore(latest, shapes, self.task.spec)
        self.run.agree(meta, self.task.runtime)
        self.run.truncate(meta["sizes"])
        self.monitor.recent.extend(meta["monitor"])
        self.losses = list(meta["losses"])
        reporter().info(f"Resuming {self.run.folder} after step {latest} of {self.cfg.train.steps}")
        return state, latest

    def fresh(self, params: Any) -> State:
        return init_state(params, self.optimizer, self.cfg.train.spike_skip)

    def step_function(self, state: State, batch: Any, probing: bool, span: Span) -> Any:
        """The compiled step of a phase of the ramp; compiled at its first use."""
        key = (probing, span)
        if key not in self.compiled:
            began = time.perf_counter()
            step = make_step(
                self.task.loss_sum,
                self.optimizer,
                self.cfg.train.micro_batches,
                self.cfg.seed if self.task.model.dropout else None,
                probing,
                self.cfg.train.spike_z,
            )
            self.compiled[key] = compile_step(step, state, batch)
            seconds = time.perf_counter() - began
            size = self.compiled[key].memory_analysis()
            held = (size.temp_size_in_bytes + size.argument_size_in_bytes) / 2**20 if size else float("nan")
            reporter().info(f"Compiled the step in {seconds:.1f} s; it needs {held:.0f} MiB")
            self.clock.pause(seconds)
        return self.compiled[key]

    # Running

    def run_all(self) -> Outcome:
        t = self.cfg.train
        record_start(self.run.folder, self.cfg, self.task.runtime, self.flops, self.peak)
        state, first = self.start()
        if first >= t.steps:
            reporter().info(f"{self.run.folder} is complete: {first} of {t.steps} steps. Nothing to do.")
            return Outcome(first, t.steps, state.params)
        with ExitStack() as stack:
            stop = stack.enter_context(
                stop_signals()
            )  # left last: a second signal cannot cut off the last save
            stack.callback(self.run.checkpoints.wait)
            self.metrics = open_metrics(self.run.folder, self.cfg, first)
            stack.callback(self.metrics.close)
            batches = stack.enter_context(Prefetcher(self.batch, first))
            self.progress = stack.enter_context(reporter().progress(t.steps, self.run.folder.name, first))
            for row in read_rows(self.run.folder)[0]:  # of the processes before this one
                self.display(row)
            trace = Trace(t.profile, self.run.folder)
            stack.callback(trace.close)
            done = first
            pending: tuple[int, Any] | None = None
            self.clock.start()
            stopping, agreed = False, processes.Agreement()
            while done < t.steps and not stopping:
                self.clock.pause(machine.wait_while_taken(reporter().info))
                trace.at(done)
                batch, waited = batches.next()
                self.clock.waited += waited
                probing = t.probe and done % t.probe_every == 0
                step = self.step_function(state, batch, probing, self.ramp.at(done))
                state, out = step(state, batch)
                if pending is not None:
                    self.read(*pending)
                done += 1
                pending = (done, out)
                stopping = agreed(
                    bool(stop)
                )  # asked once a step: a signal that comes later ends the next one
                if done == t.steps or stopping or self.at_boundary(done):
                    self.read(*pending)
                    pending = None
                    self.boundary(done, state, stopping)
        return Outcome(done, t.steps, state.params)

    def batch(self, step: int) -> Any:
        """A batch on the device, all there: on CPU a step that must wait for its input would run asynchronously."""

        def put(x: Any) -> jax.Array:  # what the task has laid out over a mesh stays as it is
            return x if isinstance(x, jax.Array) else jax.device_put(x)

        return jax.block_until_ready(jax.tree.map(put, self.task.batch(step)))

    def at_boundary(self, done: int) -> bool:
        every = self.cfg.checkpoint.every
        return bool(every and done % every == 0) or any(h.due(done, self.cfg.train.steps) for h in self.hooks)

    def boundary(self, done: int, state: State, stopping: bool) -> None:
        """Hooks, then the checkpoint, all with step `done` finished and known to be finite."""
        began = time.perf_counter()
        last, every = self.cfg.train.steps, self.cfg.checkpoint.every
        for hook in self.hooks:
            if hook.due(done, last):
                took = time.perf_counter()
                values = hook.call(done, state.params)
                if values is not None:
                    self.metrics.write(done, hook.kind, values, {"seconds": time.perf_counter() - took})
                    self.show(done, hook.kind, values)
        if stopping or done == last or (every and done % every == 0):
            self.save(done, state)
        if stopping and done < last:
            reporter().info(f"Stopped by a signal after step {done}; the same command resumes.")
        self.clock.pause(time.perf_counter() - began)

    def save(self, done: int, state: State) -> None:
        meta = {
            "step": done,
            "config": dump(self.cfg),
            "parameters": describe(self.task.spec),
            "runtime": numbers(self.task.runtime),
            "software": software(),
            "sizes": self.run.sizes(),
            "monitor": list(self.monitor.recent),
            "losses": self.losses,
        }
        self.run.checkpoints.save(done, state, meta)

    # Reading

    def read(self, done: int, out: dict[str, Any]) -> None:
        """The metrics of the step that ended as the `done`-th: check, watch, log."""
        loss, norm = float(out["loss"]), float(out["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.not_finite(done, loss, norm)
        if (score := self.monitor.feed(loss)) is not None:
            self.metrics.write(done, "event", {"event": "spike", "loss": loss, "z": score})
            reporter().warn(
                f"Loss spike at step {done}: {loss:.3f} is {score:.1f} deviations above the recent mean."
            )
        if "skipped" in out and bool(out["skipped"]):
            self.metrics.write(done, "event", {"event": "skipped", "loss": loss, "grad_norm": norm})
            reporter().warn(
                f"The update of step {done} was left out: loss {loss:.3f}, gradient norm {norm:.3g}."
            )
        if "probe" in out:
            rows = {name: np.asarray(value).tolist() for name, value in out["probe"].items()}
            self.metrics.write(done, "probe", rows)
        self.losses.append(loss)
        self.timed += 1
        if done % self.cfg.train.log_every == 0 or done == self.cfg.train.steps:
            values = {
                "loss": sum(self.losses) / len(self.losses),
                "grad_norm": norm,
                "lr": float(self.rate(jnp.int32(done - 1))),
                "tokens": self.ramp.tokens(done),
            }
            perf = self.performance(done)
            perf |= self.compare(perf)
            self.losses, self.timed = [], 0
            self.metrics.write(done, "train", values, perf)
            if self.task.account is not None:
                self.metrics.write(done, "mix", self.task.account(done))
            self.display({"step": done, "kind": "train", **values, "perf": perf})
        self.progress.advance()

    def display(self, row: dict[str, Any]) -> None:
        """A row of metrics in the progress display."""
        if row["kind"] == "train":
            perf = row.get("perf", {})
            shown = {name: perf[name] for name in ("tokens_per_second", "mfu") if name in perf}
            self.progress.metrics(row["step"], loss=row["loss"], **shown)
        elif row["kind"] == "val" and "loss" in row:
            self.progress.metrics(row["step"], val_loss=row["loss"])

    def performance(self, done: int) -> dict[str, float]:
        """Throughput since the last row, without the time of boundaries. MFU counts tokens as those of step `done`."""
        seconds, waited = self.clock.lap()
        steps = self.timed
        rate = (self.ramp.tokens(done) - self.ramp.tokens(done - steps)) / max(seconds, 1e-9)
        flops = flops_per_token(self.task.model, self.ramp.at(done - 1).seq_len)
        return {
            "tokens_per_second": rate,
            "mfu": mfu(rate, flops, self.peak),
            "step_seconds": seconds / steps,
            "data_wait": waited / max(seconds, 1e-9),
            "elapsed": self.clock.elapsed(),
            "time": time.time(),
            **memory(),
        }

    def compare(self, perf: dict[str, float]) -> dict[str, float]:
        """The slowest of several processes, and what its step takes in medians of all; one that stays slow is named,
        unless they share one processor and take each other's time."""
        if processes.count() == 1:
            return {}
        began = time.perf_counter()
        waited = perf["data_wait"] * perf["step_seconds"]
        told = processes.collect((waited, stragglers.pace(), socket.gethostname()))
        self.clock.pause(time.perf_counter() - began)
        if not told:
            return {}
        waits, paces, hosts = zip(*told, strict=True)
        own = stragglers.own_seconds(perf["step_seconds"], waits, paces)
        if jax.default_backend() != "cpu" or len(set(hosts)) > 1:
            for rank, ratio in self.slow.feed(own).items():
                reporter().warn(
                    f"Process {rank} on {hosts[rank]} is slow: a step takes it {ratio:.2f} times as long as the "
                    f"median of {len(hosts)} processes."
                )
        slowest = max(range(len(own)), key=own.__getitem__)
        return {"slowest_process": slowest, "slowest_ratio": own[slowest] / statistics.median_low(own)}

    def show(self, done: int, kind: str, values: dict[str, Any]) -> None:
        self.display({"step": done, "kind": kind, **values})
        numbers = [f"{k} {v:.4f}" for k, v in values.items() if isinstance(v, float)]
        if numbers:
            reporter().info(f"step {done}  {kind} {'  '.join(numbers)}")

    def not_finite(self, done: int, loss: float, norm: float) -> None:
        self.run.checkpoints.wait()
        good = self.run.checkpoints.latest()
        place = (
            f"The last good checkpoint is step {good}, {self.run.checkpoints.folder / str(good)}"
            if good is not None
            else "There is no checkpoint yet"
        )
        self.metrics.write(done, "event", {"event": "not finite", "loss": str(loss), "grad_norm": str(norm)})
        raise TrainingStopped(
            f"Step {done} has loss {loss} and gradient norm {norm}, so training stopped. {place}. "
            "A smaller optim.lr, a longer optim.warmup or runtime.dtype=float32 usually helps; "
            "start with another name=NAME."
        )
