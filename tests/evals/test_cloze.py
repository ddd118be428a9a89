"""Questions cut from text: the right choice goes on with the text, the same text gives the same questions."""

import random

import pytest

from min_llm.config import UserError
from min_llm.evals import choices
from min_llm.evals.cloze import OPTIONS, cloze, write


def text(seed=0, words=4000):
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=draw.randint(3, 9))) for _ in range(words))


def test_the_right_choice_is_what_follows(tmp_path):
    texts = [text(0).replace(" ", " \n\t"), text(1)]
    asked = cloze(texts, 60, before=30, after=10)
    for q in asked:
        right = q.choices[q.answer]
        assert any(q.context + right in " ".join(t.split()) for t in texts)
        assert (q.context[-2:] + right[:2]).isalpha() and len(q.context) == 30
        assert len(set(q.choices)) == OPTIONS and {len(c) for c in q.choices} == {10}
        assert not any(q.context + c in " ".join(t.split()) for t in texts for c in q.choices if c != right)
    assert len({q.context for q in asked}) == 60 and {q.answer for q in asked} == set(range(OPTIONS))
    assert cloze(texts, 60, before=30, after=10) == asked != cloze(texts, 60, before=30, after=10, seed=1)
    write(tmp_path / "cloze.jsonl", asked)
    assert choices.read(tmp_path / "cloze.jsonl") == asked


def test_what_gives_no_questions_is_said():
    with pytest.raises(
        UserError, match=r"passages of 80 \+ 16 characters that are cut within a word; 900 are needed"
    ):
        cloze([text()], 900)
    with pytest.raises(UserError, match="at least 2"):
        cloze([text()], 5, before=1)
    with pytest.raises(UserError, match="The texts have 0 passages"):
        cloze(["WORDS IN CAPITALS " * 100], 4)
