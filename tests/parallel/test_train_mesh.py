"""`min-llm train` on a mesh of virtual devices: one device's losses; any mesh goes on from a checkpoint."""

import json
import shutil

import pytest

pytestmark = pytest.mark.devices

SETTINGS = [
    "data.tokenizer=bytes", "model.vocab_size=264", "model.n_layers=2", "model.dim=32",
    "model.n_heads=4", "model.n_kv_heads=2", "model.max_seq_len=32", "train.batch_size=8", "train.seq_len=32",
    "train.steps=20", "train.log_every=1", "train.eval_every=0", "sample.max_tokens=3", "sample.every=0",
    "checkpoint.every=10", "optim.warmup=2", "runtime.dtype=float32", "log.tensorboard=false",
]  # fmt: skip


@pytest.fixture
def train(run_python, monkeypatch, tmp_path):
    monkeypatch.setenv("MIN_LLM_HOME", str(tmp_path / "home"))
    text = "".join(f"{i} times {i} is {i * i}.\n" for i in range(600))
    (tmp_path / "text.txt").write_text(text)

    def run(name, devices, **mesh):
        """Losses of the steps, the validation's last."""
        places = [f"data.source={tmp_path / 'text.txt'}", f"out={tmp_path / 'runs'}", f"name={name}"]
        chosen = [*places, *(f"parallel.{key}={value}" for key, value in mesh.items())]
        code = f"import sys; sys.argv[1:] = {['train', *SETTINGS, *chosen]!r}\n" + (
            "from min_llm.cli.main import main; main()"
        )
        done = run_python(code, devices=devices, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        rows = [
            json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        ]
        return [row["loss"] for row in rows if row["kind"] in ("train", "val")]

    return run


@pytest.mark.newest
def test_twenty_steps_on_a_mesh_and_back_on_another(train, tmp_path):
    """Losses within 1e-4 of one device's (the bound that matters is 1e-3). From step 10 the run goes on on another
    mesh, with micro-batches' places in the batch as they were, and from step 20's checkpoint on one device."""
    one = train("one", 1)
    assert len(one) == 21
    mesh = train("mesh", 8, **{"mesh.fsdp": 2, "mesh.cp": 2, "mesh.tp": 2})
    assert mesh == pytest.approx(one, abs=1e-4)
    shutil.rmtree(tmp_path / "runs" / "mesh" / "checkpoints" / "20")
    other = train("mesh", 8, **{"mesh.dp": 2, "mesh.fsdp": 4, "keep_gathered": "true"})
    assert other[:10] == mesh[:10]  # what was before the checkpoint stays
    assert other == pytest.approx(one, abs=1e-4)
    shutil.rmtree(tmp_path / "runs" / "mesh" / "checkpoints" / "20")
    assert train("mesh", 1) == pytest.approx(one, abs=1e-4)


def test_a_mesh_that_does_not_fit_is_a_sentence(run_python):
    code = "import sys; sys.argv[1:] = ['train', 'parallel.mesh.tp=3']\nfrom min_llm.cli.main import main; main()"
    done = run_python(code, devices=2, check=False)
    assert done.returncode == 2
    assert "parallel.mesh (tp 3) is for 3 devices; this run has 2." in done.stderr
