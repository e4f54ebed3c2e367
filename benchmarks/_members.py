"""A network with masks on its features, trained and asked in four ways.

They differ in the masks alone: none, fresh ones (MC-dropout), a few that stay
(Masksembles), or none and several networks (a deep ensemble).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from benchmarks import _train
from maskjax import compaction, layers, stacking
from maskjax.recipes import masksembles, mc_dropout

SINGLE, DROPOUT = "one network", "MC-dropout"
MASKSEMBLES, ENSEMBLE = "Masksembles", "deep ensemble"
WAYS = (SINGLE, DROPOUT, MASKSEMBLES, ENSEMBLE)
SCALE, NETWORKS = 2.0, 5
MEMBERS = {SINGLE: 1, DROPOUT: 20, MASKSEMBLES: 4, ENSEMBLE: NETWORKS}


class Net(nn.Module):
    """Dense layers, each but the last followed by a mask on its features."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Outputs [B, widths[-1]] of inputs [B, D]."""
        for width in self.widths[:-1]:
            x = layers.LinenFeatureMask()(nn.relu(nn.Dense(width)(x)))
        return nn.Dense(self.widths[-1])(x)


class Training(NamedTuple):
    """How a network is trained, whichever way."""

    epochs: int  # of all samples, in an order of its own
    batch_size: int
    learning_rate: float  # of Adam
    rate: float  # what MC-dropout drops


def masks(way: str, networks: int, widths: Sequence[int], *, key: Array) -> Any:
    """The masks [K, C] that a way begins with, [K, N, C] of Masksembles."""

    def of_layer(width: int, key: Array) -> Array:
        if way != MASKSEMBLES:
            return jnp.ones((networks, width), bool)
        how = {"members": MEMBERS[MASKSEMBLES], "scale": SCALE}
        keys = jax.random.split(key, networks)
        return jax.vmap(lambda key: masksembles.masks(width, **how, key=key))(keys)

    return {
        f"LinenFeatureMask_{i}": {"features": of_layer(w, jax.random.fold_in(key, i))}
        for i, w in enumerate(widths[:-1])
    }


def orders(networks: int, samples: int, training: Training, *, seed: int) -> np.ndarray:
    """Rows [K, steps, B]: every epoch all samples, in an order of each network's."""
    size = min(training.batch_size, samples)
    how = {"epochs": training.epochs, "size": size, "seed": seed}
    return _train.orders(networks, samples, **how).reshape(networks, -1, size)


def fit(
    way: str,
    training: Training,
    loss: Callable[[Array, Array], Array],
    begun: tuple[dict[str, Any], Array],
    x: Array,
    y: Array,
    *,
    key: Array,
) -> dict[str, Any]:
    """Parameters and masks of one network, trained on x [N, D] and y [N, ...].

    `begun` are those at first, and the rows [steps, B] of each step. The loss is
    `(outputs, y) -> scalar`. The key draws masks.
    """
    variables, rows = begun
    optimizer, size = optax.adam(training.learning_rate), rows.shape[1]
    whose = masksembles.in_chunks(size, members=MEMBERS[MASKSEMBLES])
    net = Net(widths_of(variables["params"]))

    def of_batch(params: Any, masks: Any, x: Any, y: Any, i: Array) -> Array:
        if way == DROPOUT:
            fresh = {"examples": size, "key": jax.random.fold_in(key, i)}
            masks = mc_dropout.mask(masks, rate=training.rate, **fresh)
        if way == MASKSEMBLES:
            masks = layers.assign(masks, whose)
        outputs: Any = net.apply({"params": params, "masks": masks}, x)
        return loss(outputs, y)

    step = _train.descend(of_batch, optimizer)
    first = _train.begin(optimizer, variables["params"], variables["masks"])
    steps = rows, jnp.arange(len(rows))
    member, _ = lax.scan(lambda m, i: step(m, x[i[0]], y[i[0]], i[1]), first, steps)
    return {**variables, "params": member.params}


def ask(
    way: str,
    variables: dict[str, Any],
    x: Array,
    *,
    rate: float,
    key: Array,
) -> Array:
    """What each member says of x [B, D], [M, B, ...]; one at a time.

    The variables are from `fit`, with parameters [M, ...] of an ensemble. MC-dropout
    draws its masks with the key.
    """
    params, masks = variables["params"], variables["masks"]
    net = Net(widths_of(params))

    def under(params: Any, masks: Any) -> Any:
        return net.apply({"params": params, "masks": masks}, x)

    if way == SINGLE:
        return under(params, masks)[None]
    member, each = {
        DROPOUT: (
            lambda key: under(params, mc_dropout.mask(masks, rate=rate, key=key)),
            jax.random.split(key, MEMBERS[DROPOUT]),
        ),
        MASKSEMBLES: (lambda masks: under(params, masks), masks),
        ENSEMBLE: (lambda params: under(params, masks), params),
    }[way]
    return stacking.map(member, each, batch_size=1)


def compacted(variables: dict[str, Any]) -> tuple[Any, Any, compaction.Plan]:
    """Masksembles as a first layer, small members of the rest, and their plan.

    Members share the first layer. The variables are from `fit`, with concrete masks.
    """
    first, *names = params = variables["params"]
    masks = {
        name: {
            "kernel": masksembles.rows(stack["features"], params[name]["kernel"]),
            "bias": None,
        }
        for name, stack in zip(names, variables["masks"].values(), strict=True)
    }
    rest = {name: params[name] for name in names}
    features = jax.ShapeDtypeStruct((1, *params[first]["bias"].shape), jnp.float32)
    plan = compaction.plan(_rest, rest, masks, features, stack=True)
    return params[first], compaction.shrink(rest, plan), plan


def ask_compacted(
    first: Any,
    members: Any,
    x: Array,
    *,
    plan: compaction.Plan,
    batch_size: int | None = 1,
) -> Array:
    """As `ask` for Masksembles, [M, B, ...], through what `compacted` returns."""

    def one(member: tuple[Array, Any], x: Array) -> Any:
        number, params = member
        return compaction.narrow(_rest, plan, member=number)(params, x)

    x = nn.relu(x @ first["kernel"] + first["bias"])
    each = jnp.arange(plan.members), members
    return stacking.map(one, each, x, batch_size=batch_size)


def _rest(params: Any, x: Array) -> Array:
    """What comes after the first layer."""
    *hidden, last = params.values()
    for layer in hidden:
        x = nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ last["kernel"] + last["bias"]


def widths_of(params: Any) -> tuple[int, ...]:
    """Of the layers, in order: dense layers are numbered."""
    names = sorted(params, key=lambda name: int(name.rsplit("_")[-1]))
    return tuple(params[name]["bias"].shape[-1] for name in names)
