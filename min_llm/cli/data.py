"""`min-llm data`: list sources, prepare one, look at what was prepared. Results go to standard output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from min_llm.cli.classifier import classifier, distil
from min_llm.cli.curate import curate
from min_llm.config import UserError, build, nearest

if TYPE_CHECKING:
    from min_llm.data.prepared import Prepared

app = typer.Typer(help="Sources of text and prepared token files.", no_args_is_help=True)
app.command(add_help_option=False)(curate)
app.command(add_help_option=False)(classifier)
app.command(add_help_option=False)(distil)

SHOWN_TOKENS = 48
SHOWN_CHARACTERS = 300


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
) -> None:
    """The registered sources (size, licence, what they need, whether they are here) and all prepared data."""
    from min_llm.data import prepared, sources

    known = [sources.resolve(name) for name in sources.registry()]
    rows = [
        {
            "name": s.name,
            "MB": round(s.size / 1e6, 1),
            "licence": s.licence,
            "needs": s.needs,
            "cached": s.is_cached(),
            "text": s.title,
        }
        for s in known
    ]
    folders = prepared.prepared_folders()
    if as_json:
        print(json.dumps({"sources": rows, "prepared": [str(f) for f in folders]}, indent=1))
        return
    _table(rows)
    print("\nAlso hf:OWNER/NAME, and the path of a .txt, .jsonl or .parquet file or of a folder of them.")
    if folders:
        print(f"\nPrepared in {folders[0].parent} (min-llm data show NAME):")
        for folder in folders:
            splits = prepared.read_meta(folder)["splits"]
            print(f"  {folder.name}: {splits['train']['tokens']:,} + {splits['val']['tokens']:,} tokens")


@app.command("prepare")
def prepare_(
    source: Annotated[list[str], typer.Argument(help="names, hf:OWNER/NAME or paths; several are joined")],
    tokenizer: Annotated[
        str, typer.Option(help="chars or bpe:SIZE (of the training text), bytes, gpt2, llama3, or a path")
    ] = "bpe:2048",
    split: Annotated[str, typer.Option(help="auto, tail, documents or holdout")] = "auto",
    val_fraction: Annotated[float, typer.Option(help="share of the text for validation")] = 0.1,
    tune: Annotated[
        bool, typer.Option(help="validate on the training text's tail, leave the validation text out")
    ] = False,
    seed: Annotated[int, typer.Option(help="of the draw of documents")] = 0,
    field: Annotated[str, typer.Option(help="field that holds the text (.jsonl, .parquet, hf)")] = "text",
    home: Annotated[str, typer.Option(help="folder instead of $MIN_LLM_HOME")] = "",
) -> None:
    """Turn text into token files; prints the folder they are in. The second time it only finds it again."""
    from min_llm.data.prepare import DataConfig, prepare

    given: dict[str, Any] = {"source": source[0] if len(source) == 1 else source, "tokenizer": tokenizer}
    given |= {"split": split, "val_fraction": val_fraction, "tune": tune, "seed": seed}
    cfg = build(DataConfig, given | {"field": field, "home": home}, "data")
    print(prepare(cfg).folder)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="folder, or (the beginning of) the name of prepared data")],
    documents: Annotated[int, typer.Option(help="how many documents of the training text to show")] = 2,
    verify: Annotated[bool, typer.Option("--verify", help="compare every file with its sha256")] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="bits per byte of xz -9 and a 5-gram (up to a minute)")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print meta.json")] = False,
) -> None:
    """Counts, licence, the beginning of some documents and the first tokens with their boundaries."""
    from min_llm.data import prepared as prepared_

    prepared = prepared_.open_prepared(_find(name))
    if verify:
        prepared_.verify(prepared)
    if as_json:
        print(json.dumps(prepared.meta, indent=1, ensure_ascii=False))
        return
    for line in prepared.describe():
        print(line)
    if verify:
        print(f"verified: {len(prepared.meta['files'])} files have the sha256 they were written with")
    if baselines:
        from min_llm.evals.baselines import baselines as compute

        found = compute(prepared)
        alone, conditional = found["xz_9"]["alone"], found["xz_9"]["conditional"]
        gram = found["kneser_ney"]
        print(
            f"bits per byte of the validation text: xz -9 {alone:.3f} (given the training text "
            f"{conditional:.3f}), Kneser-Ney {gram['order']}-gram {gram['bits_per_byte']:.3f}"
        )
    for k in range(min(documents, prepared.train.n_documents)):
        text = prepared.tokenizer.decode(prepared.train.document(k)[: 4 * SHOWN_CHARACTERS])
        print(f"\n--- document {k} of the training text\n{text[:SHOWN_CHARACTERS].rstrip()}")
    print(f"\n--- first tokens of the training text\n{_boundaries(prepared)}")


@app.command()
def mix(
    settings: Annotated[list[str], typer.Argument(metavar="CONFIG.yaml [key=value ...]", show_default=False)],
) -> None:
    """What a run's data.mix takes from each source in each phase: shares and epochs. Prepares the data first."""
    from min_llm.cli.models import load_run_config
    from min_llm.data.prepare import prepare_corpus
    from min_llm.train.stream import Stream

    run, _ = load_run_config(settings, 0)
    if not run.data.mix:
        raise UserError("The configuration has no data.mix; it trains on data.source alone.")
    for line in Stream(run, prepare_corpus(run.data)).plan():
        print(line)


@app.command()
def needles(
    out: Annotated[Path, typer.Argument(help="the .jsonl file to write; it is a source then")],
    haystack: Annotated[str, typer.Option(help="text to put the needles into: a source, as for prepare")],
    documents: Annotated[int, typer.Option(help="how many to make")] = 4000,
    length: Annotated[int, typer.Option(help="bytes of a document, at most")] = 1000,
    density: Annotated[float, typer.Option(help="share of the bytes that needles and questions take")] = 0.6,
    asks: Annotated[int, typer.Option(help="questions about each needle")] = 1,
    far: Annotated[
        float, typer.Option(help="share stated at the beginning and asked for at the end of a document")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="of keys, values and places")] = 0,
    field: Annotated[str, typer.Option(help="field that holds the text (.jsonl, .parquet, hf)")] = "text",
) -> None:
    """Write documents that state needles and ask for them, to train long contexts on. `min-llm eval --task needles`
    measures what a model has learned from them."""
    from min_llm.data import needles as made
    from min_llm.data.sources import documents as texts
    from min_llm.platform import write_atomic

    lines = made.documents(texts(haystack, field), documents, length, seed, density, asks, far)
    write_atomic(out, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in lines))
    print(out)


def _boundaries(prepared: Prepared) -> str:
    """The first tokens, each ended by |, line ends visible."""
    ids = prepared.train.plain[:SHOWN_TOKENS].tolist()
    return "".join(prepared.tokenizer.decode([i]).replace("\n", "⏎") + "|" for i in ids)


def _find(name: str) -> Path:
    """The prepared folder that a path or the beginning of a name means."""
    from min_llm.data.prepared import prepared_folders

    if (Path(name) / "meta.json").is_file():
        return Path(name)
    names = {folder.name: folder for folder in prepared_folders()}
    matches = [folder for found, folder in names.items() if found.startswith(name)]
    if len(matches) == 1 or name in names:
        return names.get(name, matches[0])
    if matches:
        raise UserError(
            f"{name!r} begins several names: {', '.join(f.name for f in matches)}. Give one of them."
        )
    hint = nearest(name, list(names)) if names else " Nothing is prepared yet: `min-llm data prepare SOURCE`."
    raise UserError(f"There is no prepared data {name!r}.{hint}")


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0]:
        table.add_column(column, justify="right" if column == "MB" else "left", no_wrap=True)
    for row in rows:
        cells = ["yes" if v is True else "" if v is False else str(v) for v in row.values()]
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
