"""Prune while training: at once, gradually, or sparse from the first step on.

One budget of steps for all. Magnitude pruning starts dense, ends sparse (Zhu & Gupta,
2017); RigL (Evci et al., 2020) is sparse throughout and drops and grows connections;
SRigL (Lasby et al., 2024) gives all units of a layer equally many, or none; the control
keeps the random mask that RigL starts with.
Members differ in seed and in density, and train side by side as one program.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maskjax
from benchmarks import _lenet, _pictures, _train
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import allocation, compaction, optim, score, select, stacking

DENSITIES = (0.1, 0.02)
RATE = 0.3  # RigL's fraction dropped at first, which decays as a cosine
STEPS = 200, 600, 1_000
CHANGES = 40  # how often masks move
METHODS = {
    "one-shot": "dense for half of the steps, then pruned at once",
    "gradual": "pruned gradually",
    "static": "random mask that stays",
    "rigl": "RigL",
    "srigl": "SRigL",
}
# Of a hidden unit's inputs that have to be salient; classes are not ablated.
LEAST = {f"Dense_{i}": {"kernel": s, "bias": None} for i, s in enumerate((0.3, 0.3, 0))}
KEY = jax.random.key(0)
SETTINGS = _lenet.SETTINGS | {
    "rate": RATE,
    "allocation": "erdos-renyi; global ranking for one-shot and gradual",
    "min_salient": LEAST,
}


def run(context: Context) -> Outcome:
    """Accuracy of every method at the same densities, after as many steps."""
    data, seeds = context.data.flat(), context.seeds
    epochs = _train.epochs_of(context.pick(STEPS), data.x_train)
    steps = epochs * _train.steps_per_epoch(data.x_train)
    every = max(steps // CHANGES, 1)
    draws, chance, order = jax.random.split(KEY, 3)
    params = _lenet.init(jax.random.split(draws, seeds), data)
    keys = jax.random.split(chance, seeds)
    adam = _lenet.adam(epochs, data)

    def train(name: str, densities: Sequence[float]) -> tuple[Any, np.ndarray]:
        """Every seed at every density; accuracies [1 + epochs, densities, seeds]."""

        def optimizer(density: Any, key: jax.Array = KEY) -> Any:
            last = _sparse(name, density, key, steps=steps, every=every)
            return optim.with_gradients(optax.chain(adam, last)) if last else adam

        def start(density: Any, params: Any, key: jax.Array) -> _train.Member:
            member = _train.begin(optimizer(density, key), params, density)
            if name == "dense":
                return member
            mask = optim.mask_of(member.opt_state)
            return member._replace(params=maskjax.apply(params, mask))

        many = len(densities)
        given = jax.tree.map(lambda p: np.concatenate([p] * many), params)
        each = jnp.asarray(np.repeat(np.float32(densities), seeds))
        given = each, given, jnp.tile(keys, many)
        # One by one and uncompiled, for what random masks need is compiled only once.
        states = stacking.stack([start(*each) for each in stacking.unstack(given)])
        step = _train.descend(_loss, optimizer)
        track = context.track(f"pruning: {name}", epochs)
        states, curve = _train.fit(step, _predict, states, data, track, key=order)
        return states, curve.reshape(-1, many, seeds)

    dense = train("dense", [1.0])[1][:, 0]
    curves, exact, zero = {}, True, True
    for name in METHODS:
        states, curves[name] = train(name, DENSITIES)
        mask = optim.mask_of(states.opt_state)
        kept, removed = _lenet.kept_and_removed(states.params, mask)
        zero &= not np.asarray(removed).any()
        if name != "srigl":  # whose counts are those of units
            exact &= _is_exact(np.asarray(kept), params)
    numbers = {"densities": DENSITIES, "dense": dense[-1]}
    numbers |= {"counts_are_exact": exact, "removed_are_zero": zero}
    numbers |= {name: curve[-1] for name, curve in curves.items()}
    others = "rigl", "srigl", "static"
    sparse = [{n: curves[n][-1, i] for n in others} for i in range(len(DENSITIES))]
    structured = _structured(states.params, mask, data.x_test)
    numbers["structured"] = structured
    return Outcome(
        rows=rows("pruning", **numbers, sparse=sparse),
        settings=SETTINGS | {"steps": steps, "every": every},
        numbers=numbers,
        pictures=[_draw(context, curves, dense)],
    )


def _sparse(
    name: str, density: jax.Array, key: jax.Array, *, steps: int, every: int
) -> optax.GradientTransformationExtraArgs | None:
    """The transformation after Adam."""

    def cubic(step: jax.Array) -> jax.Array:
        """Zhu & Gupta's schedule, from a tenth to three quarters of the steps."""
        part = jnp.clip((step / steps - 0.1) / 0.65, 0.0, 1.0)
        return density + (1 - density) * (1 - part) ** 3

    def halfway(step: jax.Array) -> jax.Array:
        return jnp.where(step < steps // 2 // every * every, 1.0, density)

    def fixed(params: Any) -> Any:
        shares = allocation.erk(params, density=density)
        return select.random(params, density=shares, key=key)

    rate = optax.cosine_decay_schedule(RATE, 3 * steps // 4)
    pruned = {"every": every, "scope": "global"}
    moving = {"rate": rate, "every": every, "allocation": allocation.erk, "key": key}
    return {
        "dense": lambda: None,
        "one-shot": lambda: optim.prune(halfway, **pruned),
        "gradual": lambda: optim.prune(cubic, **pruned),
        "static": lambda: optim.keep_sparse(fixed),
        "rigl": lambda: optim.rigl(density, **moving),
        "srigl": lambda: optim.rigl(
            density, scope="output", min_salient=LEAST, **moving
        ),
    }[name]()


def _predict(member: _train.Member, x: jax.Array) -> jax.Array:
    return _lenet.MODEL.logits(member.params, x)


def _loss(params: Any, density: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    del density
    return _train.cross_entropy(_lenet.MODEL.logits(params, x), y)


def _is_exact(kept: np.ndarray, params: Any) -> bool:
    """Whether each mask keeps the right number, up to the rounding of each leaf."""
    kernels = jax.tree.leaves(jax.vmap(score.magnitude)(params))
    size = sum(k[0].size for k in kernels)
    wanted = np.repeat(np.array(DENSITIES) * size, len(kept) // len(DENSITIES))
    return bool((np.abs(kept - wanted) <= len(kernels) / 2).all())


def _structured(params: Any, masks: Any, x: np.ndarray) -> dict[str, Any]:
    """Whether units have equally many inputs, and what compaction makes of the first.

    The first network of each density. A unit that is ablated is a constant, its bias
    after ReLU, which compaction adds to the biases of the next layer.
    """
    kernels = [np.asarray(m["kernel"]).sum(1) for m in masks.values()]  # [members, out]
    regular = all(len({*row[row > 0]}) == 1 for inputs in kernels for row in inputs)
    found = {"regular": regular, "units": {}, "multiply_adds": {}, "difference": {}}
    each = len(kernels[0]) // len(DENSITIES)
    found["kept"] = {
        f"{density:g}": np.stack([inputs.sum(1) for inputs in kernels]).sum(0)[
            i * each : (i + 1) * each
        ]
        for i, density in enumerate(DENSITIES)
    }
    for i, density in enumerate(DENSITIES):
        one, mask = jax.tree.map(lambda w: w[i * each], (params, masks))  # noqa: B023
        apply, name = _lenet.MODEL.logits, f"{density:g}"
        plan = compaction.plan(apply, one, mask, x[:2], fold=True)
        masked = maskjax.apply(one, mask)
        small = compaction.shrink(masked, plan)
        after = jax.jit(compaction.narrow(apply, plan))(small, x)
        found["difference"][name] = float(jnp.abs(after - apply(masked, x)).max())
        shapes = [layer["kernel"].shape for layer in small.values()]
        found["units"][name] = [shape[1] for shape in shapes]
        found["multiply_adds"][name] = sum(a * b for a, b in shapes)
    return found


def _draw(context: Context, curves: dict[str, np.ndarray], dense: np.ndarray) -> str:
    title = f"Pruning a 300-100 network while it trains, {context.data.name}"
    drawn, plots = _pictures.page(title, len(DENSITIES), size=(11, 4.8), sharey=True)
    for i, (axes, density) in enumerate(zip(plots, DENSITIES, strict=True)):
        found = {METHODS[name]: curve[:, i] for name, curve in curves.items()}
        how = {"title": f"density {density:g}", "xlabel": "epoch"}
        how |= {"levels": {"dense, in the end": dense[-1]}, "seeds": context.seeds}
        how |= {"legend": None, "ylabel": ""} if i else {"legend": "lower right"}
        _pictures.curves(axes, range(len(dense)), found, **how)
    return _pictures.save(drawn, context, "pruning_training")


DEMO = Demo(
    "pruning", "pruning while training (Zhu & Gupta, RigL, SRigL)", run, seconds=21
)
