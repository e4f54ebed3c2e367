"""How fast, and in how much memory, is an image's task found among thousands?

The network of the paper's 2,500 permutations, 784-300-100-500, and one image.
Baselines: the authors' way, dense float masks and autodiff through their weights (in
JAX, and in torch where it is installed); trying every mask. The limit reads the bits.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks._timing import Contestant, Role, compiled
from benchmarks.speed import packing as packing_
from benchmarks.speed._case import Case
from maskjax import bank, initializer, packing, superposition

NETWORK, SMALL = (784, 300, 100, 500), (20, 12, 20)
LABELS = 10
# Widths, tasks, and whether a float for each entry fits into memory.
FULL = [(NETWORK, 25, True), (NETWORK, 250, True), (NETWORK, 2500, False)]
QUICK = [(SMALL, 20, True)]


def cases(*, quick: bool) -> Iterator[Case]:
    """More and more tasks."""
    for case in QUICK if quick else FULL:
        yield _case(*case[:2], fits=case[2])


def network(weights: Any, x: jax.Array) -> jax.Array:
    """Logits of a ReLU network without biases."""
    for w in weights[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ weights[-1]


def objective(weights: Any, x: jax.Array) -> jax.Array:
    """What the superfluous outputs get."""
    return superposition.superfluous(network(weights, x), labels=LABELS)


def by_autodiff(weights: Any, masks: Any, x: jax.Array) -> jax.Array:
    """The derivatives by the weights of dense float masks, at their mean."""

    def mixed(alphas: jax.Array) -> jax.Array:
        return objective(
            [
                w * jnp.einsum("k,kij->ij", alphas, m)
                for w, m in zip(weights, masks, strict=True)
            ],
            x,
        )

    k = masks[0].shape[0]
    return jnp.argmin(jax.grad(mixed)(jnp.full(k, 1 / k)))


def _case(widths: tuple[int, ...], k: int, *, fits: bool) -> Case:
    shapes = list(zip(widths, widths[1:], strict=False))
    rng = np.random.default_rng(0)
    draw = initializer.signed_constant()
    weights = [draw(jax.random.key(i), s) for i, s in enumerate(shapes)]
    masks = [
        jnp.asarray(rng.integers(0, 2, (k, *s), dtype=np.uint8).view(bool))
        for s in shapes
    ]
    tasks = jax.jit(lambda m: bank.from_stack(lax.map(packing.pack, m, batch_size=16)))(
        masks
    )
    x = jnp.asarray(rng.standard_normal((1, widths[0])), jnp.float32)

    def contestant(name: str, role: Role, fn: Callable, *args: Any) -> Contestant:
        call, compile_s, scratch = _compiled(fn, *args)
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(args)) + scratch
        return Contestant(name, role, lambda: call(*args), compile_s, nbytes=held)

    def method(name: str) -> Callable:
        infer = getattr(superposition, name)
        return lambda weights, tasks, x: infer(objective, weights, tasks, x)

    contestants = [
        contestant("one_shot", "ours", method("one_shot"), weights, tasks, x),
        contestant("binary", "baseline", method("binary"), weights, tasks, x),
        contestant("every mask", "baseline", method("exhaustive"), weights, tasks, x),
    ]
    if fits:
        floats = [m.astype(jnp.float32) for m in masks]
        contestants.append(
            contestant(
                "autodiff, float masks", "baseline", by_autodiff, weights, floats, x
            )
        )
        contestants += list(_torch(weights, floats, x))
    bits = jax.tree.leaves(tasks.masks, is_leaf=lambda m: hasattr(m, "bits"))
    contestants.append(contestant("read the bits", "limit", packing_.read, bits))

    def agree(results: Mapping[str, Any]) -> None:
        # Near ties fall either way in float32: the derivatives have to agree.
        uniform = jnp.full(k, 1 / k)
        slopes = superposition.gradient(objective, weights, tasks.masks, uniform, x)
        spread = float(slopes.max() - slopes.min())
        for name, found in results.items():
            if name.startswith(("one_shot", "autodiff", "torch")):
                assert slopes[int(found)] - slopes.min() < 1e-4 * spread, name
            elif name != "read the bits":
                assert 0 <= int(found) < k, name

    return Case(
        f"{'-'.join(map(str, widths))} K={k}",
        {
            "dtype": "float32",
            "shape": [list(s) for s in shapes],
            "density": 0.5,
            "structure": "Entries()",
            "members": k,
            "images": 1,
            "bytes_per_task": sum(leaf.nbytes for leaf in bits) / k,
            "bytes_of_float_masks": 4 * k * sum(w.size for w in weights),
        },
        contestants,
        agree,
    )


def _compiled(fn: Callable, *args: Any) -> tuple[Callable, float, int]:
    """As `_timing.compiled`, and how many bytes it takes besides its arguments."""
    call, seconds = compiled(fn, *args)
    analysis = call.memory_analysis()
    return call, seconds, int(getattr(analysis, "temp_size_in_bytes", 0) or 0)


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

    def run() -> int:
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

    yield Contestant("torch, float masks", "baseline", run)
