"""Selection by the roles of axes: stacks, heads, windows and transposed kernels.

The reference of a leaf is its canonical form: for each index of the stack a kernel
[window, inputs, outputs] as a NumPy array, selected by itself.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import (
    allocation,
    estimator,
    initializer,
    optim,
    report,
    score,
    select,
    stacking,
    where,
)
from maskjax.recipes import edge_popup, lottery_ticket, packnet
from maskjax.structure import Block, Entries, NofM, Units

# One kernel of 8 inputs and 12 outputs in a window of 3, in many layouts; and words.
WINDOW, IN, OUT, LAYERS = 3, 8, 12, 4
FEW = {
    "outputs inputs window": (12, 8, 3),
    "inputs outputs window outputs inputs": (2, 3, 3, 4, 4),
    "stack outputs stack inputs window": (2, 12, 2, 8, 3),
}
ALL = FEW | {
    "window inputs outputs": (3, 8, 12),
    "window inputs inputs outputs outputs": (3, 2, 4, 3, 4),
    "stack window inputs outputs": (4, 3, 8, 12),
    "outputs stack inputs window": (12, 4, 8, 3),
}
over_layouts = pytest.mark.parametrize(
    "layouts", [FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"]
)
STRUCTURES = [Entries(), NofM(2, 4), Block((2, 3)), Units(), Units("inputs")]


def told(words):
    return where.matching("", axes=words)


def canonical(x, words, *, shape=None):
    """[layers, window, inputs, outputs] of a leaf, whose axes may have length 1."""
    roles = ("stack", "window", "inputs", "outputs")
    words = words.split()
    order = [i for role in roles for i, word in enumerate(words) if word == role]
    shape = shape or x.shape
    x = np.broadcast_to(x, shape).transpose(order)
    sizes = [
        int(np.prod([n for n, w in zip(shape, words, strict=True) if w == role]))
        for role in roles
    ]
    return x.reshape(sizes)


def drawn(shape, *, seed=0):
    """Whole numbers, all different and exactly summable."""
    rng = np.random.default_rng(seed)
    return rng.permutation(int(np.prod(shape))).reshape(shape).astype("float32")


@functools.partial(jax.jit, static_argnames=("structure", "scope", "words", "density"))
def top_k(scores, structure, scope, words, density=0.5):
    how = {"structure": structure, "scope": scope, "where": told(words)}
    return select.top_k(scores, density=density, **how)


@functools.cache
def expected(structure):
    """The mask of one kernel [window, inputs, outputs], by axes with numbers."""
    numbers = {
        NofM(2, 4): NofM(2, 4, -2),
        Block((2, 3)): Block((2, 3), (-2, -1)),
        Units(): Units(-1),
        Units("inputs"): Units(-2),
    }
    plain = numbers.get(structure, structure)
    return jax.jit(lambda x: select.top_k(x, density=0.5, structure=plain))


@over_layouts
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_each_layer_alone_is_the_layer_unstacked(structure, layouts):
    """In every layout: scanned = unrolled, heads = reshaped, Equinox = transposed."""
    for words, shape in layouts.items():
        scores = drawn(shape)
        mask = top_k(scores, structure, "layer", words)
        each = canonical(scores, words)
        wanted = np.stack(
            [np.broadcast_to(expected(structure)(x), x.shape) for x in each]
        )
        found = canonical(mask, words, shape=shape)
        np.testing.assert_array_equal(found, wanted, err_msg=words)
        assert mask.ndim == len(shape)
        one = structure in (Units(), Units("inputs"))
        assert one == (mask.size < scores.size)


@over_layouts
@pytest.mark.parametrize("structure", STRUCTURES[1:], ids=str)
def test_a_whole_leaf_is_ranked_as_its_canonical_form(structure, layouts):
    for words, shape in layouts.items():
        scores = drawn(shape)
        mask = canonical(top_k(scores, structure, "leaf", words), words, shape=shape)
        each = canonical(scores, words)
        plain = "stack window inputs outputs"
        wanted = np.asarray(top_k(each, structure, "leaf", plain))
        np.testing.assert_array_equal(mask, np.broadcast_to(wanted, each.shape))


@over_layouts
def test_groups_of_inputs_keep_two_of_four_in_every_layout(layouts):
    for words, shape in layouts.items():
        for scope in ("leaf", "layer", "output", "global"):
            mask = top_k(drawn(shape), NofM(2, 4), scope, words)
            each = canonical(mask, words)
            groups = each.reshape(*each.shape[:2], -1, 4, each.shape[-1])
            assert (groups.sum(axis=3) == 2).all(), (words, scope)


@over_layouts
def test_each_output_alone_keeps_its_own_best(layouts):
    for words, shape in layouts.items():
        scores = drawn(shape)
        mask = canonical(top_k(scores, Entries(), "output", words), words)
        each = canonical(scores, words)
        kernels = each.reshape(len(each), -1, each.shape[-1])
        ranks = (-kernels).argsort(axis=1).argsort(axis=1)
        wanted = ranks < kernels.shape[1] // 2
        np.testing.assert_array_equal(mask.reshape(kernels.shape), wanted)


def test_wanda_ranks_each_output_of_networks_of_two_widths_and_of_heads():
    """The mask of the paper, output by output, in NumPy."""
    rng = np.random.default_rng(0)
    params = {
        "in": rng.normal(size=(6, 8)).astype("f4"),
        "query": {"kernel": rng.normal(size=(8, 2, 4)).astype("f4")},
    }
    x = rng.normal(size=(16, 6)).astype("f4")

    def net(p, x):
        return jnp.einsum("bi,ihd->bhd", jnp.tanh(x @ p["in"]), p["query"]["kernel"])

    @jax.jit
    def run(params):
        scores = score.wanda(params, score.input_norms(net, params, x))
        return select.top_k(scores, density=0.5, scope="output")

    mask = run(params)
    met = {"in": x, "query": np.tanh(x @ params["in"])}
    for name, kernel, kept in (
        ("in", params["in"], mask["in"]),
        ("query", params["query"]["kernel"], mask["query"]["kernel"]),
    ):
        sizes = np.abs(kernel.reshape(len(kernel), -1))
        sizes = sizes * np.linalg.norm(met[name], axis=0)[:, None]
        wanted = (-sizes).argsort(axis=0).argsort(axis=0) < len(kernel) // 2
        np.testing.assert_array_equal(np.reshape(kept, sizes.shape), wanted)


@over_layouts
@pytest.mark.parametrize("scope", ["layer", "output"])
def test_ties_go_to_the_first_of_each_search(scope, layouts):
    for words, shape in layouts.items():
        mask = canonical(top_k(np.ones(shape, "f4"), Entries(), scope, words), words)
        each = mask.sum(axis=(1, 2) if scope == "output" else (1, 2, 3))
        n = np.prod(mask.shape[1:]) // (mask.shape[-1] if scope == "output" else 1)
        assert (each == n // 2).all()


def test_counts_round_for_each_layer():
    scores = {"w": np.ones((3, 5, 1), "f4")}
    how = {"density": 0.5, "where": told("stack inputs outputs")}
    counts = {
        scope: int(select.top_k(scores, scope=scope, **how)["w"].sum())
        for scope in ("leaf", "layer")
    }
    assert counts == {"leaf": 8, "layer": 9}


def test_layers_of_other_scales_each_keep_their_share():
    """By leaf the smallest layer keeps nothing."""
    w = drawn((3, 16, 16)) * np.array([0.1, 1, 3], "f4")[:, None, None] + 1
    how = {"density": 0.1, "where": told("stack inputs outputs")}
    by_leaf, by_layer = (
        np.asarray(select.top_k({"w": w}, scope=scope, **how)["w"]).sum((1, 2))
        for scope in ("leaf", "layer")
    )
    assert by_leaf.min() == 0
    assert list(by_layer) == [26, 26, 26]


def test_stacked_layers_lose_units_of_their_own():
    w = np.ones((3, 8, 4), "f4")
    w[np.arange(3), :, np.arange(3)] = 0.0
    how = {"density": 0.75, "structure": Units(), "where": told("stack inputs outputs")}
    mask = select.top_k({"w": w}, **how)["w"]
    np.testing.assert_array_equal(np.asarray(mask)[:, 0], w[:, 0] > 0)


def test_a_query_kernel_and_an_equinox_kernel_keep_two_of_four_inputs():
    """By numbers the groups ran over heads, and over outputs."""
    query = {"query": {"kernel": drawn((12, 3, 4))}}
    mask = select.top_k(query, density=0.5, structure=NofM(2, 4))["query"]["kernel"]
    assert (np.asarray(mask).reshape(3, 4, 12).sum(axis=1) == 2).all()
    how = {"density": 0.5, "where": told("outputs inputs")}
    equinox = {"weight": drawn((3, 8))}
    mask = select.top_k(equinox, structure=NofM(2, 4), **how)["weight"]
    assert (np.asarray(mask).reshape(3, 2, 4).sum(axis=2) == 2).all()
    units = select.top_k({"weight": drawn((4, 8))}, structure=Units(), **how)["weight"]
    assert units.shape == (4, 1)


def test_a_tree_of_structures():
    scores = {"a": drawn((8, 4)), "c": None, "d": drawn((8, 6)), "e": drawn((4, 4))}
    tree = {"a": NofM(2, 4), "c": None, "d": Units(), "e": Entries()}
    for scope in ("leaf", "global", "layer"):
        mask = select.top_k(scores, density=0.5, structure=tree, scope=scope)
        assert mask["c"] is None
        assert mask["d"].shape == (1, 6)
        groups = np.asarray(mask["a"]).reshape(2, 4, 4).sum(axis=1)
        assert (groups == 2).all() or scope == "global" and (groups <= 2).all()
    for name in ("a", "d", "e"):
        alone = select.top_k({name: scores[name]}, density=0.5, structure=tree[name])
        both = select.top_k(scores, density=0.5, structure=tree)
        np.testing.assert_array_equal(both[name], alone[name])
    optim.prune(0.5, structure=tree).init({n: s for n, s in scores.items()})
    with pytest.raises(
        TypeError, match=r"`maskjax.select.top_k` needs `structure\[a\]` as"
    ):
        select.top_k(scores, density=0.5, structure=tree | {"a": "2:4"})
    wrong = tree | {"a": NofM(1, 3), "d": NofM(1, 5)}
    with pytest.raises(ValueError, match=r"a: .*\(NofM.*\n  d: .*\(NofM"):
        select.top_k(scores, density=0.5, structure=wrong)


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_cutoffs_and_guesses_of_many_searches(scope):
    words, shape = "outputs stack inputs window", (12, 4, 8, 3)
    scores = {"w": drawn(shape)}
    how = {"scope": scope, "where": told(words)}

    @jax.jit
    def law(scores):
        mask, cutoff = select.top_k(scores, density=0.3, return_cutoff=True, **how)
        bad = jax.tree.map(lambda c: c * 3 - 100, cutoff)
        guessed = [
            select.top_k(scores, density=0.3, guess=g, **how) for g in (cutoff, bad)
        ]
        return mask, cutoff, guessed, select.threshold(scores, at=cutoff)

    mask, cutoff, guessed, reached = law(scores)
    assert cutoff["w"].shape == ((12 if scope == "output" else 1), 4, 1, 1)
    for same in (*guessed, reached):
        np.testing.assert_array_equal(same["w"], mask["w"])
    with pytest.raises(ValueError, match="in `guess` for every leaf"):
        select.top_k(scores, density=0.3, guess={"w": np.float32(1)}, **how)


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_a_density_for_each_layer(scope):
    scores = {"w": drawn((3, 8, 4)), "v": drawn((8, 4))}
    roles = where.matching("w", axes="stack inputs outputs") | where.kernels
    shares = {"w": np.array([0.0, 0.5, 1.0], "f4"), "v": 0.25}
    how = {"scope": scope, "where": roles}

    @jax.jit
    def law(scores, share):
        shares = {"w": share, "v": 0.25}
        mask = select.top_k(scores, density=shares, **how)
        dropped = select.drop(scores, mask, rate=shares | {"v": 0.5}, **how)
        return mask, dropped, select.grow(scores, dropped, density=shares, **how)

    mask, dropped, grown = law(scores, shares["w"])
    assert list(np.asarray(mask["w"]).sum((1, 2))) == [0, 16, 32]
    assert int(np.asarray(mask["v"]).sum()) == 8
    assert list(np.asarray(dropped["w"]).sum((1, 2))) == [0, 8, 0]
    np.testing.assert_array_equal(grown["w"], mask["w"])
    exact = select.top_k(scores, density=shares, **how)
    np.testing.assert_array_equal(exact["w"], mask["w"])
    for wrong, kind in (
        (np.ones(4, "f4"), "one for each layer"),
        (np.ones(3) * 2, "in "),
    ):
        with pytest.raises(ValueError, match=rf"`density\[w\]` .*{kind}"):
            select.top_k(scores, density=shares | {"w": wrong}, **how)


def test_masks_with_shared_decisions_limit_each_layer():
    scores, words = {"w": drawn((4, 8, 12))}, "stack inputs outputs"
    within = {"w": np.arange(12).reshape(1, 1, 12) < 6}
    how = {"scope": "layer", "where": told(words)}
    mask = select.top_k(scores, density=0.5, within=within, **how)["w"]
    assert list(np.asarray(mask).sum((1, 2))) == [24] * 4
    assert not np.asarray(mask)[..., 6:].any()
    cut = select.shrink(scores, within, density=0.25, structure=Units(), **how)["w"]
    assert cut.shape == (4, 1, 12)
    assert list(np.asarray(cut).sum((1, 2))) == [3] * 4


def test_vmap_and_gradients_of_many_searches():
    scores = {"w": drawn((5, 4, 8, 12))}
    how = {"density": 0.3, "scope": "output", "where": told("stack inputs outputs")}

    @jax.jit
    def law(scores):
        top = functools.partial(select.top_k, **how)
        members = [top(member) for member in stacking.unstack(scores)]

        def kept(s):
            return estimator.top_k(s, structure=Units("inputs"), **how)["w"].sum()

        one = stacking.unstack(scores)[0]
        return jax.vmap(top)(scores), stacking.stack(members), jax.grad(kept)(one)

    mapped, looped, gradient = law(scores)
    np.testing.assert_array_equal(mapped["w"], looped["w"])
    np.testing.assert_allclose(gradient["w"], 1.0, rtol=1e-6)


def test_random_masks_keep_as_many_in_each_layer_and_output():
    params = {"w": np.ones((3, 8, 4), "f4")}
    how = {
        "density": 0.25,
        "where": told("stack inputs outputs"),
        "key": jax.random.key(0),
    }
    layers = np.asarray(select.random(params, scope="layer", **how)["w"])
    outputs = np.asarray(select.random(params, scope="output", **how)["w"])
    assert list(layers.sum((1, 2))) == [8, 8, 8]
    assert (outputs.sum(1) == 2).all()


def _trained(transformation, params, gradients):
    optimizer = optim.with_gradients(optax.chain(optax.sgd(0.1), transformation))

    @jax.jit
    def run(params):
        state = optimizer.init(params)
        for g in gradients:
            updates, state = optimizer.update(g, state, params)
            params = optax.apply_updates(params, updates)
        return params, optim.mask_of(state)

    return run(params)


@pytest.mark.parametrize("structure", [Entries(), NofM(2, 4), Units()], ids=str)
def test_pruning_in_training_scanned_is_unrolled(structure):
    words, rng = "stack inputs outputs", np.random.default_rng(0)
    w = {"w": rng.normal(size=(3, 8, 4)).astype("f4")}
    moves = [{"w": rng.normal(size=(3, 8, 4)).astype("f4")} for _ in range(4)]
    how = {"every": 2, "structure": structure}
    schedule = optax.linear_schedule(1.0, 0.25, 4)
    stacked = optim.prune(schedule, scope="layer", where=told(words), **how)
    params, mask = _trained(stacked, w, moves)

    def split(tree):
        return {str(i): x for i, x in enumerate(tree["w"])}

    unrolled = optim.prune(schedule, **how)
    alone, masks = _trained(unrolled, split(w), [split(g) for g in moves])
    for i in range(3):
        np.testing.assert_array_equal(params["w"][i], alone[str(i)])
        np.testing.assert_array_equal(mask["w"][i], masks[str(i)])


@pytest.mark.parametrize("kind", ["tree", "schedule", "numpy"])
def test_pruning_in_training_takes_a_density_for_each_layer(kind):
    w, shares = {"w": drawn((3, 8, 4))}, np.array([0.25, 0.5, 0.75], "f4")
    tree = {"w": shares if kind == "numpy" else jax.device_put(shares)}
    density = (lambda count: tree) if kind == "schedule" else tree
    how = {"scope": "layer", "where": told("stack inputs outputs")}
    _, mask = _trained(optim.prune(density, **how), w, [w])
    assert list(np.asarray(mask["w"]).sum((1, 2))) == [8, 16, 24]
    match = r"`density\[w\]` as a scalar, got an array .* use scope=\"layer\""
    if kind == "schedule":
        match = "`density` to give numbers"
    with pytest.raises(ValueError, match=match):
        optim.prune(density, where=how["where"])
    if kind != "tree":  # whose values are on the device, and not looked at
        high = {"w": tree["w"] * 2}
        with pytest.raises(
            ValueError, match=r"optim.prune` needs `density.* in \[0, 1\]"
        ):
            optim.prune((lambda _: high) if kind == "schedule" else high, **how)


BAD = {  # densities for 3 layers, and what is wrong with them
    "complex": (np.array([0, 0.5j, 1], "c8"), "(as a number|to give numbers)"),
    "bool": (np.array([True, False, True]), "(as a number|to give numbers)"),
    "nan": (np.array([0, np.nan, 1], "f4"), r"in \[0, 1\]"),
    "above": (np.array([0, 0.5, 1.5], "f4"), r"in \[0, 1\]"),
    "below": (np.array([0, 0.5, -0.5], "f4"), r"in \[0, 1\]"),
    "two": (np.array([0.5, 0.5], "f4"), r"one for each layer of shape \(3,\)"),
    "square": (np.ones((3, 3), "f4"), r"one for each layer of shape \(3,\)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_densities_for_each_layer_are_refused_wherever_they_are_given(kind):
    scores, (bad, needs) = {"w": drawn((3, 8, 4))}, BAD[kind]
    how = {"scope": "layer", "where": told("stack inputs outputs")}
    again = {"rate": 0.1, "every": 1, "key": jax.random.key(0)} | how

    def given(params, *, density, where):
        return {"w": bad}

    def trained(params, mask, *, key):
        return params, 0

    search = functools.partial(lottery_ticket.search, trained, scores, rounds=1)
    ways = {
        "select.top_k": lambda d: select.top_k(scores, density=d, **how),
        "optim.prune": lambda d: optim.prune(d, **how).init(scores),
        "optim.prune by allocation": lambda _: optim.prune(
            0.5, allocation=given, **how
        ).init(scores),
        "optim.prune by schedule": lambda d: optim.prune(lambda _: d, **how).init(
            scores
        ),
        "optim.set_": lambda d: optim.set_(d, **again).init(scores),
        "optim.set_ by allocation": lambda _: optim.set_(
            0.5, allocation=given, **again
        ).init(scores),
        "optim.rigl without regrow": lambda _: optim.rigl(
            0.5, allocation=given, regrow=False, **again
        ).init(scores),
        "optim.set_ by rate": lambda d: optim.set_(0.5, **again | {"rate": d}).init(
            scores
        ),
        "recipes.lottery_ticket.search": lambda d: search(
            rate=d, key=again["key"], **how
        ),
    }
    sized = "each layer" in needs
    for way, use in ways.items():
        if sized and "rate" in way:  # parameters come with the first step
            continue
        name = way.split()[0]
        with pytest.raises(
            (TypeError, ValueError), match=f"`maskjax.{name}` .*{needs}"
        ):
            use({"w": bad})
    if kind in ("complex", "bool") or sized:  # on the device all that is looked at
        for name in ("select.top_k", "optim.prune", "optim.set_"):
            with pytest.raises(
                (TypeError, ValueError), match=f"`maskjax.{name}` .*{needs}"
            ):
                ways[name]({"w": jax.device_put(bad)})


def test_rates_of_rewiring_may_differ_by_layer():
    w = {"w": np.abs(drawn((3, 8, 4))) + 1}
    rate = {"w": np.array([0.0, 0.5, 1.0], "f4")}
    how = {"scope": "layer", "where": told("stack inputs outputs")}
    set_ = optim.set_(
        0.25, rate=rate, every=1, regrow=False, key=jax.random.key(0), **how
    )
    made = optim.with_gradients(set_)

    @jax.jit
    def step(params):
        state = made.init(params)
        return state.mask, made.update(params, state, params)[1].mask

    old, new = (np.asarray(mask["w"]) for mask in step(w))
    assert list((old & new).sum((1, 2))) == [8, 4, 0]
    assert list(new.sum((1, 2))) == [8, 8, 8]


@pytest.mark.parametrize("rewire", [optim.rigl, optim.set_])
def test_rewiring_in_training_counts_each_layer(rewire):
    rng = np.random.default_rng(0)
    w = {"w": rng.normal(size=(3, 8, 4)).astype("f4")}
    moves = [{"w": rng.normal(size=(3, 8, 4)).astype("f4")} for _ in range(4)]
    how = {"rate": 0.5, "every": 2, "scope": "layer", "key": jax.random.key(0)}
    made = rewire(0.5, where=told("stack inputs outputs"), **how)
    _, mask = _trained(made, w, moves)
    assert list(np.asarray(mask["w"]).sum((1, 2))) == [16, 16, 16]


def test_recipes_rank_each_layer_alone():
    words, params = told("stack inputs outputs"), {"w": drawn((3, 8, 4)) - 40}
    how = {"scope": "layer", "where": words}

    def counts(mask):
        return list(np.asarray(mask["w"]).sum((-2, -1)).ravel())

    assert counts(edge_popup.mask(params, density=0.25, **how)) == [8] * 3
    assert counts(edge_popup.soft_mask(params, density=0.25, **how)) == [8] * 3
    state = packnet.init(params, head=None, capacity=2, where=words)
    pruned = packnet.prune(packnet.begin(state), params, rate=0.75, **how)
    assert counts(jax.tree.map(lambda x: x != 0, pruned.params)) == [8] * 3
    assert packnet.allotment(state, rates=(0.75, 0.0), **how) == (24, 72)

    def train(params, mask, *, key):
        return (params, 0)

    how |= {"rounds": 1, "rate": 0.5, "key": jax.random.key(0)}
    masks = lottery_ticket.search(train, params, **how).masks
    assert counts(masks) == [32] * 3 + [16] * 3


def test_a_leaf_that_is_no_stack_is_one_layer():
    """By its rank, and by its name: (out, in) as in Equinox is as good as (in, out)."""
    scores = {"bias": drawn((6,)), "kernel": drawn((4, 6)), "weight": drawn((6, 4))}

    @jax.jit
    def law(scores):
        choose = functools.partial(select.top_k, scores, return_cutoff=True)
        shares = {"bias": 0.5, "kernel": 0.25, "weight": 0.75}
        return [choose(density=shares, scope=scope) for scope in ("leaf", "layer")]

    by_leaf, by_layer = law(scores)
    jax.tree.map(np.testing.assert_array_equal, by_leaf, by_layer)
    shares = {name: np.ones(6, "f4") for name in scores}
    with pytest.raises(
        ValueError, match=r"`density\[bias\]` as a scalar.*This leaf is no stack"
    ):
        select.top_k(scores, density=shares, scope="layer")


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_densities_of_layers_are_leaves_of_a_tree(scope):
    scores, how = {"w": drawn((3, 8, 4))}, {"scope": scope}
    shares, where = np.array([0.25, 0.5, 0.75], "f4"), told("stack inputs outputs")
    hint = "For a number for each layer pass a tree, with an array for each stack"
    for call in (
        lambda given: select.top_k(scores, density=given, where=where, **how),
        lambda given: optim.prune(given, where=where, **how),
    ):
        with pytest.raises(
            ValueError, match=rf"`density` as a scalar, got .* \(3,\)\. {hint}"
        ):
            call(shares)
    with pytest.raises(
        TypeError,
        match=r"`density\[w\]` as a number in \[0, 1\], or an array of them, got list",
    ):
        select.top_k(scores, density={"w": [0.1, 0.2, 0.3]}, where=where, **how)


def test_a_leaf_of_two_axes_that_is_no_kernel_may_be_a_stack():
    """Of scales for each layer; and a leaf told to be a stack is one."""
    scores = {"kernel": drawn((4, 6)), "ln": {"scale": drawn((3, 8))}}
    with pytest.raises(ValueError, match=r"got:\n  ln/scale: shape \(3, 8\)") as error:
        select.top_k(scores, density=0.5, scope="layer")
    assert "\n  kernel" not in str(error.value)
    roles = where.matching("scale|bias", axes="stack outputs") | where.kernels
    mask = select.top_k(scores, density=0.5, scope="layer", where=roles)
    assert list(np.asarray(mask["ln"]["scale"]).sum(1)) == [4, 4, 4]
    stack = {"bias": drawn((6,))}
    mask = select.top_k(stack, density=0.5, scope="layer", where=told("stack"))
    assert np.asarray(mask["bias"]).all()  # a half of one entry rounds up


def test_outputs_alone_need_more_than_one_entry():
    vector = {"b": drawn((6,))}
    with pytest.raises(
        ValueError, match=r"(?s)know the axes.*output\".*b: shape \(6,\)"
    ):
        select.top_k(vector, density=0.5, scope="output")
    with pytest.raises(ValueError, match=r"b: shape \(6,\) is 'outputs'.*each alone"):
        select.top_k(vector, density=0.5, scope="output", where=told("outputs"))
    mask = select.top_k(vector, density=0.5, scope="output", where=told("inputs"))
    assert int(np.asarray(mask["b"]).sum()) == 3


UNKNOWN = {
    "layers": {"kernel": np.ones((3, 8, 4), "f4")},
    "weight": np.ones((4, 4), "f4"),
}


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"scope": "layer"}, 'for scope="layer"'),
        ({"scope": "output"}, 'for scope="output"'),
        ({"structure": Units()}, "for Units"),
        ({"structure": NofM(2, 4)}, "for NofM"),
        ({"structure": Block((2, 2)), "scope": "global"}, "for Block"),
    ],
    ids=str,
)
def test_unknown_axes_are_named_with_both_remedies(how, why):
    with pytest.raises(ValueError, match="needs to know the axes") as error:
        select.top_k(UNKNOWN, density=0.5, **how)
    text = str(error.value)
    assert "`maskjax.select.top_k`" in text
    assert why in text
    assert "where.traced(apply, params, *inputs)" in text
    told = 'where.matching(regex, axes="stack inputs outputs") | where.kernels'
    assert f"`where={told}`, got:" in text
    assert "layers/kernel: shape (3, 8, 4), 3 axes could" in text
    line = "weight: shape (4, 4), weights are (in, out) in one"
    assert (line in text) == (how != {"scope": "layer"})


def test_an_expression_that_finds_none_of_the_leaves_is_named():
    params = {"mix": np.ones((4, 8, 6), "f4"), "head": np.ones((6, 3), "f4")}
    for regex, missed in (("mxi", True), ("mix", False)):
        words = "stack inputs outputs" if missed else "inputs outputs"
        by_hand = where.matching(regex, axes=words)
        match = r"needs to know the axes.* \| where\.kernels`"
        if missed:
            match += rf" \(where\.matching\('{regex}', .*\) chooses none of them\)"
        with pytest.raises(ValueError, match=match + ", got:\n  mix"):
            select.top_k(params, density=0.5, scope="layer", where=by_hand)


def test_the_remedies_by_hand_keep_the_other_kernels():
    params = {"mix": np.ones((4, 8, 6), "f4"), "head": np.ones((6, 3), "f4")}
    by_hand = where.matching("mix", axes="stack inputs outputs") | where.kernels
    state = jax.eval_shape(optim.prune(0.5, scope="layer", where=by_hand).init, params)
    assert jax.tree.structure(state.mask) == jax.tree.structure(params)


def test_entries_never_ask_for_axes():
    asked = where.matching("", axes="inputs")  # covers no leaf
    for scope in ("leaf", "global"):
        select.top_k(UNKNOWN, density=0.5, scope=scope, where=asked)
    units = {"density": 0.5, "structure": Units(-1)}
    assert select.top_k(UNKNOWN, **units)["weight"].shape == (1, 4)


@pytest.mark.parametrize(
    ("words", "how", "got"),
    [
        ("inputs outputs", {"structure": Units("stack")}, "without stack"),
        ("inputs outputs", {"structure": Units("window")}, "without window"),
        ("stack inputs", {"structure": Units()}, "without outputs"),
        ("stack outputs", {"structure": NofM(2, 4)}, "without inputs"),
        (
            "inputs outputs",
            {"structure": Units(), "scope": "output"},
            "ranks each alone",
        ),
        ("stack inputs", {"structure": Units(0), "scope": "layer"}, "index of axis 0"),
        (
            "outputs inputs",
            {"structure": NofM(1, 4)},
            ": 6 inputs are not divisible by 4",
        ),
        ("outputs inputs", {"structure": Block((2, 3))}, ": 4 outputs are not div"),
        (
            "outputs inputs",
            {"structure": NofM(1, 4), "scope": "output"},
            "is 'outputs inputs': 6 inputs are not divisible by 4",
        ),
        (
            "inputs outputs stack",
            {"scope": "layer"},
            "told as 'inputs outputs stack', 3 words for 2 axes",
        ),
    ],
)
def test_what_a_leaf_has_not_is_refused(words, how, got):
    with pytest.raises(ValueError, match=got):
        select.top_k(
            {"w": np.ones((4, 6), "f4")}, density=0.5, where=told(words), **how
        )


def test_integers_count_the_axes_of_the_whole_leaf():
    """In scope "layer" too, where the search sees a leaf without its stack."""
    scores, words = {"w": drawn((8, 4, 12))}, told("inputs stack outputs")
    how = {"density": 0.5, "scope": "layer", "where": words}
    for pattern, role in (
        (Units(2), Units()),
        (Units(-3), Units("inputs")),
        (NofM(2, 4, 0), NofM(2, 4)),
        (Block((2, 3), (0, 2)), Block((2, 3))),
    ):
        by_number, by_role = (
            select.top_k(scores, structure=s, **how)["w"] for s in (pattern, role)
        )
        np.testing.assert_array_equal(by_number, by_role)


@dataclasses.dataclass(frozen=True)
class MaxUnits(Units):
    """A user's units, by their largest score."""

    def pool(self, scores, alive=None):
        axes = {axis % scores.ndim for axis in self._numbers()}
        rest = tuple(i for i in range(scores.ndim) if i not in axes)
        return jnp.max(scores, axis=rest, keepdims=True)


class Rows:
    """A user's structure for slices of rank 2: whole rows."""

    def complaint(self, shape):
        return None if len(shape) == 2 else f"shape {shape} has not 2 axes"

    def pool(self, scores, alive=None):
        return scores.sum(axis=1, keepdims=True)

    def spread(self, decisions):
        return decisions


@pytest.mark.parametrize("scope", ["leaf", "global", "layer"])
@pytest.mark.parametrize("axis", ["outputs", 1])
def test_a_users_kind_of_units_stays_what_it_is(scope, axis):
    scores = {"w": np.array([[9.0, 5.0], [0.0, 5.0]], "f4")}  # the mean is of the other
    mask = select.top_k(scores, density=0.5, structure=MaxUnits(axis), scope=scope)
    np.testing.assert_array_equal(mask["w"], [[True, False]])


def test_a_users_structure_sees_one_layer():
    scores, words = {"w": drawn((3, 4, 5))}, told("stack inputs outputs")
    how = {"density": 0.5, "structure": Rows(), "where": words}
    mask = select.top_k(scores, scope="layer", **how)["w"]
    assert mask.shape == (3, 4, 1)
    assert list(np.asarray(mask).sum((1, 2))) == [2, 2, 2]
    with pytest.raises(ValueError, match=r"w: shape \(3, 4, 5\) has not 2 axes"):
        select.top_k(scores, scope="leaf", **how)


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_random_masks_of_the_same_counts(scope):
    scores, words = {"w": drawn((3, 8, 4))}, told("stack inputs outputs")
    shares = {"w": np.array([0.25, 0.5, 0.75])}
    how = {"scope": scope, "where": words}
    mask = select.top_k(scores, density=shares, **how)
    other = select.random_like(mask, key=jax.random.key(0), **how)
    axes = (1, 2) if scope == "layer" else 1
    counts = np.asarray(mask["w"]).sum(axes)
    np.testing.assert_array_equal(np.asarray(other["w"]).sum(axes), counts)
    assert not np.array_equal(other["w"], mask["w"])


def test_growing_needs_room_in_each_layer():
    params, key = {"w": drawn((3, 8, 4))}, jax.random.key(0)
    how = {"rate": 0.9, "every": 1, "regrow": False, "scope": "layer", "key": key}
    made = optim.set_(
        {"w": np.array([0.1, 0.5, 0.9])}, where=told("stack inputs outputs"), **how
    )
    with pytest.raises(ValueError, match="w: 26 to grow, 3 of 32 free"):
        made.init(params)


def test_messages_name_the_leaf_and_what_is_needed():
    scores = {"a": drawn((4, 4)), "c": drawn((4, 4))}
    tree = {"a": Units(), "c": "2:4"}
    with pytest.raises(TypeError, match=r"top_k` needs `structure\[c\]` as a value"):
        select.top_k(scores, density=0.5, structure=tree)
    with pytest.raises(ValueError, match="needs two different `axes`"):
        Block((2, 2), ("inputs", "inputs"))
    with pytest.raises(ValueError, match="whole number or a tuple of whole numbers"):
        Units(("stack", "outputs"))
    how = {"scope": "layer", "where": told("stack inputs outputs")}
    with pytest.raises(ValueError, match="the cutoffs of the same scope in `guess`"):
        select.top_k({"w": drawn((3, 4, 4))}, density=0.5, guess={"w": 0.0}, **how)


class Careless:
    """A user's predicate with something else for axes."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, path, leaf):
        return True

    def __repr__(self):
        return "careless"

    def axes(self, path, leaf):
        return self.answer


@pytest.mark.parametrize("answer", [None, ("stack", "inputs")], ids=str)
@pytest.mark.parametrize(
    "combined",
    [
        lambda one: one,
        lambda one: where.kernels & one,
        lambda one: one | where.matching("", axes="stack inputs outputs"),
    ],
    ids=["alone", "and", "or"],
)
def test_a_predicate_tells_axes_or_why_not(combined, answer):
    params = {"a": {"kernel": np.ones((2, 2), "f4")}, "w": np.ones((3, 2, 2), "f4")}
    roles, key = combined(Careless(answer)), jax.random.key(0)
    how, keyed = {"where": roles}, {"where": roles, "key": key}
    ways = {
        "select.top_k": lambda: select.top_k(params, density=0.5, scope="layer", **how),
        "select.random": lambda: select.random(
            params, density=0.5, scope="output", **keyed
        ),
        "optim.prune": lambda: optim.prune(0.5, scope="layer", **how).init(params),
        "allocation.erk": lambda: allocation.erk(params, density=0.5, **how),
        "initializer.redraw": lambda: initializer.redraw(
            initializer.signed_constant(), params, **keyed
        ),
        "initializer.signed_deviation": lambda: initializer.signed_deviation(
            params, **how
        ),
        "report.table": lambda: report.table(
            jax.tree.map(lambda w: w > 0, params), params, **how
        ),
    }
    for name, use in ways.items():
        needs = (
            rf"`maskjax.{name}` needs `.axes` of .*careless.* to return `where.Axes`"
        )
        with pytest.raises(TypeError, match=needs + r".*, got:\n  a/kernel: .*\n  w: "):
            use()
