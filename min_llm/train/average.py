"""Polyak averaging: one model from several checkpoints (Polyak and Juditsky 1992; Llama 3 section 3.4.3, L3-4.5).

At a constant learning rate the parameters wander around a minimum, and their mean lies closer to it than any of them.
The paper averages the checkpoints of its annealing, whose rate goes to 0; there they have little left to wander.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from min_llm.config import UserError
from min_llm.train.begin import read_run
from min_llm.train.run import Run, load_config


def average(folder: Path, steps: Sequence[int]) -> Any:
    """The mean of the parameters of a run's checkpoints: its parameter tree, float32 on the host.

    One checkpoint is in memory at a time, beside the sums in float64; of one checkpoint the mean is that checkpoint to
    the bit. Raises UserError where there is none of a step, or where one is damaged or of another model.
    """
    if not steps or len(set(steps)) < len(steps):
        raise UserError(f"The steps to average are {list(steps)}; give at least one, and none of them twice.")
    total = jax.tree.map(lambda x: np.asarray(x, np.float64), read_run(folder, steps[0])[2])
    for step in steps[1:]:
        total = jax.tree.map(lambda a, x: a + np.asarray(x), total, read_run(folder, step)[2])
    return jax.tree.map(lambda a: (a / len(steps)).astype(np.float32), total)


def last_steps(folder: Path, count: int) -> list[int]:
    """The steps of the `count` latest checkpoints of a run, in order."""
    have = Run(folder, load_config(folder)).checkpoints.steps()
    if not 1 <= count <= len(have):
        raise UserError(
            f"The last {count} checkpoints of {folder} were asked for; it has {len(have)} (checkpoint.keep_every=STEPS "
            "keeps more of a run that is yet to be trained)."
        )
    return have[-count:]
