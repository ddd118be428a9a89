"""How text is cut into pieces before byte-pair merging: the published expressions, and a length limit.

A merge never crosses the border of a piece, so the expression decides what a token can be: words carry their
leading space, digits come in groups, punctuation keeps to itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from min_llm.tokenizers.base import TokenizerError

# "Language Models are Unsupervised Multitask Learners" (GPT-2), encoder.py.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Llama 3 (llama-models 0.3.0, llama3/tokenizer.py): contractions in any case, digits in groups of at most
# three, one leading character of punctuation may stay with a word, newlines stay together.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PATTERNS = {"gpt2": GPT2, "llama3": LLAMA3}

# Both expressions look ahead over whitespace, which overflows the stack of tiktoken's engine for a run of
# some hundred thousand. Llama's own tokenizer cuts every run of whitespace or of non-whitespace at this
# length.
LONGEST_RUN = 25_000
_RUN = re.compile(r"\s+|\S+")


def cut_runs(text: str, longest: int = LONGEST_RUN) -> list[str]:
    """The text in parts such that no run of whitespace, or of non-whitespace, in one is longer than
    `longest`.

    Equal to the cutting in Llama's tokenizer; a text without such a run is one part.
    """
    # A run longer than `longest` covers one of these windows completely, so normal text needs no full scan.
    half = max(longest // 2, 1)
    windows = range(0, len(text) - half + 1, half)
    if not any(_RUN.fullmatch(text, start, start + half) for start in windows):
        return [text]
    cuts = [0]
    for run in _RUN.finditer(text):
        cuts.extend(range(run.start() + longest, run.end(), longest))
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


@functools.lru_cache(maxsize=8)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The compiled expression; `regex` (tiktoken requires it) knows the Unicode classes that `re` lacks.

    Raises TokenizerError for what is no regular expression.
    """
    import regex

    try:
        return regex.compile(pattern)
    except (regex.error, TypeError) as error:
        raise TokenizerError(f"The splitting expression {pattern!r} cannot be used: {error}.") from error


def pieces(text: str, pattern: str) -> Iterator[str]:
    """The pieces of a text in order: the plain version of what tiktoken does inside.

    Raises TokenizerError, after the last piece, when the expression left something out.
    """
    compiled = compile_pattern(pattern)
    for part in cut_runs(text):
        found = compiled.findall(part)
        yield from found
        if sum(map(len, found)) != len(part):
            raise TokenizerError(f"The splitting expression {pattern!r} leaves out parts of the text.")
