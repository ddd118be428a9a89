"""From a text to samples and a report at the command line: train, sample, report, info, probe."""

import json
import os
import re
import signal

import pytest

from min_llm.train import metrics
from tests.train.runs import command_line, text, write_config

NAME = "tiny"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained run: (its folder, the configuration file, what training printed)."""
    folder = tmp_path_factory.mktemp("cli")
    path = write_config(folder, name=NAME, **{"train.steps": 8, "sample.every": 4, "train.probe": True})

    class Captured:  # capsys is for single tests
        def readouterr(self):
            return "", ""

    # SIGTERM in the middle, as a scheduler sends it; the same command goes on.
    with pytest.MonkeyPatch.context() as patch:
        write = metrics.Metrics.write

        def stop(self, step, kind, *rest):
            if (step, kind) == (6, "train"):
                os.kill(os.getpid(), signal.SIGTERM)
            return write(self, step, kind, *rest)

        patch.setattr(metrics.Metrics, "write", stop)
        assert command_line(Captured(), "train", path)[0] == 143
    said = (folder / "runs" / NAME / "log.txt").read_text()
    assert "SIGTERM: finishing the step, then saving." in said and "the same command resumes" in said
    assert command_line(Captured(), "train", path)[0] == 0
    return folder / "runs" / NAME, path


def test_the_run_folder_is_complete(trained):
    folder, _ = trained
    names = {p.name for p in folder.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "samples.md", "log.txt", "report.html", "checkpoints",
                     "environment.json", "tokenizer.json", "data.json"}  # fmt: skip
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [2, 4, 6, 8]
    assert {"tokens_per_second", "mfu", "peak_memory", "data_wait"} <= set(rows[1]["perf"])
    assert rows[-1]["kind"] == "val" and rows[-1]["bits_per_byte"] > 0
    assert (folder / "samples.md").read_text().count("## Step") == 2
    assert "Compiled the step" in (folder / "log.txt").read_text()
    start = json.loads((folder / "environment.json").read_text())["starts"][0]
    assert start["runtime"]["dtype"] == "float32" and start["versions"]["jax"]


def test_training_again_says_that_it_is_done(trained, capsys):
    folder, path = trained
    before = (folder / "metrics.jsonl").read_bytes()
    status, out, err = command_line(capsys, "train", path)
    assert status == 0 and out == "" and "is complete: 8 of 8 steps. Nothing to do." in err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_the_written_configuration_trains_the_same_run(trained, capsys):
    folder, _ = trained
    status, _, err = command_line(capsys, "train", folder / "config.yaml")
    assert status == 0 and "is complete" in err


def test_samples_go_to_standard_output(trained, capsys):
    folder, _ = trained
    words = ("sample", folder, "--prompt", "abc", "--max-tokens", 6, "--seed", 3, "-n", 2)
    status, out, err = command_line(capsys, *words)
    assert status == 0 and out.startswith("abc") and out.count("abc") >= 2
    assert "at step 8" in err and "at step 8" not in out
    assert set(out) <= set(text(folder.parents[1]).read_text())
    assert command_line(capsys, *words)[1] == out  # the seed decides
    status, _, err = command_line(capsys, "sample", folder, "--step", 5)
    assert status == 2 and "does not have the checkpoint of step 5 (it has: 7, 8)" in err
    status, _, err = command_line(capsys, "sample", folder, "--max-tokens", 100)
    assert status == 2 and "at most 16 fit" in err


def test_report_and_probe_plot_print_their_paths(trained, capsys):
    folder, _ = trained
    (folder / "report.html").unlink()
    status, out, _ = command_line(capsys, "report", folder)
    assert status == 0 and out.strip() == str(folder / "report.html")
    assert "finished 8 steps" in (folder / "report.html").read_text()
    status, out, _ = command_line(capsys, "probe", "plot", folder, "--out", folder / "p.svg")
    assert status == 0 and out.strip() == str(folder / "p.svg") and (folder / "p.svg").stat().st_size > 10_000


def test_info_reads_the_run(trained, capsys):
    folder, _ = trained
    status, out, _ = command_line(capsys, "info", folder, "--json")
    said = re.search(r"with ([\d,]+) parameters", (folder / "log.txt").read_text())
    assert status == 0 and json.loads(out)["parameters"] == int(said[1].replace(",", ""))


def test_a_mixtral_trains(tmp_path, capsys):
    model = {"model.family": "mixtral", "model.n_experts": 4}
    path = write_config(tmp_path, name="moe", **model, **{"train.steps": 3, "train.eval_every": 3})
    assert command_line(capsys, "train", path)[0] == 0
    folder = tmp_path / "runs" / "moe"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["kind"] == "val" and rows[-1]["step"] == 3


@pytest.mark.parametrize("words", [("sample",), ("report",), ("probe", "plot")])
def test_a_folder_that_is_no_run(tmp_path, capsys, words):
    status, out, err = command_line(capsys, *words, tmp_path)
    assert status == 2 and out == ""
    assert f"{tmp_path} is not a run: it has no config.yaml." in err and "Traceback" not in err


def test_without_arguments_and_unknown_words(capsys):
    status, _, err = command_line(capsys, "train")
    assert status == 2 and "Give a configuration" in err
    assert command_line(capsys, "trian")[0] == 2


def test_help_lists_every_setting_with_its_default(capsys):
    status, out, _ = command_line(capsys, "train", "--help")
    words = " ".join(out.split())
    assert status == 0
    for name, default in {"train.steps": "1000", "optim.beta2": "0.95", "checkpoint.keep": "2"}.items():
        assert re.search(rf"{re.escape(name)}\s+{re.escape(default)}", words), name


def test_the_command_works_in_a_process_of_its_own(trained, run_python):
    """Standard output holds the sample and nothing else, whatever JAX and the library say."""
    folder, _ = trained
    main = (
        f"import sys; sys.argv = ['min-llm', 'sample', {str(folder)!r}, '--max-tokens', '5', '--prompt', 'a']"
    )
    done = run_python(f"{main}\nfrom min_llm.cli.main import main; main()")
    assert re.fullmatch(r"a.{0,5}\n?", done.stdout, re.DOTALL)
    assert "Warning" not in done.stderr
