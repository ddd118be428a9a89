"""`min-llm tokenizer train|encode|info`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train a tokenizer, encode text, describe one.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="llama3, gpt2, byte, or the path of a tokenizer file")]


@app.command()
def train(
    source: Annotated[str, typer.Argument(help="data source or path of text (see `min-llm data list`)")],
    vocab_size: Annotated[int, typer.Option(help="tokens, bytes and specials included")] = 2048,
    out: Annotated[Path, typer.Option(help="file to write")] = Path("tokenizer.json"),
) -> None:
    """Train a byte-level BPE on a source and save it."""
    from min_llm.data.sources import documents
    from min_llm.reporting import reporter
    from min_llm.tokenizers import chars_per_token, train_bpe

    texts = list(documents(source))
    tokenizer = train_bpe(texts, vocab_size)
    tokenizer.save(out)
    reporter().info(f"{chars_per_token(tokenizer, texts[:20]):.3f} characters a token on the first documents")
    print(out)


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
