"""From raw text to what every later step reads: curated text by source, a tokenizer, documents with needles.

curated/                what `min-llm data curate` leaves of all sources together, and its report
text/NAME.jsonl         the same, source by source
text/retrieval-N.jsonl  documents with needles and lists, for a context of N tokens
tokenizer.json          learned from the training text
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from apps.herd_mini.config import RETRIEVAL, HerdConfig
from min_llm import config as config_lib
from min_llm import tokenizers
from min_llm.data import needles
from min_llm.data.curate import pipeline
from min_llm.data.curate.settings import CurateConfig
from min_llm.data.mix import Phase
from min_llm.data.prepare import DataConfig, prepare_corpus
from min_llm.data.prepared import Prepared
from min_llm.data.split import draw
from min_llm.platform import replacing

WORD_LISTS = 4000  # documents of a kilobyte: each of the words is as frequent as the last merges
LIST, SHORT = 240, 400  # bytes of a document with a list, of a short one with needles


def curate(cfg: HerdConfig) -> dict[str, Any]:
    """Filter and deduplicate all sources, and lay them out source by source. What each step saw and kept."""
    given = {"inputs": cfg.sources, "output": str(cfg.folder / "curated")}
    settings = config_lib.build(CurateConfig, given | ({"steps": cfg.curate} if cfg.curate else {}))
    folder = pipeline.curate(settings)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    lay_out(cfg, sorted(folder.glob("[0-9]*.jsonl.gz")))
    return {
        "steps": [
            {"name": s["name"], "seen": s["seen"], "kept": s["kept"], "dropped": s["dropped"]}
            for s in report["steps"]
        ],
        "sources": {name: row["kept"] for name, row in report["steps"][-1]["sources"].items()},
    }


def lay_out(cfg: HerdConfig, shards: Iterable[Path]) -> None:
    """The documents of all shards as a .jsonl file of each source."""
    into = cfg.folder / "text"
    into.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files = {name: stack.enter_context(replacing(into / f"{name}.jsonl")) for name in cfg.sources}
        for shard in shards:
            with gzip.open(shard) as lines:
                for line in lines:
                    document = json.loads(line)
                    if draw(document["text"], cfg.seed + 1) < cfg.take * 2**64:
                        files[document["source"]].write(line)


def text(cfg: HerdConfig, *phases: tuple[Mapping[str, float], int | None], length: int = 0) -> DataConfig:
    """What a training reads: phases of (mix, tokens seen at its end). length: of the documents with needles, in
    tokens; sources that the mix does not weigh are validated on and not trained on."""
    length = length or base_length(cfg)
    weighed = [
        name for name in [*cfg.sources, RETRIEVAL] if name != RETRIEVAL or any(name in m for m, _ in phases)
    ]
    files = {name: cfg.folder / "text" / f"{name}.jsonl" for name in cfg.sources}
    files[RETRIEVAL] = cfg.folder / "text" / f"{RETRIEVAL}-{length}.jsonl"
    return DataConfig(
        sources={name: str(files[name]) for name in weighed},
        mix=tuple(Phase({name: float(mix.get(name, 0.0)) for name in weighed}, until) for mix, until in phases),
        tokenizer=str(tokenizer_file(cfg)),
        split="documents",
        val_fraction=cfg.held_out,
        home=str(cfg.folder / "prepared"),
    )  # fmt: skip


def equally(cfg: HerdConfig) -> DataConfig:
    """Every source alike, without the made documents."""
    return text(cfg, (dict.fromkeys(cfg.sources, 1 / len(cfg.sources)), None))


def base_length(cfg: HerdConfig) -> int:
    """Tokens of a row in pretraining."""
    return int(cfg.run["train"]["seq_len"])


def tokenizer_file(cfg: HerdConfig) -> Path:
    return cfg.folder / "tokenizer.json"


def learn_tokenizer(cfg: HerdConfig) -> dict[str, Any]:
    """Train the tokenizer on the training text of all sources, and on the words of the made documents, each of which
    is a token then; what its tokens are worth on each held-out text."""
    words = cfg.folder / "text" / f"{RETRIEVAL}-words.jsonl"
    with replacing(words) as file:
        for text in needles.lists(WORD_LISTS, 1000, cfg.seed):
            file.write(_line(text))
    equal = equally(cfg)
    every = {**equal.sources, RETRIEVAL: str(words)}
    mix = (Phase(dict.fromkeys(every, 1 / len(every))),)
    tokenizer = prepare_corpus(
        dataclasses.replace(equal, sources=every, mix=mix, tokenizer=cfg.tokenizer)
    ).tokenizer
    tokenizer.save(tokenizer_file(cfg))
    return {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": {
            name: bytes_per_token(part) for name, part in prepare_corpus(equal).parts.items()
        },
    }


def _line(text: str) -> bytes:
    return (json.dumps({"text": text}, ensure_ascii=False) + "\n").encode()


def bytes_per_token(part: Prepared) -> float:
    return part.val.scored_bytes / part.val.n_targets


def make_needles(cfg: HerdConfig, parts: Mapping[str, Prepared]) -> dict[str, Any]:
    """Documents with needles for the rows of every stage, with their haystack from the training text: half of the bytes
    are short lists said again and again, a quarter short documents with needles, a quarter ones as long as the context,
    of which the stages have half, and fewer lists. From long ones alone a small model does not learn within minutes to
    look back."""
    hay = parts[cfg.retrieval.haystack]
    text_of = hay.text("train").decode(errors="replace")
    lengths = dict.fromkeys([base_length(cfg), *cfg.context.lengths])
    for number, length in enumerate(lengths):
        long, seed = int(length * bytes_per_token(hay)), cfg.seed + number
        short = min(long, SHORT)
        size = cfg.retrieval.documents * long  # of the file
        asks, far = cfg.retrieval.asks, cfg.retrieval.far if number else 0.0
        of_lists, of_long = (4, 2) if number else (2, 4)
        made = itertools.chain(
            needles.lists(size // of_lists // LIST, LIST, seed),
            needles.documents([text_of], size // 4 // short, short, seed, asks=asks),
            needles.documents([text_of], size // of_long // long, long, seed + 1000, asks=asks, far=far),
        )
        with replacing(cfg.folder / "text" / f"{RETRIEVAL}-{length}.jsonl") as file:
            for text in made:
                file.write(_line(text))
    return {"lengths": list(lengths), "documents": cfg.retrieval.documents}


def load_tokenizer(cfg: HerdConfig) -> tokenizers.Tokenizer:
    return tokenizers.load(str(tokenizer_file(cfg)))
