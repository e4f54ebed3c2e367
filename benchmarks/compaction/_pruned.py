"""The torch half: what Torch-Pruning takes out of a network, and whether rightly."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from benchmarks import _timing
from benchmarks.compaction import _ends, _modules, _sizes

NAMES = {
    "weight": "kernel",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
}
OTHERS = {nn.BatchNorm2d: "scale", nn.LayerNorm: "scale", nn.Embedding: "embedding"}


def network(name: str) -> nn.Module:
    """A network with the weights that both sides have, in eval mode."""
    model = _modules.NETWORKS[name]().eval()
    for layer, leaf, tensor in leaves(model):
        drawn = _ends.weights(layer, leaf, in_flax(leaf, tensor).shape)
        tensor.copy_(in_torch(leaf, drawn))
    return model


def leaves(model: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Layer, name and tensor of each leaf, named as in Flax."""
    for path, module in model.named_modules():
        own = [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]
        for name, tensor in own:
            if name in NAMES:
                leaf = OTHERS.get(type(module), "kernel")
                leaf = leaf if name == "weight" else NAMES[name]
                yield path.replace(".", "/"), leaf, tensor.detach()


def in_flax(leaf: str, tensor: torch.Tensor) -> np.ndarray:
    """A tensor with its axes in Flax's order."""
    array = tensor.numpy()
    return np.moveaxis(array, (1, 0), (-2, -1)) if leaf == "kernel" else array


def in_torch(leaf: str, array: np.ndarray) -> torch.Tensor:
    """An array with its axes in torch's order."""
    array = np.moveaxis(array, (-2, -1), (1, 0)) if leaf == "kernel" else array
    return torch.from_numpy(np.ascontiguousarray(array))


def half(name: str, way: str) -> tuple[dict[str, Any], list[_timing.Contestant]]:
    """Prune half, compare with the masked network.

    Returns:
        What was found, for a line, and the networks before and after, to be timed.
    """
    full, x = network(name), _modules.inputs(name)
    model = copy.deepcopy(full)
    removed = _prune(model, x, way)
    masked = copy.deepcopy(full)
    for layer, leaf, tensor in leaves(masked):
        kept = _ends.kept(layer, leaf, in_flax(leaf, tensor).shape, removed)
        tensor.mul_(in_torch(leaf, kept))
    with torch.no_grad():
        expected = masked(x)
        try:
            found = model(x)
            error = float((found - expected).abs().max() / expected.abs().max())
        except RuntimeError as reason:
            error = f"{type(reason).__name__}: {reason}"
    before, after = (tp.utils.count_ops_and_params(m, x) for m in (full, model))
    line = {
        "parameters": [int(before[1]), int(after[1])],
        "multiply_adds": [int(before[0]), int(after[0])],
        "error": error,
        "probe": [round(float(value), 5) for value in expected.flatten()[:4]],
        "removed": _ends.written(removed),
    }
    runs = [("torch", full), ("torch, pruned", model)]
    return line, [_timing.Contestant(n, _runner(m, x)) for n, m in runs]


def freedoms(name: str) -> list[list[str]]:
    """The groups of units that the dependency graph would remove together."""
    model, x = network(name), _modules.inputs(name)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    names = {module: path for path, module in model.named_modules()}
    kinds = {
        nn.Conv2d: tp.prune_conv_out_channels,
        nn.Linear: tp.prune_linear_out_channels,
        nn.Embedding: tp.prune_embedding_out_channels,
    }
    found = {}
    for module in model.modules():
        if type(module) in kinds and module is not model.head:
            group = graph.get_pruning_group(module, kinds[type(module)], idxs=[0])
            found[tuple(sorted(end for end, _ in _members(graph, group, names)))] = None
    return [list(ends) for ends in found]


def _prune(model: nn.Module, x: Any, way: str) -> _ends.Removed:
    ignored = [model.head]
    if "not the residual stream" in way:
        names = ("embed", "position", "out", "down")
        ignored += [m for n, m in model.named_modules() if n.split(".")[-1] in names]
    attention = [m for m in model.modules() if isinstance(m, _modules.Attention)]
    layers = [(m.query, m.key, m.value) for m in attention]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on parameters that belong to no module
        pruner = tp.pruner.MagnitudePruner(
            model,
            x,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=ignored,
            num_heads={layer: _sizes.HEADS for each in layers for layer in each},
            prune_head_dims="channels" in way,
            prune_num_heads="half of the heads" in way,
            head_pruning_ratio=0.5,
        )
        names = {module: path for path, module in model.named_modules()}
        removed: _ends.Removed = {}
        for group in pruner.step(interactive=True):
            for end, gone in _members(pruner.DG, group, names):
                removed[end] = removed.get(end, False) | gone
            group.prune()
    for each in attention:
        each.heads = pruner.num_heads[each.query]
    return removed


def _members(graph: Any, group: Any, names: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Each end of a group, and which of its units go."""
    for dep, indices in group:
        module = dep.target.module
        if module in names:
            out = graph.is_out_channel_pruning_fn(dep.handler)
            out = out or getattr(module, "groups", 1) > 1  # depthwise: one axis
            count = graph.get_out_channels if out else graph.get_in_channels
            gone = np.zeros(count(module), bool)
            gone[[i if isinstance(i, int) else i.idx for i in indices]] = True
            yield f"{names[module].replace('.', '/')} {'out' if out else 'in'}", gone


def _runner(model: nn.Module, x: Any):
    def run():
        with torch.inference_mode():
            return model(x)

    return run
