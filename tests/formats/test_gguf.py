"""GGUF: what is written is read again, to the bit as the `gguf` package does it; damaged files end in a sentence."""

import string

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from min_llm.config import UserError
from min_llm.formats import gguf, gguf_blocks
from min_llm.formats.gguf_blocks import KINDS
from min_llm.formats.gguf_values import NUMBERS

WRITABLE = [name for name, kind in KINDS.items() if kind.encode]
ORDINARY = st.floats(-1000, 1000, width=32)
SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(bits(a), bits(b))


def write(path, metadata, arrays, kinds):
    return gguf.write(path, metadata, {n: (a.shape, kinds[n]) for n, a in arrays.items()}, arrays.__getitem__)


U4, U8 = (lambda n: n.to_bytes(4, "little")), (lambda n: n.to_bytes(8, "little"))
TEXT_OF = lambda s: U8(len(s)) + s


def header(n_tensors=0, n_metadata=0):
    return b"GGUF" + U4(3) + U8(n_tensors) + U8(n_metadata)


def entry(name=b"x", dims=(4,), kind=0, offset=0):
    return TEXT_OF(name) + U4(len(dims)) + b"".join(map(U8, dims)) + U4(kind) + U8(offset)


@pytest.fixture
def small(tmp_path):
    """A file with a bit of everything."""
    metadata = {
        "general.architecture": "llama",
        "block_count": 2,
        "eps": 1e-5,
        "tokens": ["a", "ü", ""],
        "types": np.array([1, -2], np.int32),
        "flag": True,
        "nested": [[1, 2], [3]],
    }
    arrays = {"norm": normal(5), "w": normal(2, 32), "half": normal(3, 2)}
    return write(tmp_path / "small.gguf", metadata, arrays, {"norm": "F32", "w": "Q4_0", "half": "F16"})


# Our own round trip


SCALARS = [hnp.from_dtype(dtype.newbyteorder("=")) for dtype in NUMBERS.values()]
ARRAYS = [hnp.arrays(dtype.newbyteorder("="), st.integers(0, 4)) for dtype in NUMBERS.values()]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
LISTS = st.one_of(
    st.lists(TEXT, max_size=4),
    *(st.lists(array, min_size=1, max_size=3) for array in ARRAYS),
    st.lists(st.lists(TEXT, max_size=2), min_size=1, max_size=3),
)
METADATA = st.dictionaries(TEXT, st.one_of(TEXT, LISTS, *SCALARS, *ARRAYS), max_size=6)


def same(a, b):
    """Equal in type and bits: what `typed` promises."""
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b if isinstance(a, str) else type(a) is type(b) and same_bits(np.asarray(a), np.asarray(b))


@SETTINGS
@given(METADATA)
def test_metadata_of_every_type_comes_back(tmp_path, metadata):
    path = write(tmp_path / "m.gguf", metadata, {}, {})
    typed = gguf.read(path).typed
    assert list(typed) == list(metadata)
    assert all(same(metadata[key], typed[key]) for key in metadata)
    first = path.read_bytes()
    assert write(path, typed, {}, {}).read_bytes() == first


@SETTINGS
@given(
    st.dictionaries(
        st.text(string.ascii_letters + "._", max_size=20),
        st.tuples(st.sampled_from(WRITABLE), st.lists(st.integers(1, 3), max_size=4)),
        max_size=5,
    ),
    st.sampled_from([None, 8, 32, 256]),
)
def test_tensors_of_every_shape_come_back(tmp_path, layout, alignment):
    arrays, kinds = {}, {}
    for i, (name, (kind, shape)) in enumerate(layout.items()):
        last = [(shape or [1])[-1] * KINDS[kind].block] if shape or KINDS[kind].block > 1 else []
        arrays[name], kinds[name] = normal(*shape[:-1], *last, seed=i), kind
    metadata = {} if alignment is None else {"general.alignment": alignment}
    read = gguf.read(write(tmp_path / "t.gguf", metadata, arrays, kinds))
    assert list(read.tensors) == list(arrays)
    for name, array in arrays.items():
        tensor = read.tensors[name]
        assert (tensor.shape, tensor.kind) == (array.shape, kinds[name])
        assert tensor.array().shape == array.shape and tensor.array().dtype == np.float32
        if kinds[name] == "F32":
            assert same_bits(tensor.array(), array)


def test_metadata_is_plain_python(small):
    metadata = gguf.read(small).metadata
    assert metadata == {
        "general.architecture": "llama",
        "block_count": 2,
        "eps": float(np.float32(1e-5)),
        "tokens": ["a", "ü", ""],
        "types": [1, -2],
        "flag": True,
        "nested": [[1, 2], [3]],
    }
    assert type(metadata["block_count"]) is int and metadata["flag"] is True


@pytest.mark.parametrize(
    "value, dtype",
    [(1, "u4"), (-1, "i4"), (1 << 40, "u8"), (-1 << 40, "i8"), (0.5, "f4"), (True, "?"), ([1, -1], "i4")],
)
def test_python_numbers_are_written_as_llama_cpp_expects_them(tmp_path, value, dtype):
    typed = gguf.read(write(tmp_path / "m.gguf", {"x": value}, {}, {})).typed
    assert typed["x"].dtype == np.dtype(dtype) and typed["x"].tolist() == value


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    """A sparse file of 64 GB opens at once, and one of its tensors is had without the others."""
    path = tmp_path / "sparse.gguf"
    head = header(n_tensors=2) + entry(b"a", [1 << 34], 0, 0) + entry(b"b", [7], 0, 1 << 36)
    path.write_bytes(head + bytes(-len(head) % 32))
    with path.open("r+b") as file:
        file.seek((1 << 36) + path.stat().st_size)
        file.write(normal(7).tobytes())
    tensors = gguf.read(path).tensors
    assert tensors["a"].shape == (1 << 34,) and tensors["a"].array()[-1] == 0
    assert same_bits(tensors["b"].array(), normal(7))


def test_arrays_are_asked_for_one_at_a_time_in_order(tmp_path):
    asked = []

    def array(name):
        asked.append((name, len(asked)))
        return np.full(3, len(asked), np.float32)

    gguf.write(tmp_path / "o.gguf", {}, dict.fromkeys("cab", ((3,), "F32")), array)
    assert asked == [("c", 0), ("a", 1), ("b", 2)]


def test_many_blocks_are_converted_part_by_part(tmp_path, monkeypatch):
    array = normal(9, 320)
    whole = {
        k: gguf.read(write(tmp_path / k, {}, {"x": array}, {"x": k})).tensors["x"].array() for k in WRITABLE
    }
    monkeypatch.setattr(gguf_blocks, "AT_ONCE", 64)
    for kind in WRITABLE:
        path = write(tmp_path / "parts", {}, {"x": array}, {"x": kind})
        assert path.read_bytes() == (tmp_path / kind).read_bytes()
        assert same_bits(gguf.read(path).tensors["x"].array(), whole[kind])


@settings(deadline=None)
@given(hnp.arrays(np.float32, (2, 64), elements=ORDINARY))
def test_quantisation_errors_stay_within_their_bounds(array):
    """Half a step of the largest number of a block (Q4_0: one, its positive end has 7 steps instead of 8), plus
    what float16 rounds off the scale; the floats keep 8 and 11 significant bits."""
    largest = np.repeat(np.abs(array.reshape(-1, 32)).max(axis=1), 32).reshape(array.shape)
    bounds = {
        "F32": 0,
        "F16": np.abs(array) * 2.0**-11 + 2.0**-25,
        "BF16": np.abs(array) * 2.0**-8,
        "Q8_0": largest / 127 / 2 * (1 + 1e-5) + largest * 2.0**-11 + 127 * 2.0**-25,
        "Q4_0": largest / 8 * (1 + 1e-5) + largest * 2.0**-11 + 8 * 2.0**-25,
    }
    for name, bound in bounds.items():
        data = np.concatenate(list(gguf_blocks.encode(KINDS[name], array)))
        back = gguf_blocks.decode(KINDS[name], data).reshape(array.shape)
        assert (np.abs(back.astype(np.float64) - array) <= bound + 1e-40).all(), name


# The gguf package as peer


@pytest.fixture(scope="module")
def peer():
    return pytest.importorskip("gguf", reason="the gguf package is not installed")


SHAPES = [(256,), (3, 512), (2, 3, 256), (40, 256)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dequantises_as_the_peer(peer, kind, shape):
    theirs = getattr(peer.GGMLQuantizationType, kind)
    rng = np.random.default_rng(0)
    rows = (*shape[:-1], shape[-1] // KINDS[kind].block * KINDS[kind].bytes)
    data = [rng.integers(0, 256, rows, np.uint8)]  # infinities and what is no number among them
    if KINDS[kind].block < 256:
        data.append(peer.quantize(normal(*shape), theirs).view(np.uint8))
    for given_bytes in data:
        with np.errstate(all="ignore"):
            expected = peer.dequantize(given_bytes, theirs).reshape(shape)
        got = gguf_blocks.decode(KINDS[kind], given_bytes.reshape(-1)).reshape(shape)
        assert same_bits(got, expected)


@settings(deadline=None)
@given(
    st.sampled_from(WRITABLE),
    hnp.arrays(np.float32, (2, 64), elements=st.one_of(ORDINARY, st.floats(-(2.0**-7), 2.0**-7, width=32))),
)
def test_quantises_as_the_peer(peer, kind, array):
    array[np.abs(array) < 1e-30] = 0  # there 1/d is infinite and the peer casts NaN to integers
    got = np.concatenate(list(gguf_blocks.encode(KINDS[kind], array)))
    assert np.array_equal(
        got, peer.quantize(array, getattr(peer.GGMLQuantizationType, kind)).view(np.uint8).ravel()
    )


def test_bfloat16_of_any_bits_is_the_peers(peer):
    patterns = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32)
    patterns[:6] = [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800000, 0x7F7FFFFF, 0x00018000]
    got = np.concatenate(list(gguf_blocks.encode(KINDS["BF16"], patterns.view(np.float32))))
    assert np.array_equal(
        got, peer.quantize(patterns.view(np.float32), peer.GGMLQuantizationType.BF16).ravel()
    )


def test_the_peer_reads_what_we_write(peer, tmp_path):
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 30,
        "llama.rope.freq_base": 1e5,
        "tokenizer.ggml.tokens": ["a", "ü"],
        "tokenizer.ggml.token_type": np.array([1, 3], np.int32),
        **{f"number.{code}": np.ones(1, dtype)[0] for code, dtype in NUMBERS.items()},
    }
    arrays = {kind: normal(3, 64, seed=i) for i, kind in enumerate(WRITABLE)} | {"bias": normal(7)}
    path = write(
        tmp_path / "ours.gguf", metadata, arrays, dict(zip(WRITABLE, WRITABLE, strict=True), bias="F32")
    )
    theirs = peer.GGUFReader(path)
    for key, value in metadata.items():
        expected = value if isinstance(value, str | list) else np.asarray(value, np.float32).tolist()
        assert theirs.fields[key].contents() == expected
    assert theirs.fields["llama.block_count"].types == [peer.GGUFValueType.UINT32]
    assert [t.name for t in theirs.tensors] == list(arrays)
    ours = gguf.read(path)
    for tensor in theirs.tensors:
        expected = peer.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        assert same_bits(ours.tensors[tensor.name].array(), np.ascontiguousarray(expected))
        encoded = peer.quantize(arrays[tensor.name], tensor.tensor_type)
        assert np.array_equal(bits(tensor.data), bits(encoded))


@pytest.mark.parametrize("alignment", [None, 64])
def test_we_read_what_the_peer_writes(peer, tmp_path, alignment):
    writer = peer.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for name, value in {"uint8": 200, "int8": -3, "uint64": 1 << 60, "float64": 0.1, "bool": True}.items():
        getattr(writer, f"add_{name}")(name, value)
    writer.add_array("texts", ["x", "yz"])
    writer.add_array("floats", [0.5, 1.5])
    arrays = {kind: normal(2, 3, 64, seed=i) for i, kind in enumerate([*WRITABLE, "Q4_1"])}
    for kind, array in arrays.items():
        ggml = getattr(peer.GGMLQuantizationType, kind)
        writer.add_tensor(kind, peer.quantize(array, ggml), raw_dtype=ggml)
    writer.add_tensor("whole", np.arange(4, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = gguf.read(tmp_path / "theirs.gguf")
    assert read.typed["int8"].dtype == np.int8 and read.typed["float64"].dtype == np.float64
    expected = {"uint8": 200, "int8": -3, "uint64": 1 << 60, "float64": 0.1, "bool": True}
    expected |= {"general.architecture": "llama", "texts": ["x", "yz"], "floats": [0.5, 1.5]}
    assert read.metadata == expected | ({"general.alignment": alignment} if alignment else {})
    for kind, array in arrays.items():
        ggml = getattr(peer.GGMLQuantizationType, kind)
        assert (read.tensors[kind].shape, read.tensors[kind].kind) == (array.shape, kind)
        assert same_bits(read.tensors[kind].array(), peer.dequantize(peer.quantize(array, ggml), ggml))
    assert read.tensors["whole"].shape == (4,)
    with pytest.raises(UserError, match="'whole' in .* is of kind number 26, which min_llm does not read"):
        read.tensors["whole"].array()


# Files that are damaged, foreign or hostile


def read_everything(path):
    """Reads a file and all of its tensors; a UserError must name the file and end as a sentence does."""
    try:
        file = gguf.read(path)
        _ = file.metadata
    except UserError as error:
        assert str(path) in str(error) and str(error).endswith(".")
        return None
    for tensor in file.tensors.values():
        try:
            tensor.array()
        except UserError as error:
            assert "does not read" in str(error)
    return file


def test_a_file_cut_off_anywhere_ends_in_a_sentence(small, tmp_path):
    data = small.read_bytes()
    path = tmp_path / "cut.gguf"
    whole = []
    for size in range(len(data)):
        path.write_bytes(data[:size])
        if read_everything(path):
            whole.append(size)
    assert whole == list(range(len(data) - 20, len(data)))  # the padding after the last tensor's 12 bytes


def test_flipped_bytes_end_in_a_sentence_or_are_read(small, tmp_path):
    data = np.frombuffer(small.read_bytes(), np.uint8)
    path = tmp_path / "flipped.gguf"
    rng = np.random.default_rng(0)
    for trial in range(1500):
        changed = data.copy()
        places = [trial % len(data)] if trial < len(data) else rng.integers(0, len(data), rng.integers(1, 9))
        changed[places] ^= rng.integers(1, 256, len(places), np.uint8)
        path.write_bytes(changed.tobytes())
        read_everything(path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.booleans())
def test_noise_ends_in_a_sentence(tmp_path, noise, after_header):
    path = tmp_path / "noise.gguf"
    path.write_bytes((b"GGUF\3\0\0\0" if after_header else b"") + noise)
    read_everything(path)


ROOM = bytes(1024)
HOSTILE = {
    "empty": (b"", "has 0 bytes: it is no GGUF file"),
    "foreign": (b"PK\3\4" + ROOM, r"begins with b'PK\\x03\\x04' instead of b'GGUF'"),
    "version 1": (b"GGUF" + U4(1) + ROOM, "has version 1 .* reads 2 and 3"),
    "big-endian": (b"GGUF\0\0\0\3" + ROOM, "is a big-endian GGUF file"),
    "tensors": (header(n_tensors=1 << 62) + ROOM, "bytes must follow byte 24, but the file has 1,024 more"),
    "metadata": (header(n_metadata=(1 << 64) - 1) + ROOM, "bytes must follow byte 24"),
    "text": (header(n_metadata=1) + U8(1 << 63) + ROOM, "bytes must follow byte 32"),
    "array": (header(n_metadata=1) + TEXT_OF(b"k") + U4(9) + U4(0) + U8(1 << 50) + ROOM, "'k', 1,125,899"),
    "texts": (header(n_metadata=1) + TEXT_OF(b"k") + U4(9) + U4(8) + U8(1 << 50) + ROOM, "'k', 9,007,199"),
    "type": (header(n_metadata=1) + TEXT_OF(b"k") + U4(77) + ROOM, "'k', 77 is no type of a value"),
    "elements": (
        header(n_metadata=1) + TEXT_OF(b"k") + U4(9) + U4(77) + U8(0) + ROOM,
        "'k', 77 is no type of an array's elements",
    ),
    "key twice": (header(n_metadata=2) + 2 * (TEXT_OF(b"k") + U4(0) + b"1") + ROOM, "key 'k' comes twice"),
    "key": (header(n_metadata=1) + TEXT_OF(b"\xff") + U4(0) + ROOM, "is not UTF-8"),
    "alignment 0": (
        header(n_metadata=1) + TEXT_OF(b"general.alignment") + U4(4) + U4(0) + ROOM,
        r"general.alignment .* power of two",
    ),
    "alignment text": (
        header(n_metadata=1) + TEXT_OF(b"general.alignment") + U4(8) + TEXT_OF(b"32") + ROOM,
        "general.alignment .* power of two",
    ),
    "alignment huge": (
        header(n_metadata=1) + TEXT_OF(b"general.alignment") + U4(4) + U4(1 << 31) + ROOM,
        "general.alignment .* power of two",
    ),
    "name twice": (header(n_tensors=2) + entry() + entry(offset=32) + ROOM, "the name 'x' comes twice"),
    "dimensions": (header(n_tensors=1) + entry(dims=[1] * 5) + ROOM, "5 dimensions, at most 4"),
    "overflow": (header(n_tensors=1) + entry(dims=[1 << 32, 1 << 32, 4]) + ROOM, "'x', its bytes .* outside"),
    "no numbers": (header(n_tensors=1) + entry(dims=[1 << 63, 0]) + ROOM, "is empty"),
    "block": (header(n_tensors=1) + entry(dims=[33, 2], kind=8) + ROOM, "whole blocks of 32, as Q8_0 needs"),
    "offset": (header(n_tensors=1) + entry(offset=1 << 40) + ROOM, "'x', its bytes .* lie outside the file"),
    "offset of unknown": (header(n_tensors=1) + entry(kind=99, offset=1 << 40) + ROOM, "outside the file"),
    "unaligned": (
        header(n_tensors=1) + entry(offset=4) + ROOM,
        "offset 4 is no multiple of the alignment, 32",
    ),
}


@pytest.mark.parametrize("data, message", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_end_in_a_sentence(tmp_path, data, message):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        gguf.read(path)
    assert str(path) in str(error.value)


def test_arrays_deep_in_each_other_are_refused(tmp_path):
    path = tmp_path / "deep.gguf"
    path.write_bytes(header(n_metadata=1) + TEXT_OF(b"k") + U4(9) + (U4(9) + U8(1)) * 5000 + ROOM)
    with pytest.raises(UserError, match="'k', arrays lie more than 4 deep"):
        gguf.read(path)


@pytest.mark.parametrize("kind, name", [(13, "Q5_K"), (99, "number 99")])
def test_an_unknown_kind_is_refused_when_it_is_asked_for(tmp_path, kind, name):
    path = tmp_path / "unknown.gguf"
    path.write_bytes(header(n_tensors=2) + entry(b"a", [256, 2], kind, 32) + entry(b"b") + bytes(31 * 32))
    tensors = gguf.read(path).tensors
    assert tensors["b"].array().tolist() == [0, 0, 0, 0]
    assert (tensors["a"].shape, tensors["a"].kind) == ((2, 256), name)
    with pytest.raises(
        UserError, match=f"'a' in .*unknown.gguf is of kind {name}, which min_llm does not read"
    ):
        tensors["a"].array()


def test_a_path_that_is_no_file(tmp_path):
    with pytest.raises(UserError, match="absent"):
        gguf.read(tmp_path / "nothing.gguf")
    with pytest.raises(UserError, match="is no file"):
        gguf.read(tmp_path)


# What cannot be written


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"k": None}, "'k' is a NoneType; GGUF has text"),
        ({"k": [1, "a"]}, "'k' is a list of several types"),
        ({"k": [1, 2.0]}, "'k' is a list of several types"),
        ({"k": 1 << 64}, "'k' does not fit into 64 bits"),
        ({"k": 1e300}, "'k' does not fit a float32; give it as np.float64"),
        ({"k": np.float16(1)}, "'k' is of type float16"),
        ({"k": "\ud800"}, "lone surrogate"),
        ({"k": [[[[[[1]]]]]]}, "'k' has lists more than 4 deep"),
        ({"general.alignment": 33}, "power of two"),
    ],
)
def test_metadata_that_gguf_does_not_have(tmp_path, metadata, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "m.gguf", metadata, {}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, array, kind, message",
    [
        ("x", normal(32), "Q4_K", "'x' cannot be written as 'Q4_K'. Did you mean"),
        ("x", normal(33), "Q8_0", "whole blocks of 32"),
        ("x", normal(0), "F32", "is empty"),
        ("x", normal(1, 1, 1, 1, 1), "F32", "5 dimensions"),
        ("x" * 64, normal(1), "F32", "longer than the 63 bytes"),
        ("x", np.ones(3), "F32", r"announced as float32 \(3,\), got float64 \(3,\)"),
        (
            "x",
            np.float32([1e5, 1]),
            "F16",
            "'x' cannot be written as F16: it holds 100000, float16 ends at 65504",
        ),
        ("x", np.full(32, np.nan, np.float32), "Q8_0", "'x' cannot be written as Q8_0"),
        ("x", np.full(32, 1e30, np.float32), "Q4_0", "too large for a float16 scale"),
    ],
)
def test_tensors_that_gguf_does_not_have(tmp_path, name, array, kind, message):
    (tmp_path / "t.gguf").write_bytes(b"the old file")
    with pytest.raises(UserError, match=message):
        write(tmp_path / "t.gguf", {}, {name: array}, {name: kind})
    assert [path.name for path in tmp_path.iterdir()] == ["t.gguf"]
    assert (tmp_path / "t.gguf").read_bytes() == b"the old file"


def test_a_folder_that_is_absent_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent/m.gguf cannot be written: No such file"):
        write(tmp_path / "absent" / "m.gguf", {}, {}, {})
