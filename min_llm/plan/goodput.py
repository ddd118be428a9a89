"""Goodput: the share of a long run's time that goes into steps whose result is kept, when things fail (L3-3.10).

A run trains for an interval, saves, trains on. Failures come at random, `mtbf` seconds apart on average; each loses
what was done since the last complete save, and costs a restart, in which the next failure may come. With an interval t,
a save that stops training for s seconds and a restart of r, the expected time from one save to the next is

    T = M · e^(r/M) · (e^((t+s)/M) − 1),   M = mtbf          (Daly 2006, equation 20)

and goodput t / T. The best interval solves 1 − t/M = e^(−(t+s)/M); for s far below M it is Young's √(2 s M) (1974).

The paper counts 466 interruptions in 54 days, one every 2.8 hours, and more than 90 % effective training time (section
3.3.4).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from min_llm.config import UserError

LLAMA3_MTBF = 54 * 86_400 / 466  # seconds between interruptions of the paper's run


@dataclasses.dataclass(frozen=True)
class Failing:
    """A run on machines that fail. Seconds: mtbf between failures of the whole, save in which training stands still
    (what an asynchronous save hides does not count), restart from a failure to the next step."""

    mtbf: float
    save: float
    restart: float = 0.0

    def __post_init__(self) -> None:
        if self.mtbf <= 0 or self.save <= 0 or self.restart < 0:
            raise UserError(
                f"Failures every {self.mtbf:g} s, saves of {self.save:g} s and restarts of {self.restart:g} s make no "
                "plan: the first two are above 0, the last is 0 or more."
            )

    def goodput(self, interval: float) -> float:
        """Expected, for a save after every `interval` seconds of training."""
        m = self.mtbf
        return interval / (m * math.exp(self.restart / m) * math.expm1((interval + self.save) / m))

    @property
    def young(self) -> float:
        """Young's approximation of the best interval, in seconds."""
        return math.sqrt(2 * self.save * self.mtbf)

    @property
    def best(self) -> float:
        """The interval of the highest goodput, in seconds. A restart changes what it yields and not where it lies."""
        low, high = 0.0, self.mtbf
        while (
            high - low > 1e-9 * self.mtbf
        ):  # 1 − t/M − e^(−(t+s)/M) is positive below the root and negative above
            middle = (low + high) / 2
            positive = 1 - middle / self.mtbf > math.exp(-(middle + self.save) / self.mtbf)
            low, high = (middle, high) if positive else (low, middle)
        return (low + high) / 2


def simulate(run: Failing, interval: float, saves: int, seed: int) -> float:
    """Goodput of one run of so many intervals, its failures drawn from an exponential distribution."""
    draw = np.random.default_rng(seed).exponential
    total = 0.0
    left = draw(run.mtbf)  # until the next failure
    for _ in range(saves):
        while left < interval + run.save:
            total += left
            left = draw(run.mtbf)
            while left < run.restart:  # it fails while it starts
                total += left
                left = draw(run.mtbf)
            total += run.restart
            left -= run.restart
        total += interval + run.save
        left -= interval + run.save
    return saves * interval / total
