"""Units that run through many leaves, selected together."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskjax
from maskjax import (
    algebra,
    allocation,
    estimator,
    optim,
    report,
    score,
    select,
    stacking,
    where,
)
from maskjax.recipes import lottery_ticket, packnet
from maskjax.structure import Group, Groups, Member, Units

KEY = jax.random.key(0)
HIDDEN = HEADS = DIMS = SIZE = 5  # equal, so that few programs are compiled
LAYERS = 3


def _groups():
    """A layer with its statistics, heads x dimensions, and a stack of layers."""
    unit, head, dim = np.arange(HIDDEN), np.arange(HEADS), np.arange(DIMS)
    layer = np.tile(np.arange(SIZE), (LAYERS, 1))
    q, o = (6, HEADS, DIMS), (HEADS * DIMS, 5)
    return Groups(
        (
            Group(
                "hidden",
                (),
                HIDDEN,
                (
                    Member("in/kernel", 1, unit, (4, HIDDEN)),
                    Member("in/bias", 0, unit, (HIDDEN,)),
                    Member("norm/scale", 0, unit, (HIDDEN,)),
                    # flattened, two of each, and two that are nobody's
                    Member("out/kernel", 0, [*np.repeat(unit, 2), -1, -1], (12, 3)),
                ),
            ),
            Group(
                "heads",
                (),
                HEADS,
                (
                    Member("attention/q", 1, head, q),
                    Member("attention/bias", 0, head, (HEADS, DIMS)),
                    Member("attention/o", 0, np.repeat(head, DIMS), o),
                ),
            ),
            Group(
                "dims",
                (),
                DIMS,
                (
                    Member("attention/q", 2, dim, q),
                    Member("attention/bias", 1, dim, (HEADS, DIMS)),
                    Member("attention/o", 0, np.tile(dim, HEADS), o),
                ),
            ),
            Group(
                "layers",
                (LAYERS,),
                SIZE,
                (
                    Member("scan/up", 2, layer, (LAYERS, 4, SIZE)),
                    Member("scan/bias", 1, layer, (LAYERS, SIZE)),
                    Member("scan/down", 1, layer[:, ::-1], (LAYERS, SIZE, 4)),
                ),
            ),
        )
    )


GROUPS = _groups()
SCORED = where.matching("kernel|q$|o$|up|down")
SIZES = {g.name: g.size for g in GROUPS}


def _params(seed=0):
    rng, tree = (
        np.random.default_rng(seed),
        {"table": {"kernel": np.ones((2, 2), "f4")}},
    )
    for path, shape in GROUPS.shapes.items():
        outer, inner = path.split("/")
        tree.setdefault(outer, {})[inner] = rng.normal(size=shape).astype("float32")
    return jax.tree.map(jax.device_put, tree)


PARAMS = _params()
SCORES = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.abs(x) if SCORED(path[-1].key, x) else None, PARAMS
)


def _leaf(tree, path):
    outer, inner = path.split("/")
    return tree[outer][inner]


def _slices(group, index):
    """For each member, which entries of its leaf lie in one unit: in loops."""
    *layer, unit = index
    for member in group.members:
        inside = np.zeros(member.shape, bool)
        for at in np.ndindex(*member.units.shape):
            *lead, position = at
            if member.units[at] == unit and (not group.stack or lead == layer):
                place = [slice(None)] * len(member.shape)
                place[: len(lead)] = lead
                place[member.axis] = position
                inside[tuple(place)] = True
        yield member.path, inside


def _pooled(tree, by, alive=None):
    """The pooled scores of all units, one after another."""
    found = {}
    for group in GROUPS:
        found[group.name] = np.zeros(group.shape)
        for index in np.ndindex(*group.shape):
            entries = []
            for path, inside in _slices(group, index):
                if alive is not None:
                    inside = inside & np.asarray(_leaf(alive, path))
                if _leaf(tree, path) is not None:
                    entries.append(np.asarray(_leaf(tree, path), np.float64)[inside])
            entries = np.concatenate(entries)
            how = {"mean": np.mean, "sum": np.sum, "norm": np.linalg.norm}[by]
            found[group.name][index] = how(entries) if entries.size else 0
    return found


def _counts(mask):
    kept = GROUPS.kept(mask)
    return {name: np.asarray(flags).sum(-1).tolist() for name, flags in kept.items()}


def _widths(mask):
    """The units kept of each group; those of all layers of a stack must agree."""
    found = {}
    for name, count in _counts(mask).items():
        assert len(set(np.ravel(count))) == 1, name
        found[name] = np.ravel(count)[0]
    return found


def _same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_pooling_is_over_all_entries_of_all_members(every_transform):
    def pool(scores):
        return [GROUPS.pool(scores, by) for by in ("mean", "sum", "norm")]

    found = every_transform(pool)(SCORES)
    for by, pooled in zip(("mean", "sum", "norm"), found, strict=True):
        for name, expected in _pooled(SCORES, by).items():
            np.testing.assert_allclose(pooled[name], expected, rtol=1e-5)
    by_norm = dataclasses.replace(GROUPS, by="norm")
    _same(by_norm.pool(SCORES), found[2])


def test_only_what_is_alive_is_pooled():
    rng = np.random.default_rng(1)
    alive = jax.tree.map(lambda x: rng.random(x.shape) < 0.6, PARAMS)
    found = GROUPS.pool(SCORES, alive=alive)
    for name, expected in _pooled(SCORES, "mean", alive).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_scores_are_pooled_in_float32(dtype):
    narrow = jax.tree.map(lambda x: x.astype(dtype), SCORES)
    wide = jax.tree.map(lambda x: x.astype("float32"), narrow)
    pooled = GROUPS.pool(narrow, "sum")
    assert all(x.dtype == jnp.float32 for x in pooled.values())
    _same(pooled, GROUPS.pool(wide, "sum"))


def test_an_entry_is_kept_if_all_of_its_units_are(every_transform):
    rng = np.random.default_rng(2)
    decisions = {g.name: rng.random(g.shape) < 0.6 for g in GROUPS}
    mask = every_transform(lambda d: GROUPS.spread(d, SCORES))(decisions)
    for path, shape in GROUPS.shapes.items():
        expected = np.ones(shape, bool)
        for group in GROUPS:
            for index in np.ndindex(*group.shape):
                for own, inside in _slices(group, index):
                    if own == path and not decisions[group.name][index]:
                        expected &= ~inside
        leaf = _leaf(mask, path)
        np.testing.assert_array_equal(np.broadcast_to(leaf, shape), expected)
    assert mask["in"]["kernel"].shape == (1, HIDDEN)
    assert mask["attention"]["o"].shape == (HEADS * DIMS, 1)
    assert mask["scan"]["up"].shape == (LAYERS, 1, SIZE)
    np.testing.assert_array_equal(mask["table"]["kernel"], [[True]])
    _same(GROUPS.kept(mask), decisions)


def test_leaves_without_scores_and_without_units_have_no_mask():
    mask = GROUPS.spread(
        {g.name: jnp.ones(g.shape, bool) for g in GROUPS}, {**SCORES, "table": None}
    )
    assert mask["table"] is None
    assert mask["in"]["bias"].shape == (HIDDEN,)


@pytest.mark.usefixtures("x64")
def test_scores_of_64_bits_are_ranked_with_64():
    scores = jax.tree.map(lambda x: np.ones(x.shape), SCORES)
    scores["in"]["kernel"][0, 3:] += 1e-12
    pooled = GROUPS.pool(scores)
    assert all(x.dtype == jnp.float64 for x in pooled.values())
    mask = select.top_k(scores, density=0.1, scope="global", structure=GROUPS)
    np.testing.assert_array_equal(GROUPS.kept(mask)["hidden"], [0, 0, 0, 1, 0])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_counts_are_exact_and_layers_keep_equally_many(scope):
    densities = np.array([0.0, 0.25, 0.5, 0.7, 1.0], "float32")

    @jax.jit
    @jax.vmap
    def choose(density):
        how = {"scope": scope, "structure": GROUPS}
        return select.top_k(SCORES, density=density, **how)

    masks = choose(densities)
    for i, density in enumerate([0.0, 0.25, 0.5, 0.7, 1.0]):
        widths = _widths(jax.tree.map(lambda m, i=i: np.asarray(m)[i], masks))
        if scope == "global":
            expected = math.floor(density * sum(SIZES.values()) + 0.5)
            assert sum(widths.values()) == max(expected, len(GROUPS))
        else:
            expected = max(math.floor(density * SIZE + 0.5), 1)
            assert widths == dict.fromkeys(SIZES, expected)


def test_the_best_units_are_kept_of_each_group_and_layer():
    pooled = _pooled(SCORES, "sum")
    by_sum = dataclasses.replace(GROUPS, by="sum")
    kept = GROUPS.kept(select.top_k(SCORES, density=0.5, structure=by_sum))
    for group in GROUPS:
        count = math.floor(0.5 * group.size + 0.5)
        best = np.argsort(-pooled[group.name], axis=-1).argsort(axis=-1) < count
        np.testing.assert_array_equal(kept[group.name], best)


def test_slots_of_a_stack_have_the_mean_score_of_a_rank():
    pooled = _pooled(SCORES, "mean")
    mask = select.top_k(SCORES, density=0.6, scope="global", structure=GROUPS)
    slots = {n: -np.sort(-x, axis=-1) for n, x in pooled.items()}
    slots["layers"] = slots["layers"].mean(0)
    least = {n: [np.inf, *x[1:]] for n, x in slots.items()}
    every = sorted((x for xs in least.values() for x in xs), reverse=True)
    cut = every[math.floor(0.6 * len(every) + 0.5) - 1]
    expected = {n: sum(x >= cut for x in xs) for n, xs in least.items()}
    assert _widths(mask) == expected
    kept = GROUPS.kept(mask)["layers"]
    rank = np.argsort(-pooled["layers"], axis=-1).argsort(axis=-1)
    np.testing.assert_array_equal(kept, rank < expected["layers"])


def test_permuted_units_are_chosen_alike():
    rng = np.random.default_rng(3)
    order = {g.name: rng.permutation(g.size) for g in GROUPS}
    renamed = Groups(
        tuple(
            dataclasses.replace(
                group,
                members=tuple(
                    dataclasses.replace(
                        m,
                        units=np.where(m.units < 0, -1, order[group.name][m.units]),
                    )
                    for m in group.members
                ),
            )
            for group in GROUPS
        )
    )
    for scope in ("leaf", "global"):
        how = {"density": 0.5, "scope": scope}
        mask = select.top_k(SCORES, structure=GROUPS, **how)
        _same(select.top_k(SCORES, structure=renamed, **how), mask)


def test_eager_and_compiled_agree_and_nothing_recompiles():
    @functools.partial(jax.jit, static_argnames="groups")
    def choose(scores, density, *, groups):
        how = {"scope": "global", "structure": groups}
        return select.top_k(scores, density=density, **how)

    for density in (0.3, 0.6):
        share = jnp.float32(density)
        found = choose(SCORES, share, groups=_groups())  # equal by content
        how = {"scope": "global", "structure": GROUPS}
        _same(found, select.top_k(SCORES, density=share, **how))
    assert choose._cache_size() == 1


def test_groups_are_equal_by_content():
    assert GROUPS == _groups()
    assert hash(GROUPS) == hash(_groups())
    assert GROUPS != dataclasses.replace(GROUPS, least=2)
    other = dataclasses.replace(GROUPS["hidden"], name="other")
    assert GROUPS != Groups((other, *GROUPS.groups[1:]))
    member = GROUPS["hidden"].members[0]
    assert member != dataclasses.replace(member, units=member.units[::-1])


def test_densities_by_the_names_of_groups():
    density = allocation.matching(
        PARAMS, densities={"^h": 0.5}, density=1.0, structure=GROUPS
    )
    assert density == {"hidden": 0.5, "heads": 0.5, "dims": 1.0, "layers": 1.0}
    mask = select.top_k(SCORES, density=density, structure=GROUPS)
    assert _widths(mask) == {"hidden": 3, "heads": 3, "dims": 5, "layers": 5}
    assert allocation.uniform(PARAMS, density=0.5, structure=GROUPS)["dims"] == 0.5


@pytest.mark.parametrize("least", [0, 2, 100])
@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_every_group_keeps_its_least_units(scope, least):
    groups = dataclasses.replace(GROUPS, least=least)
    mask = select.top_k(SCORES, density=0.0, scope=scope, structure=groups)
    assert _widths(mask) == {n: min(least, size) for n, size in SIZES.items()}
    if least == 2:
        pooled = _pooled(SCORES, "mean")
        best = {
            n: np.argsort(-x, axis=-1).argsort(axis=-1) < 2 for n, x in pooled.items()
        }
        _same(GROUPS.kept(mask), best)


def test_nan_is_the_worst_unit_and_ties_go_to_the_first():
    scores = jax.tree.map(lambda x: np.ones(x.shape, "f4"), SCORES)
    scores["in"]["kernel"][:, 1] = np.nan
    scores["scan"]["up"][1, :, 0] = np.nan
    kept = GROUPS.kept(select.top_k(scores, density=0.5, structure=GROUPS))
    hidden = [True, False, True, True, False]
    np.testing.assert_array_equal(kept["hidden"], hidden)
    layers = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    np.testing.assert_array_equal(kept["layers"], np.array(layers, bool))


def test_cutoffs_separate_and_a_guess_changes_nothing():
    how = {"density": 0.5, "structure": GROUPS, "return_cutoff": True}
    for scope in ("leaf", "global"):
        mask, cutoff = select.top_k(SCORES, scope=scope, **how)
        again, _ = select.top_k(SCORES, scope=scope, guess=cutoff, **how)
        _same(mask, again)
        if scope == "leaf":
            kept, pooled = GROUPS.kept(mask), GROUPS.pool(SCORES)
            for name, cut in cutoff.items():
                low = np.where(kept[name], pooled[name], np.inf) >= cut
                high = np.where(kept[name], -np.inf, pooled[name]) <= cut
                assert (low & high).all()


def test_rounds_remove_and_grow_units():
    whole = GROUPS.spread({g.name: np.ones(g.shape, bool) for g in GROUPS}, SCORES)

    @jax.jit
    def rounds(scores):
        how = {"scope": "global", "structure": GROUPS}
        half = select.drop(scores, whole, rate=0.5, **how)
        shrunk = select.shrink(scores, half, density=0.25, **how)
        low = jax.tree.map(jnp.negative, scores)
        return half, shrunk, select.grow(low, half, density=0.8, **how)

    masks = rounds(SCORES)
    assert [sum(_widths(mask).values()) for mask in masks] == [10, 5, 16]
    half, shrunk, grown = map(GROUPS.kept, masks)
    for name in SIZES:
        assert not (shrunk[name] & ~half[name]).any()
        assert not (half[name] & ~grown[name]).any()


def test_iterative_pruning_by_units():
    mask = select.iterative_top_k(
        functools.partial(score.magnitude, where=SCORED),
        PARAMS,
        density=0.4,
        rounds=3,
        scope="leaf",
        structure=GROUPS,
    )
    assert _widths(mask) == dict.fromkeys(SIZES, 2)


def test_random_units_have_exact_counts():
    how = {"density": 0.5, "structure": GROUPS, "where": SCORED}
    mask = select.random(PARAMS, key=KEY, **how)
    assert _widths(mask) == dict.fromkeys(SIZES, 3)
    like = select.random_like(mask, structure=GROUPS, key=KEY)
    assert _widths(like) == _widths(mask)
    assert jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, mask)
    mask = select.random(PARAMS, scope="global", key=KEY, **how)
    assert sum(_widths(mask).values()) == 10
    like = select.random_like(mask, scope="global", structure=GROUPS, key=KEY)
    assert sum(_widths(like).values()) == 10


def test_every_unit_is_drawn_equally_often():
    keys = jax.random.split(KEY, 400)
    units = jax.jit(
        jax.vmap(
            lambda key: GROUPS.kept(
                select.random(
                    PARAMS, density=0.5, structure=GROUPS, where=SCORED, key=key
                )
            )
        )
    )(keys)
    for flags in units.values():
        np.testing.assert_allclose(np.mean(flags, axis=0), 0.6, atol=0.11)


def test_gradients_go_to_all_units_of_an_entry():
    def total(scores, weights):
        soft = estimator.top_k(scores, density=0.5, structure=GROUPS)
        kept = maskjax.apply(weights, soft)
        return sum(map(jnp.sum, jax.tree.leaves(kept))), soft

    slopes, soft = jax.jit(jax.grad(total, has_aux=True))(SCORES, PARAMS)
    hard = select.top_k(SCORES, density=0.5, structure=GROUPS)
    jax.tree.map(lambda s, h: np.testing.assert_array_equal(s == 1, h), soft, hard)
    sums, means = {}, {}
    for group in GROUPS:
        for index in np.ndindex(*group.shape):
            unit = (group.name, index)
            sums[unit] = means[unit] = 0.0
            for path, inside in _slices(group, index):
                sums[unit] += np.asarray(_leaf(PARAMS, path))[inside].sum()
                means[unit] += inside.sum() if _leaf(SCORES, path) is not None else 0
    expected = sum(sums["heads", (h,)] / means["heads", (h,)] for h in (1,))
    expected += sums["dims", (0,)] / means["dims", (0,)]
    np.testing.assert_allclose(slopes["attention"]["q"][2, 1, 0], expected, rtol=1e-5)
    expected = sums["layers", (1, 3)] / means["layers", (1, 3)]
    np.testing.assert_allclose(slopes["scan"]["up"][1, :, 3], expected, rtol=1e-5)


def test_units_leave_while_training_with_their_biases():
    schedule = optax.linear_schedule(1.0, 0.4, 4)
    how = {"structure": GROUPS, "where": SCORED}
    optimizer = optax.chain(optax.sgd(0.1, 0.9), optim.prune(schedule, **how))
    params, state = PARAMS, optimizer.init(PARAMS)
    update = jax.jit(optimizer.update)
    ones = jax.tree.map(lambda x: np.ones(x.shape, "f4"), params)
    for _ in range(5):
        updates, state = update(ones, state, params)
        params = optax.apply_updates(params, updates)
    assert update._cache_size() == 1
    mask = state[-1].mask
    assert _widths(mask) == dict.fromkeys(SIZES, 2)
    _same(params, maskjax.apply(params, mask))
    gone = ~np.asarray(GROUPS.kept(mask)["hidden"])
    assert not np.asarray(params["norm"]["scale"])[gone].any()
    assert not np.asarray(params["in"]["bias"])[gone].any()
    assert np.asarray(params["norm"]["scale"])[~gone].all()
    assert optim.check(state, params) is None


def test_pruning_takes_densities_by_group():
    by_name = functools.partial(
        allocation.matching, densities={"heads": 1.0}, structure=GROUPS
    )
    how = {"structure": GROUPS, "where": SCORED}
    for given in (
        optim.prune(0.5, allocation=by_name, **how),
        optim.prune(dict.fromkeys(SIZES, 0.5) | {"heads": 1.0}, **how),
    ):
        _, state = jax.jit(given.update)(PARAMS, given.init(PARAMS), PARAMS)
        assert _widths(state.mask) == dict.fromkeys(SIZES, 3) | {"heads": 5}


def test_lottery_tickets_of_units():
    def train(params, mask, *, key):
        return params, algebra.count(mask)

    how = {"structure": GROUPS, "where": SCORED}
    trace = lottery_ticket.search(train, PARAMS, rounds=2, rate=0.5, key=KEY, **how)
    last = stacking.take(trace.masks, -1)
    assert _widths(last) == dict.fromkeys(SIZES, 1)
    masks = lottery_ticket.random_masks(
        trace.masks, mode="layerwise", structure=GROUPS, key=KEY
    )
    assert _widths(stacking.take(masks, -1)) == _widths(last)
    with pytest.raises(ValueError, match="random_masks` needs `mode` as 'layerwise'"):
        lottery_ticket.random_masks(last, mode="even", structure=GROUPS, key=KEY)


def test_packnet_frees_whole_units():
    everything = where.floating
    state = packnet.init(PARAMS, capacity=2, head=None, where=everything)
    training = packnet.prune(packnet.begin(state), PARAMS, rate=0.5, structure=GROUPS)
    state = packnet.commit(training, training.params)
    first = packnet.mask(state, 0)
    assert _widths(first) == dict.fromkeys(SIZES, 2)
    training = packnet.begin(state)
    second = packnet.prune(training, PARAMS, rate=0.5, structure=GROUPS)
    state = packnet.commit(second, second.params)
    _same(packnet.mask(state, 0), first)
    kernels = packnet.init(PARAMS, capacity=2, head=None, where=SCORED)
    pruned = packnet.prune(packnet.begin(kernels), PARAMS, rate=0.5, structure=GROUPS)
    assert pruned.mask["in"]["bias"].all()  # trains, and is divided among no tasks


def test_tables_show_the_units_of_groups():
    mask = select.top_k(SCORES, density=0.5, structure=GROUPS)
    text = report.table(mask, PARAMS, structure=GROUPS).split("\n\n")[1].splitlines()
    assert [line.split() for line in text] == [
        ["group", "layers", "kept", "units", "density"],
        *([name, "-", "3", "5", "0.6000"] for name in ("hidden", "heads", "dims")),
        ["layers", "3", "3", "5", "0.6000"],
    ]
    mask["scan"] = jax.tree.map(lambda m: m.at[0].set(False), mask["scan"])
    assert "0 to 3" in report.table(mask, PARAMS, structure=GROUPS)
    with pytest.raises(TypeError, match="report.table` needs `structure` as `struct"):
        report.table(mask, PARAMS, structure=Units())


def test_groups_of_a_part_of_the_tree():
    whole = Groups(
        tuple(
            dataclasses.replace(
                g,
                members=tuple(
                    dataclasses.replace(m, path=f"params/{m.path}") for m in g.members
                ),
            )
            for g in GROUPS
        )
    )
    assert whole.of(PARAMS, under="params") == GROUPS
    part = GROUPS.of({"attention": PARAMS["attention"]})
    assert part.names == ("heads", "dims")
    assert str(part).startswith("heads: 5 units in attention/q[1], attention/bias[0]")
    with pytest.raises(ValueError, match="Groups.of` needs a tree with leaves of the"):
        whole.of(PARAMS)


TOP_K = functools.partial(select.top_k, density=0.5, structure=GROUPS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: TOP_K(SCORES, scope="output"),
            r"select.top_k` ranks units .* leaf, layer, global, got 'output'",
        ),
        (lambda: TOP_K(SCORES, scope="row"), "top_k` needs `scope` as 'leaf' or"),
        (
            lambda: TOP_K(SCORES, density={"hidden": 0.5, "in/kernel": 1.0}),
            "a dict with one for each group, got:\n  in/kernel: no such group\n  heads",
        ),
        (
            lambda: TOP_K(SCORES, density=dict.fromkeys(SIZES, np.ones(3))),
            r"density\[hidden\]` as a scalar.* All layers of a stack keep equally",
        ),
        (
            lambda: TOP_K({"in": SCORES["in"]}),
            r"top_k` needs `scores` with every leaf of its groups .*\n  norm/scale",
        ),
        (
            lambda: TOP_K({**SCORES, "out": {"kernel": np.ones((4, 9), "f4")}}),
            r"groups know, got:\n  out/kernel: scores \(4, 9\), groups \(12, 3\)",
        ),
        (
            lambda: TOP_K({**SCORES, "attention": dict.fromkeys(("q", "bias", "o"))}),
            "top_k` needs scores for every unit .*\n  heads: no scores in any of att",
        ),
        (
            lambda: select.drop(SCORES, {"in": True}, rate=0.5, structure=GROUPS),
            "select.drop` needs `scores` and `mask` of the same structure",
        ),
        (
            lambda: select.drop(
                SCORES, jax.tree.map(lambda _: None, PARAMS), rate=0.5, structure=GROUPS
            ),
            "drop` needs a leaf of `mask` for every leaf with scores, got:\n  att",
        ),
        (
            lambda: select.top_k(
                {"w": np.ones((2, 2), "f4")}, density=0.5, structure={"w": GROUPS}
            ),
            "top_k` needs groups as its whole `structure`",
        ),
        (
            lambda: optim.prune(0.5, structure=GROUPS, scope="output"),
            "optim.prune` ranks units where `structure` is groups",
        ),
        (
            lambda: optim.set_(0.5, rate=0.1, every=2, key=KEY, structure=GROUPS),
            "optim.set_` takes no groups as its `structure`: a unit that grows back",
        ),
        (lambda: TOP_K(SCORES, structure=Groups(())), "needs at least one group"),
        (
            lambda: GROUPS.spread({"hidden": jnp.ones(5, bool)}, SCORES),
            "spread` needs decisions for each group, got dims, heads, layers in one",
        ),
        (
            lambda: Member("w", 1, [0, 1], (3, 3)),
            r"Member` needs `axis` as one .* axis 1, int64 `units` of shape \(2,\)",
        ),
        (
            lambda: Group("g", (), 2, (Member("w", 0, [0, 2], (2,)),)),
            r"units from 0 to 1, or -1, in g, got:\n  w\[0\]: units from 0 to 2",
        ),
        (
            lambda: Group("g", (3,), 2, (Member("w", 0, [0, 1], (2,)),)),
            r"needs members of stack \(3,\) .*\n  w\[0\]: units of shape \(2,\)",
        ),
        (lambda: Group("g", (), 2, ()), "at least one unit and one member, got stack"),
        (
            lambda: Groups((GROUPS["heads"],) * 2),
            "needs a name for each group, got heads twice",
        ),
        (
            lambda: Groups((), by="max"),
            "Groups` needs `by` as 'mean' or 'sum' or 'norm'",
        ),
        (lambda: Groups((), least=-1), "Groups` needs `least` of at least 0, got -1"),
        (
            lambda: Groups(
                (
                    Group("a", (), 2, (Member("w", 0, [0, 1], (2,)),)),
                    Group("b", (), 2, (Member("w", 0, [0, 1], (2, 3)),)),
                )
            ),
            r"Groups` needs one shape for each leaf, got:\n  w: \(2,\), \(2, 3\)",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


def test_random_masks_have_entries_or_groups():
    for call in (
        lambda: select.random(PARAMS, density=0.5, structure=Units(), key=KEY),
        lambda: select.random_like(
            {"w": jnp.ones(2, bool)}, structure=Units(), key=KEY
        ),
    ):
        with pytest.raises(TypeError, match="needs `structure` as `structure.Entries"):
            call()
