"""How tasks fare that came one by one, against sums written out in NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import metrics, packing
from tests.reference import continual as reference

NAMES = ["average_accuracy", "backward_transfer", "forgetting", "forward_transfer"]
MATRIX = jnp.array([[1.0, 0.25], [0.75, 0.5]])
over_metrics = pytest.mark.parametrize("name", NAMES)


def matrices(*, seeds=3, tasks=5, seed=0):
    """Accuracies [S, T, T], and [S, T] of networks that learned nothing."""
    rng = np.random.default_rng(seed)
    return rng.random((seeds, tasks, tasks)), rng.random((seeds, tasks))


def arguments(name, matrix, untrained):
    return (matrix, untrained) if name == "forward_transfer" else (matrix,)


def expected(name, matrix, untrained):
    """The reference, over leading axes."""
    if matrix.ndim > 2:
        pairs = zip(matrix, untrained, strict=True)
        return np.array([expected(name, *pair) for pair in pairs])
    return getattr(reference, name)(*arguments(name, matrix, untrained))


def raises(kind, pattern):
    return pytest.raises(kind, match=re.compile(pattern, re.DOTALL))


# The accuracy matrix.


@over_metrics
@pytest.mark.parametrize("tasks", [2, 5])
def test_continual_metrics_are_those_of_the_reference(name, tasks, every_transform):
    matrix, untrained = matrices(tasks=tasks)
    given = arguments(name, jnp.asarray(matrix), jnp.asarray(untrained))
    found = every_transform(getattr(metrics, name))(*given)
    assert found.shape == (3,)
    np.testing.assert_allclose(found, expected(name, matrix, untrained), rtol=1e-5)


@over_metrics
def test_leading_axes_are_as_good_as_vmap(name):
    matrix, untrained = (jnp.asarray(m) for m in matrices())
    given = arguments(name, matrix, untrained)
    function = getattr(metrics, name)
    np.testing.assert_array_equal(jax.vmap(function)(*given), function(*given))
    twice = [x[None] for x in given]
    np.testing.assert_array_equal(function(*twice)[0], function(*given))


@over_metrics
def test_dtypes_are_kept(name):
    matrix, untrained = matrices()
    for dtype, rtol in ((jnp.bfloat16, 0.05), (jnp.float16, 0.01), (jnp.float32, 1e-5)):
        # Compared on what is left of the numbers when rounded.
        given = jnp.asarray(matrix, dtype), jnp.asarray(untrained, dtype)
        found = getattr(metrics, name)(*arguments(name, *given))
        wanted = expected(name, *(np.asarray(x, float) for x in given))
        assert found.dtype == dtype
        np.testing.assert_allclose(np.asarray(found, float), wanted, atol=rtol)


@over_metrics
def test_doubles_stay_doubles_where_there_are_any(name, x64):
    matrix, untrained = matrices()
    found = getattr(metrics, name)(*arguments(name, matrix, untrained))
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected(name, matrix, untrained), rtol=1e-12)


def test_one_network_before_training_stands_for_all_seeds():
    matrix, untrained = matrices()
    found = metrics.forward_transfer(matrix, untrained[0])
    wanted = expected("forward_transfer", matrix, untrained[[0, 0, 0]])
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["average_accuracy", "backward_transfer", "forgetting"]
)
def test_tasks_not_yet_learned_do_not_matter(name):
    matrix, _ = matrices()
    future = np.where(np.tri(5, dtype=bool), matrix, np.nan)
    function = getattr(metrics, name)
    np.testing.assert_array_equal(function(future), function(matrix))


def test_forward_transfer_reads_only_the_task_that_is_next():
    matrix, untrained = matrices()
    rest = np.where(np.eye(5, k=1, dtype=bool), matrix, np.nan)
    untrained[:, 0] = np.nan
    assert np.isfinite(metrics.forward_transfer(rest, untrained)).all()


def test_what_is_kept_to_the_bit_is_forgotten_by_exactly_nothing():
    row = np.random.default_rng(0).random(7).astype(np.float32)
    matrix = jnp.asarray(np.tile(row, (7, 1)))
    assert metrics.forgetting(matrix) == 0
    assert metrics.backward_transfer(matrix) == 0


def test_forgetting_starts_when_a_task_is_learned():
    matrix = jnp.array([[0.5, 1.0, 0.0], [0.75, 0.25, 0.0], [0.25, 0.5, 0.0]])
    # Task 0 was at 0.75 at best; task 1, once learned, at 0.25, whatever was before.
    assert metrics.forgetting(matrix) == ((0.75 - 0.25) + (0.25 - 0.5)) / 2


def test_lists_are_matrices_too():
    assert metrics.average_accuracy([[1.0, 0.25], [0.75, 0.5]]) == 0.625


def test_one_task_has_an_average_only():
    assert metrics.average_accuracy(jnp.array([[0.5]])) == 0.5
    for name in NAMES[1:]:
        given = arguments(name, jnp.ones((1, 1)), jnp.ones(1))
        with raises(
            ValueError,
            rf"`maskjax.metrics.{name}` needs `accuracy` of at least 2 tasks, got 1\.",
        ):
            getattr(metrics, name)(*given)
    with raises(ValueError, "average_accuracy` needs .* at least 1 tasks, got 0"):
        metrics.average_accuracy(jnp.ones((0, 0)))


@over_metrics
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (4, 2, 3)])
def test_a_matrix_of_accuracies_is_square(name, shape, transform):
    function = getattr(metrics, name)
    given = arguments(name, jnp.ones(shape), jnp.ones(2))
    with raises(
        ValueError,
        rf"`maskjax.metrics.{name}` needs `accuracy` of shape \[..., T, T\], got "
        + re.escape(f"{shape}."),
    ):
        transform(function)(*given)


@over_metrics
@pytest.mark.parametrize("dtype", [jnp.int32, bool, jnp.complex64])
def test_accuracies_are_floating(name, dtype, transform):
    given = arguments(name, jnp.ones((2, 2), dtype), jnp.ones(2))
    with raises(TypeError, rf"{name}` needs `accuracy` as a floating array, got \w+ "):
        transform(getattr(metrics, name))(*given)


def test_a_network_before_training_has_an_accuracy_for_each_task(transform):
    function = transform(metrics.forward_transfer)
    fn = "`maskjax.metrics.forward_transfer`"
    with raises(TypeError, f"{fn} needs `untrained` as a floating array, got int32 ar"):
        function(MATRIX, jnp.ones(2, jnp.int32))
    for shape in ((), (3,), (1, 2), (3, 2)):
        with raises(
            ValueError,
            rf"{fn} needs `untrained` with one number for each of 2 tasks, got shape "
            + re.escape(f"{shape} for (2, 2)."),
        ):
            function(MATRIX, jnp.ones(shape))


# Bits.

TREE = {
    "w": jnp.ones((10, 10)),
    "half": jnp.ones(10, jnp.bfloat16),
    "owner": jnp.ones((5, 4), jnp.uint8),
    "mask": jnp.ones((3, 7), bool),
    "none": None,
}


def test_bits_are_those_of_every_entry():
    assert metrics.bits_per_task(TREE, tasks=1) == 3200 + 160 + 160 + 21
    assert metrics.bits_per_task(TREE, tasks=4) == (3200 + 160 + 160 + 21) / 4
    assert metrics.bits_per_task(np.ones(3), tasks=1) == 192
    assert metrics.bits_per_task(jnp.ones(3, jnp.int4), tasks=1) == 12


def test_a_mask_that_nobody_owns_takes_nothing():
    assert metrics.bits_per_task({"a": None, "b": None}, tasks=3) == 0
    assert metrics.bits_per_task({}, tasks=3) == 0
    assert metrics.bits_per_task(jnp.ones((0, 3)), tasks=3) == 0
    unowned = {"w": jnp.zeros((4, 4), jnp.int32), "bias": None}
    assert metrics.bits_per_task(unowned, tasks=2, levels=3) == 16 * 2 / 2


@pytest.mark.parametrize("lead", [(), (6,), (2, 3)])
def test_a_packed_mask_takes_as_much_as_a_boolean_one(lead):
    mask = jnp.ones((*lead, 3, 7), bool)
    pack = packing.pack
    for _ in lead:
        pack = jax.vmap(pack)
    for levels in (None, 2, 300):
        for leaf in (mask, pack(mask)):
            found = metrics.bits_per_task({"w": leaf}, tasks=2, levels=levels)
            assert found == mask.size / 2


@pytest.mark.parametrize(
    ("levels", "bits"),
    [(2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 8), (2**40, 8)],
)
def test_levels_are_counted_in_whole_bits(levels, bits):
    owner = {"w": jnp.zeros((2, 5), jnp.uint8)}
    assert metrics.bits_per_task(owner, tasks=5, levels=levels) == 2 * bits


def test_bits_are_counted_of_shapes_and_while_tracing():
    seen = []

    @jax.jit
    def traced(tree):
        seen.append(metrics.bits_per_task(tree, tasks=4))
        return 0

    traced(TREE)
    shapes = jax.eval_shape(lambda: TREE)
    assert seen == [metrics.bits_per_task(shapes, tasks=4)]
    assert seen == [metrics.bits_per_task(TREE, tasks=4)]
    assert type(seen[0]) is float
    huge = jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)
    assert metrics.bits_per_task(huge, tasks=1) == 2**45


@pytest.mark.parametrize(
    ("value", "kind"), [(1.5, "float 1.5"), (True, "bool True"), ("2", "str '2'")]
)
@pytest.mark.parametrize("name", ["tasks", "levels"])
def test_tasks_and_levels_are_whole_numbers(name, value, kind):
    given = {"tasks": 1, name: value}
    with raises(
        TypeError,
        rf"`maskjax.metrics.bits_per_task` needs `{name}` as a whole number, .* {kind}",
    ):
        metrics.bits_per_task(TREE, **given)


@pytest.mark.parametrize(("name", "least"), [("tasks", 1), ("levels", 2)])
def test_tasks_and_levels_are_at_least_some(name, least):
    given = {"tasks": 1, name: least - 1}
    with raises(
        ValueError,
        rf"task` needs `{name}` of at least {least}, got {least - 1}",
    ):
        metrics.bits_per_task(TREE, **given)


def test_what_is_no_array_has_no_bits():
    tree = {"a": 3, "b": jnp.ones(2), "c": {"d": "text"}}
    with raises(
        TypeError,
        "`maskjax.metrics.bits_per_task` needs every leaf of `tree` to be an array or "
        "None, got:\n  a: int 3\n  c/d: str 'text'",
    ):
        metrics.bits_per_task(tree, tasks=1)
