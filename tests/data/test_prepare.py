"""Prepared data: the split, what is written, what is found again, and every way it can be broken."""

import errno
import json
import os
import resource
import shutil
import time

import numpy as np
import pytest

from min_llm import tokenizers
from min_llm.config import UserError, build
from min_llm.data import prepare as prepare_module
from min_llm.data import prepared as prepared_module
from min_llm.data import sources
from min_llm.data.prepare import DataConfig, prepare
from min_llm.data.prepared import open_prepared, prepared_folders, verify
from min_llm.data.split import draw, tail
from min_llm.data.tokenfile import join, token_dtype

PLAY = "".join(f"{k}. The quick brown fox, é, says {k * k}.\n" for k in range(400))


@pytest.fixture
def play(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text(PLAY, encoding="utf-8")
    return path


@pytest.fixture
def articles(tmp_path):
    path = tmp_path / "articles.jsonl"
    rows = [f"Article {k}\n\nIt says {'very ' * (k % 7)}little of {k}." for k in range(200)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return path


def config(path, tmp_path, **changes):
    return DataConfig(
        **({"source": str(path), "tokenizer": "bytes", "home": str(tmp_path / "home")} | changes)
    )


def texts(prepared, name):
    file = prepared.split(name)
    return [prepared.tokenizer.decode(file.document(k)) for k in range(file.n_documents)]


def test_tinyshakespeare_is_split_as_nanogpt_does(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("MIN_LLM_DATA", str(shared_data))
    prepared = prepare(config("tinyshakespeare", tmp_path, tokenizer="chars"))
    assert (len(prepared.train), len(prepared.val), prepared.tokenizer.vocab_size) == (1_003_854, 111_540, 65)
    text = (shared_data / "tinyshakespeare.txt").read_text()
    alphabet = sorted(set(text))
    assert prepared.val.tokens.tolist() == [alphabet.index(c) for c in text[1_003_854:]]
    assert prepared.train.n_documents == 1 and prepared.tokenizer.eos is None
    assert prepared.val.scored_bytes == 111_539  # nothing precedes the first character


@pytest.mark.parametrize("tokenizer", ["chars", "bytes", "bpe:300"])
def test_tokens_spell_the_text(tokenizer, play, tmp_path):
    prepared = prepare(config(play, tmp_path, tokenizer=tokenizer))
    at = int(len(PLAY) * 0.9)
    assert prepared.text("train").decode() == PLAY[:at]
    assert prepared.text("val").decode() == PLAY[at:]
    assert prepared.val.text_bytes == len(PLAY[at:].encode())
    eos = prepared.tokenizer.eos
    assert (eos is None) == (tokenizer == "chars")
    if eos is not None:
        assert prepared.train.tokens[0] == prepared.train.tokens[-1] == eos
        assert prepared.train.scored_bytes == prepared.train.text_bytes


def test_documents_are_marked_and_ended(articles, tmp_path):
    prepared = prepare(config(articles, tmp_path))
    train, eos = prepared.train, prepared.tokenizer.eos
    assert (train.tokens[np.asarray(train.starts)] == eos).all()
    assert (np.asarray(train.tokens) == eos).sum() == train.n_documents + 1
    every = [json.loads(line)["text"] for line in articles.read_text().splitlines()]
    assert sorted(texts(prepared, "train") + texts(prepared, "val")) == sorted(every)
    characters = [sum(map(len, texts(prepared, name))) for name in ("train", "val")]
    assert 0.1 <= characters[1] / sum(characters) < 0.11
    files = {path.name for path in prepared.folder.iterdir()}
    assert files == {f"{s}.{e}" for s in ("train", "val") for e in ("bin", "docs.npy")} | {
        "meta.json",
        "tokenizer.json",
    }


def test_held_out_documents_depend_on_seed_and_text_alone(articles, tmp_path):
    held = set(texts(prepare(config(articles, tmp_path)), "val"))
    rows = articles.read_text().splitlines()
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("\n".join(reversed(rows)))
    assert set(texts(prepare(config(shuffled, tmp_path)), "val")) == held
    assert set(texts(prepare(config(articles, tmp_path, seed=1)), "val")) != held
    doubled = tmp_path / "doubled.jsonl"
    doubled.write_text("\n".join(rows + rows))
    prepared = prepare(config(doubled, tmp_path))
    assert not set(texts(prepared, "train")) & set(texts(prepared, "val"))


def test_every_rule_of_splitting(articles, play, tmp_path, monkeypatch):
    of_each = prepare(config(articles, tmp_path, split="tail", val_fraction=0.25))
    assert of_each.train.n_documents == of_each.val.n_documents == 200
    first = json.loads(articles.read_text().splitlines()[0])["text"]
    assert texts(of_each, "train")[0] + texts(of_each, "val")[0] == first
    with pytest.raises(UserError, match="names no works to hold out"):
        prepare(config(articles, tmp_path, split="holdout"))
    with pytest.raises(UserError, match=r"too few to hold out whole ones. Use data.split=tail"):
        prepare(config(play, tmp_path, split="documents"))
    monkeypatch.setattr(sources.Source, "documents", lambda self: iter([("a", "aaa"), ("b", "bbb")]))
    monkeypatch.setattr(sources.Source, "holdout", ("b",), raising=False)
    source = sources.resolve("shakespeare")
    object.__setattr__(source, "holdout", ("b",))
    monkeypatch.setattr(prepare_module, "resolve", lambda *_: source)
    held = prepare(config("shakespeare", tmp_path))
    assert (texts(held, "train"), texts(held, "val")) == (["aaa"], ["bbb"])


def test_tuning_never_sees_the_validation_text(articles, play, tmp_path):
    real = prepare(config(play, tmp_path))
    tuned = prepare(config(play, tmp_path, tune=True))
    text = real.text("train").decode()
    assert (tuned.text("train").decode(), tuned.text("val").decode()) == tail(text, 0.1)
    real, tuned = prepare(config(articles, tmp_path)), prepare(config(articles, tmp_path, tune=True))
    halves = zip(texts(tuned, "train"), texts(tuned, "val"), strict=True)
    assert [a + b for a, b in halves] == texts(real, "train")


def test_the_tokenizer_learns_from_the_training_text_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abc " * 90 + "zzzz" * 9 + "Q")
    with pytest.raises(UserError, match=r"The val text .*'z' at position .* not among the 4 .*bpe:SIZE"):
        prepare(config(path, tmp_path, tokenizer="chars"))
    bpe = prepare(config(path, tmp_path, tokenizer="bpe:259")).tokenizer
    assert b"zz" not in bpe.tokens


def test_several_sources_are_joined_by_their_own_rules(articles, play, tmp_path):
    cfg = build(
        DataConfig,
        {"source": [str(play), str(articles)], "tokenizer": "bytes", "home": str(tmp_path / "home")},
    )
    prepared = prepare(cfg)
    at = int(len(PLAY) * 0.9)
    assert texts(prepared, "train")[0] == PLAY[:at] and texts(prepared, "val")[0] == PLAY[at:]
    assert prepared.train.n_documents + prepared.val.n_documents == 202
    assert [s["spec"] for s in prepared.meta["sources"]] == [str(play), str(articles)]
    assert set(prepared.meta["sources"][0]["sha256"]) == {str(play)}


def test_the_second_call_reads_no_text(play, tmp_path, monkeypatch):
    first = prepare(config(play, tmp_path))
    monkeypatch.setattr(sources.Source, "documents", lambda self: pytest.fail("read again"))
    before = time.perf_counter()
    again = prepare(config(play, tmp_path))
    assert time.perf_counter() - before < 0.2
    assert again.folder == first.folder and again.meta == first.meta


def test_changed_input_makes_another_folder(play, tmp_path):
    folders = {prepare(config(play, tmp_path)).folder}
    play.write_text(PLAY + PLAY)
    folders.add(prepare(config(play, tmp_path)).folder)
    folders.add(prepare(config(play, tmp_path, val_fraction=0.2)).folder)
    folders.add(prepare(config(play, tmp_path, tokenizer="chars")).folder)
    saved = tokenizers.load("byte").save(tmp_path / "tok.json")
    folders.add(prepare(config(play, tmp_path, tokenizer=str(saved))).folder)
    assert len(folders) == 5
    assert prepared_folders(str(tmp_path / "home")) == sorted(folders)


def test_the_same_input_gives_the_same_bytes(play, tmp_path):
    made = prepare(config(play, tmp_path, tokenizer="bpe:300"))
    again = prepare(config(play, tmp_path, tokenizer="bpe:300", home=str(tmp_path / "other")))
    assert made.meta["files"] == again.meta["files"]


def test_large_vocabularies_take_four_bytes(tmp_path):
    assert token_dtype(65_536) == np.uint16 and token_dtype(65_537) == np.uint32
    assert join([[70_000, 1]], 128_256).tokens.tolist() == [70_000, 1]


def test_the_report_names_counts_and_licence(play, tmp_path, capsys):
    prepare(config(play, tmp_path))
    said = capsys.readouterr().err
    for part in ("train: ", "1 documents", "bytes a token", "tokenizer: byte, 257 tokens", "licence: "):
        assert part in said


@pytest.mark.parametrize(
    "change, said",
    [
        ({"val_fraction": 1.0}, "data.val_fraction is 1.0; it must lie between 0 and 1"),
        ({"tokenizer": "bpe:many"}, "write bpe:SIZE"),
        ({"tokenizer": "gtp2"}, "Did you mean 'gpt2'"),
        ({"source": ()}, "empty list"),
        ({"source": "nowhere.txt"}, "no file or folder"),
        ({"val_fraction": 1e-9}, "leaves 2 tokens for train|leaves . tokens for val"),
    ],
)
def test_impossible_configurations(change, said, play, tmp_path):
    with pytest.raises(UserError, match=said):
        prepare(config(play, tmp_path, tokenizer=change.pop("tokenizer", "chars"), **change))
    left = list((tmp_path / "home").rglob("*")) if (tmp_path / "home").exists() else []
    assert [p for p in left if p.is_file()] == []


def damage_truncate(folder):
    path = folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-10])


def damage_docs(folder):
    (folder / "val.docs.npy").write_bytes(b"\x93NUMPY")


def damage_docs_count(folder):
    np.save(folder / "val.docs.npy", np.zeros(3, np.int64))


def damage_missing(folder):
    (folder / "val.bin").unlink()


def damage_meta(folder):
    (folder / "meta.json").write_text('{"format": "min_')


def damage_version(folder):
    path = folder / "meta.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 99', 1))


def damage_keys(folder):
    (folder / "meta.json").write_text('{"format": "min_llm.data", "version": 1}')


def damage_tokenizer(folder):
    tokenizers.train_chars(["abc"]).save(folder / "tokenizer.json")


@pytest.mark.parametrize(
    "damage, said",
    [
        (damage_truncate, "train.bin has .* bytes, .* were written: it is cut off"),
        (damage_docs, "is incomplete"),
        (damage_docs_count, "does not hold the 1 document starts"),
        (damage_missing, "is incomplete: .*val.bin"),
        (damage_meta, "meta.json is not readable JSON"),
        (damage_version, "not in the format min_llm.data version 1"),
        (damage_keys, "is damaged .*tokenizer"),
        (damage_tokenizer, "not the tokenizer these tokens were made with"),
    ],
)
def test_damaged_folders_say_what_to_do(damage, said, play, tmp_path):
    cfg = config(play, tmp_path)
    folder = prepare(cfg).folder
    damage(folder)
    with pytest.raises(UserError, match=f"{said}.*Delete the folder .* and prepare the data again"):
        prepare(cfg)
    shutil.rmtree(folder)
    prepare(cfg)


def test_verify_finds_a_flipped_bit(play, tmp_path):
    prepared = prepare(config(play, tmp_path))
    verify(prepared)
    path = prepared.folder / "train.bin"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"train.bin has changed since it was written"):
        verify(open_prepared(prepared.folder))


def test_a_full_disk_leaves_nothing(play, tmp_path):
    """The operating system refuses the write: a limit on the size of files stands in for the disk's end."""
    cfg, limits = config(play, tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"The disk is full.*Choose another folder with data.home"):
            prepare(cfg)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "home" / "data").iterdir()) == []
    prepare(cfg)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_errors_of_the_disk_are_sentences(number, play, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(prepare_module.os, "fsync", fail)
    with pytest.raises(UserError, match=r"data.home or MIN_LLM_HOME"):
        prepare(config(play, tmp_path))
    assert list((tmp_path / "home" / "data").iterdir()) == []


def test_a_folder_that_cannot_be_written(play, tmp_path):
    (tmp_path / "home").write_text("a file is in the way")
    with pytest.raises(UserError, match=r"Prepared data cannot be written to .*Choose another folder"):
        prepare(config(play, tmp_path))


def test_what_a_killed_process_left_is_swept_the_next_day(play, tmp_path):
    left = [tmp_path / "home" / "data" / name for name in ("part-old", "part-new")]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text("{}")
    os.utime(left[0], (0, 0))
    prepare(config(play, tmp_path))
    assert [folder.exists() for folder in left] == [False, True]
    assert len(prepared_folders(str(tmp_path / "home"))) == 1


def test_two_processes_agree(play, tmp_path, monkeypatch):
    """The other process finishes between our last byte and our rename."""
    cfg, rename = config(play, tmp_path), os.rename
    other = prepare(config(play, tmp_path, home=str(tmp_path / "other")))

    def late(part, folder):
        shutil.copytree(other.folder, folder)
        rename(part, folder)

    monkeypatch.setattr(prepare_module.os, "rename", late)
    prepared = prepare(cfg)
    assert prepared.meta["files"] == other.meta["files"]
    assert [p.name for p in (tmp_path / "home" / "data").iterdir()] == [prepared.folder.name]


def test_draws_are_pinned():
    """The split of a corpus must stay what it was, or old runs have seen new validation text."""
    assert draw("a text", 0) == 5832940697369217021
    assert prepared_module.VERSION == 1
