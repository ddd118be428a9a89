"""The configuration of a tiny sweep: 2 budgets of 7 to 17 steps, 2 sizes."""

import json
from pathlib import Path

from min_llm import config as config_lib
from min_llm.scaling.grid import ScalingConfig
from tests.train.runs import write_config


def write_sweep(folder: Path, **changes) -> Path:
    """sweep.yaml on the tiny text and model of tests/train/runs.py; changes at its top level."""
    given = {"checkpoint.every": 6, "train.eval_every": 0, "sample.prompts": []}
    run = json.loads(write_config(folder, **given).read_text())
    del run["out"], run["train"]["steps"]
    tree = {
        "name": "sweep", "out": str(folder / "runs"), "budgets": [2e7, 3e7], "sizes": [{"dim": 16}, {"dim": 24}],
        "run": run,
    }  # fmt: skip
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(tree | changes))  # JSON is YAML
    return path


def sweep(folder: Path, **changes) -> ScalingConfig:
    return config_lib.load(ScalingConfig, write_sweep(folder, **changes))
