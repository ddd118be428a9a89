"""Muon, Lion and Adafactor for one matrix: the direction of a step, before learning rate and weight decay."""

from __future__ import annotations

import numpy as np


def newton_schulz(g, steps=5):
    """About U V^T for g = U S V^T: every singular value is brought near 1 without a decomposition.

    Jordan et al. 2024 (kellerjordan.github.io/posts/muon): x = a x + (b x x^T + c (x x^T)^2) x, an odd polynomial of
    the singular values, starting from g scaled to a Frobenius norm of 1. Its coefficients rise steeply at 0 and end not
    at 1 but between 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(steps):
        xx = x @ x.T
        x = a * x + (b * xx + c * xx @ xx) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def muon(g, state, momentum=0.95, rms=0.2):
    """Momentum (Nesterov's, both means corrected for their start at 0), made orthogonal, scaled to the root mean
    square `rms` (Liu et al. 2025, arXiv 2502.16982, equation 4). state: (t, m); None before the first step."""
    t, m = (0, np.zeros_like(g)) if state is None else state
    t, m = t + 1, momentum * m + (1 - momentum) * g
    ahead = momentum * m / (1 - momentum ** (t + 1)) + (1 - momentum) * g / (1 - momentum**t)
    return rms * np.sqrt(max(g.shape)) * newton_schulz(ahead), (t, m)


def lion(g, m, betas=(0.9, 0.95)):
    """Chen et al. 2023 (arXiv 2302.06675, algorithm 2). m: the momentum; None before the first step."""
    m = np.zeros_like(g) if m is None else m
    return np.sign(betas[0] * m + (1 - betas[0]) * g), betas[1] * m + (1 - betas[1]) * g


def adafactor(g, state):
    """Shazeer & Stern 2018 (arXiv 1804.04235, algorithm 4), with the step size left to the learning rate.
    state: (t, means of rows, means of columns); None before the first step."""
    t, rows, columns = (0, 0.0, 0.0) if state is None else state
    t += 1
    beta, squares = 1 - t**-0.8, g**2 + 1e-30
    rows = beta * rows + (1 - beta) * squares.mean(1)
    columns = beta * columns + (1 - beta) * squares.mean(0)
    u = g / np.sqrt(np.outer(rows, columns) / rows.mean())
    return u / max(1.0, np.sqrt((u**2).mean())), (t, rows, columns)
