"""Needle in a haystack: prompts of the right length with the needle at its depth, and recall counted right."""

import dataclasses
import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.data.needles import draw, sentences
from min_llm.evals import needles as module
from min_llm.evals.figure import draw as draw_figure
from min_llm.evals.intervals import Accuracy
from min_llm.evals.needles import Grid, longer, needles, prompt, spread
from min_llm.evals.scoring import Score
from min_llm.infer.engine import Engine
from min_llm.infer.options import EngineConfig
from min_llm.models.gpt2 import Config as GPT2Config
from min_llm.tokenizers import load

HAY = [
    "The theory of it all was this. He said that in the end it would rest. So it was, in a way, and so it is."
]
BYTES = load("byte")


class Reader:
    """An engine's tokenizer and room; `finds` scores in its place, reading the texts as a model would."""

    tokenizer, model_len = BYTES, 601

    def __init__(self, sees=600):
        self.sees, self.texts = sees, []

    def scores(self, engine, pairs):
        """Right where the last `sees` tokens state the key and its value, which it copies."""
        assert engine is self
        found = []
        for context, answer in pairs:
            text = BYTES.decode(context[-self.sees :])
            self.texts.append(BYTES.decode(context) + BYTES.decode(answer))
            key = text.rsplit(" ", 1)[1]
            copied = text.partition(f"Remember {key}")[2].partition(".")[0]
            found.append(Score(0.0, len(answer), copied == BYTES.decode(answer)))
        return found


@pytest.fixture
def reader(monkeypatch):
    made = Reader()
    monkeypatch.setattr(module, "scores", made.scores)
    return made


def test_a_model_that_copies_finds_all(reader):
    grid = needles(reader, HAY, [200, 400, 600], spread(3), trials=4)
    assert grid.perfect(200) and grid.perfect(600) and grid.at(400) == Accuracy(12, 12)
    assert {len(text) for text in reader.texts} == {200, 400, 600} and len({*reader.texts}) == 36
    again, texts = needles(reader, HAY, [200, 400, 600], spread(3), trials=4), reader.texts
    assert again == grid and texts[:36] == texts[36:]
    needles(reader, HAY, [200, 400, 600], spread(3), trials=4, seed=1)
    assert texts[72:] != texts[:36]


def test_a_model_that_sees_the_end_alone_misses_what_is_deep(reader):
    reader.sees = 250
    grid = needles(reader, HAY, [200, 600], (0.0, 0.5, 1.0), trials=3)
    assert [[a.correct for a in row] for row in grid.recall] == [[3, 3, 3], [0, 0, 3]]
    assert grid.perfect(200) and not grid.perfect(600) and grid.at(600) == Accuracy(3, 9)


def test_of_four_needles_two_are_asked_for(reader):
    grid = needles(reader, HAY, [500], (0.5,), trials=3, inserted=4, asked=2)
    assert grid.at(500) == Accuracy(6, 6) and (grid.inserted, grid.asked) == (4, 2)
    assert all(text.count("Remember") == 4 and len(text) == 500 for text in reader.texts)
    for first, second in zip(reader.texts[::2], reader.texts[1::2], strict=True):  # one text, two questions
        texts, keys = zip(*(text.rsplit(" Recall ", 1) for text in (first, second)), strict=True)
        assert texts[0][-100:] == texts[1][-100:] and keys[0] != keys[1]


@given(
    st.integers(0, 2**32), st.floats(0, 1), st.integers(120, 400), st.lists(st.integers(256, 260), max_size=2)
)
def test_prompts_have_their_length_and_depth(seed, depth, length, opening):
    rng = random.Random(seed)
    needle = draw(rng, 1)[0]
    context, answer = prompt(
        BYTES.encode, itertools.cycle(sentences(HAY)), [needle], [depth], needle, length, opening
    )
    assert len(context) + len(answer) == length and context[: len(opening)] == opening
    text = BYTES.decode(context[len(opening) :])
    before, fact, after = text.partition(f" {needle.fact}")
    assert fact and after.endswith(f" {needle.question}") and BYTES.decode(answer) == needle.answer
    room = len(before) + len(after) - len(f" {needle.question}")
    longest = max(map(len, sentences(HAY))) + 1
    assert abs(len(before) - depth * room) <= longest / 2
    assert before == "" or before.endswith(".")


def test_a_model_of_random_weights_finds_nothing(loaded):
    """The real engine and its scores, on texts twice as long as its context."""
    length = 2 * loaded.cfg.max_seq_len
    wide = longer(loaded, length)
    assert wide.cfg.max_seq_len == length + 1 and longer(wide, 100) is wide
    engine = Engine(wide, EngineConfig(max_sequences=2, warm=False))
    assert needles(engine, HAY, [length], (0.5,), 2, opening=loaded.opening).at(length) == Accuracy(0, 2)
    with pytest.raises(UserError, match="none beyond"):
        longer(dataclasses.replace(loaded, cfg=GPT2Config(max_seq_len=64)), 65)


def test_grids_go_through_json():
    cells = ((Accuracy(1, 2), Accuracy(2, 2)), (Accuracy(0, 2), Accuracy(2, 2)))
    grid = Grid((16, 32), (0.0, 1.0), cells, 4, 2)
    assert Grid.from_json(grid.to_json()) == grid and grid.at(16).interval[0] > 0.3
    for text in ("{", "[]", "{}", json.dumps(dataclasses.asdict(grid) | {"more": 1})):
        with pytest.raises(UserError, match="no grid of recalls"):
            Grid.from_json(text)


def test_the_picture_says_each_recall(tmp_path):
    grid = Grid((16, 1024), (0.0, 0.5, 1.0), 2 * ((Accuracy(1, 4), Accuracy(2, 4), Accuracy(4, 4)),))
    figure = draw_figure(grid, "toy")
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.texts] == ["25", "25", "50", "50", "100", "100"]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["16", "1,024"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["0", "50", "100"]
    figure.savefig(tmp_path / "grid.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [700]}, "700 tokens; this engine has room for 600"),
        ({"lengths": [50]}, "50 tokens has no room for 1 needles"),
        ({"depths": (1.5,)}, "depths from 0 to 1"),
        ({"lengths": []}, "A grid has lengths"),
        ({"asked": 2}, "2 of 1 needles"),
    ],
)
def test_grids_that_cannot_be_measured_are_refused(reader, changes, message):
    with pytest.raises(UserError, match=message):
        needles(reader, HAY, **({"lengths": [200], "depths": (0.5,), "trials": 1} | changes))
