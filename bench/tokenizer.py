"""Training a byte-level BPE tokenizer beside Hugging Face `tokenizers` (Rust): the same text, pieces and vocabulary.

    python -m bench.tokenizer [--megabytes 50] [--vocabulary 32000] [--rounds 3] [--dry]

The text is that of the registered sources, in the order of sources.toml, filled up with the Python files of installed
packages. Both sides get it in memory and all cores: ours counts pieces in a process a core and merges in one, theirs
has a thread a core. They take turns; a ratio is of one round. The row also says how many merges are equal, counted
from the first: the rules for ties are the same, so all of them should be.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from bench import results
from min_llm import machine
from min_llm.config import UserError
from min_llm.data import sources
from min_llm.fetch import FetchError
from min_llm.tokenizers import BPE, byte_level, chars_per_token, split, train_bpe

SOURCES = (
    "shakespeare",
    "milton",
    "wiki-en",
    "wiki-fr",
    "wiki-es",
    "sotu",
    "moby-dick",
    "austen",
    "python-stdlib",
)
PEER = "tokenizers"


def documents() -> Iterator[str]:
    """Text without end for the purpose: sources first, then source code."""
    for name in SOURCES:
        try:
            yield from sources.documents(name)
        except (FetchError, UserError) as error:
            print(f"without {name}: {error}", file=sys.stderr)
    for path in sorted(Path(next(p for p in sys.path if p.endswith("site-packages"))).rglob("*.py")):
        yield path.read_text(encoding="utf-8", errors="ignore")


def text_of(size: int) -> list[str]:
    """Documents of `size` bytes or, of the last one, a little more."""
    found, held = [], 0
    for document in documents():
        found.append(document)
        held += len(document.encode(errors="ignore"))
        if held >= size:
            return found
    raise SystemExit(
        f"There are only {held / 1e6:.0f} MB of text on this machine; ask for fewer --megabytes."
    )


def theirs(texts: list[str], vocabulary: int) -> list[tuple[bytes, bytes]]:
    """The merges of the peer's trainer on the same pieces."""
    import json

    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(split.LLAMA3), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    )
    pairs = json.loads(made.to_str())["model"]["merges"]
    return [(byte_level.from_printable(a), byte_level.from_printable(b)) for a, b in pairs]


def ours(texts: list[str], vocabulary: int) -> BPE:
    return train_bpe(texts, vocabulary, special=(), end_of_document=None, processes=results.cores())


def timed(fn, *arguments):
    began = time.perf_counter()
    made = fn(*arguments)
    return made, time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=50, help="of text")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="ids, the 256 bytes included")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side trains")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    texts = text_of(int(arguments.megabytes * 1e6))
    seconds: list[tuple[float, float]] = []
    with machine.exclusive():
        for _ in range(arguments.rounds):
            made, mine = timed(ours, texts, arguments.vocabulary)
            merges, other = timed(theirs, texts, arguments.vocabulary)
            seconds.append((mine, other))
            print(f"ours {mine:.1f} s, {PEER} {other:.1f} s", flush=True)
    same = sum(
        1
        for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(made.merges(), merges, strict=True))
    )
    ratio, spread = results.median_and_spread([other / mine for mine, other in seconds])
    row = results.row(
        f"{arguments.megabytes:g} MB, {arguments.vocabulary} tokens", "train", "s", "",
        statistics.median(mine for mine, _ in seconds), peer_name=PEER,
        peer=statistics.median(other for _, other in seconds), better="lower", ratio=ratio, spread=spread,
        runs=len(seconds), equal_merges=same, merges=len(merges), processes=results.cores(),
        chars_per_token=chars_per_token(made, texts),
    )  # fmt: skip
    if arguments.dry:
        print(row)
    else:
        print("wrote", results.write("tokenizer", [row], versions={PEER: version(PEER)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
