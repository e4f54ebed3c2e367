"""How fast, and in how much memory, is an image's task found among thousands?

The network of the paper's 2,500 permutations, 784-300-100-500, and one image.
Baselines: the authors' way, dense float masks and autodiff through their weights (in
JAX, and in torch where it is installed); trying every mask. The limit reads the bits.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._timing import Contestant
from benchmarks.speed import _case, _network, packing
from maskjax import bank, superposition

NETWORK, SMALL = (784, 300, 100, 500), (20, 12, 20)
LABELS = 10
# Widths, tasks, and whether a float for each entry fits into memory.
FULL = [(NETWORK, k, kinds) for k, kinds in packing.SIZES.items()]
QUICK = [(SMALL, 20, packing.FLOATS)]
METHODS = {"one_shot": "one_shot", "binary": "binary", "every mask": "exhaustive"}


def objective(weights: Any, x: jax.Array) -> jax.Array:
    """What the superfluous outputs get."""
    return superposition.superfluous(_network.bare(weights, x), labels=LABELS)


def by_autodiff(weights: Any, masks: Any, x: jax.Array) -> jax.Array:
    """The derivatives by the weights of dense float masks, at their mean."""

    def mixed(alphas):
        both = zip(weights, masks, strict=True)
        return objective([w * jnp.einsum("k,kij->ij", alphas, m) for w, m in both], x)

    k = masks[0].shape[0]
    return jnp.argmin(jax.grad(mixed)(jnp.full(k, 1 / k)))


def case(widths: tuple[int, ...], k: int, kinds: str) -> _case.Case:
    """One number of tasks."""
    weights = _network.signed(widths)
    masks, packed = packing.drawn([w.shape for w in weights], k)
    tasks = jax.jit(bank.from_stack)(packed)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((1, widths[0])), jnp.float32)

    def contestant(name, fn, *args):
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(args))
        nbytes = lambda scratch: held + int(scratch)  # noqa: E731
        return _case.contestant(name, fn, *args, nbytes=nbytes)

    def method(how):
        infer = getattr(superposition, how)
        return lambda weights, tasks, x: infer(objective, weights, tasks, x)

    contestants = [
        contestant(name, method(how), weights, tasks, x)
        for name, how in METHODS.items()
    ]
    if kinds == packing.FLOATS:
        given = weights, [m.astype(jnp.float32) for m in masks], x
        contestants.append(contestant("autodiff, float masks", by_autodiff, *given))
        contestants += list(_torch(*given))
    contestants.append(contestant("read the bits", packing.read, packed))

    def agree(results):
        # Near ties fall either way in float32: the derivatives have to agree.
        uniform = jnp.full(k, 1 / k)
        slopes = superposition.gradient(objective, weights, tasks.masks, uniform, x)
        spread = float(slopes.max() - slopes.min())
        for name, found in results.items():
            if name.startswith(("one_shot", "autodiff", "torch")):
                assert slopes[int(found)] - slopes.min() < 1e-4 * spread, name
            elif name != "read the bits":
                assert 0 <= int(found) < k, name

    context = {
        "shape": _case.shapes(weights),
        "density": 0.5,
        "members": k,
        "images": 1,
    }
    context["bytes_per_task"] = sum(leaf.nbytes for leaf in packed) / k
    context["bytes_of_float_masks"] = 4 * k * sum(w.size for w in weights)
    return _case.of(f"{_case.named(widths)} K={k}", contestants, agree, **context)


def _torch(weights: Any, masks: Any, x: jax.Array) -> Iterator[Contestant]:
    """The same in torch, as the authors' code does it, where torch is installed."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    held, dense, image = (
        [torch.from_numpy(np.array(a)) for a in arrays]
        for arrays in (weights, masks, [x])
    )
    k = dense[0].shape[0]

    def run():
        alphas = torch.full((k, 1, 1), 1 / k, requires_grad=True)
        out = image[0]
        for i, (w, m) in enumerate(zip(held, dense, strict=True)):
            out = out @ (w * (alphas * m).sum(0))
            out = torch.relu(out) if i + 1 < len(held) else out
        stopped = out[:, :LABELS].detach()
        every = torch.cat([stopped, out[:, LABELS:]], 1)
        value = torch.logsumexp(every, 1).mean()
        (slopes,) = torch.autograd.grad(value, alphas)
        return int(slopes.argmin())

    yield Contestant("torch, float masks", run)
