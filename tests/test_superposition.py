"""Which of many masks fits an input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import bank, masking, packing, stacking, superposition
from tests.reference import superposition as reference

K, CAPACITY, LABELS = 6, 9, 3
SHAPES = [(5, 12), (12, 8)]
METHODS = "one_shot", "binary", "exhaustive"
WEIGHTS = [np.float32(np.random.default_rng(0).normal(size=s)) for s in SHAPES]
MASKS = [np.random.default_rng(1).random((CAPACITY, *s)) < 0.5 for s in SHAPES]
over_methods = pytest.mark.parametrize("method", METHODS)


def network(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def entropy(params, x):
    return superposition.logit_entropy(network(params, x))


def surplus(params, x):
    return superposition.superfluous(network(params, x), labels=LABELS)


OBJECTIVES = {entropy: None, surplus: LABELS}


def images(count):
    return np.float32(np.random.default_rng(2).normal(size=(count, SHAPES[0][0])))


def wide(arrays):
    return [np.float64(a) for a in arrays]


def tasks_of(masks, *, learned=K):
    return bank.from_stack(masks, learned=np.int32(learned), capacity=CAPACITY)


@functools.cache
def tasks():
    return tasks_of(MASKS)


@functools.partial(jax.jit, static_argnames=("method", "objective", "options"))
def ask(tasks, x, *, method, objective=entropy, options=()):
    """The task of each image by itself: a program for each method and objective."""
    call = functools.partial(getattr(superposition, method), **dict(options))
    one = functools.partial(call, objective, WEIGHTS, tasks)
    return jax.lax.map(lambda image: one(image[None]), x)


def expected(method, x, *, masks=MASKS, **how):
    answer = functools.partial(getattr(reference, method), wide(WEIGHTS), wide(masks))
    return [answer(np.float64(image[None]), **{"learned": K, **how}) for image in x]


def test_the_gradient_is_autodiffs_through_the_coefficients():
    alphas = np.float32(np.random.default_rng(3).dirichlet(np.ones(CAPACITY)))
    stack, x = tasks().masks, images(4)
    dense = wide(jax.device_get(packing.unpack(stack)))

    def mixed(alphas, objective):
        soft = [jnp.tensordot(alphas, jnp.float32(m), 1) for m in dense]
        return objective([w * m for w, m in zip(WEIGHTS, soft, strict=True)], x)

    @jax.jit
    def both(alphas):
        return [
            (
                superposition.gradient(f, WEIGHTS, stack, alphas, x),
                jax.grad(mixed)(alphas, f),
            )
            for f in OBJECTIVES
        ]

    results = zip(OBJECTIVES.values(), both(alphas), strict=True)
    for labels, (ours, autodiff) in results:
        _, slopes = reference.gradient(
            wide(WEIGHTS), dense, np.float64(alphas), np.float64(x), labels=labels
        )
        size = np.abs(slopes).max()
        np.testing.assert_allclose(ours, autodiff, rtol=1e-5, atol=1e-5 * size)
        np.testing.assert_allclose(ours, slopes, rtol=1e-4, atol=1e-5 * size)


@over_methods
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_inference_agrees_with_the_reference(method, objective):
    found = ask(tasks(), images(20), method=method, objective=objective)
    answers = expected(method, images(20), labels=OBJECTIVES[objective])
    np.testing.assert_array_equal(found, answers)
    assert len(set(answers)) > 2


def test_infer_answers_for_each_image_or_for_all_of_them():
    x = images(20)

    @jax.jit
    def run(tasks, x):
        infer = functools.partial(superposition.infer, network, WEIGHTS, tasks, x)
        each = infer(labels=LABELS, batch_size=3)
        return each, infer(method="exhaustive", per="batch")

    each, whole = run(tasks(), x)
    np.testing.assert_array_equal(each, expected("one_shot", x, labels=LABELS))
    args = wide(WEIGHTS), wide(MASKS), np.float64(x)
    assert whole == reference.exhaustive(*args, learned=K)


def test_images_that_are_not_apart_are_told(transform):
    """One image alone would be normalized to 0: every image would be of task 0."""

    def normalized(params, x):
        hidden = network(params, x)
        return hidden - hidden.mean(0, keepdims=True)

    def infer(tasks, x, apply=normalized, **how):
        return superposition.infer(apply, WEIGHTS, tasks, x, **how)

    with pytest.warns(UserWarning, match='infer` gives `apply` one .*`per="batch"`'):
        transform(infer)(tasks(), images(4))
    with pytest.warns(UserWarning, match='infer` gives `apply` one .*`per="batch"`'):
        transform(lambda *args: infer(*args, per="batch"))(tasks(), images(1))
    found = transform(lambda *args: infer(*args, per="batch"))(tasks(), images(4))
    assert found.shape == ()
    transform(lambda *args: infer(*args, apply=network))(tasks(), images(4))


def test_binary_takes_any_base_and_maps():
    x = images(20)

    @jax.jit
    @jax.vmap
    def third(x):
        return superposition.binary(entropy, WEIGHTS, tasks(), x[None], base=3)

    np.testing.assert_array_equal(third(x), expected("binary", x, base=3))
    all_at_once = ask(tasks(), x, method="binary", options=(("base", 100),))
    np.testing.assert_array_equal(all_at_once, expected("binary", x, base=100))
    np.testing.assert_array_equal(all_at_once, expected("one_shot", x))


def test_one_shot_is_one_large_step_of_descent_on_the_coefficients():
    alphas = expected("descent", images(20), steps=1, rate=300)
    found = ask(tasks(), images(20), method="one_shot")
    np.testing.assert_array_equal(np.argmax(alphas, axis=1), found)


@over_methods
def test_permuting_tasks_permutes_the_answer(method):
    order = np.random.default_rng(4).permutation(K)
    other = tasks_of([np.concatenate([m[:K][order], m[K:]]) for m in MASKS])
    found = np.asarray(ask(other, images(20), method=method))
    np.testing.assert_array_equal(order[found], expected(method, images(20)))


def rising(params, x):
    return sum(jnp.sum(jnp.abs(w)) for w in params) + 0 * jnp.sum(x)


@over_methods
def test_what_is_not_learned_is_never_inferred(method):
    # All derivatives are positive: a slot that is not learned, whose mask is cleared,
    # would be the best of all, were it asked.
    pairs = zip(WEIGHTS, MASKS, strict=True)
    sums = sum(np.abs(w * m).sum((1, 2)) for w, m in pairs)
    for learned in (1, 2, 3):
        few = tasks_of(MASKS, learned=learned)
        found = ask(few, images(20), method=method, objective=rising)
        np.testing.assert_array_equal(found, np.argmin(sums[:learned]))
    none = tasks_of(MASKS, learned=0)
    found = ask(none, images(20), method=method, objective=rising)
    np.testing.assert_array_equal(found, -1)


@over_methods
def test_under_ties_the_first_is_inferred(method):
    same = [np.repeat(m[:1], CAPACITY, axis=0) for m in MASKS]
    for learned in (1, 2, 5, 7):
        found = ask(tasks_of(same, learned=learned), images(20), method=method)
        np.testing.assert_array_equal(found, 0)


def test_binary_is_right_when_the_best_ties_with_the_first_half():
    # Two copies of each mask: the best two tie, so that each halving splits equals.
    twice = [np.concatenate([np.repeat(m[:4], 2, axis=0), m[:1]]) for m in MASKS]
    found = np.asarray(ask(tasks_of(twice, learned=8), images(20), method="binary"))
    answers = expected("binary", images(20), masks=twice, learned=8)
    np.testing.assert_array_equal(found, answers)
    assert not (found % 2).any()


def test_more_tasks_do_not_compile_anew():
    programs = []
    for learned in range(1, 4):
        ask(tasks_of(MASKS, learned=learned), images(20), method="binary")
        programs.append(ask._cache_size())
    assert len(set(programs)) == 1


def test_one_mask_with_a_coefficient_of_1_is_that_mask():
    @jax.jit
    def both(stack, alphas):
        mixed, taken = stacking.mix(stack, alphas), stacking.take(stack, 2)
        masked = [masking.apply(WEIGHTS, m) for m in (mixed, taken)]
        return [network(params, images(3)) for params in masked]

    np.testing.assert_array_equal(*both(tasks().masks, np.float32(np.eye(CAPACITY)[2])))


Z = np.float32(np.random.default_rng(5).normal(size=(4, 7)) * 3)


@jax.jit
def objectives(z):
    some = functools.partial(superposition.superfluous, labels=LABELS)
    every = functools.partial(superposition.superfluous, labels=z.shape[-1])
    each = {"entropy": superposition.logit_entropy, "some": some, "every": every}
    return {name: jax.value_and_grad(f)(z) for name, f in each.items()}


def test_objectives_agree_with_the_reference():
    found = objectives(Z)
    for name, labels in (("entropy", None), ("some", LABELS)):
        value, slope = reference.objective_and_slope(np.float64(Z), labels)
        np.testing.assert_allclose(found[name][0], value, rtol=1e-5)
        np.testing.assert_allclose(found[name][1], slope, rtol=1e-4, atol=1e-6)
    # Without superfluous outputs the objective tells nothing.
    assert found["every"][0] == 0
    np.testing.assert_array_equal(found["every"][1], np.zeros_like(Z))


def test_the_slope_at_superfluous_outputs_is_that_of_cross_entropy():
    # Lemma 1: whichever real label an image has.
    ours = np.asarray(objectives(Z)["some"][1])[:, LABELS:]
    odds = np.exp(np.float64(Z))
    cross = (odds / odds.sum(-1, keepdims=True) / len(Z))[:, LABELS:]
    np.testing.assert_allclose(ours, cross, rtol=1e-5)


def test_outputs_of_probability_0_add_no_entropy():
    value, slope = objectives(np.float32([[0, 0, -np.inf, -np.inf]]))["entropy"]
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(slope, np.zeros((1, 4)))
    half = np.array([[6e4, -6e4]], np.float16)
    assert superposition.logit_entropy(half) == 0


def test_a_task_that_is_not_a_number_is_not_the_best():
    stack = {"w": np.array([[[True], [True]], [[True], [False]], [[False], [True]]])}
    params = {"w": np.ones((2, 1), "float32")}

    def slopes(params):  # not a number where the first weight is off
        return jnp.log(params["w"][0, 0] - 0.3) * 0 + params["w"].sum()

    def value(params):
        return jnp.where(params["w"][0, 0] > 0, params["w"].sum(), jnp.nan)

    @jax.jit
    def run(tasks):
        objective = {"one_shot": slopes, "binary": slopes, "exhaustive": value}
        call = functools.partial(getattr, superposition)
        return [call(m)(objective[m], params, tasks) for m in METHODS]

    assert list(map(int, run(bank.from_stack(stack)))) == [1, 1, 1]


def test_banks_work_with_wide_integers(x64):
    stack = [m[:K] for m in MASKS]
    few = bank.from_stack(stack, capacity=CAPACITY)
    more = bank.append(few, [m[K] for m in MASKS])
    assert more.learned.dtype == jnp.int32

    infer = jax.jit(
        functools.partial(superposition.infer, method="binary"), static_argnums=0
    )
    found = infer(network, WEIGHTS, more, images(6))
    np.testing.assert_array_equal(found, expected("binary", images(6), learned=K + 1))
    say = jax.eval_shape(
        functools.partial(stacking.predict_each, network),
        WEIGHTS,
        more.masks,
        found,
        images(6),
    )
    assert say.shape == (6, SHAPES[-1][-1])


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), ()])
def test_objectives_need_an_image_and_an_output(shape):
    with pytest.raises(ValueError, match="logit_entropy` .*one image and output"):
        superposition.logit_entropy(np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match="superfluous` .*one image and output"):
        superposition.superfluous(np.zeros(shape, "float32"), labels=1)


def test_labels_are_among_the_outputs():
    z = np.zeros((1, 4), "float32")
    with pytest.raises(ValueError, match="as many `labels` as outputs, got 5 of 4"):
        superposition.superfluous(z, labels=5)
    with pytest.raises(ValueError, match="`labels` of at least 1"):
        superposition.superfluous(z, labels=0)
    with pytest.raises(ValueError, match="fewer `labels` than outputs, got 8 of 8"):
        superposition.infer(network, WEIGHTS, tasks(), images(1), labels=8)


@over_methods
def test_what_is_no_bank_of_this_network_is_an_error(method):
    fn = rf"superposition\.{method}` needs "
    call = functools.partial(getattr(superposition, method), entropy)
    with pytest.raises(ValueError, match=fn + "a bank with at least one"):
        call(WEIGHTS, tasks_of(MASKS, learned=0), images(1))
    narrow = [WEIGHTS[0][:, :-1], WEIGHTS[1][:-1]]
    with pytest.raises(ValueError, match=rf"(?s){fn}.*shaped like.*0: stack \(5, 12\)"):
        call(narrow, tasks(), images(1))
    for wrong in (MASKS, tasks().masks):
        with pytest.raises(TypeError, match=fn + "`bank` as .*got list.*from_stack"):
            call(WEIGHTS, wrong, images(1))


def test_inference_needs_images_and_known_words():
    def refused(match, call=superposition.infer, first=network, x=images(1), **how):
        with pytest.raises(ValueError, match=match):
            call(first, WEIGHTS, tasks(), x, **how)

    refused(r"at least one image, got .* \(0, 5\)", x=images(0))
    refused("`method` as 'one_shot' or", method="guess")
    refused("`per` as 'image' or 'batch'", per="pixel")
    refused("`batch_size` of at least 1", batch_size=0)
    refused("`base` of at least 2", superposition.binary, entropy, base=1)
    exhaustive = superposition.exhaustive
    refused("`batch_size` of at least 1", exhaustive, entropy, batch_size=0)
    with pytest.raises(TypeError, match=r"infer` needs `bank` as .*from_stack"):
        superposition.infer(network, WEIGHTS, MASKS, images(1))


def test_the_gradient_needs_a_packed_stack_and_a_coefficient_for_each():
    ask = functools.partial(superposition.gradient, entropy, WEIGHTS)
    with pytest.raises(TypeError, match=r"gradient` .*packed"):
        ask(MASKS, np.ones(CAPACITY, "float32"), images(1))
    with pytest.raises(ValueError, match=r"`coefficients` of shape \(9,\)"):
        ask(tasks().masks, np.ones(3, "float32"), images(1))
