"""`min-llm info|arithmetic|plan`: presets, run folders and configuration files, as tables and as JSON."""

import json

import pytest
from typer.testing import CliRunner

from min_llm.cli.main import app
from min_llm.cli.models import duration, quantity, size
from min_llm.config import UserError


@pytest.fixture(autouse=True)
def peaks(monkeypatch):
    peaks = {"flops_float32": 1e11, "flops_bfloat16": 1e12, "bytes": 1e10}
    monkeypatch.setattr("min_llm.kernels.peaks.measure", lambda: peaks)


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def answer(*arguments):
    return json.loads(run(*arguments, "--json"))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "model: {preset: mini-1m}\ndata: {tokenizer: 'bpe:1000'}\ntrain: {steps: 10, batch_size: 4, seq_len: 128}\n"
    )
    return path


def test_info_of_a_preset():
    facts = answer("info", "llama3-8b")
    assert facts["parameters"] == 8_030_261_248 == sum(p["count"] for p in facts["components"])
    assert sum(facts["roles"].values()) == facts["parameters"]
    assert facts["bytes"]["bfloat16"]["kv_per_token"] == 131_072
    assert facts["flops_per_token"]["formula"] == "6N + 12·L·H·K·S"
    text = run("info", "llama3-8b")
    for expected in ("8,030,261,248", "128 KiB", "6N + 12·L·H·K·S", "layers.0.w_gate"):
        assert expected in text


def test_info_tells_what_a_token_uses_of_the_experts():
    facts = answer("info", "mixtral-8x7b", "--seq-len", 4096)
    assert facts["parameters"] == 46_702_792_704 == sum(p["count"] for p in facts["components"])
    assert facts["active_parameters"] == 12_879_925_248
    assert facts["flops_per_token"]["n"] < facts["active_parameters"]
    assert "46,702,792,704 parameters, of which a token uses 12,879,925,248 (mixtral)" in run(
        "info", "mixtral-8x7b"
    )
    assert "of which" not in run("info", "llama3-8b")
    assert answer("arithmetic", "mixtral-8x7b")["weight_bytes"] == 2 * 46_702_792_704


def test_a_preset_without_vocabulary_says_what_was_assumed():
    facts = answer("info", "mini-1m")
    assert facts["config"]["vocab_size"] == 32_000
    assert "--vocab-size" in facts["note"]
    assert "assumed" in run("info", "mini-1m")
    given = answer("info", "mini-1m", "--vocab-size", 1000)
    assert given["config"]["vocab_size"] == 1000
    assert given["parameters"] < facts["parameters"]


def test_info_reads_configuration_files_and_run_folders(config):
    facts = answer("info", config)
    assert facts["config"]["vocab_size"] == 1000  # bpe:1000 says so
    assert answer("info", config.parent)["parameters"] == facts["parameters"]


def test_arithmetic_on_named_hardware():
    facts = answer("arithmetic", "llama3-8b", "--hardware", "h100", "--context", 4096)
    assert facts["crossover_batch"] == pytest.approx(295, abs=0.5)
    assert [row["batch"] for row in facts["decode"]] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert facts["decode"][0]["bound"] == "memory"
    assert facts["capacity"]["blocks_per_sequence"] == 256
    assert "295" in run("arithmetic", "llama3-8b")


def test_arithmetic_says_when_the_weights_do_not_fit():
    assert "do not fit" in run("arithmetic", "llama3-70b", "--hardware", "rtx-4090")


def test_arithmetic_on_this_machine():
    facts = answer("arithmetic", "gpt2", "--hardware", "measured", "--batch", 3, "--dtype", "float32")
    assert facts["hardware"]["flops_float32"] == 1e11
    assert [row["batch"] for row in facts["decode"]] == [3]
    assert facts["context"] == 1024


def test_plan_of_a_run(config):
    facts = answer("plan", config, "train.steps=20", "runtime.dtype=bfloat16", "--mfu", 0.5)
    assert facts["tokens"] == 20 * 4 * 128
    assert facts["seconds_at_peak"] == pytest.approx(facts["flops"] / 1e12)
    assert facts["seconds"] == pytest.approx(2 * facts["seconds_at_peak"])
    parts = facts["bytes"]
    assert parts["total"] == pytest.approx(
        sum(parts[k] for k in ("parameters", "gradients", "optimizer", "activations", "workspace"))
    )
    assert facts["mfu"] == 0.5
    assert facts["transfers"] == []
    predicted = answer("plan", config, "train.steps=20", "runtime.dtype=bfloat16")
    assert predicted["seconds"] == pytest.approx(20 * predicted["step"]["seconds"])
    assert predicted["mfu"] == pytest.approx(predicted["seconds_at_peak"] / predicted["seconds"])
    text = run("plan", config)
    for expected in ("memory at the peak", "fits", "is the largest term", "MFU", "6N + 12·L·H·K·S"):
        assert expected in text
    assert "axis" not in text


ON_A_MESH = ("model.preset=llama3-8b", "train.batch_size=64", "train.seq_len=8192", "--hardware", "h100")


def test_plan_on_a_mesh_counts_what_travels():
    mesh = ("parallel.mesh.fsdp=4", "parallel.mesh.tp=2", "runtime.layers=scan")
    facts = answer("plan", *mesh, *ON_A_MESH)
    assert facts["runtime"]["dtype"] == "bfloat16"  # what that hardware would run, not this machine
    assert facts["runtime"]["attention"] == "cudnn"
    assert set(facts["step"]["axes"]) == {"fsdp", "tp"}
    gathered = next(t for t in facts["transfers"] if t["what"] == "parameters")
    # 32 layers, both passes, bfloat16, halves; devices send three quarters
    matrices = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336
    assert gathered["sent"] == 0.75 * 32 * 2 * 2 * matrices / 2
    text = run("plan", *mesh, *ON_A_MESH, "parallel.mesh.pp=2")
    for expected in ("fsdp 4 x pp 2 x tp 2", "each device", "gradients of activations", "a bubble of 25.0%"):
        assert expected in text


def test_plan_proposes_meshes():
    facts = answer("plan", *ON_A_MESH, "runtime.remat=full", "--devices", 8, "--proposals", 3)
    assert len(facts["proposals"]) == 3
    seconds = [p["seconds"] for p in facts["proposals"]]
    assert seconds == sorted(seconds)
    assert all(p["bytes"] < 0.9 * 80e9 for p in facts["proposals"])
    text = run("plan", *ON_A_MESH, "runtime.remat=full", "--devices", 8)
    assert "meshes fit" in text
    assert "fsdp 8" in text
    assert "Nothing fits" in run("plan", "model.preset=llama3-405b", *ON_A_MESH[1:], "--devices", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "lama3-8b"), "Did you mean 'llama3-8b'"),
        (("info", "absent.yaml"), "There is no configuration file"),
        (("arithmetic", "gpt2", "--hardware", "h1000"), "Did you mean 'h100'"),
        (("arithmetic", "gpt2", "--dtype", "bf16"), "There is no dtype 'bf16'"),
        (("arithmetic", "gpt2", "--batch", "-1"), "batch is -1"),
        (("plan", "absent.yaml"), "There is no configuration file"),
        (("plan", "model.preset=mini-1m", "--mfu", "2"), "--mfu is 2"),
        (("plan", "model.preset=mini-1m", "train.seq_len=100000"), "longer than 'model.max_seq_len'"),
        (("plan", "train.stepz=1"), "steps"),
        (("plan", "parallel.mesh.tp=3"), "tp must divide"),
        (("plan", "--devices", "-1", "model.preset=mini-1m"), "--devices is -1"),
    ],
)
def test_bad_input_is_a_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        run(*arguments)


def test_figures_are_readable():
    assert quantity(9.894e14) == "989 T"
    assert quantity(0) == "0 "
    assert size(131_072) == "128 KiB"
    assert size(80 * 2**40) == "80 TiB"
    assert [duration(s) for s in (2e-6, 0.0123, 45, 600, 9000, 86400 * 30)] == [
        "2 µs", "12.3 ms", "45 s", "10 min", "2.5 h", "30 days",
    ]  # fmt: skip


def test_goodput_by_interval(tmp_path):
    said = run(
        "goodput", "--mtbf", 10_000, "--save", 10, "--restart", 300, "--picture", tmp_path / "goodput.png"
    )
    assert "Best: every 7:21 (Young's approximation: 7:27)" in said and said.count("%") == 14
    assert (tmp_path / "goodput.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="make no plan"):
        run("goodput", "--mtbf", 0, "--save", 10)
