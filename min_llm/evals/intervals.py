"""How far a measured number may be from the true one: 95 % confidence intervals, without random draws."""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

Interval = tuple[float, float]  # low, high

Z = NormalDist().inv_cdf(0.975)


def wilson(successes: int, count: int) -> Interval:
    """Of a proportion (Wilson 1927): unlike p ± z √(p(1-p)/n) it is right for small counts and near 0 and 1."""
    p, spread = successes / count, Z * Z / count
    centre = (p + spread / 2) / (1 + spread)
    half = Z * math.sqrt(p * (1 - p) / count + spread / count / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def ratio(tops: Float[np.ndarray, " n"], bottoms: Float[np.ndarray, " n"]) -> Interval | None:
    """Of Σ tops / Σ bottoms over n independent units: the linearised ratio estimator (Cochran 1977, section 6.4) and
    the normal distribution. With bottoms of 1 it is that of a mean. None for one unit, whose spread is unknown."""
    n = len(tops)
    if n < 2:
        return None
    found = tops.sum() / bottoms.sum()
    residuals = tops - found * bottoms
    half = Z * math.sqrt(n / (n - 1) * float(residuals @ residuals)) / bottoms.sum()
    return float(found - half), float(found + half)


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How many of `count` questions were answered right."""

    correct: int
    count: int

    @property
    def value(self) -> float:
        return self.correct / self.count

    @property
    def interval(self) -> Interval:
        return wilson(self.correct, self.count)
