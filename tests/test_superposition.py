"""Which of many masks fits an input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import bank, masking, packing, stacking, superposition
from tests.reference import superposition as reference

K, CAPACITY, LABELS = 6, 9, 3
SHAPES = [(5, 12), (12, 10), (10, 8)]


def network(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def entropy(params, x):
    return superposition.entropy(network(params, x))


def surplus(params, x):
    return superposition.superfluous(network(params, x), labels=LABELS)


OBJECTIVES = {"entropy": (entropy, None), "superfluous": (surplus, LABELS)}
over_objectives = pytest.mark.parametrize(
    ("objective", "labels"), OBJECTIVES.values(), ids=OBJECTIVES
)


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s), "float32") for s in SHAPES]


@pytest.fixture(scope="module")
def masks():
    rng = np.random.default_rng(1)
    return [rng.random((CAPACITY, *s)) < 0.5 for s in SHAPES]


@pytest.fixture(scope="module")
def tasks(masks):
    return bank.from_stack([jnp.asarray(m[:K]) for m in masks], capacity=CAPACITY)


def images(count, *, seed=2):
    x = np.random.default_rng(seed).normal(size=(count, SHAPES[0][0]))
    return jnp.asarray(x, "float32")


def wide(arrays):
    return [np.asarray(a).astype(np.float64) for a in arrays]


@over_objectives
def test_the_gradient_is_autodiffs_through_the_weights(
    objective, labels, weights, tasks, transform
):
    alphas = jnp.asarray(np.random.default_rng(3).dirichlet(np.ones(CAPACITY)), "f4")
    x = images(4)

    def mixed(alphas):
        dense = packing.unpack(tasks.masks)
        params = [
            w * jnp.tensordot(alphas, m.astype(w.dtype), 1)
            for w, m in zip(weights, dense, strict=True)
        ]
        return objective(params, x)

    ours = transform(
        lambda a, x: superposition.gradient(objective, weights, tasks.masks, a, x)
    )(alphas, x)
    autodiff = jax.jit(jax.grad(mixed))(alphas)
    np.testing.assert_allclose(
        ours, autodiff, rtol=1e-5, atol=1e-5 * np.abs(autodiff).max()
    )
    expected = wide(m.astype(jnp.float32) for m in packing.unpack(tasks.masks))
    _, slopes = reference.gradient(
        wide(weights), expected, np.float64(alphas), np.float64(x), labels=labels
    )
    np.testing.assert_allclose(
        ours, slopes, rtol=1e-4, atol=1e-5 * np.abs(slopes).max()
    )


@over_objectives
@pytest.mark.parametrize("method", ["one_shot", "binary", "exhaustive"])
def test_inference_agrees_with_the_reference(
    method, objective, labels, weights, masks, tasks
):
    infer = jax.jit(
        lambda x: superposition.infer(
            network, weights, tasks, x, method=method, labels=labels, batch_size=3
        )
    )
    x = images(20)
    expected = [
        getattr(reference, method)(
            wide(weights), wide(masks), np.float64(one[None]), learned=K, labels=labels
        )
        for one in x
    ]
    np.testing.assert_array_equal(infer(x), expected)
    assert len(set(expected)) > 2
    whole = superposition.infer(
        network, weights, tasks, x, method=method, labels=labels, per="batch"
    )
    assert whole == getattr(reference, method)(
        wide(weights), wide(masks), np.float64(x), learned=K, labels=labels
    )


@pytest.mark.parametrize("base", [3, 100])
def test_binary_takes_any_base(base, weights, masks, tasks):
    one = jax.jit(lambda x: superposition.binary(entropy, weights, tasks, x, base=base))
    for x in images(6):
        expected = reference.binary(
            wide(weights), wide(masks), np.float64(x[None]), learned=K, base=base
        )
        assert one(x[None]) == expected
        if base == 100:
            assert expected == superposition.one_shot(entropy, weights, tasks, x[None])


def test_one_shot_is_one_large_step_of_descent_on_the_weights(weights, masks, tasks):
    ask = jax.jit(lambda x: superposition.one_shot(entropy, weights, tasks, x))
    for x in images(4):
        alphas = reference.descent(
            wide(weights),
            wide(masks),
            np.float64(x[None]),
            learned=K,
            steps=1,
            rate=300,
        )
        assert np.argmax(alphas) == ask(x[None])


@pytest.mark.parametrize("method", ["one_shot", "binary", "exhaustive"])
def test_permuting_tasks_permutes_the_answer(method, weights, tasks):
    order = np.random.default_rng(4).permutation(K)
    dense = stacking.take(packing.unpack(tasks.masks), jnp.asarray(order))
    other = bank.from_stack(dense, capacity=CAPACITY)
    x = images(8)
    ask = jax.jit(
        lambda tasks, x: superposition.infer(network, weights, tasks, x, method=method)
    )
    np.testing.assert_array_equal(order[ask(other, x)], ask(tasks, x))


@pytest.mark.parametrize("method", ["one_shot", "binary", "exhaustive"])
def test_what_is_not_learned_is_never_inferred(method, weights, masks):
    # The mask of a slot that is not learned would be the best of all, were it asked:
    # all learned gradients are positive.
    def rising(params, x):
        return sum(jnp.sum(jnp.abs(w)) for w in params) + 0 * jnp.sum(x)

    stack = [jnp.asarray(m) for m in masks]
    ask = jax.jit(
        lambda n, x: getattr(superposition, method)(
            rising, weights, bank.from_stack(stack, learned=n), x
        )
    )
    sums = sum(
        np.abs(np.asarray(w) * m).sum((1, 2))
        for w, m in zip(weights, masks, strict=True)
    )
    for learned in (1, 2, 3):
        assert ask(learned, images(1)) == np.argmin(sums[:learned])
    assert ask(0, images(1)) == -1


@pytest.mark.parametrize("method", ["one_shot", "binary", "exhaustive"])
def test_of_equals_the_first_is_inferred(method, weights, masks):
    same = [jnp.asarray(np.repeat(m[:1], CAPACITY, axis=0)) for m in masks]
    ask = jax.jit(
        lambda n, x: getattr(superposition, method)(
            entropy, weights, bank.from_stack(same, learned=n), x
        )
    )
    for learned in (1, 2, 5, 7):
        assert ask(learned, images(1)) == 0


def test_binary_is_right_when_the_best_ties_with_the_first_half(weights, masks):
    # Two copies of each mask: the best two tie, so that each halving splits equals.
    twice = [jnp.asarray(np.repeat(m[:4], 2, axis=0)) for m in masks]
    tasks = bank.from_stack(twice)
    ask = jax.jit(lambda x: superposition.binary(entropy, weights, tasks, x))
    for x in images(6):
        expected = reference.binary(
            wide(weights), wide(twice), np.float64(x[None]), learned=8
        )
        found = ask(x[None])
        assert found == expected
        assert found % 2 == 0


def test_inference_maps_and_compiles_once(weights, tasks):
    ask = jax.jit(jax.vmap(lambda x: superposition.binary(entropy, weights, tasks, x)))
    x = images(6)[:, None]
    one = jax.jit(lambda x: superposition.binary(entropy, weights, tasks, x))
    np.testing.assert_array_equal(ask(x), [one(each) for each in x])
    grow = jax.jit(lambda tasks, x: superposition.one_shot(entropy, weights, tasks, x))
    for learned in range(1, 4):
        grow(tasks._replace(learned=jnp.int32(learned)), x[0])
    assert grow._cache_size() == 1


def test_one_mask_with_all_the_weight_is_that_mask(weights, tasks):
    alphas = jnp.zeros(CAPACITY).at[2].set(1)
    mixed = packing.mix(tasks.masks, alphas)
    x = images(3)
    np.testing.assert_array_equal(
        network(masking.apply(weights, mixed), x),
        network(masking.apply(weights, bank.take(tasks, 2)), x),
    )


@over_objectives
def test_objectives_agree_with_the_reference(objective, labels):
    z = np.random.default_rng(5).normal(size=(4, 7)) * 3
    call = {
        "entropy": superposition.entropy,
        "surplus": lambda z: superposition.superfluous(z, labels=LABELS),
    }[objective.__name__]
    value, slope = jax.value_and_grad(call)(jnp.asarray(z, "f4"))
    expected, expected_slope = reference.objective_and_slope(z, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4, atol=1e-6)


def test_the_slope_at_superfluous_outputs_is_that_of_cross_entropy():
    # Lemma 1: whichever real label an image has.
    z = jnp.asarray(np.random.default_rng(6).normal(size=(1, 7)), "f4")
    ours = jax.grad(lambda z: superposition.superfluous(z, labels=LABELS))(z)
    for label in range(LABELS):
        cross = jax.grad(lambda z, y=label: -jax.nn.log_softmax(z)[0, y])(z)
        np.testing.assert_allclose(ours[0, LABELS:], cross[0, LABELS:], rtol=1e-5)
    assert not ours[0, :LABELS].any()


def test_without_superfluous_outputs_the_objective_says_nothing(weights, tasks):
    def none(params, x):
        return superposition.superfluous(network(params, x), labels=SHAPES[-1][-1])

    uniform = jnp.full(CAPACITY, 1 / CAPACITY)
    x = images(3)
    assert none(weights, x) == 0
    slopes = superposition.gradient(none, weights, tasks.masks, uniform, x)
    np.testing.assert_array_equal(slopes, np.zeros(CAPACITY))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), ()])
def test_objectives_need_an_image_and_an_output(shape):
    with pytest.raises(ValueError, match="at least one image and output"):
        superposition.entropy(jnp.zeros(shape))
    with pytest.raises(ValueError, match="at least one image and output"):
        superposition.superfluous(jnp.zeros(shape), labels=1)


def test_labels_are_among_the_outputs():
    with pytest.raises(ValueError, match="as many `labels` as outputs, got 5 of 4"):
        superposition.superfluous(jnp.zeros((1, 4)), labels=5)
    with pytest.raises(ValueError, match="`labels` of at least 1"):
        superposition.superfluous(jnp.zeros((1, 4)), labels=0)


@pytest.mark.parametrize("method", ["one_shot", "binary", "exhaustive"])
def test_an_empty_bank_and_one_for_another_network_are_errors(method, weights, tasks):
    fn = rf"superposition\.{method}`"
    call = getattr(superposition, method)
    empty = tasks._replace(learned=jnp.int32(0))
    with pytest.raises(ValueError, match=fn + " needs a bank with at least one"):
        call(entropy, weights, empty, images(1))
    narrow = [weights[0][:, :-1], weights[1][:-1], weights[2]]
    with pytest.raises(ValueError, match=r"(?s)shaped like.*0: stack \(5, 12\)"):
        call(entropy, narrow, tasks, images(1))


def test_inference_needs_images_and_known_words(weights, tasks):
    def call(x, **how):
        return superposition.infer(network, weights, tasks, x, **how)

    with pytest.raises(ValueError, match=r"at least one image, got .* \(0, 5\)"):
        call(images(0))
    with pytest.raises(ValueError, match="`method` as 'one_shot' or"):
        call(images(1), method="guess")
    with pytest.raises(ValueError, match="`per` as 'image' or 'batch'"):
        call(images(1), per="pixel")
    with pytest.raises(ValueError, match="`batch_size` of at least 1"):
        call(images(1), batch_size=0)
    with pytest.raises(ValueError, match="`base` of at least 2"):
        superposition.binary(entropy, weights, tasks, images(1), base=1)
    with pytest.raises(ValueError, match="`batch_size` of at least 1"):
        superposition.exhaustive(entropy, weights, tasks, images(1), batch_size=0)


def test_the_gradient_needs_a_packed_stack_and_as_many_weights(weights, tasks):
    with pytest.raises(TypeError, match="packed"):
        superposition.gradient(
            entropy, weights, packing.unpack(tasks.masks), jnp.ones(CAPACITY), images(1)
        )
    with pytest.raises(ValueError, match=r"`weights` of shape \(9,\)"):
        superposition.gradient(entropy, weights, tasks.masks, jnp.ones(3), images(1))


def test_outputs_without_any_chance_add_no_entropy():
    z = jnp.array([[0.0, 0.0, -jnp.inf]])
    value, slope = jax.jit(jax.value_and_grad(superposition.entropy))(z)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(slope, np.zeros((1, 3)))
    half = jnp.array([[6e4, -6e4]], jnp.float16)
    assert superposition.entropy(half) == 0


@pytest.mark.parametrize("method", ["one_shot", "binary", "exhaustive"])
def test_a_task_that_is_not_a_number_is_not_the_best(method):
    stack = {"w": jnp.array([[[True], [True]], [[True], [False]], [[False], [True]]])}
    tasks = bank.from_stack(stack)

    def objective(params):  # not a number where the first weight is off
        return jnp.log(params["w"][0, 0] - 0.3) * 0 + params["w"].sum()

    def alone(params):
        return jnp.where(params["w"][0, 0] > 0, params["w"].sum(), jnp.nan)

    call = getattr(superposition, method)
    found = call(
        alone if method == "exhaustive" else objective, {"w": jnp.ones((2, 1))}, tasks
    )
    assert found == 1


def test_labels_that_leave_nothing_superfluous_cannot_tell_tasks(weights, tasks):
    with pytest.raises(ValueError, match="fewer `labels` than outputs, got 8 of 8"):
        superposition.infer(network, weights, tasks, images(1), labels=8)


def test_banks_work_with_wide_integers(x64, masks, weights):
    stack = [jnp.asarray(m[:K]) for m in masks]
    tasks = bank.append(
        bank.from_stack(stack, capacity=CAPACITY), [m[0] for m in stack]
    )
    assert tasks.learned.dtype == jnp.int32
    found = superposition.infer(network, weights, tasks, images(2), method="binary")
    whose = stacking.predict_each(network, weights, tasks.masks, found, images(2))
    assert whose.shape == (2, SHAPES[-1][-1])
