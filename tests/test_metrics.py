"""How tasks fare that came one by one, against sums written out in NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import metrics
from maskjax.packing import PackedMask
from tests.reference import continual as reference

NAMES = ["average_accuracy", "backward_transfer", "forgetting", "forward_transfer"]
MATRIX = np.array([[1.0, 0.25], [0.75, 0.5]])
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


@jax.jit
def found_of(matrix, untrained):
    """All four in one program."""
    given = {name: arguments(name, matrix, untrained) for name in NAMES}
    return {name: getattr(metrics, name)(*given[name]) for name in NAMES}


@pytest.mark.parametrize("tasks", [2, 5])
def test_continual_metrics_are_those_of_the_reference(tasks):
    matrix, untrained = map(np.float32, matrices(tasks=tasks))
    found, mapped = (f(matrix, untrained) for f in (found_of, jax.vmap(found_of)))
    for name in NAMES:
        assert found[name].shape == (3,)
        wanted = expected(name, matrix, untrained)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5)
        np.testing.assert_array_equal(mapped[name], found[name])
    shapes = jax.eval_shape(found_of, matrix[None], untrained[None])
    assert {shape.shape for shape in shapes.values()} == {(1, 3)}


@pytest.mark.parametrize(
    ("dtype", "atol"), [(jnp.bfloat16, 0.05), (jnp.float16, 0.01), (jnp.float32, 1e-5)]
)
def test_dtypes_are_kept(dtype, atol):
    # Compared on what is left of the numbers when rounded.
    given = [x.astype(dtype) for x in matrices()]
    for name, found in found_of(*given).items():
        wanted = expected(name, *map(np.float64, given))
        assert found.dtype == dtype
        np.testing.assert_allclose(np.float64(found), wanted, atol=atol)


def test_doubles_stay_doubles_where_there_are_any(x64):
    for name, found in found_of(*matrices()).items():
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, expected(name, *matrices()), rtol=1e-12)


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
    matrix = np.tile(row, (7, 1))
    assert metrics.forgetting(matrix) == 0
    assert metrics.backward_transfer(matrix) == 0


def test_forgetting_starts_when_a_task_is_learned():
    matrix = np.array([[0.5, 1.0, 0.0], [0.75, 0.25, 0.0], [0.25, 0.5, 0.0]])
    # Task 0 was at 0.75 at best; task 1, once learned, at 0.25, whatever was before.
    assert metrics.forgetting(matrix) == ((0.75 - 0.25) + (0.25 - 0.5)) / 2


@pytest.mark.parametrize("rows", [(1, 2, 3), (1, 3, 5), (0, 2, 4)])
def test_rows_between_tasks_and_after_them(rows):
    """An untrained network's row first, two rows a task, and one after the last."""
    size = max(rows) + 1 + (rows[0] == 0)
    r = np.float32(np.random.default_rng(0).random((2, size, 3)))
    for row, task in ((rows[0] - 1, 0), (rows[1] - 1, 1), (rows[2] - 1, 2)):
        if row >= 0 and task:
            r[:, : rows[task - 1], task] = np.nan  # not learned yet, and not used
    untrained = np.float32(np.random.default_rng(1).random((2, 3)))
    counted = [j for j in range(3) if rows[j] < size - 1]
    wanted = {
        "average_accuracy": r[:, -1].mean(-1),
        "backward_transfer": np.mean(
            [r[:, -1, j] - r[:, rows[j], j] for j in counted], 0
        ),
        "forgetting": np.mean(
            [r[:, rows[j] : -1, j].max(1) - r[:, -1, j] for j in counted], 0
        ),
        "forward_transfer": np.mean(
            [r[:, rows[j - 1], j] - untrained[:, j] for j in (1, 2)], 0
        ),
    }

    @jax.jit
    def find(r, untrained):
        own = {name: {"rows": rows} for name in NAMES} | {"average_accuracy": {}}
        return {
            name: getattr(metrics, name)(*arguments(name, r, untrained), **own[name])
            for name in NAMES
        }

    found = find(r, untrained)
    for name in NAMES:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, err_msg=name)


@over_metrics
def test_more_rows_than_tasks_are_told_apart(name, transform):
    find, matrix = transform(getattr(metrics, name)), np.ones((3, 2))
    given = arguments(name, matrix, np.ones(2))
    if name == "average_accuracy":
        assert find(*given) == 1
        return
    fn = f"`maskjax.metrics.{name}` needs `rows`"
    with raises(
        ValueError, f"{fn}, the row just after each task was .* for 3 rows of 2"
    ):
        find(*given)
    of = getattr(metrics, name)
    for rows in ((0,), (1, 0), (1, 1), (1, 3), (-1, 2), (0, 1, 2)):
        with raises(ValueError, rf"{fn} as 2 increasing integers in \[0, 3\), got"):
            transform(lambda *given, rows=rows: of(*given, rows=rows))(*given)
    needs = f"{fn} as integers, one for each task and not traced, got"
    for rows in ((0.0, 1.0), [[0, 2]], ((0,), (1, 2)), (False, True), 2, "02"):
        with raises(TypeError, needs):
            transform(lambda *given, rows=rows: of(*given, rows=rows))(*given)
    with raises(TypeError, needs):
        jax.eval_shape(lambda rows: of(*given, rows=rows), np.array([0, 2]))


def test_lists_are_matrices_too():
    assert metrics.average_accuracy([[1.0, 0.25], [0.75, 0.5]]) == 0.625


def test_one_task_has_an_average_only():
    assert metrics.average_accuracy(np.array([[0.5]])) == 0.5
    for name in NAMES[1:]:
        given = arguments(name, np.ones((1, 1)), np.ones(1))
        with raises(
            ValueError,
            rf"`maskjax.metrics.{name}` needs `accuracy` of at least 2 tasks, got 1\.",
        ):
            getattr(metrics, name)(*given)
    with raises(ValueError, "average_accuracy` needs .* at least 1 tasks, got 0"):
        metrics.average_accuracy(np.ones((0, 0)))


@over_metrics
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (4, 2, 3)])
def test_a_matrix_of_accuracies_is_square(name, shape, transform):
    function = getattr(metrics, name)
    given = arguments(name, np.ones(shape), np.ones(2))
    with raises(
        ValueError,
        rf"`maskjax.metrics.{name}` needs `accuracy` of shape \[..., T, T\], or "
        "with more rows than tasks, got " + re.escape(f"{shape}."),
    ):
        transform(function)(*given)


@over_metrics
@pytest.mark.parametrize("dtype", [np.int32, bool, np.complex64])
def test_accuracies_are_floating(name, dtype, transform):
    given = arguments(name, np.ones((2, 2), dtype), np.ones(2))
    with raises(TypeError, rf"{name}` needs `accuracy` as a floating array, got \w+ "):
        transform(getattr(metrics, name))(*given)


def test_a_network_before_training_has_an_accuracy_for_each_task(transform):
    function = transform(metrics.forward_transfer)
    fn = "`maskjax.metrics.forward_transfer`"
    with raises(TypeError, f"{fn} needs `untrained` as a floating array, got int32 ar"):
        function(MATRIX, np.ones(2, np.int32))
    for shape in ((), (3,), (1, 2), (3, 2)):
        with raises(
            ValueError,
            rf"{fn} needs `untrained` with one number for each of 2 tasks, got shape "
            + re.escape(f"{shape} for (2, 2)."),
        ):
            function(MATRIX, np.ones(shape))


# Bits.

TREE = {
    "w": np.ones((10, 10), np.float32),
    "half": np.ones(10, jnp.bfloat16),
    "owner": np.ones((5, 4), np.uint8),
    "mask": np.ones((3, 7), bool),
    "none": None,
}


def test_bits_are_those_of_every_entry():
    assert metrics.bits_per_task(TREE, tasks=1) == 3200 + 160 + 160 + 21
    assert metrics.bits_per_task(TREE, tasks=4) == (3200 + 160 + 160 + 21) / 4
    assert metrics.bits_per_task(np.ones(3), tasks=1) == 192
    assert metrics.bits_per_task(np.ones(3, jnp.int4), tasks=1) == 12


def test_a_mask_that_nobody_owns_takes_nothing():
    assert metrics.bits_per_task({"a": None, "b": None}, tasks=3) == 0
    assert metrics.bits_per_task({}, tasks=3) == 0
    assert metrics.bits_per_task(np.ones((0, 3)), tasks=3) == 0
    unowned = {"w": np.zeros((4, 4), np.int32), "bias": None}
    assert metrics.bits_per_task(unowned, tasks=2, levels=3) == 16 * 2 / 2


@pytest.mark.parametrize("lead", [(), (6,), (2, 3)])
def test_a_packed_mask_takes_as_much_as_a_boolean_one(lead):
    mask = np.ones((*lead, 3, 7), bool)
    packed = PackedMask(np.ones((*lead, 1), np.uint32), (3, 7))
    for levels in (None, 2, 300):
        for leaf in (mask, packed):
            found = metrics.bits_per_task({"w": leaf}, tasks=2, levels=levels)
            assert found == mask.size / 2


@pytest.mark.parametrize(
    ("levels", "bits"),
    [(2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 8), (2**40, 8)],
)
def test_levels_are_counted_in_whole_bits(levels, bits):
    owner = {"w": np.zeros((2, 5), np.uint8)}
    assert metrics.bits_per_task(owner, tasks=5, levels=levels) == 2 * bits


def test_bits_are_counted_of_shapes_and_while_tracing():
    seen = []

    @jax.jit
    def traced(tree):
        seen.append(metrics.bits_per_task(tree, tasks=4))
        return 0

    traced(TREE)
    shapes = jax.eval_shape(lambda tree: tree, TREE)
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
    tree = {"a": 3, "b": np.ones(2), "c": {"d": "text"}}
    with raises(
        TypeError,
        "`maskjax.metrics.bits_per_task` needs every leaf of `tree` to be an array or "
        "None, got:\n  a: int 3\n  c/d: str 'text'",
    ):
        metrics.bits_per_task(tree, tasks=1)
