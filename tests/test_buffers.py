"""Arrays that come in and go out: NumPy's as JAX's, and none shared that is kept.

Laws over the registry of calls, told from types and from jaxprs; with `-m slow` also
from the arrays themselves.
"""

import functools
import importlib
import warnings

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Var

import maskjax
from maskjax import bank, stacking, superposition, where
from maskjax.recipes import (
    deconstructing,
    fedpm,
    hopsupsup,
    lottery_ticket,
    packnet,
    pacnet,
    supsup_stream,
    wsn,
)
from tests.calls import CALLS
from tests.everywhere import BY_NAME

SKIPPED = {
    "recipes.packnet.allotment": "returns Python numbers",
    "recipes.deep_ensemble.init": "its seeds must differ, and small ones do not",
    "allocation.matching": "densities are numbers, of which one may be at many leaves",
    "allocation.uniform": "densities are numbers, of which one may be at many leaves",
    "allocation.erk": "densities are Python numbers if the one given is known",
    "allocation.owl": "densities are Python numbers if the one given is known",
    "allocation.owl: layers": "densities are Python numbers if that one is known",
}
HELD = [call for call in CALLS if call.name not in SKIPPED]
# Functions whose results are used, and documented, by another one.
INITIALIZERS = {
    f"initializer.{name}"
    for name in ("elementwise", "signed_constant", "signed_log_uniform", "uniform")
}


def passes_through(call):
    """Whether a function says that it hands leaves of its arguments on."""
    if call.function.startswith("optim."):
        return True  # gradients that become updates, as everywhere in optax
    name = "initializer.redraw" if call.function in INITIALIZERS else call.function
    module, _, name = f"maskjax.{name}".rpartition(".")
    return "uncopied" in getattr(importlib.import_module(module), name).__doc__


@functools.cache
def traced(name):
    call = BY_NAME[name]
    return quietly(jax.make_jaxpr(call.run, return_shape=True), *call.arguments())


def quietly(run, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return run(*arguments)


@pytest.mark.parametrize("call", HELD, ids=lambda call: call.name)
def test_numpy_arrays_are_taken_where_jax_arrays_are(call):
    arguments = call.arguments()
    given = quietly(jax.eval_shape, lambda: call.run(*arguments))
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert types(given) == types(traced(call.name)[1])


@pytest.mark.parametrize("call", HELD, ids=lambda call: call.name)
def test_no_result_holds_an_array_twice_or_one_of_an_argument(call):
    jaxpr = traced(call.name)[0].jaxpr
    out = [v for v in jaxpr.outvars if isinstance(v, Var)]
    assert len(set(out)) == len(out)
    assert not set(jaxpr.invars) & set(out) or passes_through(call)


@pytest.mark.slow
@pytest.mark.parametrize("call", HELD, ids=lambda call: call.name)
def test_results_are_the_same_of_numpy_arrays_and_outlive_donation(call):
    arguments = jax.tree.map(jnp.array, call.arguments())
    before = pointers(arguments)
    result = quietly(call.run, *arguments)
    other = quietly(call.run, *call.arguments())
    jax.tree.map(same, result, other)
    if not passes_through(call):
        kinds = [isinstance(x, jax.Array) for x in jax.tree.leaves(result)]
        assert kinds == [isinstance(x, jax.Array) for x in jax.tree.leaves(other)]
    after = pointers(result)
    assert len(set(after)) == len(after)
    assert not set(before) & set(after) or passes_through(call)


def pointers(tree):
    leaves = [data(x) for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    return [x.unsafe_buffer_pointer() for x in leaves if x.size]


def data(x):
    typed = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if typed else x


def same(one, other):
    one, other = (np.asarray(data(x)) for x in (one, other))
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


PARAMS = {
    "w": np.arange(12, dtype="float32").reshape(3, 4),
    "head": np.ones((4, 2), "float32"),
    "b": np.ones(4, "float32"),
}
ENTRIES = {"w": PARAMS["w"] > 3}
KEY = jax.random.key(0)


def from_flax(tree):
    """What Flax reads back from its bytes: NumPy arrays."""
    leaves, treedef = jax.tree.flatten(tree)
    listed = flax.serialization.from_bytes(leaves, flax.serialization.to_bytes(leaves))
    assert not any(isinstance(leaf, jax.Array) for leaf in listed)
    return treedef.unflatten(listed)


def learned(reload):
    """PackNet's phases for two tasks, each with what the last one left."""
    state = packnet.init(PARAMS, head=where.matching("head"), capacity=2)
    for task in range(2):
        training = packnet.begin(reload(state))
        params = reload(training.params)
        if task == 0:
            training = packnet.prune(reload(training), params, rate=0.5)
            params = reload(training.params)
        state = packnet.commit(reload(training), params)
    state = reload(state)
    return state, packnet.mask(state, 0), packnet.params_of(state, -1)


def won(reload):
    """Two tasks of WSN, each with what the last one left."""
    state = wsn.init(PARAMS, head=where.matching("head"), capacity=2, key=KEY)
    for _ in range(2):
        training = wsn.begin(reload(state))
        params, scores = reload((training.params, training.scores))
        mask = reload(wsn.mask(scores, density=0.5))
        state = wsn.commit(reload(training), params, scores, mask)
    state = reload(state)
    return state, wsn.union(state), wsn.params_of(state, -1)


def federated(reload):
    """Two rounds of two clients."""
    state, weights = fedpm.init({"w": PARAMS["w"]}), {"w": PARAMS["w"]}
    for i in range(2):
        scores = reload(fedpm.scores(reload(state)))
        keys = jax.random.split(jax.random.fold_in(KEY, i))
        sent = [fedpm.message(state, weights, scores, key=k) for k in keys]
        messages = reload(stacking.stack(reload(sent)))
        state = fedpm.aggregate(reload(state), messages, reset_every=2)
    return reload(state), fedpm.mask(reload(state), key=KEY)


def streamed(reload):
    """A stream of one batch, with every start of a second task."""
    weights, norm = {"w": PARAMS["w"]}, lambda params: jnp.sum(params["w"] ** 2)
    state = supsup_stream.init(weights, capacity=3, key=KEY)
    first = supsup_stream.allocate(norm, reload(weights), reload(state))
    starts = ("random", "mean_scores", "mean_masks", "last", "nearest")
    return supsup_stream.masks(reload(first)), [
        supsup_stream.allocate(norm, reload(weights), reload(first), start=start)
        for start in starts
    ]


def transferred(reload):
    pruned = reload(pacnet.prune(reload(PARAMS), density=0.5))
    begun = reload(pacnet.allocate(pruned, reload(PARAMS)))
    tuned = reload(pacnet.calibrate(begun, reload(PARAMS)))
    return pacnet.source(begun), pacnet.target(tuned)


def restarted(reload):
    mask = {"w": ENTRIES["w"], "head": None, "b": None}
    actions = [
        {"kept": "reinit", "removed": "freeze_init_zero_mask"},
        {"kept": "reshuffle", "removed": "freeze_init_zero_all_reshuffle"},
        {"kept": "constant", "sign": "random"},
    ]
    given = reload((PARAMS, PARAMS, mask))
    return [deconstructing.restart(*given, key=KEY, **how) for how in actions]


def banked(reload):
    stack = jax.tree.map(lambda m: np.stack([m, ~m]), ENTRIES)
    tasks = bank.append(reload(bank.from_stack(reload(stack), capacity=3)), ENTRIES)
    tasks = bank.grow(reload(bank.put(reload(tasks), 0, reload(ENTRIES))), 4)
    norm = lambda params: jnp.sum(params["w"] ** 2)  # noqa: E731
    weights, tasks = reload({"w": PARAMS["w"]}), reload(tasks)
    found = superposition.one_shot(norm, weights, tasks)
    memory = reload(hopsupsup.init(reload(ENTRIES)))
    stored = hopsupsup.store(memory, reload(ENTRIES))
    return tasks, found, bank.mean(tasks), bank.take(tasks, np.int32(1)), stored


@pytest.mark.parametrize(
    "chain",
    [learned, won, federated, streamed, transferred, restarted, banked],
    ids=lambda c: c.__name__,
)
def test_states_that_come_back_as_numpy_arrays_go_on_as_they_were(chain):
    jax.tree.map(same, quietly(chain, lambda tree: tree), quietly(chain, from_flax))


def deleted(tree):
    """Donated: the arrays are no more."""
    jax.tree.map(lambda x: x.delete(), tree)


def alive(tree):
    return not any(x.is_deleted() for x in jax.tree.leaves(tree))


def test_packnet_outlives_all_that_its_phases_hand_out():
    state = packnet.init(jax.device_put(PARAMS), head=None, capacity=2)
    training = packnet.begin(state)
    pruned = packnet.prune(training, jax.device_put(PARAMS), rate=0.5)
    deleted((pruned.params, pruned.mask))
    assert alive(training)
    deleted((training.params, training.mask))
    assert alive(state)
    trained = packnet.prune(packnet.begin(state), jax.device_put(PARAMS), rate=0.5)
    params = jax.device_put(PARAMS)
    done = packnet.commit(trained, params)
    deleted(done)
    assert alive((state, trained, params))


def test_wsn_outlives_all_that_its_phases_hand_out():
    state = wsn.init(jax.device_put(PARAMS), head=None, capacity=2, key=KEY)
    training = wsn.begin(state)
    mask = wsn.mask(training.scores, density=0.5)
    params, scores = jax.device_put(PARAMS), jax.tree.map(jnp.copy, state.scores)
    done = wsn.commit(training, params, scores, mask)
    deleted((training.params, training.scores, training.mask))
    assert alive((state, params, scores, mask, done))
    deleted(wsn.params_of(done, 0))
    deleted(wsn.union(done))
    assert alive(done)
    deleted(done)
    assert alive((state, params, scores, mask))


def test_the_server_of_fedpm_outlives_what_it_and_clients_hand_out():
    weights = {"w": jax.device_put(PARAMS["w"])}
    state = fedpm.init(weights)
    scores = fedpm.scores(state)
    sent = fedpm.message(state, weights, scores, key=KEY)
    after = fedpm.aggregate(state, jax.tree.map(lambda x: x[None], sent))
    deleted((sent, scores, fedpm.mask(state, key=None)))
    assert alive((state, weights, after))
    deleted(after)
    assert alive((state, weights))


def test_a_ticket_search_shares_nothing_and_a_grown_bank_neither():
    params = jax.device_put(PARAMS)
    train = lambda params, mask, *, key: (params, ())  # noqa: E731
    trace = lottery_ticket.search(train, params, rounds=1, rate=0.5, key=KEY)
    deleted(trace.initial)
    assert alive((params, trace.rewound, trace.final))
    deleted(trace.rewound)
    assert alive((params, trace.final))
    tasks = bank.from_stack(jax.tree.map(lambda m: m[None], ENTRIES))
    deleted(bank.grow(tasks, 2))
    assert alive(tasks)


def test_a_ticket_passes_through_what_has_no_mask():
    params = jax.device_put(PARAMS)
    mask = {"w": ENTRIES["w"], "head": None, "b": None}
    ticket = maskjax.apply(params, mask)
    deleted(jax.tree.map(jnp.copy, ticket))
    assert alive(params)
    deleted(ticket)
    assert params["b"].is_deleted()
    assert alive(params["w"])
