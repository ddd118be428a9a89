"""Files out of packages: what arrives, what is refused, what the cache keeps. None needs a network."""

import concurrent.futures
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from min_llm import fetch
from min_llm.fetch import FetchError, listing_digest, package_file, package_files

FILES = {
    "toy/data/a.txt": b"alpha",
    "toy/data/b.txt": b"beta",
    "toy/data/deep/c.txt": b"gamma",
    "toy/code.py": b"",
}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as zipped:
        for name, data in files.items():
            zipped.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], prefix: str = "") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIN_LLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def downloads(cache, monkeypatch):
    """Every download gives the toy wheel; the list says how often that happened."""
    calls = []

    def download(name, version, into):
        calls.append((name, version))
        return write_zip(into / f"{name}-{version}.whl", FILES)

    monkeypatch.setitem(fetch.DOWNLOADERS, "pypi", download)
    return calls


def toy(member="toy/data/a.txt", sha256=None):
    return package_file("pypi", "toy", "1.0", member, sha256)


def test_file_is_downloaded_once_and_lies_under_home(downloads, cache):
    path = toy(sha256=digest(b"alpha"))
    assert path.read_bytes() == b"alpha"
    assert path.is_relative_to(cache / "packages" / "pypi" / "toy-1.0")
    assert path.as_posix().endswith("toy/data/a.txt")
    assert toy(sha256=digest(b"alpha").upper()) == path
    assert downloads == [("toy", "1.0")]


def test_patterns_select_by_folder(downloads):
    def names(*members):
        return [path.name for path in package_files("pypi", "toy", "1.0", members)]

    assert names("toy/data/*.txt") == ["a.txt", "b.txt"]
    assert names("toy/data/**/*.txt") == ["a.txt", "b.txt", "c.txt"]
    assert names("**/?.txt", "toy/code.py") == ["code.py", "a.txt", "b.txt", "c.txt"]
    with pytest.raises(FetchError, match=r"no file toy/\*\.md"):
        names("toy/data/a.txt", "toy/*.md")


def test_listing_digest_is_that_of_sha256sum(downloads):
    expected = digest(f"{digest(b'alpha')}  toy/data/a.txt\n{digest(b'beta')}  toy/data/b.txt\n".encode())
    assert listing_digest({"toy/data/b.txt": digest(b"beta"), "toy/data/a.txt": digest(b"alpha")}) == expected
    assert len(package_files("pypi", "toy", "1.0", ["toy/data/*.txt"], expected)) == 2


def test_wrong_hash_is_refused_and_not_kept(downloads, cache):
    with pytest.raises(FetchError, match=rf"has sha256 {digest(b'alpha')}, expected {'0' * 64}"):
        toy(sha256="0" * 64)
    assert not list(cache.rglob("*.txt"))
    with pytest.raises(FetchError, match="listing of 2 files"):
        package_files("pypi", "toy", "1.0", ["toy/data/*.txt"], "0" * 64)
    toy()
    with pytest.raises(FetchError, match=r"Delete .* to download it again"):
        toy(sha256="0" * 64)


@pytest.mark.parametrize("damage", ["change", "remove", "manifest"])
def test_damaged_cache_is_downloaded_again(downloads, cache, damage):
    path = toy()
    if damage == "change":
        path.write_bytes(b"omega")
    elif damage == "remove":
        path.unlink()
    else:
        next(cache.rglob(fetch.MANIFEST)).write_text("{")
    assert toy().read_bytes() == b"alpha"
    assert len(downloads) == 2


@pytest.mark.parametrize("name", ["../evil.txt", "toy/../../evil.txt", "/tmp/evil.txt", "toy\\evil.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_leave_the_folder_are_refused(cache, monkeypatch, kind, name):
    def download(_name, _version, into):
        files = {"toy/good.txt": b"good", name: b"evil"}
        return write_zip(into / "toy.whl", files) if kind == "zip" else write_tar(into / "toy.tar.gz", files)

    monkeypatch.setitem(fetch.DOWNLOADERS, "pypi", download)
    with pytest.raises(FetchError, match="unsafe name"):
        package_files("pypi", "toy", "1.0", ["**/*evil.txt", name])
    assert not list(cache.parent.rglob("*evil.txt"))


def test_links_in_archives_reach_nothing_outside(cache, monkeypatch, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")

    def download(_name, _version, into):
        with tarfile.open(into / "toy.tar.gz", "w:gz") as tar:
            for name, kind in [("toy/soft.txt", tarfile.SYMTYPE), ("toy/dev", tarfile.CHRTYPE)]:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, str(secret)
                tar.addfile(info)
            info = tarfile.TarInfo("toy/first.txt")
            info.size = 5
            tar.addfile(info, io.BytesIO(b"first"))
            info = tarfile.TarInfo("toy/hard.txt")
            info.type, info.linkname = tarfile.LNKTYPE, "toy/first.txt"
            tar.addfile(info)
        return into / "toy.tar.gz"

    monkeypatch.setitem(fetch.DOWNLOADERS, "npm", download)
    paths = package_files("npm", "toy", "1.0", ["toy/*"])
    assert {path.name: path.read_text() for path in paths} == {"first.txt": "first", "hard.txt": "first"}


def test_hard_link_to_outside_is_an_error(cache, monkeypatch):
    def download(_name, _version, into):
        with tarfile.open(into / "toy.tar.gz", "w:gz") as tar:
            info = tarfile.TarInfo("toy/hard.txt")
            info.type, info.linkname = tarfile.LNKTYPE, "/etc/passwd"
            tar.addfile(info)
        return into / "toy.tar.gz"

    monkeypatch.setitem(fetch.DOWNLOADERS, "npm", download)
    with pytest.raises(FetchError, match="damaged"):
        package_files("npm", "toy", "1.0", ["toy/*"])


@pytest.mark.parametrize("name", ["toy.whl", "toy.tar.gz"])
def test_truncated_archive_is_a_sentence(cache, monkeypatch, name):
    def download(_name, _version, into):
        whole = write_zip(into / name, FILES) if name.endswith("whl") else write_tar(into / name, FILES)
        whole.write_bytes(whole.read_bytes()[:100])
        return whole

    monkeypatch.setitem(fetch.DOWNLOADERS, "pypi", download)
    with pytest.raises(FetchError, match="is damaged"):
        toy()


def test_concurrent_fetches_agree(cache, monkeypatch):
    """All four download at the same time; the first to finish puts its copy into place, the others use it."""
    together = threading.Barrier(4, timeout=30)

    def download(_name, _version, into):
        together.wait()
        return write_zip(into / "toy.whl", FILES)

    monkeypatch.setitem(fetch.DOWNLOADERS, "pypi", download)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: toy(), range(4)))
    assert len(paths) == 1 and paths.pop().read_bytes() == b"alpha"
    assert not list(cache.rglob("part-*"))


def test_killed_download_leaves_no_file_and_is_swept(downloads, cache, monkeypatch):
    folder = cache / "packages" / "pypi" / "toy-1.0"
    old, young = folder / "part-old", folder / "part-young"
    for part in (old, young):
        part.mkdir(parents=True)
    os.utime(old, (1, 1))
    toy()
    assert not old.exists() and young.exists()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written"), (errno.EACCES, "cannot be")],
)
def test_disk_errors_name_the_folder(cache, monkeypatch, code, sentence):
    def download(_name, _version, _into):
        raise OSError(code, os.strerror(code))

    monkeypatch.setitem(fetch.DOWNLOADERS, "pypi", download)
    with pytest.raises(FetchError, match=sentence) as caught:
        toy()
    assert str(cache) in str(caught.value) and "MIN_LLM_HOME" in str(caught.value)


def test_home_that_is_a_file_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIN_LLM_HOME", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="cannot be written"):
        toy()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("conda", "toy", "1.0", ["a"]), "no kind of package"),
        (("pypi", "toy", None, ["a"]), "exact version"),
        (("pypi", "--index-url=x", "1.0", ["a"]), "not a possible package name"),
        (("npm", "a/../../b", "1.0", ["a"]), "not a possible package name"),
        (("pypi", "toy", "-r x", ["a"]), "not a possible package version"),
        (("pypi", "toy", "1.0", []), "non-empty list"),
        (("pypi", "toy", "1.0", "a"), "non-empty list"),
    ],
)
def test_bad_requests_are_sentences(cache, arguments, sentence):
    with pytest.raises(FetchError, match=sentence):
        package_files(*arguments)


def test_pip_itself_downloads_from_a_local_folder(cache, tmp_path, monkeypatch):
    """The real client, offline: a wheel made here in a folder that stands for the index."""
    about = "toy-1.0.dist-info/"
    metadata = {about + "METADATA": b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
                about + "WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
                about + "RECORD": b""}  # fmt: skip
    index = tmp_path / "index"
    index.mkdir()
    write_zip(index / "toy-1.0-py3-none-any.whl", FILES | metadata)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert toy(sha256=digest(b"alpha")).read_bytes() == b"alpha"
    with pytest.raises(FetchError, match=r"pip could not get toy==2\.0.*reachable"):
        package_file("pypi", "toy", "2.0", "toy/data/a.txt", None)


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_npm_itself_packs_a_local_package(cache, tmp_path):
    """npm pack of a folder needs no network and gives the archive the registry would."""
    source = tmp_path / "toy"
    (source / "data").mkdir(parents=True)
    (source / "data" / "a.txt").write_bytes(b"alpha")
    (source / "package.json").write_text(json.dumps({"name": "toy", "version": "1.0.0"}))
    into = tmp_path / "into"
    into.mkdir()
    subprocess.run(["npm", "pack", "--silent", "--pack-destination", str(into), str(source)], check=True)
    hashes = fetch._extract(next(into.iterdir()), ["package/data/*"], tmp_path / "out", "toy@1.0.0")
    assert hashes == {"package/data/a.txt": digest(b"alpha")}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg-deb")
def test_debian_archive_is_read_without_unpacking_it(cache, tmp_path, monkeypatch):
    def download(_name, _version, into):
        tree = into / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(
            "Package: toy\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: toy\n"
        )
        (tree / "usr" / "share").mkdir(parents=True)
        (tree / "usr" / "share" / "a.txt").write_bytes(b"alpha")
        deb = into / "toy.deb"
        subprocess.run(["dpkg-deb", "--build", str(tree), str(deb)], check=True, capture_output=True)
        return deb

    monkeypatch.setitem(fetch.DOWNLOADERS, "debian", download)
    path = package_file("debian", "toy", None, "usr/share/a.txt", digest(b"alpha"))
    assert path.read_bytes() == b"alpha" and "toy-any" in path.parts


@pytest.mark.parametrize(("kind", "tool"), [("npm", "npm"), ("debian", "apt-get")])
def test_missing_tools_are_named(cache, monkeypatch, kind, tool):
    monkeypatch.setenv("PATH", os.fspath(cache))
    with pytest.raises(FetchError, match=f"needs .*{tool}.*not on this machine"):
        package_files(kind, "toy", "1.0", ["a"])


def test_missing_pip_is_named(cache, tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(FetchError, match=r"run `.* -m ensurepip`"):
        toy()


def test_full_disk_reported_by_the_client(cache, tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'ERROR: [Errno 28] No space left on device' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(FetchError, match="disk is full"):
        toy()
