"""Weights that came back, norms that clip, masks that are set, errors that help."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

from maskjax import allocation, optim, packing, score, select
from tests import trees
from tests.training import bits, following, half, kernel, make_params, run, slope

KEY = jax.random.key(0)
FINDS = "`maskjax.optim.check` finds parameters that are not as their masks leave them"


@pytest.fixture(autouse=True)
def _ordinary_promotion(_strict_promotion):
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_weights_that_come_back_are_counted_by_path():
    params = make_params()
    optimizer = optax.chain(optim.prune(0.25), optax.adamw(0.1))
    after, state = run(optimizer, params, steps=3)
    lines = {"a/kernel: 36 of 36 removed", "b/kernel: 24 of 24 removed"}
    with pytest.raises(ValueError, match=FINDS) as error:
        optim.check(state, after)
    assert {line.strip() for line in str(error.value).splitlines()[1:]} == lines
    masked = jax.tree.map(np.asarray, after)
    for name in "ab":
        masked[name]["kernel"] = masked[name]["kernel"] * np.asarray(
            optim.mask_of(state)[name]["kernel"]
        )
    optim.check(state, masked)
    masked["b"]["kernel"] = masked["b"]["kernel"] + np.nan
    with pytest.raises(ValueError, match="\n  b/kernel: 24 of 24 removed$"):
        optim.check(state, masked)


def test_removed_weights_that_are_almost_zero_are_counted():
    """Subnormal numbers, which comparisons of floats may round to 0; -0.0 is 0."""
    params, mask = {"w": np.ones(8, "f4")}, {"w": np.arange(8) < 4}
    _, state = run(optim.keep_sparse(mask), params, steps=1)
    optim.check(state, {"w": np.where(mask["w"], 1, -0.0).astype("f4")})
    with pytest.raises(ValueError, match="\n  w: 4 of 4 removed$"):
        optim.check(state, {"w": np.where(mask["w"], 1, 1e-45).astype("f4")})


@pytest.mark.parametrize("packed", [False, True])
def test_before_the_first_step_parameters_may_be_dense(packed):
    params = make_params()
    mask = packing.pack(half(params)) if packed else half(params)
    keep = optim.keep_sparse(mask)
    state = keep.init(params)
    optim.check(state, params)
    updates, state = keep.update(slope(params), state, params)
    with pytest.raises(ValueError, match="a/kernel: 24 of 24 removed"):
        optim.check(state, params)
    optim.check(state, optax.apply_updates(params, updates))


def test_a_few_weights_that_come_back_are_found_among_many():
    mask = {"w": np.arange(4096).reshape(64, 64) % 4 == 0}
    keep = optim.keep_sparse(mask)
    params = {"w": mask["w"].astype("float32")}
    _, state = jax.jit(keep.update)(params, keep.init(params), params)
    optim.check(state, params)
    params["w"][1, 1:4] = 1e-30
    with pytest.raises(ValueError, match="w: 3 of 3072 removed"):
        optim.check(state, params)


def test_frozen_weights_are_compared_with_those_at_the_start():
    params = make_params("bfloat16")
    params["a"]["kernel"][0, 0] = -0.0
    mask = half(params)
    mask["a"]["kernel"][0, 0] = False
    freeze = optim.mask_updates(mask)
    state = freeze.init(params)
    with pytest.raises(ValueError, match="`maskjax.optim.check` needs `start`"):
        optim.check(state, params)
    optim.check(state, params, params)
    moved = jax.tree.map(np.copy, params)
    moved["a"]["kernel"][0, 0] = 0.0  # the other zero
    moved["b"]["kernel"][mask["b"]["kernel"]] += 1.0  # those train
    with pytest.raises(ValueError, match=r"\n  a/kernel: 1 of \d+ frozen$"):
        optim.check(state, moved, params)
    both = optax.chain(freeze, optim.prune(0.5))
    state = both.init(params)
    optim.check(state, moved)
    with pytest.raises(ValueError, match="a/kernel: 1 of"):
        optim.check(state, moved, params)


def test_under_jit_check_warns_while_the_step_runs():
    params = {"w": kernel()}
    optimizer = optax.chain(optim.prune(0.25), optax.adamw(0.1))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
        optim.check(state, params)
        return params, state

    def run_once():
        jax.block_until_ready(step(params, optimizer.init(params)))
        jax.effects_barrier()

    with pytest.warns(optim.MaskWarning, match="w: 36 of 36 removed"):
        run_once()


def test_averages_are_checked_as_parameters_are():
    params = make_params()
    inner = optax.contrib.schedule_free_sgd(0.1, warmup_steps=2)
    after, state = run(
        optax.chain(inner, optim.keep_sparse(half(params))), params, steps=4
    )
    optim.check(state, after)
    average = optax.contrib.schedule_free_eval_params(state[0], after)
    with pytest.raises(ValueError, match=FINDS):
        optim.check(state, average)


def test_states_and_parameters_that_do_not_fit_are_refused():
    params = make_params()
    state = optim.keep_sparse(half(params)).init(params)
    with pytest.raises(ValueError, match="`maskjax.optim.check` .*with a mask in it"):
        optim.check(optax.adam(0.1).init(params), params)
    with pytest.raises(ValueError, match=r"masks of, got:\n  b/kernel"):
        optim.check(state, {"a": params["a"]})
    small = {"a": params["a"], "b": {"kernel": np.ones((2, 2), "f4"), "bias": None}}
    with pytest.raises(ValueError, match=r"b/kernel: mask \(8, 4\), params \(2, 2\)"):
        optim.check(state, small)


def _masks(kind, params):
    return {
        "keep_sparse": lambda: optim.keep_sparse(half(params)),
        "mask_updates": lambda: optim.mask_updates(half(params)),
        "prune": lambda: optim.prune(optax.linear_schedule(0.8, 0.3, 3)),
        "rigl": lambda: optim.rigl(0.25, rate=0.5, every=2, key=KEY),
        "two": lambda: optax.chain(
            optim.prune(0.5, where=lambda path, leaf: path == "a/kernel"),
            optim.mask_updates(
                {"a": {"kernel": None, "bias": None}, "b": half(params)["b"]}
            ),
        ),
        "masked": lambda: optax.masked(optim.prune(0.5), {"a": True, "b": False}),
    }[kind]()


@pytest.mark.parametrize(
    "kind", ["keep_sparse", "mask_updates", "prune", "rigl", "two", "masked"]
)
def test_a_clip_counts_only_gradients_of_weights_that_train(kind):
    """Removed and frozen weights get gradients a thousand times as large."""
    params, seen = make_params(), []

    def clip(updates, params):
        norm = optax.tree.norm(updates)
        seen.append(norm)
        return jax.tree.map(lambda u: u / norm, updates)

    chain = optax.chain(
        optim.mask_gradients(), optax.stateless(clip), _masks(kind, params)
    )
    optimizer = optim.with_gradients(chain)
    state = optimizer.init(params)

    @jax.jit
    def step(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, seen[-1]

    for _ in range(3):
        mask = optim.mask_of(state, params)
        gradients, kept = jax.tree.map(np.array, slope(params)), 0.0
        for name in "ab":
            m = mask[name]["kernel"]
            m = np.ones((8, 4), bool) if m is None else np.asarray(m)
            gradients[name]["kernel"][~m] = 1000.0
            kept += (gradients[name]["kernel"][m] ** 2).sum()
        kept += (gradients["a"]["bias"] ** 2).sum()
        params, state, norm = step(gradients, state, params)
        np.testing.assert_allclose(norm, np.sqrt(kept), rtol=1e-5)


def test_gradients_are_masked_only_inside_with_gradients():
    params = make_params()
    alone = optax.chain(optim.mask_gradients(), optim.prune(0.5))
    match = "`maskjax.optim.mask_gradients` needs `mask`(.|\n)*with_gradients"
    for optimizer in (alone, optim.with_gradients(optim.mask_gradients())):
        with pytest.raises(ValueError, match=match):
            optimizer.update(params, optimizer.init(params), params)


def test_two_equal_masks_of_one_parameter_are_one():
    params = make_params()
    packed, plain = packing.pack(half(params)), half(params)
    freeze = [optim.mask_updates(packed), optim.mask_updates(plain)]
    state = optax.chain(freeze[0], optax.adam(0.1), freeze[1]).init(params)
    trees.assert_same(packing.unpack(optim.mask_of(state)), half(params))
    trees.assert_same(packing.unpack(optim.mask_of(state, params)), half(params))
    plain["b"]["kernel"] = ~plain["b"]["kernel"]
    state = optax.chain(*freeze, optim.mask_updates(plain)).init(params)
    with pytest.raises(ValueError, match="\n  b/kernel: two masks that differ$"):
        optim.mask_of(state)
    match = "a/kernel: two masks without values to compare"
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(optim.mask_of, state)


@pytest.mark.parametrize("kind", ["keep_sparse", "rigl", "two", "masked"])
def test_a_mask_that_is_set_is_read_back_and_kept(kind):
    params = make_params()
    other = jax.tree.map(np.logical_not, half(params))
    if kind == "masked":
        other["b"]["kernel"] = None
    optimizer = optim.with_gradients(optax.chain(optax.adam(0.1), _masks(kind, params)))
    state = optimizer.init(params)

    @jax.jit
    def steps(params, state):
        updates, state = optimizer.update(slope(params), state, params)
        return optax.apply_updates(params, updates), optim.mask_of(state, params)

    for given in (other, packing.pack(other)):
        changed = optim.with_mask(state, given)
        assert jax.tree.structure(changed) == jax.tree.structure(state)
        trees.assert_same(optim.mask_of(changed, params), other)
        for mine, theirs in zip(
            jax.tree.leaves(changed), jax.tree.leaves(other), strict=False
        ):
            assert mine is not theirs
    after, mask = steps(params, changed)
    if kind in ("keep_sparse", "rigl"):
        trees.assert_same(jax.tree.map(np.asarray, mask), other)
        assert not np.asarray(after["a"]["kernel"])[~other["a"]["kernel"]].any()
    with pytest.raises(ValueError, match="one mask|mask like that") as error:
        optim.with_mask(state, {"a": {"kernel": np.ones((6, 1), bool)}, "c": mask["a"]})
    assert "a/kernel: (6, 8), got (6, 1)" in str(error.value)
    assert "c/kernel: no mask in the state" in str(error.value)


def test_a_packed_mask_in_a_state_stays_packed():
    params = make_params()
    state = optim.keep_sparse(packing.pack(half(params))).init(params)
    other = jax.tree.map(np.logical_not, half(params))
    changed = optim.with_mask(state, other)
    assert jax.tree.structure(changed) == jax.tree.structure(state)
    trees.assert_same(packing.unpack(optim.mask_of(changed)), other)
    with pytest.raises(TypeError, match="`maskjax.optim.with_mask` needs every leaf"):
        optim.with_mask(state, params)
    with pytest.raises(ValueError, match="with a mask in it"):
        optim.with_mask(optax.adam(0.1).init(params), other)


def test_masks_are_found_where_flax_and_orbax_made_mappings_of_states():
    model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    tx = optax.chain(optax.adam(0.1), optim.prune(0.5, every=2))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    found = optim.mask_of(nnx.state(optimizer), params)
    expected = optim.mask_of(optimizer.opt_state, params)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    trees.assert_same(jax.tree.leaves(found), jax.tree.leaves(expected))

    plain = make_params()
    state = optax.chain(optax.adam(0.1), optim.keep_sparse(half(plain))).init(plain)
    restored = [[{"count": 0, "mu": plain, "nu": plain}, None], state[1]._asdict()]
    trees.assert_same(optim.mask_of(restored), half(plain))
    optim.check(restored, plain)
    # A parameter that is called `mask` is none.
    with pytest.raises(ValueError, match="with a mask in it"):
        optim.mask_of({"mask": plain, "count": 0})


def test_rigl_moves_nothing_else_in_a_step_that_rewires():
    params = {"w": kernel(), "b": np.full(8, -0.0, "float32")}
    rigl = optim.rigl(0.5, rate=0.5, every=2, key=KEY)
    optimizer = optim.with_gradients(optax.chain(optax.adamw(0.1), rigl))
    gradients = jax.tree.map(lambda p: np.stack(3 * [0.3 * p + 0.05]), params)
    after, masks, _ = following(optimizer, params, gradients)
    for n, moves in enumerate([False, True], start=1):
        stays = masks["w"][n] & masks["w"][n + 1]
        same = bits(after["w"][n - 1])[stays] == bits(after["w"][n])[stays]
        assert same.all() != moves
        both = bits(after["b"][n - 1]) == bits(after["b"][n])
        assert both.all() != moves
    assert (masks["w"][1] != masks["w"][2]).any()


def test_set_outside_of_with_gradients_is_told_once_traced():
    params = make_params()
    set_ = optim.set_(0.5, rate=0.3, every=2, key=KEY)
    chain = optax.chain(optax.adam(0.1), set_)
    state = jax.eval_shape(chain.init, params)
    with pytest.warns(optim.MaskWarning, match=r"`maskjax.optim.set_` is not inside"):
        jax.eval_shape(chain.update, params, state, params)
    jax.eval_shape(optim.with_gradients(chain).update, params, state, params)


def _unmet(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_scores_that_take_a_loss_first_are_refused_with_the_way_to_give_it():
    rewiring = {"rate": 0.3, "every": 2, "key": KEY}
    for criterion in (score.snip, score.taylor, score.grasp, score.fisher):
        match = f"`lambda params: {criterion.__name__}\\(loss, params, \\*data\\)`"
        for name, make in (
            ("prune", lambda s: optim.prune(0.5, score=s)),
            ("set_", lambda s: optim.set_(0.5, score=s, **rewiring)),
            ("rigl", lambda s: optim.rigl(0.5, score=s, **rewiring)),
        ):
            whole = f"`maskjax.optim.{name}` calls its `score`(.|\n)*{match}"
            _unmet(TypeError, whole, lambda m=make, s=criterion: m(s))
    _unmet(TypeError, "`score` as a function", lambda: optim.prune(0.5, score="l1"))
    loss = lambda p, x: jnp.sum(p["a"]["kernel"] ** 2 * x)  # noqa: E731
    tx = optim.prune(0.5, score=lambda p: score.snip(loss, p, np.float32(1)))
    params = make_params()
    jax.eval_shape(tx.update, params, tx.init(params), params)


@pytest.mark.parametrize("make", [optim.prune, optim.rigl, optim.set_])
def test_inject_hyperparams_is_told_which_arguments_are_no_schedules(make):
    given = {} if make is optim.prune else {"rate": 0.3, "every": 2, "key": KEY}
    match = r'static_args=\("score", "where", "allocation"\)'
    params = make_params()
    for static in ((), ("score",)):
        injected = optax.inject_hyperparams(make, static_args=static)(0.5, **given)
        _unmet((TypeError, ValueError), match, lambda tx=injected: tx.init(params))


@pytest.mark.parametrize("kind", ["keep_sparse", "prune", "mask_updates"])
def test_a_wrapper_that_computes_with_masks_is_named(kind):
    params = make_params()
    inner = optax.chain(optax.sgd(0.1), _masks(kind, params))
    away = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
    tx = optax.contrib.sam(inner, away)

    def steps(params):
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(params, state, params)
        return updates

    match = f"`maskjax.optim.{kind}` finds int32(.|\n)*`optax.contrib.sam`"
    _unmet(TypeError, match, lambda: jax.eval_shape(steps, params))


def test_schedules_of_sparsity_are_refused():
    sparsity = optax.polynomial_schedule(0.0, 0.9, 3, 1000)
    match = r"`density` that does not rise, got 0 (.|\n)*`lambda step: 1 - sparsity"
    _unmet(ValueError, match, lambda: optim.prune(sparsity))
    optim.prune(lambda step: 1 - sparsity(step))
    tree = {"a": {"kernel": 0.5, "bias": None}, "b": {"kernel": 0.5, "bias": None}}
    rising = lambda n: jax.tree.map(lambda d: d * jnp.minimum(n, 9) / 9, tree)  # noqa: E731
    _unmet(ValueError, "does not rise", lambda: optim.prune(rising))
    # A rate may rise, as it may fall.
    up = optax.linear_schedule(0.1, 0.3, 9)
    optim.rigl(0.5, rate=up, every=2, key=KEY)


@pytest.mark.parametrize("number", [np.nan, 30.0, -0.5])
def test_fractions_with_values_are_looked_at_in_any_array(number):
    scores = {"w": kernel()}
    for value in (jnp.float32(number), jnp.bfloat16(number), np.float32(number)):
        for call in (
            lambda d: optim.prune(d),
            lambda d: optim.rigl(d, rate=0.1, every=2, key=KEY),
            lambda d: optim.rigl(0.5, rate=d, every=2, key=KEY),
            lambda d: select.top_k(scores, density=d),
            lambda d: allocation.erk(scores, density=d),
        ):
            match = r"needs `(density|rate)` in \[0, 1\], got"
            _unmet(ValueError, match, lambda c=call, v=value: c(v))
    optim.prune(jnp.float32(1.0000001))
    optim.prune(jnp.bfloat16(0.5))
    jax.eval_shape(lambda d: optim.prune(d).init(scores), jnp.float32(0.5))
