"""Watch the loss: spikes are reported, numbers that are not finite stop the run (Llama 3 section 3.4: "few loss
spikes", none of which needed intervention)."""

from __future__ import annotations

import collections
import math

WINDOW = 100
NEEDED = 20  # losses seen before a spike can be told from noise


class SpikeMonitor:
    """A spike is a loss more than z standard deviations above the mean of the last 100 losses.

    A spike enters that window as the largest loss that is none, so that it hides no second one, while a loss that
    stays high becomes the new normal after a few steps instead of a spike at every one.
    """

    def __init__(self, z: float) -> None:
        self.z = z
        self.recent: collections.deque[float] = collections.deque(maxlen=WINDOW)

    def feed(self, loss: float) -> float | None:
        """The z-score of this loss when it is a spike, else None."""
        n = len(self.recent)
        if self.z and n >= NEEDED:
            mean = sum(self.recent) / n
            std = math.sqrt(sum((x - mean) ** 2 for x in self.recent) / n)
            score = (loss - mean) / max(std, 1e-3)
            if score > self.z:
                self.recent.append(mean + self.z * max(std, 1e-3))
                return score
        self.recent.append(loss)
        return None
