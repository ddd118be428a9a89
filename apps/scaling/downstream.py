"""Accuracy before the model exists (L3-2.9): the cells of the IsoFLOP grid answer questions cut from held-out text, and
the smaller budgets say how well the best model of the largest one will.

    python -m apps.scaling.downstream        after python -m apps.scaling.isoflop

The first stage has the best cell of each budget, the second all cells; of the largest budget neither has any.
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

from apps import results
from apps.scaling.isoflop import HERE, load, name_of, save
from bench.results import Row, row
from min_llm import platform
from min_llm.data.prepare import prepare
from min_llm.evals import cloze
from min_llm.evals.choices import Question, choices
from min_llm.infer.engine import Engine
from min_llm.infer.load import load as load_model
from min_llm.infer.options import EngineConfig
from min_llm.scaling.downstream import Scored, fit_two_stage, leave_largest_out, scored
from min_llm.scaling.figure import draw_two_stage
from min_llm.scaling.grid import Cell, settle
from min_llm.scaling.sweep import results as measured

QUESTIONS = 800
CHANCE = 1 / cloze.OPTIONS


def questions(cell: Cell) -> list[Question]:
    """From the held-out speeches, which all cells share."""
    prepared = prepare(cell.run.data)
    texts = (prepared.tokenizer.decode(prepared.val.document(k)) for k in range(prepared.val.n_documents))
    return cloze.cloze(texts, QUESTIONS)


def answer(cell: Cell, asked: list[Question]) -> Scored:
    loaded = load_model(str(cell.folder))
    engine = Engine(loaded, EngineConfig(max_sequences=32, chunk=1024, warm=False), release=True)
    return scored(cell.budget, asked, choices(engine, asked, loaded.opening, delimiter=""))


def rows_of(cells: list[Cell], found: list[Scored]) -> list[Row]:
    """A row a cell."""
    return [
        row(
            name_of(cell), "cloze_accuracy", "share", cell.run.runtime.dtype, model.accuracy.value,
            spread=model.accuracy.interval, nll=model.nll, questions=model.accuracy.count, budget=cell.budget,
            parameters=cell.parameters, seed=cell.run.seed,
        )
        for cell, model in zip(cells, found, strict=True)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the sweep")
    parser.add_argument("--into", type=Path, help="results file, if not that of this checkout")
    options = parser.parse_args()
    platform.use_compilation_cache()
    cfg = load(options.out.absolute())
    cells = settle(cfg)
    losses = {cell.run.name: run.loss for cell, run in zip(cells, measured(cells), strict=True)}
    asked = questions(cells[0])
    cloze.write(cfg.folder / "cloze.jsonl", asked)
    found = []
    for cell in cells:
        found.append(answer(cell, asked))
        gc.collect()
        print(
            f"{cell.run.name}: {found[-1].nll:.3f} nats per character, accuracy {found[-1].accuracy.value:.3f}"
        )
    by_loss = sorted(zip(cells, found, strict=True), key=lambda pair: losses[pair[0].run.name])
    best = {cell.budget: model for cell, model in reversed(by_loss)}
    largest = max(best)
    models = [best[budget] for budget in sorted(best)]
    others = [m for m in found if m.flops < largest and m is not best[m.flops]]
    held = leave_largest_out(models, CHANCE, others)
    rows = rows_of(cells, found)
    rows.append(row(
        f"{largest:.3g} FLOPs", "held_out_accuracy", "share", rows[0]["dtype"], held.measured.value,
        spread=held.measured.interval, predicted=held.predicted, inside="yes" if held.inside else "no",
        questions=QUESTIONS,
    ))  # fmt: skip
    print(f"wrote {results.write('scaling', rows, options.into)}")
    fitted = fit_two_stage(models[:-1], CHANCE, others)
    save(draw_two_stage(models, others, fitted, held, "from FLOPs to accuracy"), HERE / "downstream.svg")


if __name__ == "__main__":
    main()
