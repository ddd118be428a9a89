"""Power laws, y = A · x^α: straight lines in logarithms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from min_llm.config import UserError


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = coefficient · x^exponent. r2: the share of the variance of ln y that it explains; None where two
    points leave nothing to explain."""

    coefficient: float
    exponent: float
    r2: float | None = None

    def __call__(self, x: float) -> float:
        return self.coefficient * x**self.exponent


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """By least squares in logarithms: every point counts alike, however large."""
    if len(set(x)) < 2:
        raise UserError(f"A power law needs two different points or more; given: {len(set(x))}.")
    if min(*x, *y) <= 0:
        raise UserError(f"A power law needs positive numbers; the smallest given is {min(*x, *y)}.")
    u, v = np.log(x), np.log(y)
    exponent, offset = np.polyfit(u - u.mean(), v, 1)
    residuals, spread = v - offset - exponent * (u - u.mean()), v - v.mean()
    known = len(x) > 2 and spread.any()
    r2 = float(1 - (residuals @ residuals) / (spread @ spread)) if known else None
    return PowerLaw(math.exp(offset - exponent * u.mean()), float(exponent), r2)
