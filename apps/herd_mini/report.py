"""report.html: the whole story on one page, from what the steps have written."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from apps.herd_mini import trainings
from apps.herd_mini.config import HerdConfig
from min_llm import config as config_lib
from min_llm import models, spec
from min_llm.evals.figure import draw as draw_needles
from min_llm.evals.needles import Grid
from min_llm.platform import write_atomic
from min_llm.recipe.journal import Journal
from min_llm.reporting import clock, page
from min_llm.scaling import fits
from min_llm.scaling.figure import draw as draw_isoflop
from min_llm.train import figures, history
from min_llm.train.figures import Mark, Series
from min_llm.train.report import Card, machine
from min_llm.train.run import load_config

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MODELS = {  # in the order of the table
    "xz": "xz -9, knowing the training text",
    "kneser_ney": "5-gram, interpolated Kneser-Ney",
    "gpt2": "GPT-2, nearest size, equal tokens",
    "pretrained": "pretrained",
    "extended": "+ long context",
    "annealed": "+ annealing",
    "averaged": "+ averaging: the model",
    "whole": "the model in its whole context",
}
FINAL, WHOLE = "averaged", "whole"  # in rows as short as GPT-2's, and in rows as long as its context


def write(cfg: HerdConfig) -> Path:
    path = cfg.folder / "report.html"
    write_atomic(path, render(cfg))
    return path


class Line(NamedTuple):
    """A row of the table of scores: a number for each source and one for all text; best: whether it is the lowest."""

    name: str
    values: list[tuple[str, bool]]
    ours: bool


def render(cfg: HerdConfig) -> str:
    steps = read_steps(cfg.folder)
    runs = cfg.folder / "runs"
    chain = [runs / name for name in trained(steps)]
    scores = bits(cfg, steps)
    start = load_config(chain[0])
    return page.render(
        TEMPLATE,
        name=cfg.name,
        cards=cards(cfg, steps, scores, start.model),
        columns=[*cfg.sources, "all text"],
        lines=lines(cfg, scores),
        beaten=beaten(cfg, scores),
        curation=steps["curate"]["steps"],
        mixes={
            title: {name: f"{mix.get(name, 0):.0%}" for name in [*cfg.sources, "retrieval"]}
            for title, mix in (
                ("pretraining", cfg.mix), (f"after {cfg.pretrain.late:.0%} of it", cfg.late_mix),
                ("long context", cfg.context_mix), ("annealing", cfg.anneal_mix),
            )
        },
        bytes_per_token=steps["tokenizer"]["bytes_per_token"],
        vocab_size=steps["tokenizer"]["vocab_size"],
        size=steps["size"],
        budget=cfg.pretrain.flops,
        isoflop=picture(isoflop(steps["size"]), "loss by training tokens for each budget, with fitted parabolas"),
        loss=Markup(loss_figure(chain, runs / "gpt2")),
        before=steps.get("context-before"),
        stages=[stage(runs, steps, name) for name in stages(steps)],
        recover=cfg.context.recover,
        closed=steps.get("closed", {}).get("why"),
        grids=[picture(draw_needles(grid, title), title) for title, grid in grids(cfg, steps)],
        samples=steps["samples"]["samples"],
        times=[(name, clock(facts["seconds"])) for name, facts in in_order(steps)],
        total=clock(seconds(steps)),
        machine=machine(history.starts(chain[0])),
        config=config_lib.dump(cfg),
    )  # fmt: skip


def read_steps(folder: Path) -> dict[str, Any]:
    """The facts of every finished step."""
    journal = Journal(folder / "steps")
    return {path.stem: journal.read(path.stem) or {} for path in sorted(journal.folder.glob("*.json"))}


def stages(steps: dict[str, Any]) -> list[str]:
    """The runs of the long-context stage, extensions included, in the order of training."""
    found = [name for name in steps if name.startswith("context-") and name != "context-before"]

    def place(name: str) -> tuple[int, int]:
        length, _, more = name.removeprefix("context-").partition("-more")
        return int(length), int(more or 0)

    return sorted(found, key=place)


def trained(steps: dict[str, Any]) -> list[str]:
    """The runs that have made the model; those of a stage that did not pass have not."""
    begun, found = steps["anneal"]["begun_with"], ["pretrain"]
    for name in stages(steps):
        found.append(name)
        if name == begun:
            break
    return [*(found if begun != "pretrain" else found[:1]), "anneal"]


def in_order(steps: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    first = ("curate", "tokenizer", "needles", "size", "pretrain", "context-before")
    last = ("anneal", "average", "gpt2", "score", "baselines", "needles-final", "samples")
    for name in (*first, *stages(steps), *last):
        if name in steps:
            yield name, steps[name]


# Numbers


def seconds(steps: dict[str, Any]) -> float:
    """Of all steps together."""
    return sum(facts["seconds"] for _, facts in in_order(steps))


def bits(cfg: HerdConfig, steps: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Bits per byte of every model: by source, and of all text ("all text")."""
    found: dict[str, dict[str, float]] = {}
    plain = {name: steps["baselines"][name] for name in cfg.sources}
    sizes = {name: base["val_bytes"] for name, base in plain.items()}
    for model, value in (
        ("xz", lambda base: base["xz_9"]["conditional"]),
        ("kneser_ney", lambda base: base["kneser_ney"]["bits_per_byte"]),
    ):
        each = {name: value(base) for name, base in plain.items()}
        found[model] = each | {"all text": sum(each[n] * sizes[n] for n in each) / sum(sizes.values())}
    for model in MODELS:
        if (score := steps["score"].get(model)) is not None:
            each = {name: score[f"bits_per_byte/{name}"] for name in cfg.sources}
            found[model] = each | {"all text": score["bits_per_byte"]}
    return found


def lines(cfg: HerdConfig, scores: dict[str, dict[str, float]]) -> list[Line]:
    columns = [*cfg.sources, "all text"]
    lowest = {column: min(values[column] for values in scores.values()) for column in columns}
    return [
        Line(title, [(f"{scores[m][c]:.3f}", scores[m][c] == lowest[c]) for c in columns], m == FINAL)
        for m, title in MODELS.items()
        if m in scores
    ]


def beaten(cfg: HerdConfig, scores: dict[str, dict[str, float]]) -> list[str]:
    """Sentences: on how many sources the model is better than each baseline, and where not."""
    found = []
    for other in ("kneser_ney", "gpt2", "xz"):
        if other not in scores:
            continue
        said = []
        for model, rows in ((FINAL, "rows of pretraining's length"), (WHOLE, "its whole context")):
            lost = [name for name in cfg.sources if scores[model][name] >= scores[other][name]]
            where = f" (not on {', '.join(lost)})" if lost else ""
            said.append(f"on {len(cfg.sources) - len(lost)} of {len(cfg.sources)} sources in {rows}{where}")
        found.append(f"Better than {MODELS[other]}: {', '.join(said)}.")
    return found


def cards(
    cfg: HerdConfig, steps: dict[str, Any], scores: dict[str, dict[str, float]], model: Any
) -> list[Card]:
    tokens = sum(trainings.tokens(load_config(cfg.folder / "runs" / name)) for name in trained(steps))
    perfect = [n for n, share in recall(steps).items() if share == 1]
    count = spec.count(models.spec(model))
    return [
        Card("bits per byte", f"{scores[FINAL]['all text']:.3f}", "", "of all held-out text; less is better"),
        Card("parameters", figures.number(count), "", f"{count:,}, embeddings included; chosen by the scaling law"
             if steps["size"]["law"] else f"{count:,}, embeddings included"),
        Card("tokens", figures.number(tokens), "", "trained on in all stages"),
        Card("needles found", f"{max(perfect):,}" if perfect else "–", "tokens" if perfect else "",
             "the longest context in which all of them are" if perfect else "no length at which all of them are"),
        Card("time", clock(seconds(steps)), "", "of all steps together"),
    ]  # fmt: skip


def recall(steps: dict[str, Any]) -> dict[int, float]:
    """Of the final model, by length."""
    grid = final_grid(steps)
    return {length: grid.at(length).value for length in grid.lengths}


def final_grid(steps: dict[str, Any]) -> Grid:
    return Grid.from_json(json.dumps(steps["needles-final"]["grid"]))


def stage(runs: Path, steps: dict[str, Any], name: str) -> dict[str, Any]:
    """A row of the table of gates."""
    cfg, facts = load_config(runs / name), steps[name]
    model: Any = cfg.model
    return {
        "name": name.removeprefix("context-"),
        "theta": f"{model.rope_theta:,.0f}",
        "tokens": trainings.tokens(cfg),
        "short": facts["short"],
        "change": facts["short"] / steps["context-before"]["short"] - 1,
        "recall": {int(n): share for n, share in facts["recall"].items()},
    }


# Figures


def picture(figure: Figure, about: str) -> Markup:
    """A figure of matplotlib in the page itself."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(
        about, base64.b64encode(data.getvalue()).decode()
    )


def isoflop(size: dict[str, Any]) -> Figure:
    runs = [fits.Measured(**run) for run in size["runs"]]
    found = None if size["law"] is None else fits.fit(runs)
    return draw_isoflop(runs, fits.fit_isoflop(runs), found, "")


def loss_figure(chain: Sequence[Path], gpt2: Path) -> str:
    """The training loss of all stages, one after the other, over the tokens seen."""
    points: list[history.Point] = []
    marks = []
    seen = 0.0
    for folder in chain:
        rows = [row for row in history.read_rows(folder)[0] if row["kind"] == "train"]
        if seen:
            marks.append(Mark(seen, f"{folder.name} begins"))
        points += [(seen + row["tokens"], row["loss"]) for row in rows]
        seen = points[-1][0]
    series = [
        Series("this model", points, "a", faint=True),
        Series("this model, smoothed", figures.smooth(points), "a"),
    ]
    if gpt2.is_dir():
        other = [(row["tokens"], row["loss"]) for row in history.read_rows(gpt2)[0] if row["kind"] == "train"]
        series.append(Series("GPT-2, smoothed", figures.smooth(other), "b"))
    return figures.curve(
        "Training loss",
        series,
        unit="nats a token, over tokens seen",
        fmt=lambda y: f"{y:.3f}",
        marks=marks,
        tall=True,
        over="token",
    )


def grids(cfg: HerdConfig, steps: dict[str, Any]) -> Iterator[tuple[str, Grid]]:
    """Before the stages, and at the end."""
    before = cfg.folder / "runs" / "pretrain" / "needles.json"
    if before.is_file():
        yield "before the stages", Grid.from_json(before.read_text(encoding="utf-8"))
    yield "the model", final_grid(steps)
