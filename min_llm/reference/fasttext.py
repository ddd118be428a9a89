"""fastText's supervised objective and one step of its SGD, in NumPy loops (Joulin et al. 2016)."""

import numpy as np


def step(embed, out, texts, labels, rate):
    """(embed [bins, dim], out [dim, labels]) after a step on texts (lists of bins) with their labels, and the sum of
    the losses in nats. The gradients of all texts are taken at the weights the step starts from."""
    new_embed, new_out, loss = embed.copy(), out.copy(), 0.0
    for bins, label in zip(texts, labels, strict=True):
        hidden = sum((embed[b] for b in bins), np.zeros(embed.shape[1])) / max(len(bins), 1)
        scores = hidden @ out
        p = np.exp(scores - scores.max())
        p /= p.sum()
        loss -= np.log(p[label])
        d_scores = p.copy()
        d_scores[label] -= 1
        new_out -= rate * np.outer(hidden, d_scores)
        for b in bins:
            new_embed[b] -= rate * (out @ d_scores) / len(bins)
    return new_embed, new_out, loss
