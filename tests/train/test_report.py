"""The report of a run, from synthetic run folders: finished, resumed, failed, damaged, empty, probed."""

import base64
import datetime
import html.parser
import json
import math
import random
import re
import struct
import time
import zlib

import numpy as np
import pytest

from min_llm import reporting
from min_llm.cli.report import plot, report
from min_llm.config import UserError, build, to_yaml
from min_llm.plan.hardware import datasheet
from min_llm.train import figures, history
from min_llm.train.config import RunConfig
from min_llm.train.report import render, write_report


def configuration(name="shakes", steps=600, **train):
    model = {"n_layers": 4, "dim": 256, "vocab_size": 2048, "tie_embeddings": True}
    given = {
        "name": name,
        "model": model,
        "train": {"steps": steps, **train},
        "optim": {"lr": 3e-3, "warmup": 60},
    }
    return build(RunConfig, given)


def training_rows(first, last, steps=600, every=10, seed=0):
    """Rows of one process: train rows, validations every 200 steps, elapsed from 0."""
    noise, elapsed = random.Random(seed), 0.0
    for step in range(first + every, last + 1, every):
        loss = 3.1 + 4.5 * math.exp(-step / 90) + noise.gauss(0, 0.05)
        rate = 11_500 + noise.gauss(0, 400)
        elapsed += every * 4096 / rate
        perf = {
            "tokens_per_second": rate,
            "mfu": rate / 28_000,
            "step_seconds": 4096 / rate,
            "data_wait": abs(noise.gauss(0.004, 0.002)),
            "elapsed": elapsed,
            "peak_memory": 1.3e9 + step * 1e5,
        }
        lr = 3e-3 * min(step / 60, 0.55 + 0.45 * math.cos(math.pi * step / steps))
        norm = 0.4 + 3 * math.exp(-step / 30) + abs(noise.gauss(0, 0.08))
        values = {"loss": loss, "grad_norm": norm, "lr": lr, "tokens": step * 4096}
        yield {"step": step, "kind": "train", **values, "perf": perf}
        if step % 200 == 0 or step == steps:
            val = {"loss": loss + 0.09, "tokens": 142_000, "bits_per_byte": (loss + 0.09) / 2.3}
            yield {"step": step, "kind": "val", **val, "perf": {"seconds": 3.2}}


def probe_row(step, layers=4):
    noise = np.random.default_rng(step)
    row = {"step": step, "kind": "probe"}
    for name in ("attention", "mlp", "residual"):
        for statistic in ("mean", "std", "rms", "max", "kurtosis"):
            scale = (1 + np.arange(layers)) * (1 + step / 100)
            row[f"{name}/{statistic}"] = (scale * noise.uniform(0.9, 1.1, layers)).tolist()
    for statistic in ("mean", "min"):
        row[f"attention_entropy/{statistic}"] = (4 - np.arange(layers) * step / 600).tolist()
    for kind in ("grad", "param"):
        for leaf in ("wq", "wo", "w_up", "w_down"):
            row[f"{kind}/layers.0.{leaf}/rms"] = (10.0 ** -(1 + np.arange(layers))).tolist()
        row[f"{kind}/embed/rms"] = 0.1 + step / 1000
    return row


START = {
    "time": "2026-11-22T12:20:00Z",
    "command": "min-llm train apps/shakespeare/config.yaml",
    "runtime": {"dtype": "bfloat16", "attention": "xla", "scan": False, "remat": "none"},
    "flops_per_token": 2.4e7,
    "flops_formula": "6N + 12·L·H·K·S",
    "peak_flops_measured": 6.7e11,
    "device": "Intel Xeon",
    "devices": 1,
    "platform": "cpu",
    "cpu": "Intel Xeon",
    "cores": 2,
    "cpu_features": "avx512f amx_bf16",
    "python": "3.12.1",
    "versions": {"min_llm": "0.1.0", "jax": "0.12.0.1"},
    "xla_flags": "--xla_cpu_use_onednn=true",
    "commit": "0123456789ab",
}
BASELINES = {
    "xz_9": {"alone": 2.9, "conditional": 2.41},
    "kneser_ney": {"order": 5, "bits_per_byte": 2.13, "default_discounts": []},
}


def make_run(folder, rows, cfg=None, starts=1, samples=True, baselines=True):
    """A run folder with these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(cfg or configuration()), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({"starts": [START] * starts}), encoding="utf-8")
    data = {"lines": ["train: 1,400,000 tokens", "licence: public domain. Text: William Shakespeare"]}
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    if samples:
        text = "KING. What <b>say</b> you, my lord?\nThe sea & the world."
        blocks = [f"## Step {step}\n\n```text\n{text} ({step})\n```\n\n" for step in (200, 400, 600)]
        (folder / "samples.md").write_text("".join(blocks), encoding="utf-8")
    if baselines:
        (folder / "baselines.json").write_text(json.dumps(BASELINES), encoding="utf-8")
    return folder


def finished(folder, **more):
    return make_run(folder, list(training_rows(0, 600)), **more)


def resumed(folder):
    rows = [*training_rows(0, 200), *training_rows(200, 400, seed=1), *training_rows(400, 600, seed=2)]
    rows.insert(30, {"step": 275, "kind": "event", "event": "spike", "loss": 5.2, "z": 8.1})
    rows += [probe_row(step) for step in range(1, 600, 50)]
    return make_run(folder, rows, starts=3)


def failed(folder):
    rows = [*training_rows(0, 300)]
    rows[12]["grad_norm"] = math.nan
    rows.append({"step": 305, "kind": "event", "event": "not finite", "loss": "nan", "grad_norm": "inf"})
    return make_run(folder, rows)


class Page(html.parser.HTMLParser):
    """Tags that are closed in order, every attribute that could fetch something, and all text."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.note(attributes)

    def handle_startendtag(self, tag, attributes):
        self.note(attributes)

    def note(self, attributes):
        names = ("src", "href", "srcset", "action", "data", "xlink:href")
        self.loads += [value for name, value in attributes if name in names]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def page_of(folder, **more):
    page = Page(render(folder, **more))
    assert not page.open
    return page


def charts(folder):
    """The numbers that the page's script reads, by the curve's title."""
    found = re.findall(r'data-chart="([^"]*)".*?<b>(.*?)</b>', render(folder), re.DOTALL)
    return {title: json.loads(html.unescape(data)) for data, title in found}


@pytest.fixture
def warnings(monkeypatch):
    """What the reporter says."""
    said = []

    class Quiet(reporting.Reporter):
        def _show(self, line, style):
            said.append(line)

    monkeypatch.setattr(reporting, "_reporter", Quiet())
    return said


def test_a_finished_run_shows_its_final_numbers(tmp_path):
    folder = finished(tmp_path / "run")
    rows, _ = history.read_rows(folder)
    val, train = history.column(rows, "val", "loss")[-1][1], history.column(rows, "train", "loss")[-1][1]
    text = page_of(folder).text
    for expected in (
        "finished 600 steps",
        f"{val:.4f}",
        f"{train:.4f}",
        f"{val / 2.3:.4f}",
        f"perplexity {math.exp(val):,.1f}",
        "3,475,712 parameters",
        "600 steps of 16 × 256 tokens: 2.46M tokens",
        "6N + 12·L·H·K·S",
        "24 MFLOP a token, of 670 GFLOP/s measured in bfloat16",
        "No datasheet peak is known",
        "licence: public domain. Text: William Shakespeare",
        "apps/shakespeare/config.yaml",
        "0123456789ab",
        "--xla_cpu_use_onednn=true",
    ):
        assert expected in text, expected


def test_the_pointer_reads_measured_numbers_not_smoothed_ones(tmp_path):
    folder = finished(tmp_path / "run")
    rows, _ = history.read_rows(folder)
    (norm,) = charts(folder)["Gradient norm"]["series"]
    expected = [[x, figures.number(y)] for x, y in history.column(rows, "train", "grad_norm")]
    assert norm["points"] == expected


def test_the_page_asks_for_nothing(tmp_path):
    text = render(resumed(tmp_path / "run"))
    assert all(value.startswith("data:") for value in Page(text).loads)
    assert not re.search(r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest", text)


def test_what_the_model_wrote_and_names_are_escaped(tmp_path):
    cfg = configuration(name="<script>alert(1)<")
    folder = make_run(tmp_path / "run", training_rows(0, 600), cfg=cfg)
    (folder / "samples.md").write_text("## Step 5\n\n```text\n</pre><script>x()</script>\x1b&amp;\n```\n\n")
    page = page_of(folder)
    assert (
        "</pre><script>x()</script>\u241b&amp;" in page.text
    )  # as text, and the control character as a picture
    assert "<script>alert(1)<" in page.text


def test_mfu_is_given_against_the_datasheet_too(tmp_path):
    folder = finished(tmp_path / "run")
    start = START | {"device": "NVIDIA H100 80GB HBM3", "peak_flops_measured": 7e14, "flops_per_token": 3e10}
    (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
    text = page_of(folder).text
    rows, _ = history.read_rows(folder)
    rate = float(np.median([y for _, y in history.column(rows, "train", "tokens_per_second")]))
    assert figures.percent(rate * 3e10 / 7e14) in text and "700 TFLOP/s measured" in text
    name, share = datasheet(start["device"]).name, figures.percent(rate * 3e10 / 989.4e12)
    assert f"989 TFLOP/s in the datasheet ({name}): {share}" in text


def test_bits_per_byte_stand_beside_the_baselines_best_first(tmp_path):
    text = page_of(finished(tmp_path / "run")).text
    order = [text.index(name) for name in ("this model", "5-gram", "xz -9, knowing", "2.410", "2.900")]
    assert order == sorted(order)
    assert "5-gram" not in page_of(finished(tmp_path / "none", baselines=False)).text


def test_the_final_score_of_the_whole_text_counts(tmp_path):
    final = {"step": 600, "kind": "final", "loss": 3.25, "tokens": 162_000, "bits_per_byte": 1.625}
    text = page_of(make_run(tmp_path / "run", [*training_rows(0, 600), final])).text
    assert "1.6250" in text and "whose loss is 3.2500 nats/token" in text


def test_a_resumed_run_is_one_curve_with_its_seams(tmp_path):
    folder = resumed(tmp_path / "run")
    loss = charts(folder)["Loss"]
    assert [mark[0] for mark in loss["marks"] if "resumed" in mark[1]] == [200, 400]
    assert [x for x, _ in loss["series"][0]["points"]] == list(range(10, 610, 10))
    rows, _ = history.read_rows(folder)
    assert history.training_seconds(rows) == pytest.approx(600 * 4096 / 11_500, rel=0.02)
    assert page_of(folder).text.count("min-llm train apps/shakespeare/config.yaml") == 3


def test_goodput_counts_lost_steps_and_pauses_as_lost(tmp_path):
    rows = [*training_rows(0, 300), *training_rows(300, 600)]
    start = datetime.datetime.fromisoformat(history.starts(finished(tmp_path / "run"))[0]["time"]).timestamp()
    useful = history.training_seconds(rows)
    for row in rows:
        if row["kind"] == "train":
            row["perf"]["time"] = start + 2 * useful * row["step"] / 600
    assert history.goodput(rows, history.starts(tmp_path / "run")) == pytest.approx(0.5)
    assert (
        history.goodput(training_rows(0, 300), history.starts(tmp_path / "run")) is None
    )  # of another version
    page = page_of(make_run(tmp_path / "timed", rows)).text
    assert "goodput" in page and "goodput" not in page_of(tmp_path / "run").text


def test_a_run_that_never_stopped_has_no_seams(tmp_path):
    rows, _ = history.read_rows(finished(tmp_path / "run"))
    assert history.resumes(rows) == []


def test_a_kill_soon_after_the_start_is_a_seam_too(tmp_path):
    rows = [*training_rows(0, 10), *training_rows(10, 300)]
    assert history.resumes(rows) == [(10.0, 20.0)]


def test_rows_beyond_the_checkpoint_are_replaced_by_those_of_the_resumed_process(tmp_path):
    rows = [*training_rows(0, 300), *training_rows(200, 400, seed=5)]
    folder = make_run(tmp_path / "run", rows)
    found, _ = history.read_rows(folder)
    losses = history.column(found, "train", "loss")
    assert [x for x, _ in losses] == list(range(10, 410, 10))
    expected = {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}
    assert dict(losses) == expected


def test_loss_spikes_are_marked(tmp_path):
    loss = charts(resumed(tmp_path / "run"))["Loss"]
    assert [275, "loss spike: 5.200, 8.1 deviations"] in loss["marks"]
    assert "Step 275: loss spike" in page_of(tmp_path / "run").text


def test_a_run_that_failed_says_where(tmp_path):
    folder = failed(tmp_path / "run")
    text = page_of(folder, running=True).text
    assert "failed at step 305 of 600: loss nan, gradient norm inf" in text
    assert "NaN" not in json.dumps(charts(folder)["Loss"])
    assert charts(folder)["Loss"]["x"][1] == 305


def test_states(tmp_path):
    half = list(training_rows(0, 300))
    state = lambda rows, running=False, saved=None: history.state(rows, 600, running, saved)[:2]
    assert state(half, True) == ("running", "running, step 300 of 600")
    assert state(half) == ("stopped", "stopped after step 300 of 600; its command goes on after step 0")
    assert state(half, saved=200)[1] == "stopped after step 300 of 600; its command goes on after step 200"
    assert state(half, saved=303)[1] == "stopped after step 303 of 600; its command goes on after step 303"
    assert state([], False)[0] == "empty" and state([], True)[0] == "running"
    assert state(list(training_rows(0, 600)), True)[0] == "finished"
    bad = {"step": 250, "kind": "event", "event": "not finite", "loss": "nan", "grad_norm": "1.0"}
    assert state([*half, bad | {"step": 301}])[0] == "failed"
    assert state([*half, bad])[0] == "stopped"  # it got past that step later


def test_a_lock_that_is_held_means_running(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    assert not history.is_running(tmp_path)
    with (tmp_path / ".lock").open("w") as file:
        assert not history.is_running(tmp_path)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert history.is_running(tmp_path)
    assert not history.is_running(tmp_path)


def test_a_run_without_rows_says_so(tmp_path):
    folder = make_run(tmp_path / "run", [], samples=False, baselines=False)
    (folder / "metrics.jsonl").unlink()
    (folder / "environment.json").unlink()
    (folder / "data.json").unlink()
    text = page_of(folder).text
    assert "No row of metrics has been written yet" in text and "Validation" not in text


def test_one_row_is_a_point(tmp_path):
    folder = make_run(tmp_path / "run", list(training_rows(0, 10)), samples=False)
    page_of(folder)
    assert charts(folder)["Loss"]["x"] == [10, 11]


DAMAGE = [
    b'{"step": 700, "kind": "tr',
    b"\xff\xfe\x00",
    b"[1, 2]\n",
    b"null\n",
    b'{"step": "x", "kind": "train"}\n',
    b"{}\n",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_torn_rows_are_left_out_and_counted(tmp_path, damage):
    folder = finished(tmp_path / "run")
    whole = (folder / "metrics.jsonl").read_bytes()
    middle = whole.index(b"\n", len(whole) // 2) + 1
    (folder / "metrics.jsonl").write_bytes(
        whole[:middle] + damage.rstrip(b"\n") + b"\n" + whole[middle:] + damage
    )
    text = page_of(folder).text
    assert "finished 600 steps" in text
    assert "2 unreadable lines of metrics.jsonl left out." in text


@pytest.mark.parametrize("name", ["environment.json", "data.json", "baselines.json", "samples.md"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"starts": [1], "lines": 3, "xz_9": null}', b"\xff"]
)
def test_other_damaged_files_cost_their_section_only(tmp_path, name, content):
    folder = finished(tmp_path / "run")
    (folder / name).write_bytes(content)
    assert "finished 600 steps" in page_of(folder).text


def test_a_torn_sample_is_not_shown(tmp_path):
    folder = finished(tmp_path / "run")
    with (folder / "samples.md").open("a") as file:
        file.write("## Step 700\n\n```text\nhalf a")
    assert [step for step, _ in history.samples(folder)] == [200, 400, 600]
    text = page_of(folder).text
    assert "at step 600" in text and "half a" not in text


def test_a_configuration_of_another_version_is_shown_as_it_is(tmp_path):
    folder = finished(tmp_path / "run")
    with (folder / "config.yaml").open("a") as file:
        file.write("future: {key: value}\n")
    text = page_of(folder).text
    assert "future:" in text and "key: value" in text and "finished 600 steps" in text


def test_defaults_are_pale_and_changes_are_not(tmp_path):
    text = render(finished(tmp_path / "run"))
    lines = {
        m[3].split(":")[0].strip(): bool(m[1])
        for m in reversed(  # of equal keys (name, optim.name) the first
            list(re.finditer(r'<span( class="same")?( title="[^"]*")?>([^<]*:[^<]*)</span>', text))
        )
    }
    assert lines["batch_size"] and lines["schedule"] and lines["n_layers"]
    assert not lines["lr"] and not lines["steps"] and not lines["tie_embeddings"] and not lines["name"]
    assert 'title="optimizer steps"' in text


def test_writing_leaves_the_old_page_or_the_new_one(tmp_path, monkeypatch, warnings):
    folder = finished(tmp_path / "run")
    path = write_report(folder)
    assert path == folder / "report.html" and path.read_text(encoding="utf-8") == render(folder)
    before = path.read_bytes()
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    assert write_report(folder) == path
    assert path.read_bytes() == before and not list(folder.glob(".*.tmp"))
    assert len(warnings) == 1 and "No space left" in warnings[0] and "min-llm report" in warnings[0]


def test_a_report_never_fails_a_training_but_a_mistake_in_it_is_seen(tmp_path, monkeypatch, warnings):
    assert write_report(tmp_path / "nowhere") == tmp_path / "nowhere" / "report.html"
    assert "is not a run" in warnings[0]
    folder = finished(tmp_path / "run")
    for error in (ValueError("odd"), KeyError("loss"), ZeroDivisionError("x"), AttributeError("get")):
        monkeypatch.setattr("min_llm.train.report.render", lambda *_, e=error: (_ for _ in ()).throw(e))
        write_report(folder)
        assert type(error).__name__ in warnings[-1]
    monkeypatch.setattr("min_llm.train.report.render", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_report(folder)


def test_a_long_run_makes_a_small_page_quickly(tmp_path):
    rows = list(training_rows(0, 100_000, steps=100_000))
    folder = make_run(tmp_path / "run", rows, cfg=configuration(steps=100_000))
    began = time.process_time()
    text = render(folder)
    assert time.process_time() - began < 3  # 10,000 rows; a busy machine may be slow
    assert len(text) < 500_000
    for chart in charts(folder).values():
        assert all(len(series["points"]) < 1000 for series in chart["series"])


def test_the_command_prints_the_path(tmp_path, capsys):
    folder = finished(tmp_path / "run")
    report(folder, open_=False)
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    with pytest.raises(UserError, match="is not a run"):
        report(tmp_path / "nowhere", open_=False)


def test_probes_join_the_stacks_of_layers():
    rows = [
        {"step": step, "kind": "probe", "residual/rms": [1.0, 2.0, 3.0], "grad/embed/rms": 0.5}
        | {"grad/layers.0.wq/rms": [step * 1.0], "grad/layers.1.wq/rms": [5.0, 6.0]}
        | {"grad/layers.1.moe/rms": [7.0, float("nan")]}
        for step in (1, 51)
    ]
    probes = history.probes(rows)
    assert probes.steps.tolist() == [1, 51]
    np.testing.assert_array_equal(probes.tables["residual/rms"], [[1, 1], [2, 2], [3, 3]])
    np.testing.assert_array_equal(probes.group("grad")["wq/rms"], [[1, 51], [5, 5], [6, 6]])
    np.testing.assert_array_equal(probes.group("grad")["moe/rms"], [[math.nan] * 2, [7, 7], [math.nan] * 2])
    np.testing.assert_array_equal(probes.group("grad")["embed/rms"], [[0.5, 0.5]])
    assert history.probes([]) is None


def test_probes_are_heat_maps_of_the_page(tmp_path):
    text = render(resumed(tmp_path / "run"))
    for title in ("residual, rms", "residual, max", "attention entropy, mean", "wq, rms", "embed, rms"):
        assert f"<b>{title}</b>" in text
    assert "Probes" not in page_of(finished(tmp_path / "plain")).text


@pytest.mark.parametrize("suffix, magic", [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_probe_plot_draws_a_picture(tmp_path, capsys, suffix, magic):
    out = tmp_path / f"probes.{suffix}"
    plot(resumed(tmp_path / "run"), out)
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_bytes().startswith(magic) and out.stat().st_size > 10_000


def test_probe_plot_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="train.probe=true"):
        plot(finished(tmp_path / "run"), None)
    with pytest.raises(UserError, match="must end in"):
        plot(resumed(tmp_path / "probed"), tmp_path / "x.bmp")
    with pytest.raises(UserError, match="is not a run"):
        plot(tmp_path / "nowhere", None)


def decoded(png):
    """[height, width, 4] of a PNG without filters."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    place, chunks = 8, {}
    while place < len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        data = png[place + 8 : place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length :][:4])[0] == zlib.crc32(kind + data)
        chunks[kind], place = data, place + 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 4 * width)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, 4)


def test_a_heat_map_is_a_picture_of_its_numbers():
    table = np.array([[1.0, 2.0, 3.0], [1.5, math.nan, 2.5]])
    drawn = figures.heat_map("x", table, [1, 2, 3])
    pixels = decoded(base64.b64decode(re.search(r"base64,([^\"]+)", drawn)[1]))
    assert pixels.shape == (2, 3, 4)
    assert bytes(pixels[0, 0]).hex() == figures.VIRIDIS[0] + "ff"
    assert bytes(pixels[0, 1]).hex() == figures.VIRIDIS[4] + "ff"
    assert bytes(pixels[0, 2]).hex() == figures.VIRIDIS[8] + "ff"
    assert pixels[1, 1, 3] == 0
    values, log = figures.colour_scale(np.array([[1.0, 1000.0]]))
    assert log and values.tolist() == [[0.0, 3.0]]
    assert figures.heat_map("x", np.full((2, 2), math.nan), [1, 2]) == ""


def test_thinning_keeps_the_ends_and_every_peak():
    points = [(float(x), math.sin(x / 1000)) for x in range(50_000)]
    points[31_234] = (31_234.0, 99.0)
    points[7_001] = (7_001.0, -99.0)
    kept = figures.thin(points)
    assert len(kept) <= figures.MOST_POINTS + 2
    assert points[31_234] in kept and points[7_001] in kept and kept[-1] == points[-1]
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert figures.thin([(1, math.nan)] * 3000)  # nothing finite, nothing raised


def test_smoothing_does_not_shift():
    line = [(float(x), 2.0 * x) for x in range(200)]
    assert figures.smooth(line) == pytest.approx(np.array(line))
    noisy = [(x, y + (-1) ** int(x)) for x, y in line]
    assert max(abs(y - 2 * x) for x, y in figures.smooth(noisy)[5:-5]) < 0.25
    assert figures.smooth([(1, math.nan), (2, 5.0)]) == [(2, 5.0)]
    assert figures.smooth([]) == []


@pytest.mark.parametrize(
    "lo, hi", [(0, 1), (3.01, 7.62), (-5, 5), (0, 3e-3), (10, 600), (1e9, 7e9), (2.0, 2.001)]
)
def test_ticks_are_round_and_inside(lo, hi):
    found = figures.ticks(lo, hi)
    assert 2 <= len(found) <= 7
    assert all(lo - 1e-9 <= t <= hi + 1e-9 for t in found)
    step = found[1] - found[0]
    assert min(abs(step / 10 ** math.floor(math.log10(step * 1.0001)) - m) for m in (1, 2, 5)) < 1e-6
    assert all(abs(t / step - round(t / step)) < 1e-6 for t in found)


def test_numbers_are_short():
    shown = {
        0: "0",
        0.003: "0.003",
        12_345: "12.3k",
        999.9: "1k",
        2.46e6: "2.46M",
        1e-5: "1e-5",
        -0.25: "-0.25",
    }
    for value, text in shown.items():
        assert figures.number(value) == text
    assert figures.number(math.nan) == "nan"
    assert figures.quantity(468e9, "FLOP/s") == "468 GFLOP/s" and figures.quantity(12, "B") == "12 B"
    assert figures.percent(0.4123) == "41.2 %"


def test_a_curve_is_drawn_where_its_numbers_are():
    drawn = figures.curve("x", [figures.Series("y", [(0, 0.0), (5, 5.0), (10, 10.0)])], zero=True)
    places = [
        tuple(map(float, p.split())) for p in re.search(r'class="line"[^>]*d="M([^"]+)"', drawn)[1].split("L")
    ]
    x, y = np.array(places).T
    assert x.tolist() == [0, 500, 1000]
    assert y[0] == 1000 and y[1] == pytest.approx((y[0] + y[2]) / 2, abs=0.1) and 0 < y[2] < 60
    gap = figures.curve("x", [figures.Series("y", [(0, 1.0), (1, math.nan), (2, 2.0), (3, 3.0)])])
    assert re.search(r'class="line"[^>]*d="([^"]+)"', gap)[1].count("M") == 2
    assert figures.curve("x", [figures.Series("y", [(0, math.nan)])]) == ""
    assert figures.curve("x", [figures.Series("y", [(0, -1.0)])], log=True) == ""
