"""Small networks in torch: what Torch-Pruning does with each.

`CASES` maps a name to a function that returns the outcome. The same names are in
`_function_cases`. The masked network is the full one with everything zero that
Torch-Pruning removes, in eval mode; the outcome is right if the pruned one agrees.
"""

import copy
import signal
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.compaction import _cases
from benchmarks.compaction._cases import HALF, SAME

CASES, case = _cases.registry()
OUT = {
    nn.Conv2d: tp.prune_conv_out_channels,
    nn.Linear: tp.prune_linear_out_channels,
    nn.Embedding: tp.prune_embedding_out_channels,
    nn.LSTM: tp.prune_linear_out_channels,
}
SECONDS = 10  # a case that takes longer is given up


def run(name: str) -> str:
    """A case's outcome, which may be an error."""
    torch.manual_seed(0)
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CASES[name]()
    except Exception as error:  # whatever Torch-Pruning raises is the outcome
        return f"error: {type(error).__name__}: {str(error).splitlines()[0][:90]}"
    finally:
        signal.alarm(0)


def _late(*_: Any) -> None:
    raise TimeoutError(f"no answer in {SECONDS} s")


def pruned(
    model: nn.Module,
    root: str,
    x: Any,
    units: Any = HALF,
    *,
    before: Callable[[nn.Module], None] = lambda model: None,
    after: Callable[[nn.Module], None] = lambda model: None,
    **options: Any,
) -> str:
    """Remove output units of a layer, and all that goes with them."""
    model = model.eval()
    full, masked = copy.deepcopy(model), copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x, **options)
    module = model.get_submodule(root)
    group = graph.get_pruning_group(module, OUT[type(module)], idxs=list(units))
    _zero_all(masked, model, graph, group)
    before(masked)
    group.prune()
    after(model)
    return judged(full, model, masked, x)


def asked(model: nn.Module, x: Any, keep: str, **options: Any) -> str:
    """Ask the pruner for half of everything but the outputs of one layer."""
    model = model.eval()
    full, masked = copy.deepcopy(model), copy.deepcopy(model)
    options = {
        k: {model.get_submodule(n): c for n, c in v.items()} for k, v in options.items()
    }
    pruner = tp.pruner.MagnitudePruner(
        model,
        x,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[model.get_submodule(keep)],
        **options,
    )
    for group in pruner.step(interactive=True):
        _zero_all(masked, model, pruner.DG, group)
        group.prune()
    return judged(full, model, masked, x)


def _zero_all(masked: nn.Module, model: nn.Module, graph: Any, group: Any) -> None:
    names = {module: path for path, module in model.named_modules()}
    for dep, indices in group:
        if (path := names.get(dep.target.module)) is not None:
            out = graph.is_out_channel_pruning_fn(dep.handler)
            plain = [i if isinstance(i, int) else i.idx for i in indices]
            _zero(masked.get_submodule(path), out, plain)


def judged(full: nn.Module, small: nn.Module, masked: nn.Module, x: Any) -> str:
    """Right or wrong, and how much went."""
    count = [sum(p.numel() for p in m.parameters()) for m in (full, small)]
    with torch.no_grad():
        expected, found = masked(x), small(x)
    error = float((expected - found).abs().max() / expected.abs().max())
    verdict = "right" if error < 1e-5 else f"wrong by {error:.0%}"
    if count[0] == count[1]:
        return "kept: nothing was removed"
    return f"{verdict}, {count[0]} -> {count[1]} parameters"


def _zero(module: nn.Module, out: bool, units: list[int]) -> None:  # noqa: FBT001
    for name, leaf in module.named_parameters(recurse=False):
        inputs = not out or isinstance(module, nn.Embedding)
        if name == "weight" and inputs and leaf.ndim > 1:
            if getattr(module, "groups", 1) == 1:
                leaf.data[:, units] = 0
        elif out:
            leaf.data[units] = 0


class Chain(nn.Module):
    """Convolution `a`, something between, convolution `b`."""

    def __init__(self, between: Callable[[Tensor], Tensor], norm: Any = None):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.norm = nn.Identity() if norm is None else norm
        self.between = between

    def forward(self, x):
        return self.b(self.between(self.norm(self.a(x))))


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def noisy(norm: Any) -> Any:
    """A normalization whose scale and bias are not 1 and 0."""
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return norm


@case("convolution, BatchNorm, ReLU")
def _chain() -> str:
    return pruned(Chain(functional.relu, noisy(nn.BatchNorm2d(8))), "a", image())


@case("filters masked, BatchNorm's bias not")
def _bias() -> str:
    model = Chain(functional.relu, noisy(nn.BatchNorm2d(8))).eval()
    model.a.weight.data[HALF] = 0
    model.a.bias.data[HALF] = 0
    full, x = copy.deepcopy(model), image()
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    graph.get_pruning_group(model.a, OUT[nn.Conv2d], idxs=HALF).prune()
    return judged(full, model, full, x)


@case("flatten between convolution and dense")
def _flatten() -> str:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    )
    return pruned(model, "0", image())


@case("concatenation of two layers")
def _concatenation() -> str:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 4, 3)
            self.b = nn.Conv2d(12, 4, 1)

        def forward(self, x):
            return self.b(torch.cat([self.c(x), self.a(x)], 1).relu())

    return pruned(Net(), "a", image())


@case("squeeze and excite")
def _excite() -> str:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
            self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

        def forward(self, x):
            x = self.a(x).relu()
            gate = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
            return self.b(x * gate[:, :, None, None])

    return pruned(Net(), "a", image())


def _groups() -> nn.Module:
    last = nn.Conv2d(6, 4, 1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1, groups=2), last
    )


@case("grouped convolution, the same two channels of each group")
def _grouped() -> str:
    return pruned(_groups(), "0", image(), SAME)


@case("grouped convolution, other channels in each group")
def _grouped_other() -> str:
    return pruned(_groups(), "0", image(), HALF)


@case("GroupNorm, whole groups")
def _group_norm() -> str:
    norm = noisy(nn.GroupNorm(4, 8))
    return pruned(Chain(functional.relu, norm), "a", image(), [0, 1, 4, 5])


@case("LayerNorm over a residual stream")
def _layer_norm() -> str:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)
            self.norm, self.c = noisy(nn.LayerNorm(8)), nn.Linear(8, 3)

        def forward(self, x):
            x = self.a(x)
            return self.c(self.norm(x + self.b(x)))

    return pruned(Net(), "a", torch.randn(5, 6))


@case("softmax over the channels")
def _softmax() -> str:
    return pruned(Chain(lambda x: x.softmax(1)), "a", image())


def shuffle(x: Tensor) -> Tensor:
    """Two parts of the channels, dealt out in turns."""
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


@case("channel shuffle by reshape, the same channels of each part")
def _shuffle() -> str:
    return pruned(Chain(shuffle), "a", image(), SAME)


@case("channel shuffle by reshape, other channels of each part")
def _shuffle_other() -> str:
    return pruned(Chain(shuffle), "a", image(), HALF)


@case("channels reordered by an index")
def _index() -> str:
    order = torch.tensor([3, 1, 4, 0, 5, 7, 2, 6])
    return pruned(Chain(lambda x: x[:, order]), "a", image())


@case("pixel shuffle: four channels become space")
def _pixels() -> str:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(2, 4, 1)

        def forward(self, x):
            return self.b(functional.pixel_shuffle(self.a(x), 2).relu())

    return pruned(Net(), "a", image(), [0, 1, 2, 3])


@case("one layer used twice")
def _twice() -> str:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.c(self.b(self.b(self.a(x).relu()).relu()))

    return pruned(Net(), "b", torch.randn(5, 6))


@case("embedding tied to the head")
def _tied() -> str:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Embedding(11, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.a.weight

        def forward(self, x):
            x = self.a(x)
            return self.head(x + self.b(x))

    model = Net()
    outcome = pruned(model, "b", torch.arange(10).reshape(2, 5))
    tied = model.head.weight is model.a.weight
    return outcome if tied else f"{outcome}, but no longer tied"


@case("a function of a tree of arrays")
def _function() -> str:
    weights = {"a": torch.randn(6, 8), "b": torch.randn(8, 3)}

    def apply(x):
        return (x @ weights["a"]).relu() @ weights["b"]

    tp.DependencyGraph().build_dependency(apply, example_inputs=torch.randn(5, 6))
    return "right"


class Raw(nn.Module):
    """Parameters that belong to no layer, in plain matrix products."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.w = nn.Parameter(torch.randn(8, 3))

    def forward(self, x):
        return self.a(x).relu() @ self.w


@case("parameters that belong to no layer")
def _raw() -> str:
    model = Raw()

    def before(masked):
        masked.w.data[HALF] = 0

    declared = {"unwrapped_parameters": [(model.w, 0)]}
    return pruned(model, "a", torch.randn(5, 6), before=before, **declared)


@case("layers stacked in one array, other units in each")
def _stack() -> str:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 6, 8))
            self.down = nn.Parameter(torch.randn(3, 8, 6))

        def forward(self, x):
            for up, down in zip(self.up, self.down, strict=True):
                x = x + (x @ up).relu() @ down
            return x

    model, x = Net(), torch.randn(5, 6)
    declared = [(model.up, 2), (model.down, 1)]
    graph = tp.DependencyGraph().build_dependency(
        model, example_inputs=x, unwrapped_parameters=declared
    )
    full = copy.deepcopy(model)
    masked = copy.deepcopy(model)
    masked.up.data[..., HALF] = 0  # the same in each: others cannot be asked for
    graph.get_pruning_group(model.up, tp.prune_parameter_out_channels, HALF).prune()
    return judged(full, model, masked, x)


class Attention(nn.Module):
    """Two heads of four, or as many as the options say."""

    def __init__(self, *, kv: int = 2, written: bool = False, scaled: bool = False):
        super().__init__()
        self.heads, self.kv, self.written, self.scaled = 2, kv, written, scaled
        self.q, self.k, self.v = (nn.Linear(6, 4 * n) for n in (2, kv, kv))
        self.out = nn.Linear(8, 6)

    def forward(self, x):
        b, t, _ = x.shape

        def split(y, heads):
            size = 4 if self.written else -1
            return y.view(b, t, heads, size).transpose(1, 2)

        q = split(self.q(x), self.heads)
        k, v = (split(each(x), self.kv) for each in (self.k, self.v))
        if self.kv < self.heads:
            k, v = (each.repeat_interleave(self.heads // self.kv, 1) for each in (k, v))
        if self.scaled:
            y = functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


@case("attention, two channels of each head")
def _channels() -> str:
    return pruned(Attention(), "v", torch.randn(2, 5, 6), SAME)


@case("attention, one of two heads")
def _heads() -> str:
    def after(model):
        model.heads = model.kv = 1

    return pruned(Attention(), "v", torch.randn(2, 5, 6), [0, 1, 2, 3], after=after)


@case("attention, channels of queries and keys, values left alone")
def _queries() -> str:
    model, x = Attention(), torch.randn(2, 5, 6)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    group = graph.get_pruning_group(model.q, OUT[nn.Linear], idxs=SAME)
    if any(dep.target.module is model.v for dep, _ in group):
        return "not offered: queries, keys and values are one group"
    return pruned(model, "q", x, SAME)


@case("attention, sizes written out in the reshape")
def _written() -> str:
    return pruned(Attention(written=True), "v", torch.randn(2, 5, 6), SAME)


@case("attention, scaled by its own width")
def _scaled() -> str:
    return pruned(Attention(scaled=True), "v", torch.randn(2, 5, 6), SAME)


@case("grouped queries, two channels of each head")
def _grouped_queries() -> str:
    heads = {"q": 2, "k": 1, "v": 1}
    return asked(Attention(kv=1), torch.randn(2, 5, 6), "out", num_heads=heads)


@case("fused query, key and value")
def _fused() -> str:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 6)

        def forward(self, x):
            b, t, _ = x.shape
            parts = self.qkv(x).chunk(3, -1)
            q, k, v = (y.view(b, t, 2, -1).transpose(1, 2) for y in parts)
            y = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
            return self.out(y.transpose(1, 2).reshape(b, t, -1))

    return asked(Net(), torch.randn(2, 5, 6), "out", num_heads={"qkv": 2})


@case("gated: one layer split into gate and value")
def _gated() -> str:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(8, 3)

        def forward(self, x):
            gate, value = self.a(x).chunk(2, -1)
            return self.b(functional.silu(gate) * value)

    return pruned(Net(), "a", torch.randn(5, 6), [*HALF, *(8 + i for i in HALF)])


@case("rotary positions on a layer's halves")
def _rotary() -> str:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(6, 8), nn.Linear(6, 8)

        def forward(self, x):
            angle = torch.arange(5.0)[:, None] * torch.arange(1, 5)
            angle = torch.cat([angle, angle], -1)

            def turned(y):
                first, second = y[..., :4], y[..., 4:]
                other = torch.cat([-second, first], -1)
                return y * angle.cos() + other * angle.sin()

            return turned(self.q(x)) @ turned(self.k(x)).transpose(-1, -2)

    return pruned(Net(), "q", torch.randn(2, 5, 6), [0, 3, 4, 7])


@case("two branches, one taken")
def _branches() -> str:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            y = self.a(x).relu()
            return self.b(y) if x.sum() > 0 else self.c(y)

    model, x = Net(), torch.ones(5, 6)
    outcome = pruned(model, "a", x)
    model(-x)  # the branch that was not traced
    return outcome


@case("LSTM")
def _lstm() -> str:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.LSTM(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(self.a(x)[0])

    return asked(Net(), torch.randn(5, 2, 6), "b")


@case("Adam's moments shrink along, and training goes on")
def _adam() -> str:
    model, x = (
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
        torch.randn(5, 6),
    )
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    adam.step()
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    graph.get_pruning_group(model[0], OUT[nn.Linear], idxs=HALF).prune()
    before = copy.deepcopy(model)
    adam.zero_grad()
    model(x).square().sum().backward()
    adam.step()
    after = zip(model.parameters(), before.parameters(), strict=True)
    still = sum(torch.equal(a, b) for a, b in after)
    if still:
        return f"wrong: {still} of 4 parameters no longer train"
    shrunk = all(adam.state[p]["exp_avg"].shape == p.shape for p in model.parameters())
    return "right" if shrunk else "wrong: moments as they were"
