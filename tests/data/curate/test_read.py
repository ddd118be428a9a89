"""Bad input: each broken line or file is counted with its reason; what a source lacks altogether is refused."""

import bz2
import dataclasses
import gzip
import json
import lzma
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from min_llm.config import UserError, build
from min_llm.data.curate.document import Document, Drop
from min_llm.data.curate.read import read, shards
from min_llm.data.curate.settings import CurateConfig
from min_llm.data.curate.tally import Tally
from min_llm.data.curate.write import read_lines, writer


def config(path, **changes):
    return build(CurateConfig, {"inputs": {"web": str(path)}, "output": "unused"} | changes)


def outcomes(path, **changes):
    cfg = config(path, **changes)
    return [outcome for shard in shards(cfg) for _, outcome in read(shard, cfg)]


def line(**row):
    return json.dumps(row).encode() + b"\n"


def test_each_broken_line_costs_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"".join(
            [
                line(text="first", url="http://a", time="2024-01-01", lang="en"),
                b'{"text": "caf\xe9"}\n',
                b'{"text": "cut off\n',
                b"[1, 2]\n",
                b"\n",
                line(body="no text"),
                line(text=None),
                line(text="  \n"),
                b'{"text": "half \\ud83d a pair"}\n',
                line(text="x", url=5),
                line(text="x", time="last week"),
                b"[" * 100_000 + b"\n",
                b'{"text": "' + b"x" * 3000 + b'"}\n',
                line(text="last", name="of its own"),
            ]
        )
    )
    found = outcomes(path, longest=2000)
    assert found[0] == Document("a.jsonl:1", "first", "web", "http://a", "2024-01-01", {"lang": "en"})
    assert found[-1] == Document("of its own", "last", "web")
    assert [drop.kind for drop in found[1:-1]] == [
        "not UTF-8",
        "not JSON",
        "no JSON object",
        "no field 'text'",
        "field 'text' is no string",
        "no text in it",
        "half a surrogate pair",
        "field 'url' is no string",
        "field 'time' is no time",
        "too long",  # the nested line is longer than 2,000 bytes, too
        "too long",
    ]
    assert found[1].detail == "byte 0xe9 at place 13: invalid continuation byte"
    assert outcomes(path)[10].kind == "not JSON"  # nested too deeply, with room for it


COMPRESSORS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pytest.importorskip("pyarrow").compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_and_damaged_files(tmp_path, suffix):
    draw = random.Random(0)
    rows = [line(text=f"{k} " + "".join(draw.choices("abcdefgh", k=200))) for k in range(5000)]
    path = tmp_path / f"a.jsonl{suffix}"
    packed = COMPRESSORS[suffix](b"".join(rows))
    path.write_bytes(packed)
    whole = outcomes(path)
    assert len(whole) == 5000 and all(isinstance(o, Document) for o in whole)
    path.write_bytes(packed[: len(packed) // 2])
    cut = outcomes(path)
    assert cut[:-1] == whole[: len(cut) - 1] and len(cut) < 4000
    assert cut[-1].kind == "damaged file" and cut[-1].detail.startswith(f"after {len(cut) - 1:,} documents: ")
    path.write_bytes(b"not compressed at all")
    (drop,) = outcomes(path)
    assert drop.kind == "damaged file"
    path.write_bytes(b"")
    assert {o.kind for o in outcomes(path)} <= {"empty file", "damaged file"}


def test_a_line_of_a_gigabyte_is_never_in_memory(tmp_path):
    """256 MB here, compressed to nothing: what is held is bounded by `longest`."""
    import tracemalloc

    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(line(text="before") + b'{"text": "')
        for _ in range(256):
            file.write(bytes(1 << 20))
        file.write(b'"}\n' + line(text="after"))
    tracemalloc.start()
    try:
        before, drop, after = outcomes(path, longest=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert (before.text, after.text) == ("before", "after")
    assert drop == Drop("too long", "a line of more than 1,048,576 bytes")


def test_whole_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("\ufeffAll of it.\n", encoding="utf-8")
    (tmp_path / "b" / "page.html.gz").write_bytes(gzip.compress(b"<p>page"))
    (tmp_path / "empty.md").touch()
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "long.txt").write_text("x" * 3000)
    (tmp_path / "picture.png").write_bytes(b"no text, and not asked for")
    found = outcomes(tmp_path, longest=2000)
    assert [o.kind if isinstance(o, Drop) else o.text for o in found] == [
        "All of it.\n",
        "<p>page",
        "empty file",
        "not UTF-8",
        "too long",
    ]


def test_documents_are_named_from_what_their_files_share(tmp_path):
    for place in ("x/a.txt", "x/deep/a.txt", "y/a.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(place)
    names = lambda spec: [name for shard in shards(config(spec)) for name, _ in read(shard, config(spec))]
    assert names(tmp_path) == names(tmp_path / "*") == ["x/a.txt", "x/deep/a.txt", "y/a.txt"]
    assert names(tmp_path / "x") == ["a.txt", "deep/a.txt"] and names(tmp_path / "y" / "*.txt") == ["a.txt"]


def test_what_cannot_be_read_at_all_is_refused(tmp_path):
    for spec, said in (("none/*.jsonl", "nothing to read at"), (str(tmp_path), "nothing to read at")):
        with pytest.raises(UserError, match=said):
            outcomes(spec)
    (tmp_path / "a.pdf").touch()
    with pytest.raises(UserError, match="of no kind that can be read"):
        outcomes(tmp_path / "a.pdf")
    with pytest.raises(UserError, match="which is not under inputs. Did you mean 'web'"):
        config("x", steps={"lines": {"sources": ["wep"]}})
    with pytest.raises(UserError, match="no step 'steps.minhas'. Did you mean 'minhash'"):
        config("x", steps={"minhas": None})


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = tmp_path / "a.parquet"
    rows = [{"text": "one", "url": "http://a", "n": 1}, {"text": None}, {"text": "y" * 3000}, {"text": "two"}]
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    one, none, long, two = outcomes(path, longest=2000)
    assert (
        one == Document("a.parquet:1", "one", "web", "http://a", None, {"n": 1}) and two.name == "a.parquet:4"
    )
    assert (none.kind, long.kind) == ("field 'text' is no string", "too long")
    with pytest.raises(UserError, match="has no column 'body'; it has 'text', 'url', 'n'"):
        outcomes(path, fields={"text": "body"})
    path.write_bytes(path.read_bytes()[:-100])
    assert [o.kind for o in outcomes(path)] == ["damaged file"]
    parquet.write_table(arrow.table({"text": arrow.array([], arrow.string())}), path)
    assert [o.kind for o in outcomes(path)] == ["empty file"]


def test_a_large_file_is_read_in_parts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(line(text=f"{k} " + "x" * (k % 50)) for k in range(500)))
    cfg = config(path, together=4000)
    assert [shard.part for shard in shards(cfg)][:2] == [(0, 4000), (4000, 8000)] and len(shards(cfg)) > 4
    found = [document for shard in shards(cfg) for _, document in read(shard, cfg)]
    assert [d.text for d in found] == [d.text for d in outcomes(path)]
    assert len({d.name for d in found}) == 500 and found[-1].name.startswith("a.jsonl+")


def test_small_files_share_a_shard(tmp_path):
    for k in range(7):
        (tmp_path / f"{k}.txt").write_text("x" * 400)
    found = shards(config(tmp_path, together=1000))
    assert [len(shard.files) for shard in found] == [2, 2, 2, 1]
    named = shards(build(CurateConfig, {"inputs": {"a": ["milton", str(tmp_path)]}, "output": "x"}))
    assert [(shard.named, len(shard.files)) for shard in named] == [("milton", 0), ("", 7)]


@settings(max_examples=60)
@given(
    st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"")), max_size=20),
    st.integers(1, 60),
    st.sampled_from([3, 1000]),
)
def test_parts_of_a_file_hold_each_line_once(lines, together, longest):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(b"\n".join(lines))
        whole = outcomes(path, longest=longest)
        parts = outcomes(path, longest=longest, together=together)
        assert parts == whole or (parts == [] and whole == [Drop("empty file")])


@settings(max_examples=80)
@given(st.binary(max_size=300), st.sampled_from([1, 5, 64, 1000]))
def test_any_bytes_are_documents_or_reasons(data, longest):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(data)
        found = outcomes(path, longest=longest)
        assert found and all(isinstance(o, Drop | Document) for o in found)
        assert len(found) <= data.count(b"\n") + 1


anything = st.text(st.characters())  # halves of surrogate pairs, too


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["text", "name", "url", "time", "meta", "x"]) | anything, anything | st.floats()
    )
)
def test_any_row_is_a_document_that_can_be_written_or_a_reason(row):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text(json.dumps(row) + "\n")
        (outcome,) = outcomes(path)
        if isinstance(outcome, Document):
            with writer(Path(folder) / "out", "jsonl") as out:
                out.write([outcome])
            Tally().record("x", [outcome], [Drop("y")])
        else:
            assert isinstance(outcome, Drop) and outcome.kind


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), st.lists, max_leaves=5
)


@settings(max_examples=80)
@given(
    st.lists(
        st.builds(
            Document,
            name=st.text(),
            text=st.text(),
            source=st.text(),
            url=st.text(),
            time=st.none() | st.integers(0, 10**9) | st.text(min_size=1),
            meta=st.dictionaries(st.text(), json_values, max_size=3),
        ),
        max_size=4,
    )
)
def test_documents_survive_being_written(documents):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "docs"
        with writer(path, "jsonl") as out:
            out.write(documents)
        assert list(read_lines(path)) == documents


@pytest.mark.parametrize("format", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_every_format_is_read_back_and_has_the_same_bytes_each_time(tmp_path, format):
    if format in ("jsonl.zst", "parquet"):
        pytest.importorskip("pyarrow")
    documents = [
        Document("a", "one\n\u2028 é", "web", "http://a", "2024-01-01", {"k": [1, {"x": None}]}),
        Document("b", "two", "web"),
    ]
    for name in ("x", "y"):
        with writer(tmp_path / f"{name}.{format}", format) as out:
            out.write(documents[:1])
            out.write(documents[1:])
    assert (tmp_path / f"x.{format}").read_bytes() == (tmp_path / f"y.{format}").read_bytes()
    again = [dataclasses.replace(d, meta=d.meta | {"source": "web"}) for d in documents]  # where it was then
    assert outcomes(tmp_path / f"x.{format}") == again


def test_reading_uses_the_names_of_the_configuration(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(line(content="words", address="http://x", date=5, id=17, text="other"))
    fields = {"text": "content", "url": "address", "time": "date", "name": "id"}
    assert outcomes(path, fields=fields) == [Document("17", "words", "web", "http://x", 5, {"text": "other"})]
