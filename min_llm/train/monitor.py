"""Watch the loss: spikes are reported or their updates left out, numbers that are not finite stop the run (Llama 3
section 3.4: "few loss spikes", none of which needed intervention; L3-4.6)."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WINDOW = 100
NEEDED = 20  # values seen before a spike can be told from noise
SMALLEST = 1e-3  # of a standard deviation: a loss that hardly moves has no spikes of its last digits


def judge(recent: Any, known: Any, value: Any, z: float) -> tuple[Any, Any, Any]:
    """(deviations of `value` above the mean of the recent values, whether it is a spike, what enters the window).

    recent: array of values, of which those where `known` is true count; NumPy or JAX. A spike is more than z standard
    deviations above the mean. It enters the window as the largest value that is none, so that it hides no second one,
    while values that stay high become the new normal after a few steps instead of a spike at every one.
    """
    xp = recent.__array_namespace__()
    n = known.sum()
    mean = xp.where(known, recent, 0).sum() / xp.maximum(n, 1)
    square = xp.where(known, (recent - mean) ** 2, 0).sum() / xp.maximum(n, 1)
    deviation = xp.maximum(xp.sqrt(square), SMALLEST)
    score = (value - mean) / deviation
    spike = (n >= NEEDED) & (score > z)
    return score, spike, xp.where(spike, mean + z * deviation, value)


class SpikeMonitor:
    """Watches the losses of a run from outside: the last 100 of them, and whether the next one is a spike."""

    def __init__(self, z: float) -> None:
        self.z = z
        self.recent: collections.deque[float] = collections.deque(maxlen=WINDOW)

    def feed(self, loss: float) -> float | None:
        """The z-score of this loss when it is a spike, else None."""
        recent = np.asarray(self.recent, np.float64)
        score, spike, entering = judge(recent, np.ones(len(recent), bool), loss, self.z)
        spike = bool(self.z and spike)
        self.recent.append(float(entering) if spike else loss)
        return float(score) if spike else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Watch:
    """The same inside a jitted step, over the loss and the logarithm of the gradient norm (norms are skewed and their
    scale is the model's). recent: [2, 100], the newest last; seen: int32, how many there were."""

    recent: jax.Array
    seen: jax.Array

    @classmethod
    def start(cls) -> Watch:
        return cls(jnp.zeros((2, WINDOW)), jnp.zeros((), jnp.int32))

    def feed(self, loss: jax.Array, grad_norm: jax.Array, z: float) -> tuple[Watch, jax.Array]:
        """The watch after this step, and whether the step's loss or norm is a spike."""
        known = jnp.arange(WINDOW) >= WINDOW - self.seen
        values = jnp.stack([loss, jnp.log(grad_norm)])
        _, spikes, entering = jax.vmap(lambda r, v: judge(r, known, v, z))(self.recent, values)
        recent = jnp.concatenate([self.recent[:, 1:], entering[:, None]], axis=1)
        return Watch(recent, self.seen + 1), spikes.any()
