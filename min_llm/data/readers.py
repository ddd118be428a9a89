"""Documents out of files: each function yields (name, text) and turns a malformed file into a sentence.

A document is one text that belongs together: a play, an article, a line of a .jsonl file, a whole .txt file.
Readers stream; only one document at a time has to fit into memory.
"""

from __future__ import annotations

import html
import json
import re
import struct
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from min_llm.config import UserError

Documents = Iterator[tuple[str, str]]

USER_SUFFIXES = (".txt", ".jsonl", ".parquet")
PARQUET_ROWS = 1024


def decode(data: bytes, where: str, offset: int = 0) -> str:
    """UTF-8 text, or the file and the byte that is not; `offset` is where `data` begins in the file."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise UserError(
            f"{where}: byte 0x{byte:02x} at offset {offset + error.start:,} is not UTF-8 ({error.reason}). "
            "Convert the file, for example with iconv -f latin1 -t utf-8."
        ) from error


def text_file(path: Path) -> Documents:
    """A .txt file as one document, exactly as it is (a leading byte-order mark aside)."""
    text = decode(path.read_bytes(), str(path)).removeprefix("\ufeff")
    if not text.strip():
        raise UserError(f"{path} has no text in it. Remove it, or write something there.")
    yield path.name, text


def jsonl_file(path: Path, field: str) -> Documents:
    """One document a line: the string under `field` of a JSON object."""
    for number, row in json_lines(path):
        yield f"{path.name}:{number}", _field(row, field, f"{path}, line {number}")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The number of each line, from 1, and what it holds. Blank lines are skipped."""
    offset, found = 0, False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            text = decode(line, where, offset)
            offset += len(line)
            if not text.strip():
                continue
            try:
                row = json.loads(text.removeprefix("\ufeff").rstrip())
            except json.JSONDecodeError as error:
                raise UserError(f"{where} is not valid JSON: {error.msg} at column {error.colno}.") from error
            found = True
            yield number, row
    if not found:
        raise UserError(f"{path} has no documents in it; a .jsonl file has one JSON object a line.")


def parquet_file(path: Path, field: str) -> Documents:
    """One document a row: the string column `field`, read in batches."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(
            f"{path} needs pyarrow to be read: pip install 'min_llm[parquet]', or convert it to .jsonl."
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise UserError(f"{path} has no column {field!r}; {_has(file.schema_arrow.names)}")
            for rows in file.iter_batches(PARQUET_ROWS, columns=[field]):
                for text in rows.column(0).to_pylist():
                    number += 1
                    yield f"{path.name}:{number}", _field({field: text}, field, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"{path} is no complete parquet file ({reason}). Copy or download it again."
        ) from error
    if not number:
        raise UserError(f"{path} has no rows.")


def _field(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise UserError(f"{where} is a JSON {type(row).__name__}; expected an object with a field {field!r}.")
    if field not in row:
        raise UserError(f"{where} has no field {field!r}; {_has(row)}")
    text = row[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: field {field!r} holds {type(text).__name__}, expected a string.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, UTF-8 cannot
        raise UserError(
            f"{where}: character {error.start} is half a surrogate pair, which is no text."
        ) from error
    return text


def _has(names: Iterable[str]) -> str:
    return (
        f"it has {', '.join(map(repr, names)) or 'none'}. Name the one that holds the text with data.field."
    )


def user_files(path: Path) -> list[Path]:
    """The .txt, .jsonl and .parquet files a path means: itself, or all in a folder, in the order of names."""
    if not path.exists():
        raise UserError(
            f"There is no file or folder {str(path)!r}. Give a .txt, .jsonl or .parquet file, a folder of "
            "them, or a name that `min-llm data list` shows."
        )
    if path.is_file():
        if path.suffix not in USER_SUFFIXES:
            raise UserError(f"{path} ends in {path.suffix!r}; readable are {', '.join(USER_SUFFIXES)}.")
        return [path]
    files = sorted(p for p in path.rglob("*") if p.suffix in USER_SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"The folder {path} holds no {', '.join(USER_SUFFIXES)} files.")
    return files


def user_file(path: Path, field: str) -> Documents:
    """The documents of one file of the user."""
    readers = {".txt": lambda: text_file(path), ".jsonl": lambda: jsonl_file(path, field)}
    read = readers.get(path.suffix, lambda: parquet_file(path, field))
    try:
        yield from read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


# Files out of packages, whose hashes are known: their form is not in doubt.


def packed_texts(paths: list[Path]) -> Documents:
    """A document a file, named by it; line ends become \\n, blank lines around the text go."""
    for path in paths:
        text = decode(path.read_bytes(), str(path)).removeprefix("\ufeff").replace("\r\n", "\n")
        yield path.stem, text.strip("\n") + "\n"


def packed_wiki(paths: list[Path]) -> Documents:
    """Title, blank line, lead of each article."""
    return ((title, text) for title, text, _ in wiki_articles(paths))


def wiki_articles(paths: list[Path]) -> Iterator[tuple[str, str, str]]:
    """(title, text, topic): the topic is the one that Wikipedia's list of vital articles has it under."""
    for path in paths:
        for article in json.loads(path.read_bytes()).values():
            yield article["title"], f"{article['title']}\n\n{article['extract']}\n", article["topic"]


def packed_r_strings(paths: list[Path]) -> Documents:
    """Character vectors in an R package's Rdata.rdb, each a document whose lines are the strings.

    The file is a run of zlib streams, each after its length in 4 bytes; a stream is R's XDR serialization,
    version 3: 2 bytes of format, three words of versions, the encoding's name, then the vector: type, length,
    strings, each with a word of flags and a length (-1 is NA).
    """
    for path in paths:
        data = path.read_bytes()
        while data:
            stream = zlib.decompressobj()
            vector, data = stream.decompress(data[4:]), stream.unused_data
            place = 18 + struct.unpack_from(">i", vector, 14)[0]
            kind, n = struct.unpack_from(">ii", vector, place)
            if vector[:2] != b"X\n" or kind & 0xFF != 16:
                raise UserError(f"{path} holds R data of type {kind & 0xFF}; expected strings (16).")
            place += 8
            lines = []
            for _ in range(n):
                length = max(struct.unpack_from(">i", vector, place + 4)[0], 0)
                lines.append(vector[place + 8 : place + 8 + length].decode())
                place += 8 + length
            yield lines[0], "\n".join(lines).strip("\n") + "\n"


def python_files(paths: list[Path]) -> Documents:
    """Every module of the running Python's standard library, without tests and installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if skipped.isdisjoint(relative.parts):
            text = path.read_bytes().decode("utf-8", errors="ignore")
            if text.strip():
                yield relative.as_posix(), text


def packed_mails(paths: list[Path]) -> Documents:
    """A document a mail, headers and all, named by its folder and file. Mails are bytes of any encoding."""
    for path in paths:
        yield f"{path.parent.name}/{path.name}", path.read_bytes().decode("latin-1").replace("\r\n", "\n")


def packed_problems(paths: list[Path]) -> Documents:
    """A problem a document: question, blank line, answer."""
    for path in paths:
        for number, row in json_lines(path):
            yield f"{path.stem}:{number}", f"{row['question']}\n\n{row['answer']}\n"


PARAGRAPH = re.compile(r'<p id="par_id[^>]*>(.*?)</p>', re.DOTALL)


def packed_help(paths: list[Path]) -> Documents:
    """A document a page of LibreOffice's help: a paragraph a line."""
    for path in paths:
        found = PARAGRAPH.findall(path.read_text(encoding="utf-8"))
        texts = (" ".join(html.unescape(re.sub(r"<[^>]*>", "", inner)).split()) for inner in found)
        if lines := [text for text in texts if text]:
            yield f"{path.parent.name}/{path.stem}", "\n".join(lines) + "\n"


PACKED: dict[str, Callable[[list[Path]], Documents]] = {
    "texts": packed_texts,
    "wiki": packed_wiki,
    "r_strings": packed_r_strings,
    "python": python_files,
    "mails": packed_mails,
    "problems": packed_problems,
    "help": packed_help,
}


def huggingface(name: str, field: str) -> Documents:
    """The training split of a Hugging Face dataset. name: OWNER/NAME, OWNER/NAME:CONFIG or …@REVISION."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"hf:{name} needs the Hugging Face extra: pip install 'min_llm[hf]'.") from error
    rest, _, revision = name.partition("@")
    repository, _, config = rest.partition(":")
    try:
        rows = datasets.load_dataset(repository, config or None, split="train", revision=revision or None)
    except Exception as error:  # the hub's client raises errors of half a dozen libraries
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"hf:{name} could not be had from Hugging Face ({type(error).__name__}: {reason}). Check the name, "
            "the network and, for gated data, `hf auth login`."
        ) from error
    if field not in rows.column_names:
        raise UserError(f"hf:{name} has no column {field!r}; {_has(rows.column_names)}")
    for number, row in enumerate(rows.select_columns([field])):
        yield str(number), _field(row, field, f"hf:{name}, row {number}")
