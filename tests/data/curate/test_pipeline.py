"""The whole run: what comes out, in any number of processes, after kills, and on folders and disks that are no good."""

import dataclasses
import gzip
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from min_llm import reporting
from min_llm.cli.data import app
from min_llm.config import UserError, build, to_yaml
from min_llm.data.curate import pipeline, walk
from min_llm.data.curate.settings import CurateConfig
from min_llm.data.curate.steps import STEPS, Steps, passes
from tests.data.curate.runs import command, kill, result

STEPS_OF_TESTS = {
    "extract": None,
    "pii": None,
    "url": None,
    "exact": None,
    "minhash": {"sources": ["web"]},
    "lines": {"most": 3},
    "repetition": None,
    "kl": {"bits": 10},
    "dirty": None,
}


def crawl(folder, files=4, documents=60, seed=0):
    """Shards of a small crawl in which every step has something to do."""
    draw = random.Random(seed)
    word = lambda: "".join(draw.choices("aeioubcdfglmnprst", k=draw.randint(2, 7)))
    vocabulary = [word() for _ in range(400)]
    text = lambda n: " ".join(draw.choices(vocabulary, k=n))
    folder.mkdir(parents=True, exist_ok=True)
    earlier = [text(120)]
    for file in range(files):
        rows = []
        for k in range(documents):
            body = draw.choice(earlier) if draw.random() < 0.15 else text(draw.randint(60, 200))
            if draw.random() < 0.2:
                body = f"{text(3)} {body}"
            earlier.append(body)
            row = {"text": f"{body}\nSubscribe to our newsletter\nmail{k}@example.com"}
            row |= {
                "url": f"http://site{draw.randrange(9)}.org/{draw.randrange(60)}",
                "time": draw.randrange(10**9),
            }
            if draw.random() < 0.1:
                row["text"] = "\n".join(f"worker {i} has finished the job of today" for i in range(30))
            if draw.random() < 0.1:
                row["text"] = f"<html><body><nav>Home</nav><p>{row['text']}</p></body></html>"
            rows.append(json.dumps(row))
        rows.insert(draw.randrange(len(rows)), '{"text": "torn')
        data = ("\n".join(rows) + "\n").encode()
        (folder / f"{file}.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    (folder / "notes.txt").write_text(text(100))
    return folder


def config(tmp_path, output="out", **changes):
    given = {
        "inputs": {"web": str(tmp_path / "crawl" / "*.gz"), "notes": str(tmp_path / "crawl" / "notes.txt")},
        "output": str(tmp_path / output),
        "steps": STEPS_OF_TESTS,
        "together": 1,  # a shard a file
        "workers": 1,
    }
    return build(CurateConfig, given | changes)


@pytest.fixture
def crawled(tmp_path):
    crawl(tmp_path / "crawl")
    return tmp_path


def test_a_run_and_its_report(crawled):
    folder = pipeline.curate(config(crawled))
    files, report = result(folder)
    assert sorted(files) == [f"0000{k}.jsonl.gz" for k in range(5)]
    rows = [json.loads(row) for data in files.values() for row in gzip.decompress(data).splitlines()]
    by_name = {step["name"]: step for step in report["steps"]}
    assert list(by_name) == ["read", *STEPS_OF_TESTS]
    for before, after in zip(report["steps"], report["steps"][1:], strict=False):
        assert after["seen"] == before["kept"]
    for step in report["steps"]:
        dropped = sum(count["documents"] for count in step["dropped"].values())
        assert step["kept"]["documents"] + dropped == step["seen"]["documents"]
        assert sum(row["kept"]["documents"] for row in step["sources"].values()) == step["kept"]["documents"]
        assert bool(step["samples"]) == bool(dropped)
    assert report["output"]["documents"] == len(rows) == by_name["dirty"]["kept"]["documents"]
    assert report["output"]["characters"] == sum(len(row["text"]) for row in rows)
    assert by_name["read"]["dropped"]["not JSON"]["documents"] == 4
    assert by_name["extract"]["changed"] > 5 and by_name["pii"]["changed"] > 100
    for name in ("url", "exact", "minhash", "repetition"):
        assert by_name[name]["dropped"], name
    assert by_name["minhash"]["sources"]["notes"]["dropped"] == {}
    assert len({row["text"] for row in rows}) == len(rows)
    assert not any(mark in row["text"] for mark in ("\nSubscribe", "<p>", "@") for row in rows)
    page = (folder / "report.html").read_text()
    sample = by_name["minhash"]["samples"][0]
    assert sample["name"] in page and sample["detail"] in page and sample["detail"].startswith("of ")
    assert "Subscribe" in page and "<script" not in page
    assert not (folder / "work").exists()


def test_the_survivor_named_in_a_sample_is_there(crawled):
    """A near duplicate "of NAME": NAME is in the output."""
    folder = pipeline.curate(config(crawled, steps={"exact": None, "minhash": None}))
    files, report = result(folder)
    names = {json.loads(row)["name"] for data in files.values() for row in gzip.decompress(data).splitlines()}
    exact, near = report["steps"][1]["samples"], report["steps"][2]["samples"]
    assert exact and near and all(sample["detail"].removeprefix("of ") in names for sample in near)
    assert not any(sample["name"] in names for sample in exact + near)


def test_processes_do_not_change_the_result(crawled):
    one = pipeline.curate(config(crawled))
    two = pipeline.curate(config(crawled, "two", workers=2))
    assert result(one) == result(two)


def test_ray_does_not_change_the_result(crawled, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(crawled)  # its workers start elsewhere
    inputs = {"web": "crawl/*.gz", "notes": "crawl/notes.txt"}
    given = {"inputs": inputs, "steps": {"exact": None, "lines": {"most": 3}}}
    one = pipeline.curate(config(Path(), "one", **given))
    ray = pipeline.curate(config(Path(), "ray", **given, executor="ray", workers=2))
    assert result(one) == result(ray)


def test_ray_that_is_not_there(crawled, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install 'min_llm\\[ray\\]'"):
        pipeline.curate(config(crawled, executor="ray"))


def test_batches_do_not_change_the_result(crawled, monkeypatch):
    one = pipeline.curate(config(crawled))
    monkeypatch.setattr(walk, "BATCH", 500)
    monkeypatch.setattr("min_llm.data.curate.keyed.RUN", 20)
    small = pipeline.curate(config(crawled, "small"))
    assert result(one) == result(small)


def test_passes():
    walks = passes(build(Steps, dict.fromkeys(STEPS_OF_TESTS), "steps"))
    shown = [[[named.name for named in part] for part in (w.applied, w.filters, w.collected)] for w in walks]
    keyed = ["url", "exact", "minhash", "lines"]
    assert shown == [
        [[], ["extract", "pii"], keyed],
        [keyed, ["repetition"], ["kl"]],
        [["kl"], ["dirty"], []],
    ]
    names = lambda **steps: [[n.name for n in w.collected] for w in passes(build(Steps, steps, "steps"))]
    assert names(lines={}, exact={}) == [["lines"], ["exact"], []]  # lines rewrites what exact compares
    assert names(exact={}, kl={}) == [["exact"], ["kl"], []]  # kl counts the words of what is left
    assert names(pii={}, kl=False) == names() == [[]]


def test_every_step_has_a_name_in_the_room():
    assert set(STEPS_OF_TESTS) < set(STEPS)


# Stopping and going on


def written_run(tmp_path, **size):
    """A configuration as a file, and the result of a run that nobody stopped."""
    crawl(tmp_path / "crawl", **size)
    cfg = config(tmp_path)
    path = tmp_path / "curate.yaml"
    path.write_text(to_yaml(cfg))
    return path, result(pipeline.curate(cfg))


@pytest.mark.newest
def test_five_kills_change_nothing(tmp_path):
    """SIGKILL to the command (not to its workers, which follow it), each time after some more shards."""
    path, expected = written_run(tmp_path, files=8, documents=150)
    draw = random.Random(0)
    output = tmp_path / "killed"
    run = command(path, f"output={output}", "workers=2")
    for more in (0, 1, 3, 4, 5):
        status, error = kill(run, output, more, pause=draw.uniform(0, 0.01) if more else 0.4)
        assert status == -signal.SIGKILL, error
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(output)
    assert result(output) == expected


@pytest.mark.parametrize("after", [False, True])
def test_a_stop_at_every_boundary(tmp_path, monkeypatch, after):
    """The run ends before, or just after, the n-th rename, for every n: the next one goes on from there."""
    crawl(tmp_path / "crawl", files=2, documents=12)
    steps = {"exact": None, "lines": {"most": 3}, "kl": {"bits": 8}, "pii": None}
    expected = result(pipeline.curate(config(tmp_path, steps=steps)))

    class Stop(BaseException):
        pass

    left = 0

    def stopping(function):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0 and not after:
                raise Stop
            value = function(*args, **kwargs)
            if left == 0:
                raise Stop
            return value

        return call

    rename, replace = os.rename, os.replace
    stops = 0
    for n in range(1, 100):
        output = f"stopped{n}"
        left = n
        monkeypatch.setattr(os, "rename", stopping(rename))
        monkeypatch.setattr(os, "replace", stopping(replace))
        try:
            pipeline.curate(config(tmp_path, output, steps=steps))
        except Stop:
            stops += 1
        else:
            break
        finally:
            monkeypatch.setattr(os, "rename", rename)
            monkeypatch.setattr(os, "replace", replace)
        assert result(pipeline.curate(config(tmp_path, output, steps=steps))) == expected, n
    assert stops == 21  # 3 passes: 3 shards, a decision and a mark each; identity, 3 files, 2 reports


def test_a_finished_run_is_found_again(crawled, monkeypatch):
    folder = pipeline.curate(config(crawled))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "lock"}
    pipeline.curate(config(crawled, workers=2))
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_other_inputs_and_steps_need_another_folder(crawled):
    pipeline.curate(config(crawled))
    with pytest.raises(UserError, match="other inputs or steps have made"):
        pipeline.curate(config(crawled, steps={"exact": None}))
    crawl(crawled / "crawl", seed=1)
    with pytest.raises(UserError, match="other inputs or steps have made"):
        pipeline.curate(config(crawled))
    (crawled / "mine").mkdir()
    (crawled / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty"):
        pipeline.curate(config(crawled, "mine"))


def test_a_list_that_changes_makes_another_run(crawled):
    listed = crawled / "list.txt"
    listed.write_text("rude")
    steps = {"dirty": {"file": str(listed)}}
    pipeline.curate(config(crawled, steps=steps))
    listed.write_text("other")
    with pytest.raises(UserError, match="other inputs or steps"):
        pipeline.curate(config(crawled, steps=steps))


def test_two_runs_at_once_are_refused(crawled):
    import fcntl

    (crawled / "out").mkdir()
    with (crawled / "out" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another process is curating"):
            pipeline.curate(config(crawled))
    pipeline.curate(config(crawled))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the workers")
def test_a_worker_that_is_killed(tmp_path):
    """The parent says so in a sentence, and the next run goes on."""
    path, expected = written_run(tmp_path)
    output = tmp_path / "out2"
    process = subprocess.Popen(
        command(path, f"output={output}", "workers=2"), stderr=subprocess.PIPE, text=True
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers: list[int] = []
    while not workers and process.poll() is None:
        workers = [pid for pid in map(int, children.read_text().split()) if _is_worker(pid)]
    os.kill(workers[0], signal.SIGKILL)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and "A worker process was killed" in error, error
    assert result(pipeline.curate(config(tmp_path, "out2"))) == expected


def _is_worker(pid):
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return False


def test_a_full_disk(crawled, monkeypatch):
    """A limit on the size of files stands in for the disk: a sentence, nothing half-written, and it goes on."""
    import resource

    expected = result(pipeline.curate(config(crawled)))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        for workers in (1, 2):  # in this process, and in others, which inherit the limit
            with pytest.raises(UserError, match="The disk is full: no room in .*out2. Make room"):
                pipeline.curate(config(crawled, "out2", workers=workers))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((crawled / "out2").glob("work/*/.*"))
    assert result(pipeline.curate(config(crawled, "out2"))) == expected


def test_a_folder_that_cannot_be_written_to(crawled):
    (crawled / "file").touch()
    for output in ("file", "file/below"):
        with pytest.raises(UserError, match="cannot be written to: .* Give another output"):
            pipeline.curate(config(crawled, output))


def test_a_list_that_is_not_there_is_noticed_before_the_run(crawled):
    with pytest.raises(UserError, match="steps.dirty: there is no file 'none.txt'"):
        pipeline.curate(config(crawled, steps={"exact": None, "dirty": {"file": "none.txt"}}))
    assert not (crawled / "out").exists()


# Bad input


def test_bad_input_is_in_the_report_and_in_a_warning(tmp_path, capsys):
    folder = tmp_path / "crawl"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b'{"body": "x"}\n{"text": "\xff"}\n{"text": "good"}\n')
    (folder / "b.jsonl").touch()
    packed = gzip.compress(b'{"text": "one"}\n' * 5000, mtime=0)
    (folder / "c.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    reporting._reporter = None
    out = pipeline.curate(config(tmp_path, inputs={"web": str(folder)}, steps={}, together=1 << 20))
    read = json.loads((out / "report.json").read_text())["steps"][0]
    assert {kind: count["documents"] for kind, count in read["dropped"].items()} == {
        "no field 'text'": 1,
        "not UTF-8": 1,
        "empty file": 1,
        "damaged file": 1,
    }
    assert {sample["name"] for sample in read["samples"]} == {
        "a.jsonl:1",
        "a.jsonl:2",
        "b.jsonl",
        "c.jsonl.gz",
    }
    assert "web: 4 of" in capsys.readouterr().err


def test_nothing_left_is_a_warning(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    reporting._reporter = None
    pipeline.curate(
        config(tmp_path, inputs={"web": str(tmp_path / "a.jsonl")}, steps={"exact": None}, together=99)
    )
    shown = capsys.readouterr().err
    assert (
        "web: 1 of 1 documents could not be read (no field 'text')" in shown and "Nothing is left." in shown
    )


@pytest.mark.parametrize("format", ["jsonl", "jsonl.zst", "parquet"])
def test_formats(crawled, format):
    pytest.importorskip("pyarrow")
    from min_llm.data.curate.read import read, shards

    packed = pipeline.curate(config(crawled))
    other = pipeline.curate(config(crawled, "other", format=format))
    texts = []
    for folder in (packed, other):
        cfg = config(crawled, inputs={"web": str(folder / "0*")})
        texts.append([outcome.text for shard in shards(cfg) for _, outcome in read(shard, cfg) if shard])
    assert texts[0] == texts[1] and len(texts[0]) > 50


def test_the_command_line(crawled):
    reporting._reporter = None
    out = crawled / "by command"
    words = [f"inputs.web={crawled / 'crawl'}", f"output={out}", "steps.minhash.bands=20", "workers=1"]
    (crawled / "empty.yaml").write_text("format: jsonl\n")
    done = CliRunner().invoke(app, ["curate", str(crawled / "empty.yaml"), *words])
    assert done.exit_code == 0 and done.stdout.strip() == str(out), done.output
    report = json.loads((out / "report.json").read_text())
    assert report["config"]["steps"] == {
        "minhash": {"bands": 20, "rows": 7, "words": 5, "seed": 0, "within": ""}
    }
    assert [step["name"] for step in report["steps"]] == ["read", "minhash"]


def test_the_help_names_every_step_and_setting():
    shown = CliRunner().invoke(app, ["curate", "--help"], env={"COLUMNS": "200"}).stdout
    for name, step in STEPS.items():
        assert f"steps.{name}" in shown
        assert all(f".{field.name}" in shown for field in dataclasses.fields(step))
    assert "together" in shown and "fields.text" in shown


def test_a_command_without_a_configuration():
    for words, said in (
        ([], "Give a configuration"),
        (["a", "b"], "One configuration file"),
        (["x=1"], "Unknown"),
    ):
        with pytest.raises(UserError, match=said):
            CliRunner().invoke(app, ["curate", *words], catch_exceptions=False)
