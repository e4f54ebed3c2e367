"""The maskjax half: the same units out of the same networks."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import maskjax
from benchmarks import _timing
from benchmarks.compaction import _ends, _linen, _sizes
from maskjax import compaction


@functools.cache
def network(name: str) -> tuple[Any, Any, np.ndarray]:
    """`apply`, variables with the weights that both sides have, and inputs."""
    model, x = _linen.NETWORKS[name](), _sizes.inputs(name)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x))

    def drawn(path, leaf):
        return _ends.weights(*_named(path), leaf.shape)

    variables = jax.tree_util.tree_map_with_path(drawn, shapes)
    return model.apply, jax.device_put(variables), x


def same(
    name: str, line: dict[str, Any]
) -> tuple[dict[str, Any], list[_timing.Contestant]]:
    """Take out what a line of the torch half took out, and compare.

    Returns:
        What was found, for a line, and the networks to be timed: dense and compacted.
    """
    apply, variables, x = network(name)
    removed = _ends.read(line["removed"])

    def kept(path, leaf):
        return _ends.kept(*_named(path), leaf.shape, removed)

    mask = jax.tree_util.tree_map_with_path(kept, variables)
    masked = maskjax.apply(variables, mask)
    start = time.perf_counter()
    plan = compaction.plan(apply, variables, mask, x)
    plan_s = time.perf_counter() - start
    small, narrow = compaction.shrink(masked, plan), compaction.narrow(apply, plan)
    runs = [
        _contestant("maskjax, dense", "baseline", apply, variables, x),
        _contestant("maskjax, masked", "baseline", apply, masked, x),
        _contestant("maskjax, compacted", "ours", narrow, small, x),
    ]
    expected, found = np.asarray(runs[1].run()), np.asarray(runs[2].run())
    probe = expected.ravel()[: len(line["probe"])]
    np.testing.assert_allclose(probe, line["probe"], atol=1e-3)  # torch's network
    costs = [_multiply_adds(f, v, x) for f, v in ((apply, variables), (narrow, small))]
    return {
        "parameters": [_parameters(variables), _parameters(small)],
        "multiply_adds": costs,
        "plan_s": float(f"{plan_s:.3g}"),
        "error": float(np.abs(found - expected).max() / np.abs(expected).max()),
    }, runs


def freedoms(name: str) -> list[list[str]]:
    """The ends of each group of two units or more."""
    apply, variables, x = network(name)
    ranks = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.ndim
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }

    def end(member):
        layer, leaf = _parts(member.path.split("/"))
        inputs = leaf == "kernel" and member.axis == ranks[member.path] - 2
        return f"{layer} {'in' if inputs else 'out'}"

    groups = compaction.groups(apply, variables, x)
    return [sorted({end(m) for m in each.members}) for each in groups if each.size > 1]


def _contestant(name, role, fn, variables, x) -> _timing.Contestant:
    run, compile_s = _timing.compiled(fn, variables, x)
    variables, x = jax.device_put((variables, x))
    return _timing.Contestant(name, lambda: run(variables, x), compile_s, role=role)


def _parameters(variables: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _multiply_adds(fn: Any, variables: Any, x: np.ndarray) -> int:
    """Half of XLA's operations for each example, before anything is fused."""
    analysis = jax.jit(fn).lower(variables, x).cost_analysis()
    return int(analysis["flops"] / 2 / len(x))


def _named(path: Sequence[Any]) -> tuple[str, str]:
    return _parts([key.key for key in path])


def _parts(parts: Sequence[str]) -> tuple[str, str]:
    """The layer and the leaf, without the collection in front."""
    return "/".join(parts[1:-1]), parts[-1]
