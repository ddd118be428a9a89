"""Parameter trees: the plain layout of this room, the library's stacked one, and random values.

Plain: a dictionary of arrays in which "layers" is a list of dictionaries, one a layer. The library stacks
equal layers on a new first axis and keeps them in dataclasses; `unstack` and `restack` go there and back.
"""

from __future__ import annotations

import dataclasses

import numpy as np


def unstack(params, dtype=np.float64):
    """The plain layout, in `dtype`, of a plain tree or of a library one.

    `params` is a dictionary or dataclass of arrays (anything np.asarray reads); its "layers" is a list of
    layers, one stack of layers ([L, ...] arrays), or a sequence of stacks. Fields that are None are dropped.
    """
    tree = fields(params)
    layers: list[dict] = []
    for entry in entries(tree.pop("layers")):
        layer = {name: np.asarray(leaf).astype(dtype) for name, leaf in fields(entry).items()}
        depth = stack_depth(entry)
        layers += [layer] if depth is None else [{n: a[i] for n, a in layer.items()} for i in range(depth)]
    return {**{name: np.asarray(leaf).astype(dtype) for name, leaf in tree.items()}, "layers": layers}


def restack(plain, like):
    """The plain tree (of gradients, say) in the layout of `like`."""
    layers, done = [], 0
    for entry in entries(fields(like)["layers"]):
        depth = stack_depth(entry)
        some = plain["layers"][done : done + (depth or 1)]
        stacked = {n: np.stack([layer[n] for layer in some]) for n in some[0]}
        layers.append(rebuild(some[0] if depth is None else stacked, entry))
        done += len(some)
    whole = fields(like)["layers"]
    same = type(whole)(layers) if isinstance(whole, list | tuple) else layers[0]
    return rebuild({**plain, "layers": same}, like)


def fields(node):
    """Name -> value of a dictionary or a dataclass, without the fields that are None."""
    items = node if isinstance(node, dict) else vars(node)
    return {name: value for name, value in items.items() if value is not None}


def entries(layers):
    return layers if isinstance(layers, list | tuple) else [layers]


def stack_depth(entry):
    """L of a stack, None of a single layer. A norm's scale is a vector: a second axis means a stack."""
    scale = next(value for name, value in fields(entry).items() if "norm" in name)
    return scale.shape[0] if scale.ndim == 2 else None


def rebuild(values, like):
    return {**like, **values} if isinstance(like, dict) else dataclasses.replace(like, **values)


def tree_map(f, *trees):
    """f applied leaf by leaf to trees of dictionaries and lists that have the same shape."""
    first = trees[0]
    if isinstance(first, dict):
        return {name: tree_map(f, *(tree[name] for tree in trees)) for name in first}
    if isinstance(first, list):
        return [tree_map(f, *parts) for parts in zip(*trees, strict=True)]
    return f(*trees)


def leaves(tree):
    if isinstance(tree, dict | list):
        return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(part)]
    return [tree]


def random_params(shapes, rng, std=0.1):
    """Normal values in the tree of `shapes` (a model's `shapes(cfg)`); the scales of norms lie around 1."""

    def draw(some):
        mean = {name: float(name.endswith(("norm", "norm_scale"))) for name in some}
        return {name: rng.normal(mean[name], std, some[name]) for name in some if name != "layers"}

    return {**draw(shapes), "layers": [draw(layer) for layer in shapes["layers"]]}
