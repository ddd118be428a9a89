"""Words as hashes: the same for equal words, wherever they stand and whatever is beside them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from min_llm.data.curate import words


def spans(text):
    """The words of one text, read back through their lengths."""
    found = words.split([text])
    return len(found.hashes), found.lengths.tolist()


def test_words_are_runs_of_letters_marks_and_digits():
    assert spans("Don't stop, at 3.14 naïve_x!") == (8, [3, 1, 4, 2, 1, 2, 5, 1])
    assert spans("") == spans(" \n\t…—") == (0, [])
    assert spans("हिन्दी में") == (2, [6, 3])  # marks are part of words


def test_scripts_without_spaces_are_words_by_the_character():
    assert spans("世界ab世 界") == (5, [1, 1, 2, 1, 1])
    assert spans("𠀀𠀁x") == (3, [1, 1, 1])  # beyond the basic plane, too


def test_equal_words_have_equal_hashes_without_case():
    found = words.split(["The cat", "THE Ökonom", "", "ökonom the"])
    the, cat, the2, oeko, oeko2, the3 = found.hashes.tolist()
    assert the == the2 == the3 and oeko == oeko2 and len({the, cat, oeko}) == 3
    assert found.offsets.tolist() == [0, 2, 4, 4, 6]


@given(st.lists(st.text(), max_size=6), st.integers(1, 40))
def test_the_batch_does_not_matter(texts, piece):
    """Texts alone, together, and in pieces of any size: the same words."""
    alone = [words.split([text]) for text in texts]
    before = words.PIECE
    together = words.split(texts)
    assert together.hashes.tolist() == [h for found in alone for h in found.hashes.tolist()]
    assert together.lengths.tolist() == [n for found in alone for n in found.lengths.tolist()]
    assert np.diff(together.offsets).tolist() == [len(found.hashes) for found in alone]
    try:
        words.PIECE = piece
        words._powers.cache_clear()
        in_pieces = words.split(texts)
    finally:
        words.PIECE = before
        words._powers.cache_clear()
    assert all(np.array_equal(a, b) for a, b in zip(together, in_pieces, strict=True))


@given(st.text(alphabet="ab ", max_size=60), st.integers(1, 7))
def test_grams_are_equal_where_the_words_are(text, n):
    found = words.split([text])
    spelled = [tuple(text.split()[i : i + n]) for i in range(len(text.split()) - n + 1)]
    hashes = words.grams(found.hashes, n).tolist()
    assert len(hashes) == len(spelled)
    assert len(set(hashes)) == len(set(spelled)) == len(set(zip(hashes, spelled, strict=True)))


def test_grams_within_texts():
    found = words.split(["a b c", "d", "", "e f"])
    assert words.within(found.offsets, 2).tolist() == [True, True, False, False, True]
    assert words.within(found.offsets, 3).tolist() == [True, False, False, False]
    assert words.within(found.offsets, 9).tolist() == []


def test_hashes_do_not_collide_on_real_words(shared_data):
    text = (shared_data / "tinyshakespeare.txt").read_text()
    found = words.split([text])
    import re

    spelled = re.findall(r"[^\W_]+", text.lower())
    assert len(spelled) == len(found.hashes)
    assert len(set(spelled)) == len(set(found.hashes.tolist()))
    assert len({h >> 32 for h in found.hashes.tolist()}) > 0.999 * len(
        set(spelled)
    )  # mixed: any half will do
