"""The layers of a transformer, each as a forward and a backward function.

A backward function takes `dy`, the gradient of the loss with respect to the output, then the inputs of the
forward function; it returns the gradients with respect to those inputs. Nothing is saved on the way: what a
backward function needs it computes again. Axes: see the package docstring; `...` means any leading axes.
"""

from __future__ import annotations

import math

import numpy as np


def einsum(equation, *operands):
    return np.einsum(equation, *operands, optimize=True)


def einsum_backward(equation, dy, a, b):
    """Gradients of y = einsum("A,B->Y", a, b): the same contraction with the letters changed around.

    y is linear in a, with coefficients taken from b. So da sums dy * b over every letter that a lacks:
    da = einsum("Y,B->A", dy, b), and likewise db = einsum("A,Y->B", a, dy). For a matrix product "sd,df->sf"
    these are the familiar da = dy b^T and db = a^T dy. (Every letter of a must occur in b or y, and so on.)
    """
    inputs, y = equation.split("->")
    a_, b_ = inputs.split(",")
    return einsum(f"{y},{b_}->{a_}", dy, b), einsum(f"{a_},{y}->{b_}", a, dy)


def linear(equation, x, p, weight, bias):
    """x times the parameter p[weight], plus p[bias] where there is one."""
    y = einsum(equation, x, p[weight])
    return y + p[bias] if bias in p else y


def linear_backward(equation, dy, x, p, weight, bias):
    dx, dweight = einsum_backward(equation, dy, x, p[weight])
    return dx, {weight: dweight} | ({bias: dy.sum(axis=(0, 1))} if bias in p else {})


def over_rows(x):
    """Sums out every axis but the last: the gradient of a vector that was broadcast over them."""
    return x.sum(axis=tuple(range(x.ndim - 1)))


# Normalisation ----------------------------------------------------------------------------------------------


def rms_norm(x, scale, eps):
    """y = scale * x / rms(x), rms(x)^2 = mean(x^2) + eps. Zhang & Sennrich 2019 (arXiv 1910.07467), eq. 4.

    x [..., D], scale [D]. Because the length of x is divided out, rms_norm(c * x) = rms_norm(x) for c > 0
    (up to eps); the norm keeps the direction and forgets the size.
    """
    return scale * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def rms_norm_backward(dy, x, scale, eps):
    # With r = (mean(x^2) + eps)^(-1/2) and n = x r, we have y = scale n and dr/dx_j = -r^3 x_j / D. So
    #   dx_j = r dn_j + dr/dx_j sum_i(dn_i x_i) = r (dn_j - n_j mean_i(dn_i n_i)):
    # the part of dn along n is removed, as a step along x does not change y.
    r = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    n, dn = x * r, dy * scale
    return r * (dn - n * np.mean(dn * n, axis=-1, keepdims=True)), over_rows(dy * n)


def layer_norm(x, scale, bias, eps):
    """y = scale * (x - mean(x)) / std(x) + bias (or None). Ba et al. 2016 (arXiv 1607.06450), eq. 3."""
    centred = x - x.mean(axis=-1, keepdims=True)
    y = rms_norm(centred, scale, eps)
    return y if bias is None else y + bias


def layer_norm_backward(dy, x, scale, eps):
    # Layer norm is RMS norm of the centred x. Centring is the symmetric projection I - 1 1^T / D, so its
    # backward is centring once more. The bias is added last: dbias is dy summed over rows.
    centred = x - x.mean(axis=-1, keepdims=True)
    dcentred, dscale = rms_norm_backward(dy, centred, scale, eps)
    return dcentred - dcentred.mean(axis=-1, keepdims=True), dscale, over_rows(dy)


# Activations ------------------------------------------------------------------------------------------------


def silu(x):
    """x sigmoid(x), sigmoid by tanh so that nothing overflows. Elfwing et al. 2017 (arXiv 1702.03118)."""
    return x * 0.5 * (1 + np.tanh(0.5 * x))


def silu_backward(dy, x):
    # sigma' = sigma (1 - sigma), so (x sigma)' = sigma + x sigma (1 - sigma).
    sigma = 0.5 * (1 + np.tanh(0.5 * x))
    return dy * sigma * (1 + x * (1 - sigma))


GELU_SLOPE = math.sqrt(2 / math.pi)


def gelu(x):
    """x Phi(x), Phi of the normal distribution, by tanh. Hendrycks & Gimpel (arXiv 1606.08415), sec. 2."""
    return 0.5 * x * (1 + np.tanh(GELU_SLOPE * (x + 0.044715 * x * x * x)))


def gelu_backward(dy, x):
    # y = x (1 + t) / 2 with t = tanh(u): y' = (1 + t) / 2 + x t' / 2 and t' = (1 - t^2) u'.
    t = np.tanh(GELU_SLOPE * (x + 0.044715 * x * x * x))
    dt = (1 - t * t) * GELU_SLOPE * (1 + 3 * 0.044715 * x * x)
    return dy * 0.5 * (1 + t + x * dt)


# Probabilities ----------------------------------------------------------------------------------------------


def softmax(x):
    """exp(x) / sum(exp(x)) over the last axis. Subtracting the maximum changes nothing but the overflow."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(dp, p):
    # dp_i/dx_j = p_i (1[i=j] - p_j), so dx_j = p_j (dp_j - sum_i dp_i p_i). Takes the output p, not x.
    return p * (dp - np.sum(dp * p, axis=-1, keepdims=True))


def cross_entropy(logits, targets, weights):
    """Weighted mean of -log softmax(logits)[target], in nats: sum(weights * nll) / sum(weights).

    logits [B,S,V], targets [B,S] of integers, weights [B,S]. A place with weight 0 (padding, the prompt of a
    dialogue) counts for nothing. The training loss of GPT (Radford et al. 2018, eq. 1).
    """
    weights = np.asarray(weights, logits.dtype)
    total = weights.sum()
    if not total > 0:
        raise ValueError(
            "every loss weight is 0, and the mean over no tokens is undefined; give one a weight"
        )
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    nll = log_sum - np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (weights * nll).sum() / total


def cross_entropy_backward(logits, targets, weights):
    # d log(sum(exp(z))) / dz = softmax(z); the target's logit is subtracted: softmax minus one-hot.
    weights = np.asarray(weights, logits.dtype)
    d = softmax(logits)
    one = np.take_along_axis(d, targets[..., None], axis=-1) - 1
    np.put_along_axis(d, targets[..., None], one, axis=-1)
    return d * (weights / weights.sum())[..., None]


# Rotary positions -------------------------------------------------------------------------------------------


def rope_frequencies(head_dim, theta, scaling=None):
    """[K/2]: theta^(-2i/K) radians per position for plane i. Su et al. 2021 (arXiv 2104.09864), 3.2.2.

    `scaling` slows planes down by `factor`, all of them or those that turn too slowly. By its `kind`:
    - "llama3" (not in the paper; `apply_scaling` of Meta's released code): planes that turn more than
      high_freq_factor times over original_context are kept, those that turn less than low_freq_factor times are
      slowed, and a straight line in turns joins them.
    - "linear" (Chen et al. 2023, arXiv 2306.15595): all planes are slowed.
    - "yarn" (Peng et al. 2023, arXiv 2309.00071, 3.2, in the authors' code): as llama3 with beta_fast and beta_slow
      for bounds, but the line is straight in the plane's number, between the whole numbers that enclose the bounds.
    """
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return frequency
    slow = frequency / scaling.factor
    if scaling.kind == "linear":
        return slow
    if scaling.kind == "yarn":
        turning = [scaling.beta_fast, scaling.beta_slow]  # how often; the plane is solved for
        bounds = (
            head_dim
            / 2
            * np.log(scaling.original_context / (2 * math.pi * np.array(turning)))
            / np.log(theta)
        )
        low, high = max(np.floor(bounds[0]), 0), min(np.ceil(bounds[1]), head_dim - 1)
        high = high if high > low else low + 0.001
        keep = np.interp(np.arange(head_dim // 2), [low, high], [1, 0])
    else:
        turns = scaling.original_context * frequency / (2 * math.pi)
        keep = np.interp(turns, [scaling.low_freq_factor, scaling.high_freq_factor], [0, 1])
    return keep * frequency + (1 - keep) * slow


def rope_growth(scaling):
    """What rotated queries and keys are multiplied by: 1, for YaRN 0.1 ln(factor) + 1 (its equation 15)."""
    return 0.1 * math.log(scaling.factor) + 1 if scaling is not None and scaling.kind == "yarn" else 1.0


def rope(x, angles, growth=1.0):
    """Turns each pair (x_i, x_{i+K/2}) of x [B,S,N,K] by angles [B,S,K/2] (positions * frequencies).

    Read the pair as a complex number, z_i(x) = x_i + j x_{i+K/2}. RoPE multiplies it by exp(j m w_i), where m
    is the position and w_i the frequency (Su et al., eq. 12). Since q . k = Re sum_i  z_i(q) conj(z_i(k)), a
    query at m and a key at n meet as

        Re sum_i  z_i(q) conj(z_i(k)) exp(j (m - n) w_i),

    which depends on m and n through m - n alone. This is the half-split layout (Hugging Face's rotate_half).
    Meta's code pairs neighbours, x_2i with x_2i+1: the same rotation, with the columns of wq and wk permuted.

    A rotation's transpose is its inverse, so the backward pass is dx = rope(dy, -angles). YaRN also multiplies
    the result by `growth`, and so does the backward pass.
    """
    cos, sin = ((growth * f(angles))[:, :, None, :].astype(x.dtype) for f in (np.cos, np.sin))
    real, imaginary = np.split(x, 2, axis=-1)
    return np.concatenate([real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1)
