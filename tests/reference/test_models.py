"""Llama, Mixtral and GPT-2: gradients, packed documents, grouped queries, tied heads, parameter layouts."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from min_llm.reference import gpt2, llama, mixtral
from min_llm.reference.batch import pack
from min_llm.reference.params import fields, leaves, random_params, restack, tree_map, unstack

CASES = {
    "llama": (llama, {}),
    "llama mha": (llama, {"n_kv_heads": 4}),
    "llama mqa": (llama, {"n_kv_heads": 1}),
    "llama tied": (llama, {"tie_embeddings": True}),
    "llama scaled rope": (llama, {"rope_scaling": "scaling"}),
    "llama window": (llama, {"window": 3}),
    "mixtral": (mixtral, {}),
    "mixtral tied, three of four": (mixtral, {"experts_per_token": 3, "tie_embeddings": True}),
    "gpt2": (gpt2, {}),
    "gpt2 without biases": (gpt2, {"bias": False}),
}


@pytest.fixture(params=CASES)
def model(request, make_llama, make_mixtral, make_gpt2, scaling):
    """module, cfg, params"""
    module, changes = CASES[request.param]
    changes = {name: scaling if value == "scaling" else value for name, value in changes.items()}
    make = {llama: make_llama, mixtral: make_mixtral, gpt2: make_gpt2}[module]
    return module, *make(**changes)


def test_gradients_equal_central_differences(model, packed):
    module, cfg, params = model
    loss, grads = module.loss_and_grads(params, cfg, packed)
    assert loss == pytest.approx(module.loss(params, cfg, packed), abs=1e-14)
    rng = np.random.default_rng(4)

    def check(direction):
        """The slope of the loss along a unit direction, by the central difference of fourth order."""
        h = 3e-4 / np.sqrt(sum(np.sum(d * d) for d in leaves(direction)))
        losses = {
            i: module.loss(tree_map(lambda p, d, i=i: p + i * h * d, params, direction), cfg, packed)
            for i in (-2, -1, 1, 2)
        }
        measured = (8 * (losses[1] - losses[-1]) - (losses[2] - losses[-2])) / (12 * h)
        slope = sum(np.sum(g * d) for g, d in zip(leaves(grads), leaves(direction), strict=True))
        np.testing.assert_allclose(slope, measured, rtol=1e-6, atol=1e-10)

    for _ in range(3):
        check(tree_map(lambda p: rng.normal(size=p.shape), params))
    zero = tree_map(np.zeros_like, params)
    for name in params:  # each leaf on its own, so that a small one cannot hide behind a large one
        if name != "layers":
            check({**zero, name: rng.normal(size=params[name].shape)})
    for name in params["layers"][0]:
        layers = [{**layer, name: rng.normal(size=layer[name].shape)} for layer in zero["layers"]]
        check({**zero, "layers": layers})


def test_each_packed_document_has_the_logits_it_has_alone(model, documents):
    module, cfg, params = model
    together = module.logits(params, cfg, pack([documents], seq_len=14))[0]
    start = 0
    for document in documents:
        n = len(document) - 1
        alone = module.logits(params, cfg, pack([[document]], seq_len=n))[0]
        np.testing.assert_allclose(together[start : start + n], alone, atol=1e-12)
        start += n


def test_llama_does_not_need_positions_to_restart(make_llama, documents):
    """RoPE sees distances only: positions that count through the row give the same logits."""
    cfg, params = make_llama()
    batch = pack([documents], seq_len=14)
    through = batch._replace(positions=batch.index)
    real = batch.segment_ids > 0
    np.testing.assert_allclose(
        llama.logits(params, cfg, through)[real], llama.logits(params, cfg, batch)[real], atol=1e-12
    )


def test_no_gradient_crosses_documents(model, documents):
    """Train on the second document alone: tokens found only in the first have a gradient of exactly zero."""
    module, cfg, params = model
    first, second = np.array([1, 2, 3, 4, 5]), np.array([11, 12, 13, 14])
    batch = pack([[first, second]], seq_len=8)
    batch = batch._replace(weights=batch.weights * (batch.segment_ids == 2))
    _, grads = module.loss_and_grads(params, cfg, batch)
    if "head" in params:
        assert np.all(grads["embed"][first] == 0)
        assert np.any(grads["embed"][second] != 0)
    else:  # a tied head reaches every row of embed: compare with the second document alone
        _, alone = module.loss_and_grads(params, cfg, pack([[second]], seq_len=3))
        np.testing.assert_allclose(grads["embed"], alone["embed"], atol=1e-15)


def test_padding_changes_nothing(model, documents):
    module, cfg, params = model
    short, long = (pack([documents[:1]], seq_len=n) for n in (5, 9))
    short = short._replace(segment_ids=None)  # one document a row needs no segments
    (loss, grads), (padded_loss, padded_grads) = (
        module.loss_and_grads(params, cfg, b) for b in (short, long)
    )
    assert padded_loss == pytest.approx(loss, abs=1e-14)
    for g, padded in zip(leaves(grads), leaves(padded_grads), strict=True):
        np.testing.assert_allclose(padded, g, atol=1e-14)


def test_equal_experts_are_one_mlp(make_llama, make_mixtral, packed):
    """The shares of the chosen add up to 1, so the router does not matter where all experts are the same."""
    (_, params), (cfg, moe) = make_llama(), make_mixtral()
    layers = [
        {**layer, "router": some["router"]}
        | {name: np.stack([layer[name]] * cfg.n_experts) for name in ("w_gate", "w_up", "w_down")}
        for layer, some in zip(params["layers"], moe["layers"], strict=True)
    ]
    np.testing.assert_allclose(
        mixtral.logits({**params, "layers": layers}, cfg, packed),
        llama.logits(params, cfg, packed),
        atol=1e-12,
    )


def test_a_token_uses_its_two_experts_alone():
    scores = np.array([[0.1, 3.0, -1.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    share = mixtral.route(scores, 2)
    e = np.exp(-1.0)
    np.testing.assert_allclose(share, [[0, 1 / (1 + e), 0, e / (1 + e)], [0.5, 0.5, 0, 0]])


def test_grouped_queries_equal_all_heads_with_tiled_weights(make_llama, packed):
    cfg, params = make_llama(n_kv_heads=2)
    all_heads, _ = make_llama(n_kv_heads=4)
    layers = [
        {**layer, **{n: np.repeat(layer[n], 2, axis=1) for n in ("wk", "wv")}} for layer in params["layers"]
    ]
    np.testing.assert_allclose(
        llama.logits(params, cfg, packed),
        llama.logits({**params, "layers": layers}, all_heads, packed),
        atol=1e-12,
    )


def test_a_tied_head_is_the_embedding_and_its_gradient_the_sum(make_llama, packed):
    tied_cfg, tied = make_llama(tie_embeddings=True)
    cfg, _ = make_llama()
    loss, grads = llama.loss_and_grads(tied, tied_cfg, packed)
    untied_loss, untied = llama.loss_and_grads({**tied, "head": tied["embed"].T}, cfg, packed)
    assert "head" not in grads
    assert loss == untied_loss
    np.testing.assert_allclose(grads["embed"], untied["embed"] + untied["head"].T)


def test_float32_is_kept_and_close(model, packed):
    module, cfg, params = model
    exact = module.logits(params, cfg, packed)
    rough = module.logits(params, cfg, packed, dtype=np.float32)
    assert exact.dtype == np.float64
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, exact, atol=2e-5)
    loss, grads = module.loss_and_grads(params, cfg, packed, dtype=np.float32)
    assert loss.dtype == np.float32
    assert {g.dtype for g in leaves(grads)} == {np.dtype(np.float32)}


def test_gpt2_names_the_position_it_has_no_row_for(make_gpt2, documents):
    cfg, params = make_gpt2(max_seq_len=3)
    with pytest.raises(ValueError, match="position 4 has no row in a table of 3"):
        gpt2.logits(params, cfg, pack([documents[:1]], seq_len=5))


def test_published_parameter_counts():
    """Of the layouts in `shapes`; see reference row L3-0.1."""

    def count(shapes):
        return sum(int(np.prod(shape)) for shape in leaves(shapes))

    def llama3(n_layers, dim, hidden_dim, n_heads):
        return llama.shapes(
            SimpleNamespace(
                n_layers=n_layers,
                dim=dim,
                hidden_dim=hidden_dim,
                n_heads=n_heads,
                n_kv_heads=8,
                head_dim=128,
                vocab_size=128_256,
                tie_embeddings=False,
            )
        )

    assert count(llama3(32, 4096, 14_336, 32)) == 8_030_261_248
    assert count(llama3(80, 8192, 28_672, 64)) == 70_553_706_496
    assert count(llama3(126, 16_384, 53_248, 128)) == 405_853_388_800
    small = SimpleNamespace(
        n_layers=12,
        dim=768,
        n_heads=12,
        head_dim=64,
        hidden_dim=3072,
        vocab_size=50_257,
        max_seq_len=1024,
        bias=True,
    )
    assert count(gpt2.shapes(small)) == 124_439_808


# Layouts --------------------------------------------------------------------------------------------------


def stacked(params, *cuts):
    """The library's form: a dataclass, its layers a tuple of stacks, a field that is absent held as None."""
    layers = params["layers"]
    names = list(layers[0])
    Layer = dataclasses.make_dataclass("Layer", names)
    bounds = [0, *cuts, len(layers)]
    stacks = tuple(
        Layer(**{n: np.stack([layer[n] for layer in layers[a:b]]) for n in names})
        for a, b in itertools.pairwise(bounds)
    )
    Model = dataclasses.make_dataclass("Model", [*params, "absent"])
    return Model(**{**params, "layers": stacks, "absent": None})


@pytest.mark.parametrize("cuts", [(), (1,), (2,), (1, 2)])
def test_stacked_parameters_give_the_same_and_gradients_in_their_own_layout(make_llama, packed, cuts):
    cfg, params = make_llama(n_layers=3)
    library = stacked(params, *cuts)
    loss, grads = llama.loss_and_grads(params, cfg, packed)
    library_loss, library_grads = llama.loss_and_grads(library, cfg, packed)
    assert library_loss == loss
    assert type(library_grads) is type(library)
    assert library_grads.absent is None
    assert [len(stack.wq) for stack in library_grads.layers] == [len(stack.wq) for stack in library.layers]
    for a, b in zip(leaves(unstack(library_grads)), leaves(unstack(grads)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_stack_as_a_dictionary_round_trips(make_gpt2):
    _, params = make_gpt2(n_layers=3)
    stack = {n: np.stack([layer[n] for layer in params["layers"]]) for n in params["layers"][0]}
    library = {**params, "layers": stack}
    plain = unstack(library)
    assert [sorted(layer) for layer in plain["layers"]] == [sorted(stack)] * 3
    again = restack(plain, like=library)
    np.testing.assert_array_equal(again["layers"]["wq"], stack["wq"])
    assert sorted(again) == sorted(library)


def test_random_parameters_follow_the_seed_and_norm_scales_lie_around_one(make_llama):
    cfg, _ = make_llama(dim=400)
    a, b, c = (random_params(llama.shapes(cfg), np.random.default_rng(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(a["embed"], b["embed"])
    assert np.any(a["embed"] != c["embed"])
    assert np.mean(fields(a["layers"][0])["attn_norm"]) == pytest.approx(1, abs=0.02)
    assert np.mean(a["embed"]) == pytest.approx(0, abs=0.02)
