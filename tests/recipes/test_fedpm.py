"""FedPM: by hand, against NumPy, and what the paper promises."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskjax
from maskjax import algebra, metrics, packing, stacking, where
from maskjax.recipes import fedpm, supermask
from tests import trees
from tests.reference import fedpm as reference

KEY, K = jax.random.key(3), 6
SHAPES = {"a": (5, 40), "b": (64, 3)}
SEND = jax.jit(fedpm.message)


def normal(seed=0, *lead):
    rng = np.random.default_rng(seed)
    drawn = {n: rng.normal(size=(*lead, *s)) for n, s in SHAPES.items()}
    return {n: np.float32(x) for n, x in drawn.items()}


WEIGHTS = normal()


def masks_of(seed, clients=K):
    """A stack of masks, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    return {n: rng.random((clients, *s)) < 0.5 for n, s in SHAPES.items()}


def sent(state, stack):
    """Messages of these masks, as clients of that round send them."""
    clients = len(stack["a"])
    rounds = np.full(clients, state.round, np.int32)
    networks = np.tile(np.asarray(state.network), (clients, 1))
    return fedpm.Message(PACK(stack), rounds, networks)


PACK = jax.jit(jax.vmap(packing.pack))


@pytest.fixture(scope="module")
def start():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return jax.jit(fedpm.init)(WEIGHTS)


@pytest.mark.parametrize("prior", [1, 3.0])
def test_three_rounds_by_hand(prior):
    # Three clients, a reset every second round; four weights, kept by 3, 2, 1, 0.
    # Uniform prior: p = 3/3, 2/3, 1/3, 0/3, clipped to 0.9 and 0.1. With prior 3:
    # a - 1 = 2 + (3, 2, 1, 0) and a + b - 2 = 4 + 3, so p = 5/7, 4/7, 3/7, 2/7.
    # Then one client keeps the last two: (3, 2, 2, 1) of 4, and (5, 4, 4, 3) / 8.
    # The third round begins anew: one client that keeps nothing, 0/1 or 2/5.
    stack = {"w": np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool)}
    one = {"w": np.array([[0, 0, 1, 1]], bool)}
    nothing = {"w": np.zeros((1, 4), bool)}
    found = {
        1: [(0.9, 2 / 3, 1 / 3, 0.1), (0.75, 0.5, 0.5, 0.25), (0.1,) * 4],
        3: [(5 / 7, 4 / 7, 3 / 7, 2 / 7), (5 / 8, 0.5, 0.5, 3 / 8), (0.4,) * 4],
    }[prior]
    state = fedpm.init({"w": np.ones(4, "f4")}, where=where.everything)
    how = {"prior": prior, "reset_every": 2, "least": 0.1}
    kept = [(3, 2, 1, 0), (3, 2, 2, 1), (0, 0, 0, 0)]
    for i, masks in enumerate((stack, one, nothing)):
        clients = len(masks["w"])
        network = jnp.tile(state.network, (clients, 1))
        rounds = jnp.full(clients, i, jnp.int32)
        messages = fedpm.Message(PACK(masks), rounds, network)
        state = fedpm.aggregate(state, messages, **how)
        np.testing.assert_allclose(state.probabilities["w"], found[i], rtol=1e-6)
        np.testing.assert_array_equal(state.kept["w"], kept[i])
        assert (state.round, state.received) == (i + 1, (3, 4, 1)[i])
    assert state.refused == 0


@pytest.mark.parametrize(
    ("prior", "reset_every", "least"), [(1, 1, 0.01), (1, 3, 0.2), (2.5, 4, 0.05)]
)
def test_rounds_agree_with_the_reference(prior, reset_every, least, start):
    how = {"prior": prior, "least": least}
    theirs = {
        n: reference.Server(s, **how, reset_every=reset_every)
        for n, s in SHAPES.items()
    }
    state, rng = start, np.random.default_rng(1)
    for i in range(6):
        stack, some = masks_of(i), rng.random(K) < (0.6 if i != 2 else 0)
        step = functools.partial(STEP, **how)
        state = step(state, sent(state, stack), some, np.int32(reset_every))
        for name, server in theirs.items():
            expected = server.round([*stack[name][some]])
            np.testing.assert_allclose(state.probabilities[name], expected, rtol=1e-6)
            kept = (server.a - prior).round()
            np.testing.assert_array_equal(state.kept[name], kept)
            assert state.kept[name].dtype == jnp.int32
        assert state.round == i + 1


@functools.partial(jax.jit, static_argnames=("prior", "least"))
def STEP(state, messages, participates, reset_every, *, prior=1.0, least=0.01):
    how = {"participates": participates, "reset_every": reset_every}
    return fedpm.aggregate(state, messages, **how, prior=prior, least=least)


def test_the_prior_is_reset_in_these_rounds_and_one_program_does_all(start):
    every = np.ones(K, bool)
    before = STEP._cache_size()
    for reset_every in (1, 2, 5):
        state, received = start, []
        for i in range(7):
            messages = sent(state, masks_of(i))
            state = STEP(state, messages, every, np.int32(reset_every))
            received.append(int(state.received))
        assert received == [K * (i % reset_every + 1) for i in range(7)]
    assert STEP._cache_size() <= before + 1


def test_probabilities_of_packed_masks_are_the_means_and_lie_inside_0_and_1(start):
    stack = masks_of(0, 40)
    stack["a"][:, 0], stack["a"][:, 1] = True, False
    state = jax.jit(fedpm.aggregate)(start, sent(start, stack))
    p = np.asarray(state.probabilities["a"])
    mean = stack["a"].mean(0, dtype=np.float32)
    np.testing.assert_array_equal(p[2:], mean[2:])  # to the bit
    np.testing.assert_array_equal(p[0], np.float32(0.99))
    np.testing.assert_allclose(p[1], 0.01, rtol=1e-6)
    scores = jax.jit(fedpm.scores)(state)["a"]
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(jax.nn.sigmoid(scores), p, rtol=1e-5)


def loss(params, x, y):
    return jnp.mean((jax.nn.relu(x @ params["a"]) @ params["b"][:40] - y) ** 2)


def trained(scores, x, y, keys, rate=3.0):
    """A user's own loop over the scores."""
    optimizer = optax.sgd(rate, momentum=0.9)

    def objective(scores, key):
        soft = supermask.soft_mask(scores, key=key)
        return loss(maskjax.apply(WEIGHTS, soft), x, y)

    def step(carry, key):
        scores, opt_state = carry
        value, slopes = jax.value_and_grad(objective)(scores, key)
        updates, opt_state = optimizer.update(slopes, opt_state)
        return (optax.apply_updates(scores, updates), opt_state), value

    (scores, _), values = jax.lax.scan(step, (scores, optimizer.init(scores)), keys)
    return scores, values


def data(seed, *lead):
    rng = np.random.default_rng(seed)
    return tuple(np.float32(rng.normal(size=(*lead, 16, n))) for n in (5, 3))


def test_one_client_is_a_supermask_to_the_bit(start):
    x, y = data(0)

    @jax.jit
    def both(state, key):
        keys = jax.random.split(key, 8)
        ours, _ = trained(fedpm.scores(state), x, y, keys)
        theirs, _ = trained(supermask.init(WEIGHTS), x, y, keys)
        sample = packing.pack(supermask.mask(theirs, key=key))
        return ours, theirs, fedpm.message(state, WEIGHTS, ours, key=key).mask, sample

    ours, theirs, message, sample = both(start, KEY)
    trees.assert_same(ours, theirs)
    trees.assert_same(message, sample)
    assert all(np.abs(s).max() > 0.01 for s in ours.values())


def test_many_masks_of_one_client_give_back_its_probabilities(start):
    """So the next round goes on where a supermask would."""
    scores, many = jax.tree.map(lambda w: 2 * w, normal(5)), 4000
    send = jax.jit(jax.vmap(lambda k: fedpm.message(start, WEIGHTS, scores, key=k)))
    state = jax.jit(functools.partial(fedpm.aggregate, least=1e-6))(
        start, send(jax.random.split(KEY, many))
    )
    assert state.received == many
    for name, p in state.probabilities.items():
        q = 1 / (1 + np.exp(-np.float64(scores[name])))
        off = np.abs(p - q) / np.sqrt(q * (1 - q) / many)
        assert off.max() < 6
        assert 0.8 < np.sqrt(np.mean(off**2)) < 1.2


def test_a_message_has_one_bit_a_weight_and_is_a_sample_of_its_own_key(start):
    wide = {"w": np.ones((64, 96), "f4")}
    state = jax.jit(fedpm.init)(wide)
    keys = jax.random.split(KEY, 2)
    one, other = (SEND(state, wide, fedpm.scores(state), key=k) for k in keys)
    assert one.mask["w"].nbytes * 8 == 64 * 96
    assert metrics.bits_per_task(one.mask, tasks=1) == 64 * 96
    beside = (one.round.nbytes + one.network.nbytes) * 8
    assert beside == 96
    trees.assert_same(one, SEND(state, wide, fedpm.scores(state), key=keys[0]))
    differ = packing.unpack(one.mask)["w"] != packing.unpack(other.mask)["w"]
    assert 0.4 < np.mean(differ) < 0.6


def test_those_who_are_absent_are_ignored_whatever_they_hold(start):
    stack, here = masks_of(0), np.array([True, False, True, True, False, False])
    messages = sent(start, stack)
    strange = messages._replace(
        round=np.where(here, 0, 7).astype("int32"),
        network=np.where(here[:, None], messages.network, 9).astype("uint32"),
    )
    fewer = {n: m[here] for n, m in stack.items()}
    alone = fedpm.aggregate(start, sent(start, fewer))
    trees.assert_same(fedpm.aggregate(start, messages, participates=here), alone)
    trees.assert_same(fedpm.aggregate(start, strange, participates=here), alone)
    trees.assert_same(STEP(start, strange, here, np.int32(1)), alone)


def test_a_round_without_messages_changes_no_probability(start):
    nobody = np.zeros(K, bool)
    state = STEP(start, sent(start, masks_of(0)), ~nobody, np.int32(1))
    after = STEP(state, sent(state, masks_of(1)), nobody, np.int32(1))
    trees.assert_same(after.probabilities, state.probabilities)
    assert (after.round, after.received) == (2, 0)


@pytest.mark.parametrize("which", ["round", "network"])
def test_masks_of_another_round_or_network_are_refused(which, start):
    stack, wrong = masks_of(0), [1, 4]
    messages = sent(start, stack)
    field = np.array(getattr(messages, which))
    field[wrong] += 1
    messages = messages._replace(**{which: field})
    why = {"round": "round 1, not 0", "network": "other weights"}[which]
    needs = "`maskjax.recipes.fedpm.aggregate` needs messages of this round and network"
    with pytest.raises(
        ValueError, match=f"(?s){needs}.*client 1: {why}\n  client 4: {why}"
    ):
        fedpm.aggregate(start, messages)
    state = jax.jit(fedpm.aggregate)(start, messages)
    right = {n: np.delete(m, wrong, 0) for n, m in stack.items()}
    expected = fedpm.aggregate(start, sent(start, right))
    trees.assert_same(state._replace(refused=jnp.int32(0)), expected)
    assert state.refused == 2


def test_a_client_that_drew_other_weights_or_is_late_is_found_out(start):
    scores = jax.jit(fedpm.scores)(start)
    good = SEND(start, WEIGHTS, scores, key=KEY)
    other = SEND(start, normal(1), scores, key=KEY)
    later = fedpm.aggregate(start, stacking.stack([good]))
    for state, messages, why in [
        (start, [good, other], "client 1: other weights"),
        (later, [good], "client 0: round 0, not 1"),
    ]:
        with pytest.raises(ValueError, match=why):
            fedpm.aggregate(state, stacking.stack(messages))


def test_a_message_of_nan_is_no_vote(start):
    scores = normal(2, K)
    scores["b"][[1, 4], 3, 2] = np.nan
    keys = jax.random.split(KEY, K)
    send = lambda s, k: fedpm.message(start, WEIGHTS, s, key=k)  # noqa: E731
    messages = jax.jit(jax.vmap(send))(scores, keys)
    needs = "`maskjax.recipes.fedpm.aggregate` needs messages of this round and network"
    why = "its scores were nan"
    with pytest.raises(
        ValueError, match=f"(?s){needs}.*client 1: {why}\n  client 4: {why}$"
    ):
        fedpm.aggregate(start, messages)
    state = jax.jit(fedpm.aggregate)(start, messages)
    good = np.array([True, False, True, True, False, True])
    expected = fedpm.aggregate(start, messages, participates=good)
    trees.assert_same(state._replace(refused=jnp.int32(0)), expected)
    assert (state.received, state.refused) == (4, 2)
    one = jax.tree.map(lambda s: s[1], scores)
    needs = "`maskjax.recipes.fedpm.message` needs `scores` without nan"
    with pytest.raises(ValueError, match=f"^{needs}, got:\n  b: 1 of 192 are nan$"):
        fedpm.message(start, WEIGHTS, one, key=KEY)


def test_a_fingerprint_tells_every_bit_and_every_place_apart():
    tell = jax.jit(lambda w: fedpm.init(w, where=where.everything).network)
    base = {"u": np.float32([[1, 2], [3, 4]]), "v": np.float32([[1, 2], [3, 4]])}
    changed = {
        "base": base,
        "rows swapped": {**base, "u": base["u"][::-1]},
        "transposed": {**base, "u": base["u"].T},
        "leaves changed": {"u": base["v"] + 4, "v": base["u"]},
        "leaves exchanged": {"u": base["v"], "v": base["u"] + 4},
        "one ulp": {**base, "u": np.nextafter(base["u"], np.float32(9))},
        "sign of a zero": {**base, "u": base["u"] * np.float32([[0, 1], [1, 1]])},
        "minus zero": {**base, "u": base["u"] * np.float32([[-0.0, 1], [1, 1]])},
        "double": {n: 2 * w for n, w in base.items()},
    }
    found = {name: tuple(map(int, tell(w))) for name, w in changed.items()}
    for i in range(2):  # each of the two numbers alone, too
        assert len({pair[i] for pair in found.values()}) == len(changed)
    assert found["base"] == tuple(map(int, tell(base)))
    half = {n: jnp.asarray(w, jnp.bfloat16) for n, w in base.items()}
    assert tuple(map(int, tell(half))) != found["base"]


def test_wide_weights_have_a_fingerprint_of_all_bits(x64):
    tell = jax.jit(lambda w: fedpm.init({"w": w}).network)
    wide = np.ones((2, 2))
    low, high = wide.copy(), wide.copy()
    low[0, 0] = np.nextafter(1, 2)
    high[0, 0] = -1
    assert len({tuple(map(int, tell(w))) for w in (wide, low, high)}) == 3
    state = fedpm.init({"w": wide})
    assert state.probabilities["w"].dtype == jnp.float64
    sent = fedpm.message(state, {"w": wide}, fedpm.scores(state), key=KEY)
    state = fedpm.aggregate(state, stacking.stack([sent]))
    assert state.probabilities["w"].dtype == jnp.float64


def test_clients_find_a_network_together_that_none_has_data_for(start):
    """The paper's promise: weights never change, each sends a bit a weight."""
    rng = np.random.default_rng(2)
    hidden = {n: rng.random(s) < 0.5 for n, s in SHAPES.items()}
    x = np.float32(rng.normal(size=(K, 16, 5)))
    x += np.float32(2 * np.eye(5)[np.arange(K) % 5][:, None])  # each elsewhere
    sparse = {n: w * hidden[n] for n, w in WEIGHTS.items()}
    y = np.maximum(x @ sparse["a"], 0) @ sparse["b"][:40]

    @jax.jit
    def step(state, key):
        def client(x, y, key):
            scores, _ = trained(
                fedpm.scores(state), x, y, jax.random.split(key, 10), rate=0.05
            )
            return fedpm.message(state, WEIGHTS, scores, key=key)

        messages = jax.vmap(client)(x, y, jax.random.split(key, K))
        return fedpm.aggregate(state, messages)

    @jax.jit
    def error(state):
        rounded = maskjax.apply(WEIGHTS, fedpm.mask(state, key=None))
        mean = maskjax.apply(WEIGHTS, state.probabilities)
        return jax.vmap(loss, (None, 0, 0))(rounded, x, y).mean(), loss(
            mean, x.reshape(-1, 5), y.reshape(-1, 3)
        )

    before, state = error(start), start
    for i in range(25):
        state = step(state, jax.random.key(i))
    assert step._cache_size() == 1
    after = error(state)
    assert after[1] < 0.3 * before[1]
    assert after[0] < 0.3 * before[0]
    assert fedpm.entropy(state.probabilities) < 0.98


def test_masks_are_samples_or_rounded(start):
    state = STEP(start, sent(start, masks_of(3)), np.ones(K, bool), np.int32(1))
    p = state.probabilities
    rounded = fedpm.mask(state, key=None)
    sample = jax.jit(jax.vmap(lambda k: fedpm.mask(state, key=k)))
    keys = jax.random.split(KEY, 4000)
    for name, m in sample(keys).items():
        np.testing.assert_array_equal(rounded[name], np.asarray(p[name]) >= 0.5)
        bound = 5.5 * np.sqrt(p[name] * (1 - p[name]) / len(keys))
        assert (np.abs(np.mean(m, 0) - p[name]) < bound).all()


def test_seeds_side_by_side_are_those_apart():
    def one(weights, scores, key):
        state = fedpm.init(weights)
        keys = jax.random.split(key, 3)
        send = jax.vmap(lambda s, k: fedpm.message(state, weights, s, key=k))
        return fedpm.aggregate(state, send(scores, keys))

    weights, scores = normal(0, 4), normal(1, 4, 3)
    keys = jax.random.split(KEY, 4)
    both = jax.jit(jax.vmap(one))(weights, scores, keys)
    alone = jax.jit(one)
    for i in range(4):
        given = (jax.tree.map(lambda x, i=i: x[i], tree) for tree in (weights, scores))
        found = jax.tree.map(lambda x, i=i: x[i], both)
        trees.assert_same(found, alone(*given, keys[i]))


def test_a_scan_over_rounds_is_a_loop(start):
    stacks = [sent(start, masks_of(i)) for i in range(4)]
    stacks = [m._replace(round=np.full(K, i, "int32")) for i, m in enumerate(stacks)]
    every = jax.tree.map(lambda *x: np.stack(x), *stacks)
    one = lambda state, m: (fedpm.aggregate(state, m, reset_every=3), ())  # noqa: E731
    scanned, _ = jax.jit(lambda s, m: jax.lax.scan(one, s, m))(start, every)
    looped = start
    for messages in stacks:
        looped = fedpm.aggregate(looped, messages, reset_every=3)
    trees.assert_same(scanned, looped)
    assert looped.received == K


def test_entropy_is_that_of_coins():
    p = {"a": np.float32([0, 1, 0.5, 0.25]), "b": np.float32([[0.9]]), "c": None}
    flat = np.float64([0, 1, 0.5, 0.25, 0.9])
    found = jax.jit(fedpm.entropy)(p)
    np.testing.assert_allclose(found, reference.entropy(flat), rtol=1e-5)
    assert found.dtype == jnp.float32
    mask = {"w": np.arange(8) < 2}
    known = fedpm.entropy(algebra.density(packing.pack(mask)))
    np.testing.assert_allclose(known, reference.entropy(np.float64(0.25)), rtol=1e-6)
    half = {"w": jnp.full(3, 0.5, jnp.bfloat16)}
    assert fedpm.entropy(half) == 1


@pytest.mark.parametrize("name", trees.NAMES)
@pytest.mark.parametrize("dtype", trees.DTYPES)
def test_every_kind_of_tree(name, dtype):
    weights = trees.make(name, dtype)

    def of(weights):
        state = fedpm.init(weights)
        scores = fedpm.scores(state)
        sent = fedpm.message(state, weights, scores, key=KEY)
        stack = jax.tree.map(lambda x: jnp.stack([x, x]), sent)
        return fedpm.aggregate(state, stack), scores, fedpm.mask(state, key=KEY)

    state, scores, mask = jax.eval_shape(of, weights)
    leaves, treedef = jax.tree.flatten(weights)
    columns = state.probabilities, state.kept, scores, mask
    for w, *row in zip(leaves, *map(treedef.flatten_up_to, columns), strict=True):
        if not where.kernels("", w):
            assert row == [None] * 4
            continue
        assert [x.shape for x in row] == [w.shape] * 4
        assert [str(x.dtype) for x in row] == ["float32", "int32", "float32", "bool"]


# What is refused, in the name of the function that was called.

STATE = functools.cache(lambda: fedpm.init(WEIGHTS))
ONE = functools.cache(
    lambda: fedpm.message(STATE(), WEIGHTS, fedpm.scores(STATE()), key=KEY)
)
TWO = functools.cache(lambda: stacking.stack([ONE(), ONE()]))


def close(**how):
    return fedpm.aggregate(STATE(), how.pop("messages", None) or TWO(), **how)


def say(**how):
    given = {"weights": WEIGHTS, "scores": normal(1), "key": KEY} | how
    key, *rest = given.pop("key"), given.pop("weights"), given.pop("scores")
    return fedpm.message(given.pop("state", STATE()), *rest, key=key)


BAD = {
    "nothing chosen": (
        lambda: fedpm.init({"b": np.ones(3, "f4")}),
        ValueError,
        "init` needs `where` to choose at least one",
    ),
    "integers chosen": (
        lambda: fedpm.init({"n": np.ones((2, 2), int)}, where=where.everything),
        TypeError,
        "init` needs .*\n  n: int64",
    ),
    "scores of no state": (
        lambda: fedpm.scores(WEIGHTS),
        TypeError,
        "scores` needs `state` as a `FedPMState`, got dict. `fedpm.init` makes",
    ),
    "mask of no state": (
        lambda: fedpm.mask(normal(0), key=None),
        TypeError,
        "mask` needs `state` as a `FedPMState`",
    ),
    "a stack of states": (
        lambda: fedpm.scores(jax.tree.map(lambda x: jnp.stack([x, x]), STATE())),
        ValueError,
        r"scores` needs a single state, got a stack of \(2,\). Map over it",
    ),
    "an old key for a mask": (
        lambda: fedpm.mask(STATE(), key=np.zeros(2, "uint32")),
        TypeError,
        "mask` needs `key` as a typed key",
    ),
    "an old key": (
        lambda: say(key=np.zeros(2, "uint32")),
        TypeError,
        "message` needs `key` as a typed key",
    ),
    "scores of integers": (
        lambda: say(scores={**normal(), "a": np.ones((5, 40), int)}),
        TypeError,
        "message` needs every leaf of `scores` to be a floating .*a: int64",
    ),
    "scores of another network": (
        lambda: say(scores={**normal(), "a": np.ones((5, 4), "f4")}),
        ValueError,
        r"message` needs `state` and `scores` of the same shapes.*a: .*\(5, 4\)",
    ),
    "weights of another network": (
        lambda: say(weights={**WEIGHTS, "a": np.ones((5, 4), "f4")}),
        ValueError,
        r"message` needs every leaf of `state` shaped like.*a: state \(5, 40\)",
    ),
    "weights of integers": (
        lambda: say(weights={**WEIGHTS, "a": np.ones((5, 40), int)}),
        TypeError,
        "message` needs every leaf of `weights` that has a mask .*a: int64",
    ),
    "a list of messages": (
        lambda: close(messages=[ONE()]),
        TypeError,
        "aggregate` needs `messages` as a stack in one `Message`, got list",
    ),
    "one message": (
        lambda: close(messages=ONE()),
        ValueError,
        "aggregate` needs a stack of messages, got one. `stacking.stack",
    ),
    "masks that are not packed": (
        lambda: close(messages=TWO()._replace(mask=masks_of(0, 2))),
        TypeError,
        "aggregate` needs every leaf of `stack` packed.*a: bool",
    ),
    "masks of another network": (
        lambda: close(
            messages=TWO()._replace(mask={**TWO().mask, "a": TWO().mask["b"]})
        ),
        ValueError,
        r"aggregate` needs `state` and `messages` of the same shapes.*a: .*\(64, 3\)",
    ),
    "rounds of others": (
        lambda: close(messages=TWO()._replace(round=jnp.zeros(3, jnp.int32))),
        ValueError,
        r"aggregate` needs `messages.round` of shape \(2,\), got \(3,\)",
    ),
    "networks of others": (
        lambda: close(messages=TWO()._replace(network=jnp.zeros(2, jnp.uint32))),
        ValueError,
        r"aggregate` needs `messages.network` of shape \(2, 2\), got \(2,\)",
    ),
    "indices of clients": (
        lambda: close(participates=np.array([0, 1])),
        TypeError,
        "aggregate` needs `participates` as booleans, got int64",
    ),
    "too few flags": (
        lambda: close(participates=np.array([True])),
        ValueError,
        r"aggregate` needs `participates` of shape \(2,\), got \(1,\)",
    ),
    "prior": (
        lambda: close(prior=0.5),
        ValueError,
        "aggregate` needs `prior` of at least 1, finite, got 0.5",
    ),
    "prior of no number": (
        lambda: close(prior="uniform"),
        TypeError,
        "aggregate` needs `prior` as a Python number, got str 'uniform'",
    ),
    "least": (
        lambda: close(least=0),
        ValueError,
        r"aggregate` needs `least` in \(0, 0.5\), got 0",
    ),
    "least of all": (
        lambda: close(least=jnp.float32(0.1)),
        TypeError,
        "aggregate` needs `least` as a Python number, got float32 array",
    ),
    "least of nothing": (
        lambda: close(least=1e-9),
        ValueError,
        "aggregate` needs a higher `least`, got 1e-09: float32 rounds it to 0, or 1 - ",
    ),
    "never reset, by an array": (
        lambda: close(reset_every=jnp.int32(0)),
        ValueError,
        "aggregate` needs `reset_every` of at least 1, got 0",
    ),
    "never reset": (
        lambda: close(reset_every=0),
        ValueError,
        "aggregate` needs `reset_every` of at least 1, got 0",
    ),
    "reset every half": (
        lambda: close(reset_every=0.5),
        TypeError,
        "aggregate` needs `reset_every` as a whole number, got float 0.5",
    ),
    "entropy of masks": (
        lambda: fedpm.entropy({"w": np.ones(2, bool)}),
        TypeError,
        "entropy` needs every leaf of `probabilities` to be a floating .*w: bool",
    ),
    "entropy of scores": (
        lambda: fedpm.entropy({"w": np.float32([-3, 0.5])}),
        ValueError,
        r"entropy` needs `probabilities` in \[0, 1\] .*w: from -3 to 0.5, with axes",
    ),
    "more weights than the state": (
        lambda: fedpm.message(
            fedpm.init({"w": jnp.ones((1, 2))}),
            {"w": jnp.ones((3, 2))},
            {"w": jnp.ones((1, 2))},
            key=KEY,
        ),
        ValueError,
        r"message` needs `weights` of the sh.*\n  w: weights \(3, 2\), state \(1, 2\)",
    ),
    "entropy of nothing": (
        lambda: fedpm.entropy({"w": None}),
        ValueError,
        "entropy` needs `probabilities` with at least one leaf",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, kind, message = BAD[name]
    with pytest.raises(
        kind, match=re.compile("`maskjax.recipes.fedpm." + message, re.DOTALL)
    ):
        call()
