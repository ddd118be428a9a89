"""`python -m apps.herd_mini.run preset=small [key=value ...]`: the whole recipe; again: it goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from apps.herd_mini import data, report, score, trainings
from apps.herd_mini.config import HerdConfig, load
from min_llm import config as config_lib
from min_llm import platform
from min_llm.cli import train as train_command
from min_llm.cli.export import write_folder
from min_llm.config import UserError
from min_llm.data.prepare import DataConfig
from min_llm.infer.load import load as load_model
from min_llm.infer.load import load_run
from min_llm.parallel import processes
from min_llm.platform import write_atomic
from min_llm.recipe.context import GateClosed, Measured, Stage, extend
from min_llm.recipe.journal import Facts, Journal, Stopped
from min_llm.reporting import reporter
from min_llm.scaling.grid import settle
from min_llm.scaling.sweep import results, run_sweep
from min_llm.train import average
from min_llm.train.config import RunConfig
from min_llm.train.loop import TrainingStopped
from min_llm.train.run import load_config

# What may change when a recipe goes on: at any time, and while there are no facts of the step that reads it first
FREE = ("out",)
LATER = {
    "context.tries": "anneal",
    "context.": "context-before", "context_mix.": "context-before", "retrieval.far": "needles",
    "anneal.": "anneal", "anneal_mix.": "anneal", "gpt2": "gpt2",
}  # fmt: skip


def main(words: list[str]) -> int:
    try:
        cfg = load(words)
        platform.run_in_turn()
        with processes.joined(), train_command.disk_errors(cfg.folder):
            platform.use_compilation_cache()
            page = Recipe(cfg).run()
    except Stopped:
        reporter().info("Stopped by a signal; the same command goes on.")
        return 143
    except (UserError, TrainingStopped) as error:
        reporter().warn(str(error))
        return 1
    reporter().info(f"Done. {page}")
    return 0


class Recipe:
    """The steps in their order; what each has found lies in FOLDER/steps."""

    def __init__(self, cfg: HerdConfig) -> None:
        self.cfg = cfg
        agree(cfg)
        self.journal = Journal(cfg.folder / "steps")

    def run(self) -> Path:
        """Everything that is not done yet; the report."""
        cfg, step = self.cfg, self.journal.step
        step("curate", lambda: data.curate(cfg))
        step("tokenizer", lambda: data.learn_tokenizer(cfg))
        self.held_out = score.corpus(cfg)
        step("needles", lambda: data.make_needles(cfg, self.held_out.parts))
        rung = cfg.ladder[step("size", self.size)["chosen"]]
        start = trainings.pretrain(cfg, rung)
        step("pretrain", lambda: self.train(start))
        stages = self.extend(start)
        last = stages[-1].run if stages else start
        reached = stages[-1].length if stages else data.base_length(cfg)
        final = trainings.anneal(cfg, last, start, reached)
        step("anneal", lambda: self.train(final))
        step("average", lambda: self.average(final))
        folders = {"pretrained": folder(start), "extended": folder(last), "annealed": folder(final)}
        folders["averaged"] = cfg.folder / "model"
        if cfg.gpt2:
            other = trainings.gpt2(cfg, start, self.context_runs(stages), final)
            step("gpt2", lambda: self.train(other))
            folders["gpt2"] = folder(other)
        step("score", lambda: score.models(cfg, folders, self.held_out, reached))
        step("baselines", lambda: score.without_network(self.held_out))
        step("needles-final", lambda: self.needles(cfg.folder / "model"))
        step("samples", lambda: score.samples(cfg, cfg.folder / "model", self.held_out))
        return report.write(cfg)

    def size(self) -> Facts:
        cells = settle(trainings.sweep(self.cfg))
        if not run_sweep(cells, self.trains):
            raise Stopped
        return trainings.choose(self.cfg, results(cells))

    def trains(self, run: RunConfig) -> bool:
        return train_command.run(run)[0]

    def train(self, run: RunConfig) -> Facts:
        if not self.trains(run):
            raise Stopped
        tokens, steps = trainings.tokens(run), run.train.steps
        return {"begun_with": Path(run.init_from).name, "tokens": tokens, "steps": steps}

    def extend(self, start: RunConfig) -> list[Stage]:
        """The stages of long context that pass. Where one does not, the model of those before goes on, and the report
        says why."""
        self.journal.forget("closed")  # with more tries than last time it may pass
        try:
            return extend(
                self.cfg.context, start, self.journal, self.text_of_stage, self.trains, self.measure
            )
        except GateClosed as closed:
            reporter().warn(str(closed))
            self.journal.write("closed", {"why": str(closed)})
            return closed.passed

    def text_of_stage(self, length: int) -> DataConfig:
        return data.text(self.cfg, (self.cfg.context_mix, None), length=length)

    def measure(self, run: RunConfig, lengths: tuple[int, ...]) -> Measured:
        """For the gates: the loss in short rows, and needles at these lengths."""
        loaded = load_run(folder(run))
        grid = score.grid(self.cfg, loaded, lengths, self.held_out)
        write_atomic(folder(run) / "needles.json", grid.to_json())
        short = score.loss(self.cfg, loaded, data.base_length(self.cfg), self.held_out)["loss"]
        return Measured(short, {n: grid.at(n).value for n in lengths})

    def context_runs(self, stages: list[Stage]) -> list[RunConfig]:
        """What the model has been trained with in the stages: their runs and the extensions between them."""
        lengths = [str(stage.length) for stage in stages]
        names = report.stages(report.read_steps(self.cfg.folder))
        return [load_config(self.cfg.folder / "runs" / n) for n in names if n.split("-")[1] in lengths]

    def average(self, final: RunConfig) -> Facts:
        """The mean of the last half of the checkpoints of the annealing, as a folder for transformers."""
        steps = average.last_steps(folder(final), -(-self.cfg.anneal.checkpoints // 2))
        target = self.cfg.folder / "model"
        if not target.exists():
            mean = dataclasses.replace(load_run(folder(final)), params=average.average(folder(final), steps))
            write_folder(mean, target, "float32")
        return {"steps": steps}

    def needles(self, model: Path) -> Facts:
        lengths = self.cfg.context.lengths or (data.base_length(self.cfg),)
        return {"grid": json.loads(score.grid(self.cfg, load_model(model), lengths, self.held_out).to_json())}


def folder(run: RunConfig) -> Path:
    return Path(run.out) / run.name


def agree(cfg: HerdConfig) -> None:
    """The folder holds this recipe, or nothing yet."""
    path, now = cfg.folder / "config.yaml", config_lib.dump(cfg)
    if path.exists():
        was, given = (config_lib.flatten(tree) for tree in (config_lib.read(path), now))
        free = (
            *FREE,
            *(key for key, step in LATER.items() if not (cfg.folder / "steps" / f"{step}.json").exists()),
        )
        changed = [k for k in sorted(was.keys() | given.keys()) if was.get(k) != given.get(k)]
        if changed := [k for k in changed if not k.startswith(free)]:
            raise UserError(
                f"{cfg.folder} holds a recipe with other settings ({', '.join(changed[:5])}). Give another name=NAME, "
                "or remove the folder."
            )
    write_atomic(path, config_lib.to_yaml(cfg))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
