"""The retrieval task's documents: every question can be answered from what stands before it."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError
from min_llm.data.needles import KEYS, WORDS, documents, draw, sentences

HAY = [
    "A cat sat on the old mat. It was then seen by a dog!\nNo. What did the dog do next, we ask?",
    "É" * 30,
]
STATEMENT = re.compile(r"(Remember|Recall) (\w+) (\w+ \w+)\.")


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(400, 3000),
    seed=st.integers(0, 2**64),
    density=st.floats(0.4, 1),
    asks=st.integers(1, 2),
)
def test_every_question_s_answer_stands_before_it(length, seed, density, asks):
    made = list(documents(HAY, 3, length, seed, density, asks))
    assert made == list(documents(HAY, 3, length, seed, density, asks))
    for text in made:
        assert length - max(len(s.encode()) for s in sentences(HAY)) - 1 <= len(text.encode()) <= length
        facts, questions = {}, []
        for what, key, value in STATEMENT.findall(text):
            if what == "Remember":
                assert key not in facts  # keys are unique
                facts[key] = value
            else:
                assert facts[key] == value
                questions.append(key)
        assert facts and sorted(questions) == sorted(asks * [*facts])
        assert sum(len(m[0]) + 1 for m in STATEMENT.finditer(text)) <= length * density


def test_another_seed_is_another_document():
    assert list(documents(HAY, 2, 600, 1)) != list(documents(HAY, 2, 600, 2))


def test_the_rest_is_the_haystack_in_its_order():
    text = next(documents(HAY, 1, 2000, 0, density=0.3))
    rest = STATEMENT.sub("", text).split()
    plain = " ".join(sentences(HAY))
    assert " ".join(rest) in " ".join(40 * [plain])


def test_sentences_are_cut_at_their_ends_and_the_odd_ones_left_out():
    assert sentences(HAY) == [
        "A cat sat on the old mat.",
        "It was then seen by a dog!",
        "What did the dog do next, we ask?",
        "É" * 30,
    ]


def test_guessing_is_rare_and_names_are_single_words():
    assert len({*KEYS}) == len({*WORDS}) == 64 and all(word.isalpha() for word in KEYS + WORDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((HAY, 1, 20, 0), "may hold no needle"),
        ((HAY, 1, 500, 0, 0.0), "density is 0"),
        ((HAY, 1, 500, 0, 0.5, 0), "asks 0"),
        ((["short."], 1, 500, 0), "no sentence of 20 to 200"),
    ],
)
def test_arguments_that_make_no_document_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        list(documents(*arguments))


def test_more_needles_than_keys_are_refused():
    with pytest.raises(UserError, match="1 to 64 needles"):
        draw(None, 65)


def test_far_needles_stand_at_the_beginning_and_are_asked_for_at_the_end():
    hay = ["The dog gave chase to the squirrel. She went home to her mother. It rained all day long."]
    near, far = (" ".join(documents(hay, 30, 2000, seed=3, far=share)) for share in (0.0, 1.0))
    assert near != far
    for text in documents(hay, 30, 2000, seed=3, far=1.0):
        facts, asked = ([m.start() for m in re.finditer(word, text)] for word in ("Remember", "Recall"))
        assert max(facts) < min(asked)  # all facts are stated before the first question
