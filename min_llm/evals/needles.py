"""Needle in a haystack: does a model find what a long text said, at any length and depth? (Llama 3 sections 3.4.2 and
5.2.6; L3-4.4, L3-8.6)

The models that are scored here are minis that were trained on the retrieval task itself (data/needles.py), with other
text, keys and values: recall says how far back they can look, not that they understand what they read.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from min_llm.config import UserError
from min_llm.data.needles import Needle, draw, onwards, sentences
from min_llm.evals.intervals import Accuracy
from min_llm.evals.scoring import Pair, scores
from min_llm.infer.engine import Engine
from min_llm.infer.load import Loaded


@dataclasses.dataclass(frozen=True)
class Grid:
    """recall[i][j]: the answers that were right at lengths[i] (tokens of prompt and answer) and depths[j] (where in the
    text the needle stood: 0 its beginning, 1 its end). inserted, asked: needles of a text, and those asked for."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    recall: tuple[tuple[Accuracy, ...], ...]
    inserted: int = 1
    asked: int = 1

    def at(self, length: int) -> Accuracy:
        """Over all depths."""
        row = self.recall[self.lengths.index(length)]
        return Accuracy(sum(a.correct for a in row), sum(a.count for a in row))

    def perfect(self, length: int) -> bool:
        """Whether every answer was right: the criterion by which Llama 3 went on to a longer context."""
        found = self.at(length)
        return found.correct == found.count

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> Grid:
        """Raises UserError for what is no grid."""
        try:
            plain = json.loads(text)
            recall = tuple(tuple(Accuracy(**cell) for cell in row) for row in plain.pop("recall"))
            lengths, depths = tuple(plain.pop("lengths")), tuple(plain.pop("depths"))
            return Grid(lengths, depths, recall, **plain)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"This is no grid of recalls as Grid.to_json writes them: {error}.") from error


def needles(
    engine: Engine,
    haystack: Iterable[str],
    lengths: Sequence[int],
    depths: Sequence[float],
    trials: int = 8,
    seed: int = 0,
    inserted: int = 1,
    asked: int = 1,
    opening: Sequence[int] = (),
) -> Grid:
    """Recall by length and depth, of `trials` texts each. An answer is right when the model's greedy one is it, token
    for token.

    haystack: text that the model was not trained on. inserted: needles of a text, the first of them at the depth, the
    others anywhere; asked: how many of them are asked for, the first and others, each question by itself behind the
    whole text. The paper inserts 4 and asks for 2. opening: tokens that every text begins with.
    Raises UserError for lengths that do not fit the engine or hold no haystack.
    """
    if not lengths or not depths or not all(0 <= depth <= 1 for depth in depths) or trials < 1:
        raise UserError("A grid has lengths, depths from 0 to 1, and at least one trial in each cell.")
    if not 1 <= asked <= inserted:
        raise UserError(f"{asked} of {inserted} needles were to be asked for; ask for 1 to {inserted}.")
    if max(lengths) >= engine.model_len:
        raise UserError(
            f"The longest text has {max(lengths)} tokens; this engine has room for {engine.model_len - 1}. Give it a "
            "longer model_len, or ask for shorter texts."
        )
    hay = sentences(haystack)
    rng = random.Random(f"evaluation {seed}")  # of training documents the seed is a number: other draws
    encode = engine.tokenizer.encode

    def cell(length: int, depth: float) -> Iterator[Pair]:
        for _ in range(trials):
            drawn = draw(rng, inserted)
            places = [depth, *(rng.random() for _ in drawn[1:])]
            texts = itertools.tee(onwards(hay, rng), asked)
            for needle, text in zip(drawn[:asked], texts, strict=True):
                yield prompt(encode, text, drawn, places, needle, length, opening)

    cells = [(length, depth) for length in lengths for depth in depths]
    pairs = [list(cell(*place)) for place in cells]
    found = iter(scores(engine, [pair for some in pairs for pair in some]))
    recall = [Accuracy(sum(next(found).greedy for _ in some), len(some)) for some in pairs]
    width = len(depths)
    rows = tuple(tuple(recall[i : i + width]) for i in range(0, len(recall), width))
    return Grid(tuple(lengths), tuple(depths), rows, inserted, asked)


def prompt(
    encode: Callable[[str], list[int]],
    hay: Iterator[str],
    needles: Sequence[Needle],
    depths: Sequence[float],
    asked: Needle,
    length: int,
    opening: Sequence[int] = (),
) -> Pair:
    """Text with the question, and the answer: `length` tokens together. The text begins in the middle of a sentence, so
    that the length is exact, and each needle stands between the two sentences that are nearest to its depth."""
    facts = [encode(f" {needle.fact}") for needle in needles]
    question, answer = encode(f" {asked.question}"), encode(asked.answer)
    room = length - len(opening) - sum(map(len, facts)) - len(question) - len(answer)
    if room < 1:
        raise UserError(
            f"A text of {length} tokens has no room for {len(needles)} needles and a question; {length - room + 1} "
            "are the least."
        )
    tokens: list[int] = []
    ends = [0]  # tokens before each place where a needle can stand
    while len(tokens) < room:
        tokens += encode(f" {next(hay)}")
        ends.append(len(tokens))
    cut = len(tokens) - room
    tokens, ends = tokens[cut:], [0, *(end - cut for end in ends if end > cut)]
    nearest = [min(ends, key=lambda end: abs(end - depth * room)) for depth in depths]
    text: list[int] = [*opening]
    for begin, end in itertools.pairwise([0, *ends]):
        text += tokens[begin:end]
        text += [t for place, fact in zip(nearest, facts, strict=True) if place == end for t in fact]
    return [*text, *question], answer


def spread(count: int) -> tuple[float, ...]:
    """Depths from the beginning of a text to its end; one alone is the middle."""
    return tuple(i / (count - 1) for i in range(count)) if count > 1 else (0.5,)


def longer(loaded: Loaded, length: int) -> Loaded:
    """The model with room for texts of `length` tokens, also where it was trained on shorter ones: how it fares there
    is what is measured. Raises UserError for a model with a table of positions, which has none beyond its end."""
    if length < loaded.cfg.max_seq_len:
        return loaded
    if not hasattr(loaded.cfg, "rope_theta"):
        raise UserError(
            f"{loaded.about} has a position for each of {loaded.cfg.max_seq_len} tokens and none beyond, so texts of "
            f"{length} cannot be tried. Take shorter ones."
        )
    return dataclasses.replace(loaded, cfg=dataclasses.replace(loaded.cfg, max_seq_len=length + 1))
