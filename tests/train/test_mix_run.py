"""Training on a mix: what is logged and reported, and a run that was killed ends as one that never was."""

import json
import signal

import pytest

from min_llm import config as config_lib
from min_llm.train.config import RunConfig
from min_llm.train.pretrain import pretraining
from min_llm.train.report import make_report
from tests.train import runs

KILL = (
    "import os\nfrom min_llm.train import metrics as m; write = m.Metrics.write\n"
    "m.Metrics.write = lambda s, step, *a: os.kill(os.getpid(), 9) if step == 10 else write(s, step, *a)"
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """(folder, configuration) of a tiny run whose mix changes after 300 tokens: in the middle of step 5."""
    folder = tmp_path_factory.mktemp("mixed")
    sources = {}
    for name, characters in (("words", "abcdefghij"), ("digits", "0123456789")):
        text = "".join(characters[(k * k + k // 7) % 10] + " \n"[k % 50 == 0] for k in range(4000))
        (folder / f"{name}.txt").write_text(text)
        sources[name] = str(folder / f"{name}.txt")
    mix = [{"until": 300, "weights": {"words": 1.0}}, {"weights": {"words": 0.25, "digits": 0.75}}]
    path = runs.write_config(folder, **{"data.sources": sources, "data.mix": mix, "train.eval_tokens": 128})
    return folder, path


@pytest.fixture(scope="module")
def whole(mixed):
    folder, path = mixed
    runs.train_model(config_lib.load(RunConfig, path, ["name=whole"]))
    return folder / "runs/whole"


def test_killed_and_resumed_in_the_second_phase(mixed, whole):
    folder, path = mixed
    child = runs.start("train", path, "name=killed", prelude=KILL)
    said, _ = child.communicate(timeout=600)
    assert child.returncode == -signal.SIGKILL, said
    runs.train_model(config_lib.load(RunConfig, path, ["name=killed"]))
    assert runs.differences(folder / "runs/killed", whole) == []


def test_rows_tell_what_each_source_gave(whole):
    rows = [row for row in runs.comparable(whole) if row["kind"] == "mix"]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert rows[1]["tokens/words"] == 256 and rows[1]["tokens/digits"] == rows[1]["epochs/digits"] == 0
    for row in rows:
        assert row["tokens/words"] + row["tokens/digits"] == row["step"] * 64
        assert row["share/words"] + row["share/digits"] == pytest.approx(1)
    last = rows[-1]
    assert last["tokens/words"] == pytest.approx(304 + 464 / 4, abs=32)  # 19 windows begin in the first phase
    assert last["share/digits"] == pytest.approx(0.75, abs=0.05)
    assert last["epochs/words"] == last["tokens/words"] / 16 / ((7202 - 1) // 16)  # with two ends of text


def test_validation_is_of_each_source_and_of_all(mixed, whole):
    (*_, val) = [row for row in runs.comparable(whole) if row["kind"] == "val"]
    assert set(val) == {
        "step",
        "kind",
        "tokens",
        "loss",
        "loss/words",
        "loss/digits",
    }  # 128 tokens of the text
    assert val["tokens"] == 128 and val["loss/words"] != val["loss/digits"]
    assert val["loss"] == pytest.approx((val["loss/words"] + val["loss/digits"]) / 2)

    _, task, data = pretraining(config_lib.load(RunConfig, mixed[1]))
    row = task.final(task.initial())
    sizes = [part.val.scored_bytes for part in data.parts.values()]
    bits = [row[f"bits_per_byte/{name}"] for name in data.parts]
    assert row["bits_per_byte"] == pytest.approx(
        sum(a * b for a, b in zip(sizes, bits, strict=True)) / sum(sizes)
    )
    assert row["tokens"] == sum(part.val.n_targets for part in data.parts.values())


def test_the_report_has_a_line_a_source(whole):
    (whole / "baselines.json").write_text(
        json.dumps({"sources": {"words": {"kneser_ney": {"bits_per_byte": 1.234}, "xz_9": {"alone": 2.345}}}})
    )
    text = make_report(whole).read_text()
    lines = [line for line in text.splitlines() if line.startswith("<tr><td>words</td>")]
    assert len(lines) == 1 and "1.234" in lines[0] and "2.345" in lines[0]
    assert "<tr><td>digits</td>" in text and "Validation by source" in text and "share of the tokens" in text


def test_another_mix_is_another_run(mixed, whole, capsys):
    _, path = mixed
    status, _, said = runs.command_line(
        capsys, "train", path, "name=whole", "data.mix=[{weights: {words: 0.5, digits: 0.5}}]"
    )
    assert status == 2 and "already holds a run with other settings (data.mix: " in said


def test_a_mix_needs_the_shuffled_order(mixed, capsys):
    _, path = mixed
    status, _, said = runs.command_line(capsys, "train", path, "name=random", "train.order=random")
    assert status == 2 and "'train.order' is 'random', but a mix counts epochs" in said


def test_weights_that_do_not_sum(mixed, capsys):
    _, path = mixed
    status, _, said = runs.command_line(
        capsys, "train", path, "name=sum", "data.mix=[{weights: {words: 0.5, digits: 0.25}}]"
    )
    assert status == 2 and "sum to 0.75, not to 1" in said
