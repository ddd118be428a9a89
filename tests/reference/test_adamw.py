import numpy as np
import pytest

from min_llm.reference.adamw import adamw
from min_llm.reference.params import leaves, tree_map

RNG = np.random.default_rng(0)
PARAMS = {"embed": RNG.normal(size=(5, 3)), "layers": [{"norm": RNG.normal(size=3)} for _ in range(2)]}
DECAY = {"embed": 1.0, "layers": [{"norm": 0.0}] * 2}
GRADS = [tree_map(lambda p, size=size: size * RNG.normal(size=p.shape), PARAMS) for size in (3, 0.01, 1)]


def test_first_step_is_the_sign_of_the_gradient_and_the_decay():
    new, (t, _, _) = adamw(PARAMS, GRADS[0], None, lr=0.01, weight_decay=0.1, decay=DECAY, eps=0.0)
    assert t == 1
    sign = np.sign(GRADS[0]["embed"])
    np.testing.assert_allclose(new["embed"], PARAMS["embed"] * (1 - 0.001) - 0.01 * sign)
    norm, sign = PARAMS["layers"][1]["norm"], np.sign(GRADS[0]["layers"][1]["norm"])
    np.testing.assert_allclose(new["layers"][1]["norm"], norm - 0.01 * sign)


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("decay", [DECAY, None])
def test_three_steps_equal_optax(clip, decay):
    import jax
    import optax

    chain = [optax.clip_by_global_norm(clip)] if clip else []
    mask = decay and jax.tree.map(bool, decay)
    chain.append(optax.adamw(0.01, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask))
    optimizer = optax.chain(*chain)
    update = jax.jit(optimizer.update)
    theirs = jax.tree.map(np.float32, PARAMS)
    opt_state, ours, state = optimizer.init(theirs), PARAMS, None
    for grads in GRADS:
        ours, state = adamw(ours, grads, state, lr=0.01, weight_decay=0.1, decay=decay, clip=clip)
        updates, opt_state = update(jax.tree.map(np.float32, grads), opt_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    for a, b in zip(leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def test_clipping_is_by_the_norm_of_all_gradients_together():
    size = np.sqrt(sum(np.sum(g**2) for g in leaves(GRADS[0])))
    _, (_, m, _) = adamw(PARAMS, GRADS[0], None, lr=0.0, clip=0.5)
    np.testing.assert_allclose(m["embed"], 0.1 * GRADS[0]["embed"] * 0.5 / size)
    _, (_, m, _) = adamw(PARAMS, GRADS[0], None, lr=0.0, clip=2 * size)
    np.testing.assert_allclose(m["embed"], 0.1 * GRADS[0]["embed"])
