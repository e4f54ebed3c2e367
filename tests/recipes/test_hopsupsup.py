"""HopSupSup: the laws of Hopfield networks, and the search against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import masking, packing, superposition
from maskjax.recipes import hopsupsup
from tests import trees
from tests.reference import hopsupsup as reference

pytestmark = pytest.mark.optimized

RULES = ("hebbian", "storkey")
FN = "`maskjax.recipes.hopsupsup"
store = jax.jit(hopsupsup.store, static_argnames="rule")
energy = jax.jit(hopsupsup.energy)
energies_of = jax.jit(jax.vmap(hopsupsup.energy, (None, 0)))
pack = jax.jit(packing.pack)


def random_masks(count, *, seed=0, **shapes):
    rng = np.random.default_rng(seed)
    shapes = shapes or {"a": (12,), "b": (2, 5)}
    return {n: rng.random((count, *s)) < 0.5 for n, s in shapes.items()}


def signs(stack):
    return 2.0 * np.asarray(stack).reshape(len(stack), -1) - 1


def members(stack):
    count = len(jax.tree.leaves(stack)[0])
    return [jax.tree.map(lambda m, i=i: m[i], stack) for i in range(count)]


def stored(stack, *, rule="storkey"):
    """A memory of all masks of a stack: one program for all stacks of these shapes."""
    first, *_ = masks = members(stack)
    blank = jax.eval_shape(hopsupsup.init, first)
    memory = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), blank)
    for mask in masks:
        memory = store(memory, mask, rule=rule)
    return jax.device_get(memory)


def test_storing_by_hand():
    # z = (1, -1), z' = (1, 1), d = 2. Hebb: z z' / 2.
    # Storkey: (z z' - I) / 2 = [[0, -1/2], [-1/2, 0]]; by it the second has h = -1/2
    # twice, and all of z h' + h z' is -1: (1 - I + 1) / 2 = [[1/2, 1], [1, 1/2]] more.
    masks = {"a": np.array([[True, False], [True, True]])}
    hebb, storkey = (stored(masks, rule=rule) for rule in RULES)
    np.testing.assert_array_equal(hebb.psi["a"], [[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(storkey.psi["a"], [[0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_array_equal(storkey.sums["a"], [2, 0])
    assert storkey.learned == 2


@pytest.mark.parametrize("rule", RULES)
def test_psi_agrees_with_the_reference_and_is_symmetric_to_the_bit(rule):
    masks = random_masks(5)
    memory = stored(masks, rule=rule)
    for name, stack in masks.items():
        psi = np.zeros(memory.psi[name].shape)
        for z in signs(stack):
            psi = reference.store(psi, z, rule=rule)
        np.testing.assert_allclose(memory.psi[name], psi, atol=1e-6)
        np.testing.assert_array_equal(memory.psi[name], memory.psi[name].T)
        total = signs(stack).sum(0).reshape(stack.shape[1:])
        np.testing.assert_array_equal(memory.sums[name], total)


@pytest.mark.parametrize("rule", RULES)
def test_the_first_mask_stored_is_a_fixed_point(rule):
    masks = random_masks(1)
    memory = stored(masks, rule=rule)
    for name, stack in masks.items():
        z = signs(stack)[0]
        np.testing.assert_array_equal(np.sign(memory.psi[name] @ z), z)


def test_energy_agrees_with_the_reference_and_so_does_its_gradient():
    masks = random_masks(4)
    memory, mask = stored(masks), members(masks)[2]
    soft = jax.tree.map(np.float32, mask)
    value, slopes = jax.jit(jax.value_and_grad(hopsupsup.energy, 1))(memory, soft)
    psi = {name: np.asarray(p, "float64") for name, p in memory.psi.items()}
    s = {name: signs(m[None])[0] for name, m in mask.items()}
    expected = sum(reference.energy(psi[name], s[name]) for name in masks)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(energy(memory, mask), expected, rtol=1e-5)
    for name in masks:
        slope = (-2 * psi[name] @ s[name]).reshape(mask[name].shape)
        np.testing.assert_allclose(slopes[name], slope, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_no_update_of_an_entry_raises_the_energy(rule):
    memory = stored(random_masks(3, a=(24,)), rule=rule)
    psi = np.array(memory.psi["a"], "float64")
    np.fill_diagonal(psi, 0)
    memory = memory._replace(psi={"a": np.float32(psi)})
    start = signs(random_masks(1, seed=1, a=(24,))["a"])[0]
    states = np.stack(reference.descent(psi, start))
    energies = np.asarray(energies_of(memory, {"a": states > 0}))
    assert (np.diff(energies) <= 1e-5).all()
    assert energies[-1] < energies[0]
    # And not in any direction: the opposite of each update does raise it.
    moved = (np.diff(states, axis=0) != 0).any(1)
    assert moved.any()
    assert (np.diff(energies)[moved] < 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_five_masks_are_recalled_with_a_tenth_of_their_entries_wrong(rule):
    masks = random_masks(5, a=(512,))
    psi = np.asarray(stored(masks, rule=rule).psi["a"])
    flips = np.random.default_rng(1).permuted(
        np.tile(np.arange(512) < 51, (5, 1)), axis=1
    )
    s = np.where(flips, -signs(masks["a"]), signs(masks["a"]))
    for _ in range(3):
        s = np.sign(s @ psi)
    np.testing.assert_array_equal(s, signs(masks["a"]))


def test_a_packed_mask_is_stored_and_measured_like_itself():
    masks = random_masks(4)
    memory, mask = stored(masks), members(masks)[0]
    trees.assert_same(stored(jax.device_get(jax.vmap(pack)(masks))), memory)
    alike = energy(memory, pack(mask))
    np.testing.assert_array_equal(alike, energy(memory, mask))


def test_vmap_over_memories_is_each_by_itself():
    stacks = [random_masks(4, seed=seed) for seed in range(2)]
    memories = [stored(stack) for stack in stacks]

    @jax.jit
    @jax.vmap
    def both(memory, mask):
        return hopsupsup.store(memory, mask), hopsupsup.energy(memory, mask)

    probes = [members(stack)[1] for stack in stacks]
    together, energies = both(
        *(jax.tree.map(lambda *m: np.stack(m), *x) for x in (memories, probes))
    )
    for i, (memory, mask) in enumerate(zip(memories, probes, strict=True)):
        alone = jax.tree.leaves(store(memory, mask, rule="storkey"))
        for a, b in zip(jax.tree.leaves(together), alone, strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-6)
        np.testing.assert_allclose(energies[i], energy(memory, mask), rtol=1e-5)


# A layer whose images say of which task they are: what a task's mask keeps adds up to
# one class, what it removes is as much against it.
D, CLASSES, TASKS, T, B = 128, 4, 3, 12, 8
RATE, MOMENTUM, DECAY, STRENGTH = 20.0, 0.9, 1e-3, 0.02


def optimizer():
    decayed = optax.add_decayed_weights(DECAY)
    return optax.chain(decayed, optax.sgd(RATE, MOMENTUM))


def entropy(params, x):
    return superposition.logit_entropy((x * params["scale"][None]) @ params["w"])


@pytest.fixture(scope="module")
def tasks():
    """Weights, masks [K, ...], memory, and batches [K, T, B, D]."""
    rng = np.random.default_rng(0)
    w = rng.choice([-1.0, 1.0], (D, CLASSES))
    kept = random_masks(TASKS, scale=(D,))["scale"]
    label = rng.integers(CLASSES, size=(TASKS, T, B))
    x = signs(kept)[:, None, None] * w.T[label] + rng.normal(size=(TASKS, T, B, D))
    weights = {"scale": np.ones(D, "float32"), "w": np.float32(w)}
    masks = {"scale": kept, "w": None}
    return weights, masks, stored(masks), np.float32(x / D**0.5)


def recover(weights, memory, x, strength):
    how = {"optimizer": optimizer(), "strength": strength}
    return hopsupsup.recover(entropy, weights, memory, x, **how)


search = jax.jit(recover)
search_all = jax.jit(jax.vmap(recover, (None, None, 0, None)))


def test_the_search_agrees_with_the_reference(tasks):
    weights, masks, memory, x = tasks
    found = search(weights, memory, x[1], STRENGTH)
    path, entropies, energies = reference.recover(
        np.asarray(weights["w"], "float64"),
        signs(masks["scale"]),
        np.asarray(memory.psi["scale"], "float64"),
        np.asarray(x[1], "float64"),
        learning_rate=RATE,
        momentum=MOMENTUM,
        decay=DECAY,
        strength=STRENGTH,
    )
    assert len({mask.tobytes() for mask in path}) > 3
    np.testing.assert_array_equal(found.path["scale"], path)
    np.testing.assert_array_equal(found.mask["scale"], path[-1])
    np.testing.assert_allclose(found.objectives, entropies, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.energies, energies, rtol=1e-4)
    assert found.mask["w"] is None


def test_the_right_mask_is_found_for_every_task(tasks):
    weights, masks, memory, x = tasks
    found = jax.device_get(search_all(weights, memory, x, STRENGTH))
    np.testing.assert_array_equal(found.mask["scale"], masks["scale"])
    np.testing.assert_array_equal(found.path["scale"][:, -1], masks["scale"])
    assert not (found.path["scale"][:, 0] == masks["scale"]).all(-1).any()
    for i in range(TASKS):
        one = search(weights, memory, x[i], STRENGTH)
        trees.assert_same(one.mask, jax.tree.map(lambda m, i=i: m[i], found.mask))
        np.testing.assert_allclose(one.energies, found.energies[i], rtol=1e-4)
    # Without the network that remembers them they are not.
    free = jax.device_get(search_all(weights, memory, x, 0.0))
    assert not (free.mask["scale"] == masks["scale"]).all(-1).any()


def test_of_an_empty_memory_the_search_begins_with_everything(tasks):
    weights, masks, memory, x = tasks
    empty = jax.tree.map(np.zeros_like, memory)
    found = search(weights, empty, x[0], STRENGTH)
    wide = np.float64(weights["w"]), np.ones(D), np.float64(x[0, 0])
    everything, _ = reference.entropy(*wide)
    np.testing.assert_allclose(found.objectives[0], everything, rtol=1e-4)
    np.testing.assert_array_equal(found.energies, np.zeros(T))
    # Whatever is stored and searched for, it is one program.
    assert search._cache_size() == search_all._cache_size() == 1


def run(params, mask, x):
    """Store a mask, and search for it without a step."""
    memory = hopsupsup.store(hopsupsup.init(mask), mask)

    def objective(params, x):
        kept = [p for p in jax.tree.leaves(params) if p.dtype == jnp.float32]
        return x.sum() * sum(p.sum() for p in kept)

    sgd = optax.sgd(0.0)
    return memory, hopsupsup.recover(objective, params, memory, x, optimizer=sgd)


def test_every_kind_of_tree_can_be_remembered():
    x = np.ones((2, 1), "float32")
    for name in ("namedtuple", "nnx", "odd_leaves"):
        params = trees.make(name)
        mask = jax.eval_shape(masking.everything, params)
        memory, found = jax.eval_shape(run, params, mask, x)
        assert jax.tree.structure(found.mask) == jax.tree.structure(mask)
        for kept, psi in zip(*map(jax.tree.leaves, (mask, memory.psi)), strict=True):
            assert psi.shape == (kept.size, kept.size)
    mask = jax.tree.map(lambda m: np.ones(m.shape, bool), mask)  # of odd leaves
    memory, found = jax.jit(run)(params, mask, x)
    trees.assert_same(found.mask, mask)
    for kept, psi in trees.pairs(mask, memory.psi):
        np.testing.assert_allclose(psi, (1 - np.eye(kept.size)) / max(kept.size, 1))


def test_layers_in_bfloat16_are_searched_too(tasks):
    weights, _, memory, x = tasks
    weights, x = jax.tree.map(lambda w: w.astype(jnp.bfloat16), (weights, x[0]))
    found = jax.eval_shape(recover, weights, memory, x, STRENGTH)
    assert found.objectives.dtype == found.energies.dtype == jnp.float32
    assert found.mask["scale"].dtype == bool


MASK = {"a": np.array([True, False]), "b": {"scale": np.array([True])}, "w": None}


@pytest.mark.parametrize("function", ["store", "energy"])
@pytest.mark.parametrize(
    ("mask", "match"),
    [
        ({**MASK, "a": None}, r"same shapes, got:\n  a: memory \(2,\), mask None"),
        (
            {**MASK, "b": {"scale": np.ones(2, bool)}, "a": np.ones(1, bool)},
            r"\n  a: memory \(2,\), mask \(1,\)\n  b/scale: memory \(1,\), mask",
        ),
        (
            {"a": MASK["a"], "w": None},
            r"same structure, got:\n  only in `memory`: b/sca",
        ),
        (
            {**MASK, "a": packing.PackedMask(np.zeros((1, 1), "uint32"), (2,))},
            r"got:\n  a: a stack of masks, \(1,\)",
        ),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(function, mask, match):
    memory = hopsupsup.init(MASK)
    with pytest.raises(ValueError, match=rf"(?s){FN}.{function}` needs .*{match}"):
        jax.jit(getattr(hopsupsup, function))(memory, mask)


def test_leaves_that_are_not_boolean_are_refused():
    wrong = {**MASK, "a": np.ones(2, "float32")}
    needs = r"` needs every leaf of `mask` .*\n  a: float32 array of shape \(2,\)$"
    with pytest.raises(TypeError, match=rf"{FN}.init{needs}"):
        hopsupsup.init(wrong)
    with pytest.raises(TypeError, match=rf"{FN}.store{needs}"):
        hopsupsup.store(hopsupsup.init(MASK), wrong)


def test_a_mask_of_nothing_is_refused():
    with pytest.raises(ValueError, match=rf"{FN}.init` needs `mask` with at least one"):
        hopsupsup.init({"a": None})


def test_an_unknown_rule_is_refused():
    match = rf"{FN}.store` needs `rule` as 'storkey' or 'hebbian', got 'oja'"
    with pytest.raises(ValueError, match=match):
        hopsupsup.store(hopsupsup.init(MASK), MASK, rule="oja")


def test_a_memory_that_does_not_fit_the_parameters_is_refused(tasks):
    weights, _, memory, x = tasks
    match = rf"(?s){FN}.recover` needs .*\n  scale: memory \(128,\), params \(64,\)"
    with pytest.raises(ValueError, match=match):
        search({**weights, "scale": np.ones(64, "float32")}, memory, x[0], 1.0)


@pytest.mark.parametrize(
    "batches",
    [
        (),
        (np.zeros((0, B, D)),),
        (np.zeros((T, 0, D)),),
        (np.zeros((T, B, D)), np.zeros((T + 1, B))),
        (np.float32(1),),
    ],
)
def test_batches_that_are_empty_or_do_not_agree_are_refused(batches, tasks):
    weights, _, memory, _ = tasks
    match = rf"{FN}.recover` needs batches \[T, B, ...\], not empty, got \["
    with pytest.raises(ValueError, match=match):
        hopsupsup.recover(entropy, weights, memory, *batches, optimizer=optimizer())
