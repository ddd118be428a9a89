"""`min-llm tokenizer train|extend|compare|encode|info`."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from min_llm.cli.models import show

if TYPE_CHECKING:
    from min_llm.tokenizers import BPE

app = typer.Typer(help="Train a tokenizer, extend, compare, encode, describe.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="llama3, gpt2, byte, or the path of a tokenizer file")]
Out = Annotated[
    Path, typer.Option(help="file to write; .tiktoken: ranks in tiktoken's format, without specials")
]

COMPARED_CHARS = 1_000_000


@app.command()
def train(
    source: Annotated[str, typer.Argument(help="data source or path of text (see `min-llm data list`)")],
    vocab_size: Annotated[int, typer.Option(help="tokens, bytes and specials included")] = 2048,
    out: Out = Path("tokenizer.json"),
) -> None:
    """Train a byte-level BPE on a source and save it."""
    from min_llm.data.sources import documents
    from min_llm.reporting import reporter
    from min_llm.tokenizers import chars_per_token, train_bpe

    texts = list(documents(source))
    tokenizer = train_bpe(texts, vocab_size, processes=os.cpu_count() or 1)
    save(tokenizer, out)
    reporter().info(f"{chars_per_token(tokenizer, texts[:20]):.3f} characters a token on the first documents")
    print(out)


@app.command()
def extend(
    tokenizer: Name,
    source: Annotated[str, typer.Argument(help="text of other languages: a data source or a path")],
    extra: Annotated[int, typer.Option(help="tokens to add behind those it has")] = 1000,
    protect: Annotated[
        list[str] | None, typer.Option(help="source whose text stays tokenised as it is; again for more")
    ] = None,
    only_non_ascii: Annotated[
        bool, typer.Option("--only-non-ascii", help="no new token is pure ASCII: no ASCII text changes")
    ] = False,
    out: Out = Path("tokenizer.json"),
) -> None:
    """Learn more tokens from other text behind those of a tokenizer (Llama 3: 28K behind 100K)."""
    from min_llm.config import UserError
    from min_llm.data.sources import documents
    from min_llm.tokenizers import BPE, load
    from min_llm.tokenizers import extend as extended

    base = load(tokenizer)
    if not isinstance(base, BPE):
        raise UserError(
            f"{tokenizer} is no byte-level BPE of min_llm's or tiktoken's format; only those are extended."
        )
    guarded = itertools.chain.from_iterable(documents(name) for name in protect or ())
    processes = os.cpu_count() or 1
    made = extended(
        base, documents(source), extra, protect=guarded, only_non_ascii=only_non_ascii, processes=processes
    )
    save(made, out)
    print(out)


@app.command()
def compare(
    tokenizers: Annotated[list[str], typer.Argument(help="names or paths, as in `info`")],
    on: Annotated[
        list[str], typer.Option(help="data source or path of text, say one a language; again for more")
    ],
) -> None:
    """Characters a token of each tokenizer on the first million characters of each text: more is shorter."""
    from min_llm.data.sources import documents
    from min_llm.tokenizers import chars_per_token, load

    loaded = [load(name) for name in tokenizers]
    rows = []
    for source in on:
        texts = list(first(documents(source), COMPARED_CHARS))
        rows.append((source, *(f"{chars_per_token(tokenizer, texts):.3f}" for tokenizer in loaded)))
    sizes = [f"{tokenizer.name} ({tokenizer.vocab_size:,})" for tokenizer in loaded]
    show(("characters a token", *sizes), rows, right=tuple(range(1, len(sizes) + 1)))


@app.command()
def encode(
    tokenizer: Name,
    text: Annotated[str | None, typer.Argument(help="text; standard input when left out")] = None,
    special: Annotated[bool, typer.Option(help="let the text spell special tokens")] = False,
    pieces: Annotated[bool, typer.Option(help="show each token's text instead of its id")] = False,
) -> None:
    """Print the token ids of a text."""
    from min_llm.tokenizers import load

    loaded = load(tokenizer)
    ids = loaded.encode(sys.stdin.read() if text is None else text, allow_special=special)
    print(" ".join(repr(loaded.decode([i])) for i in ids) if pieces else " ".join(map(str, ids)))


@app.command()
def info(tokenizer: Name) -> None:
    """Name, size, special tokens and fingerprint."""
    from min_llm.tokenizers import load

    loaded = load(tokenizer)
    names = list(loaded.special)
    print(f"name         {loaded.name}")
    print(f"vocab_size   {loaded.vocab_size}")
    print(f"eos          {loaded.eos}")
    print(f"special      {len(names)}: {' '.join(names[:12])}{' …' if len(names) > 12 else ''}")
    print(f"fingerprint  {loaded.fingerprint()}")


def save(tokenizer: BPE, out: Path) -> None:
    from min_llm.tokenizers import tiktoken_file

    if out.suffix == ".tiktoken":
        tiktoken_file.write_ranks(out, tokenizer)
    else:
        tokenizer.save(out)


def first(texts: Iterator[str], chars: int) -> Iterator[str]:
    """The beginning of the texts, so many characters long."""
    for text in texts:
        yield text[:chars]
        chars -= len(text)
        if chars <= 0:
            return
