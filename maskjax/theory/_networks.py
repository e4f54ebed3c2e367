"""Checks of target networks and wide networks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import checks, trees
from maskjax._core.trees import Params


def require_relu(activation: Any, *, fn: str) -> None:
    """Raise unless a function is ReLU at 65 points."""
    if not callable(activation):
        raise TypeError(
            f"`{fn}` needs `activation` as a function, got "
            f"{checks.kind_of(activation)}."
        )
    z = np.linspace(-16, 16, 65, dtype=np.float32)
    with jax.ensure_compile_time_eval():  # wherever it is called
        out = np.asarray(activation(jnp.asarray(z)))
    wrong = out != np.maximum(z, 0)
    if wrong.any():
        at = int(np.argmax(wrong))
        name = getattr(activation, "__name__", repr(activation))
        raise ValueError(
            f"`{fn}` needs a target with ReLU as its `activation`, got {name}, which "
            f"is {out[at]:.3g} at {z[at]:g}."
        )


def require_target(target: Any, *, fn: str) -> None:
    """Raise unless a target is a list of dense layers that fit one another."""
    names = [set(layer) if isinstance(layer, Mapping) else None for layer in target]
    checks.raise_all(
        (
            f"{i}: {checks.kind_of(layer) if has is None else sorted(has)}"
            for i, (layer, has) in enumerate(zip(target, names, strict=True))
            if has not in ({"kernel"}, {"kernel", "bias"})
        ),
        f"`{fn}` needs every layer of `target` as a mapping with 'kernel', and 'bias' "
        "in all or none",
        TypeError,
    )
    width = None
    complaints = []
    for i, layer in enumerate(target):
        w, b = layer["kernel"], layer.get("bias")
        shapes = np.shape(w), np.shape(b) if b is not None else np.shape(w)[1:]
        fits = checks.is_floating(w) and (b is None or checks.is_floating(b))
        fits &= len(shapes[0]) == 2 and shapes[0][1:] == shapes[1]
        if not fits or width not in (None, shapes[0][0]):
            complaints.append(f"{i}: {checks.kind_of(w)}, after {width}")
        width = shapes[0][-1] if shapes[0] else None
    checks.raise_all(
        complaints,
        f"`{fn}` needs every kernel of `target` floating, [n, o], n as many as the "
        "layer before has outputs, and biases [o]",
    )
    if not names or len({"bias" in has for has in names if has}) > 1:
        raise ValueError(
            f"`{fn}` needs a `target` of at least one layer, with a bias in all or "
            f"none, got {[sorted(has) for has in names if has]}."
        )
    require_finite(target, fn=fn, name="target")


def weights(params: Params, target: Params, *, fn: str) -> list[np.ndarray]:
    """The target's weights [i, o], biases last, if they fit the wide network."""
    require_target(target, fn=fn)
    found = []
    for layer in target:
        biases = [np.asarray(layer["bias"])[None]] if "bias" in layer else []
        found.append(np.concatenate([layer["kernel"], *biases]))
    for i, layer in enumerate(params):
        require_pair(layer, i, fn=fn)
    have = [(len(p["inner"]), p["outer"].shape[2]) for p in params]
    if have != [w.shape for w in found]:
        raise ValueError(
            f"`{fn}` needs `params` for the target's weights, biases as one more row: "
            f"{[w.shape for w in found]}, got {have}."
        )
    require_finite(params, fn=fn, name="params")
    return found


def require_pair(layer: Any, i: int, *, fn: str) -> None:
    """Raise unless a layer is a pair of layers."""
    has = {}
    if isinstance(layer, Mapping):
        has = {name: getattr(x, "shape", ()) for name, x in layer.items()}
    inner, outer = has.get("inner", ()), has.get("outer", ())
    if has.keys() != {"inner", "outer"} or len(inner) != 2 or outer[:-1] != inner:
        raise ValueError(
            f"`{fn}` needs layer {i} with 'inner' [i, k] and 'outer' [i, k, o], got "
            f"{has or checks.kind_of(layer)}."
        )


def require_inputs(
    layers: Params, shape: tuple[int, ...], *, bias: bool, fn: str
) -> None:
    """Raise unless every layer has a weight for each of its inputs."""
    for i, layer in enumerate(layers):
        if isinstance(layer, Mapping) and "kernel" in layer:
            (n, outputs), has = layer["kernel"].shape[-2:], "bias" in layer
        else:
            require_pair(layer, i, fn=fn)
            n, outputs, has = len(layer["inner"]) - bias, layer["outer"].shape[2], bias
        if shape[-1:] != (n,):
            raise ValueError(
                f"`{fn}` needs inputs [..., {n}] for layer {i}, "
                f"{'with' if has else 'without'} a bias, got {shape}."
            )
        shape = (*shape[:-1], outputs)


def require_finite(layers: Params, *, fn: str, name: str) -> None:
    """Raise if concrete weights are inf or nan."""

    def complaint(path: str, leaf: Any) -> str | None:
        array = np.asarray(leaf)
        wrong = np.argwhere(~np.isfinite(array))
        if not len(wrong):
            return None
        at = tuple(wrong[0].tolist())
        return f"{path}: {len(wrong):,} are not, the first {array[at]} at {at}"

    checks.raise_all(
        (complaint(*each) for each in trees.named_leaves(layers)),
        f"`{fn}` needs every weight of `{name}` finite",
    )
