"""Masks of many tasks in a fixed space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import bank, masking, packing
from tests import trees
from tests.reference import packing as reference

C = 5
PARAMS = {"a": jnp.ones((3, 7)), "b": jnp.ones((7, 11)), "bias": jnp.ones(11)}
APPEND, TAKE, PUT, EXTEND = map(
    jax.jit, (bank.append, bank.take, bank.put, bank.extend)
)


def masks(k, params=None, *, seed=0):
    """K random masks of the kernels."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        chosen = leaf.ndim >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.device_put(rng.random(leaf.shape) < 0.4) if chosen else None

    return [jax.tree.map(draw, PARAMS if params is None else params) for _ in range(k)]


def bits(tree):
    return [np.asarray(m) for m in jax.tree.leaves(packing.unpack(tree))]


def stacked(masks):
    """A stack made by NumPy."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *masks)


def assert_holds(tasks, expected):
    """These masks and nothing else, and their counts."""
    assert int(tasks.learned) == len(expected)
    is_bits = lambda x: isinstance(x, packing.PackedMask)  # noqa: E731
    stored = jax.tree.leaves(tasks.masks, is_leaf=is_bits)
    for i, leaf in enumerate(stored):
        given = [jax.tree.leaves(mask)[i] for mask in expected]
        total = np.sum([np.asarray(m) for m in given], axis=0, dtype=int)
        for row, mask in zip(np.asarray(leaf.bits), given, strict=False):
            np.testing.assert_array_equal(row, reference.pack(mask))
        assert not np.asarray(leaf.bits)[len(given) :].any()
        count = jax.tree.leaves(tasks.counts)[i]
        assert count.dtype == jnp.int32
        np.testing.assert_array_equal(count, total)


@pytest.mark.parametrize("name", trees.NAMES)
def test_a_bank_holds_masks_of_any_tree(name):
    params = trees.make(name)
    (mask,) = masks(1, params)

    def taken(params, mask):
        return bank.take(bank.append(bank.empty(params, capacity=C), mask), 0)

    out = jax.eval_shape(taken, params, mask)
    assert jax.tree.structure(out) == jax.tree.structure(
        jax.eval_shape(packing.pack, mask)
    )


def test_what_was_appended_is_taken():
    params = trees.make("linen")
    given = masks(3, params)
    tasks = bank.empty(params, capacity=C)
    append = jax.jit(bank.append)
    for mask in given:
        tasks = append(tasks, mask)
    assert_holds(tasks, given)
    for i, mask in enumerate(given):
        taken = bank.take(tasks, i)
        trees.assert_same(packing.unpack(taken), mask)
        trees.assert_same(masking.apply(params, taken), masking.apply(params, mask))
    assert append._cache_size() == 1


def test_extending_is_appending_one_by_one_and_so_is_starting_from_a_stack():
    given = masks(4)
    tasks = bank.empty(PARAMS, capacity=C)
    for mask in given:
        tasks = APPEND(tasks, mask)
    some = bank.extend(bank.empty(PARAMS, capacity=C), stacked(given[:1]))
    some = EXTEND(some, stacked(given[1:]))
    trees.assert_same(some, tasks)
    trees.assert_same(bank.from_stack(stacked(given), capacity=C), tasks)
    packed = jax.tree.map(
        lambda *bits: np.stack(bits), *[packing.pack(mask) for mask in given]
    )
    trees.assert_same(bank.from_stack(packed, capacity=C), tasks)


def test_a_bank_goes_through_a_scan_and_a_vmap():
    given = stacked(masks(6))

    @jax.jit
    def fill(given):
        start = bank.empty(PARAMS, capacity=C)
        return jax.lax.scan(lambda b, m: (bank.append(b, m), None), start, given)[0]

    tasks = fill(given)
    expected = masks(6)[:C]
    assert_holds(tasks, expected)
    assert int(tasks.overflowed) == 1
    two = jax.tree.map(lambda m: np.stack([m, ~np.asarray(m)]), given)
    both = jax.tree.map(np.asarray, jax.jit(jax.vmap(fill))(two))
    trees.assert_same(jax.tree.map(lambda leaf: leaf[0], both), tasks)
    assert int(both.learned[1]) == C


def test_under_jit_a_full_bank_stays_as_it_is_and_counts_what_overflowed():
    given = masks(C + 1)
    tasks = bank.from_stack(stacked(given[:C]))
    after = APPEND(tasks, given[C])
    trees.assert_same(after._replace(overflowed=jnp.int32(0)), tasks)
    assert int(after.overflowed) == 1
    after = EXTEND(tasks, stacked(given))
    trees.assert_same(after._replace(overflowed=jnp.int32(0)), tasks)
    assert int(after.overflowed) == C + 1


def test_a_full_bank_is_an_error_and_stays_as_it_was():
    given = masks(C + 1)
    tasks = bank.from_stack(stacked(given[:C]))
    before = jax.tree.map(np.array, tasks)
    with pytest.raises(ValueError, match="room for 1 more, but 5 of 5 are learned"):
        bank.append(tasks, given[C])
    some = bank.from_stack(stacked(given[:3]), capacity=4)
    with pytest.raises(ValueError, match="room for 2 more, but 3 of 4 are learned"):
        bank.extend(some, stacked(given[:2]))
    trees.assert_same(jax.tree.map(jnp.asarray, before), tasks)


def test_a_learned_mask_can_be_replaced():
    given, other = masks(3), masks(1, seed=9)[0]
    tasks = bank.from_stack(stacked(given), capacity=C)
    assert_holds(PUT(tasks, 1, other), [given[0], other, given[2]])
    assert_holds(bank.put(tasks, -1, other), [*given[:2], other])
    trees.assert_same(PUT(tasks, 3, other), tasks)


@pytest.mark.parametrize("task", [3, -4, 99])
def test_a_task_that_is_not_learned_is_an_error_or_nothing(task):
    given = masks(3)
    tasks = bank.from_stack(stacked(given), capacity=C)
    for call in (bank.take, lambda b, i: bank.put(b, i, given[0])):
        with pytest.raises(ValueError, match=f"learned task, got {task}, and 3 of 5"):
            call(tasks, task)
    nothing = packing.unpack(TAKE(tasks, task))
    assert not any(m.any() for m in bits(nothing))


@pytest.mark.parametrize("task", [1.0, True, jnp.arange(2)])
def test_a_task_is_one_integer(task):
    tasks = bank.from_stack(stacked(masks(2)))
    with pytest.raises(TypeError, match=r"bank\.take` needs `task` as one integer"):
        bank.take(tasks, task)


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_bank_has_room_for_a_task(capacity):
    with pytest.raises(ValueError, match="`capacity` of at least 1"):
        bank.empty(PARAMS, capacity=capacity)


def test_a_stack_fits_the_capacity():
    with pytest.raises(ValueError, match="`capacity` of at least 3, got 2"):
        bank.from_stack(stacked(masks(3)), capacity=2)


@pytest.mark.parametrize("call", [bank.append, lambda b, m: bank.put(b, 0, m)])
def test_a_mask_for_another_network_is_an_error_that_names_the_leaf(call):
    tasks = bank.from_stack(stacked(masks(1)), capacity=C)
    before = jax.tree.map(np.array, tasks)
    other = {"a": jnp.ones((3, 8), bool), "b": jnp.ones((7, 11), bool), "bias": None}
    with pytest.raises(ValueError, match=r"a: bank \(3, 7\), mask \(3, 8\)"):
        call(tasks, other)
    with pytest.raises(ValueError, match="only in `bank`: b"):
        call(tasks, {"a": other["a"], "bias": None})
    soft = jax.tree.map(lambda m: m.astype(jnp.float32), masks(1)[0])
    with pytest.raises(TypeError, match="a: float32"):
        call(tasks, soft)
    trees.assert_same(jax.tree.map(jnp.asarray, before), tasks)


def test_a_stack_for_another_network_is_an_error():
    tasks = bank.empty(PARAMS, capacity=C)
    other = {"a": jnp.ones((2, 3, 8), bool), "b": jnp.ones((2, 7, 11), bool)}
    with pytest.raises(ValueError, match=r"a: bank \(3, 7\), mask \(3, 8\)"):
        bank.extend(tasks, {**other, "bias": None})


def test_the_mean_is_that_of_learned_masks():
    given = masks(3)
    tasks = bank.from_stack(stacked(given), capacity=C)
    mean = bank.mean(tasks)
    assert mean["bias"] is None
    for name in ("a", "b"):
        expected = np.mean([np.asarray(m[name]) for m in given], axis=0)
        np.testing.assert_allclose(mean[name], expected, rtol=1e-6)
    nothing = bank.mean(bank.empty(PARAMS, capacity=C))
    assert not nothing["a"].any()
    np.testing.assert_array_equal(bank.is_used(tasks), [True] * 3 + [False] * 2)


def test_a_bank_can_be_donated():
    append = jax.jit(lambda tasks, mask: bank.append(tasks, mask), donate_argnums=0)
    mask = masks(1)[0]
    for tasks in (
        bank.empty(PARAMS, capacity=C),
        bank.from_stack(stacked([mask]), capacity=C),
    ):
        before = int(tasks.learned)
        assert append(tasks, mask).learned == before + 1


@pytest.mark.parametrize("call", [bank.append, lambda b, m: bank.put(b, -1, m)])
def test_a_donated_bank_is_changed_in_place(call):
    """Next to it there is room for one mask, not for all of them."""
    params = {"w": jax.ShapeDtypeStruct((64, 64), "float32")}
    mask = {"w": jax.ShapeDtypeStruct((64, 64), "bool")}
    tasks = jax.eval_shape(lambda p: bank.empty(p, capacity=500), params)
    program = jax.jit(lambda *args: call(*args), donate_argnums=0)
    sizes = program.lower(tasks, mask).compile().memory_analysis()
    assert sizes.temp_size_in_bytes < tasks.masks["w"].nbytes / 10


def test_learned_may_be_fewer_than_the_stack_has():
    given = masks(4)
    tasks = jax.jit(lambda s, n: bank.from_stack(s, learned=n))(stacked(given), 2)
    assert_holds(tasks, given[:2])
    assert bank.capacity(tasks) == 4


def test_a_bank_of_2500_tasks_takes_little_more_than_a_bit_an_entry():
    params = [jnp.ones(s) for s in ((784, 300), (300, 100), (100, 500))]
    tasks = jax.eval_shape(lambda: bank.empty(params, capacity=2500))
    nbytes = sum(leaf.size * 4 for leaf in jax.tree.leaves(tasks))
    assert sum(p.size for p in params) == 315_200
    assert 2500 * 315_200 / 8 < nbytes < 1.04 * 2500 * 315_200 / 8


@pytest.mark.parametrize("learned", [-1, 5])
def test_no_more_can_be_learned_than_there_are(learned):
    stack = stacked(masks(4))
    with pytest.raises(ValueError, match=rf"`learned` in \[0, 4\], got {learned}"):
        bank.from_stack(stack, learned=learned)
    tasks = jax.jit(lambda n: bank.from_stack(stack, learned=n))(learned)
    assert tasks.learned == min(max(learned, 0), 4)
    with pytest.raises(TypeError, match="`learned` as an integer"):
        bank.from_stack(stack, learned=1.5)


def test_a_bank_that_grows_keeps_its_masks_and_learns_no_more():
    given = masks(3)
    tasks = bank.grow(bank.from_stack(stacked(given), capacity=3), 7)
    assert bank.capacity(tasks) == 7
    assert_holds(bank.append(tasks, given[0]), [*given, given[0]])
    with pytest.raises(ValueError, match="`capacity` of at least 7"):
        bank.grow(tasks, 6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint32"])
def test_indices_of_any_width_name_their_task(dtype):
    given = masks(2)
    tasks = bank.from_stack(stacked(given), capacity=200)
    index = {
        i: jax.device_put(np.array(i, dtype))
        for i in (1, 2**32 - 1, -1)
        if fits(i, dtype)
    }
    trees.assert_same(packing.unpack(TAKE(tasks, index[1])), given[1])
    if dtype == "uint32":
        assert not any(m.any() for m in bits(TAKE(tasks, index[2**32 - 1])))
    if dtype == "int8":
        trees.assert_same(packing.unpack(TAKE(tasks, index[-1])), given[1])


def fits(number, dtype):
    limits = np.iinfo(dtype)
    return limits.min <= number <= limits.max


@pytest.mark.parametrize(
    "call",
    {
        "append": lambda stack: bank.append(stack, None),
        "extend": lambda stack: bank.extend(stack, stack),
        "grow": lambda stack: bank.grow(stack, 9),
        "put": lambda stack: bank.put(stack, 0, None),
        "take": lambda stack: bank.take(stack, 0),
        "capacity": bank.capacity,
        "is_used": bank.is_used,
        "mean": bank.mean,
    }.items(),
    ids=lambda each: each[0],
)
def test_a_stack_is_no_bank_and_the_error_says_how_to_make_one(call):
    name, function = call
    with pytest.raises(
        TypeError,
        match=rf"`maskjax.bank.{name}` needs `bank` as a `maskjax.bank.MaskBank`, got "
        "dict. `maskjax.bank.from_stack` makes one from a stack",
    ):
        function(stacked(masks(2)))
