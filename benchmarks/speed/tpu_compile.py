"""What does the TPU compiler make of our programs, beside the least they have to be?

Nothing runs: `libtpu` compiles for a description of the chips (`pip install -e
'.[tpu]'`, on x86 with Linux). Arithmetic and bytes count the body of a loop once, so
they compare programs and are no forecast of time.

    python -m benchmarks.speed.tpu_compile            # a few minutes
    python -m benchmarks.speed.tpu_compile --quick    # a look: writes nothing
"""

import argparse
import collections
import functools
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import _chips, _train
from benchmarks.speed import _case, _network, _results, compaction, packing, selection
from maskjax import bank, masking, optim, select, stacking, superposition, where
from maskjax import packing as bits
from maskjax.recipes import edge_popup

FOLDER = "tpu-v5e-compiled"
RESULTS = pathlib.Path(__file__).parents[1] / "results"
WIDTHS, TASKS, NETWORK = (784, 300, 100, 10), 2500, (784, 300, 100, 500)
DENSITY = 0.5
LAYERS = where.matching("", axes="stack inputs outputs")


class Contestant(NamedTuple):
    """A function that is to be compiled for arguments of these shapes.

    Over several chips arguments are cut along their first axis, or, if `by_rows`, all
    but the first argument are, and that is whole on each.
    """

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    role: str = "ours"
    by_rows: bool = False


def shaped(shape: Any, dtype: Any = "float32") -> jax.ShapeDtypeStruct:
    """An array of which only the shape is known."""
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def stacked_layers(layers: int, d: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The kernels of a scanned transformer, [layers, in, out]."""
    ends = {"qkv": (d, 3 * d), "o": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    return {name: shaped((layers, *shape)) for name, shape in ends.items()}


def chosen(scores: Any, scopes: Sequence[Any]) -> list[Contestant]:
    """A tenth of these scores; the least is to compare them with a known threshold."""

    def ours(scope):
        how = {"density": 0.1, "scope": scope, "where": LAYERS}
        return Contestant(scope, lambda x: select.top_k(x, **how), (scores,))

    leaves = jax.tree.leaves(scores)
    known = leaves, [shaped(())] * len(leaves)
    least = Contestant("compare once", selection.compare, known, role="limit")
    return [*map(ours, scopes), least]


def training(kinds: Sequence[str]) -> list[Contestant]:
    """Steps with masks that stay, that move or are learned; the least is Adam's."""
    params = jax.eval_shape(lambda key: _network.init(key, WIDTHS), jax.random.key(0))
    adam, plain = optax.adam(1e-3), _network.plain_loss
    tenth = functools.partial(select.top_k, density=0.1)
    key = jax.random.key(0)

    def by(last):
        return lambda: _step(plain, optax.chain(adam, last), params)

    def rigl():
        moving = optim.rigl(DENSITY, rate=0.3, every=100, key=key)
        return _step(plain, optim.with_gradients(optax.chain(adam, moving)), params)

    makers = {
        "mask": lambda: _masked(adam, params, lambda mask: mask),
        "packed mask": lambda: _masked(adam, params, bits.pack),
        "keep_sparse": by(optim.keep_sparse(tenth)),
        "prune": by(optim.prune(DENSITY)),
        "rigl": rigl,
        "edge_popup": lambda: _edge_popup(adam, params),
    }
    ours = [Contestant(kind, *makers[kind](), donate=(0,)) for kind in kinds]
    least = _step(plain, adam, params)
    return [*ours, Contestant("Adam", *least, donate=(0,), role="limit")]


def arithmetic(k: int, shapes: Sequence[Any]) -> list[Contestant]:
    """Sums over K packed masks; the least is to read their bits once."""
    tree = list(map(shaped, shapes))
    stack = _stack(tree, k)
    return [
        Contestant("dot", bits.dot, (stack, tree)),
        Contestant("mix", stacking.mix, (stack, shaped([k]))),
        Contestant("read the bits", packing.read, (stack,), role="limit"),
    ]


def inference(k: int) -> list[Contestant]:
    """Which of K tasks an image is of; the least is one gradient of the network."""
    weights = [shaped(pair) for pair in zip(NETWORK, NETWORK[1:], strict=False)]
    tasks = jax.eval_shape(bank.from_stack, _stack(weights, k))
    image = shaped([1, NETWORK[0]])

    def objective(weights, x):
        return superposition.superfluous(_network.bare(weights, x), labels=10)

    ours = functools.partial(superposition.one_shot, objective)
    return [
        Contestant("one_shot", ours, (weights, tasks, image)),
        Contestant("one gradient", jax.grad(objective), (weights, image), role="limit"),
    ]


def halved(name: str) -> list[Contestant]:
    """Training steps without half of the units; the least is of one built so."""
    steps, how = compaction.steps(name), {"donate": (0,), "by_rows": True}
    roles = {"compacted": "ours", "dense": "baseline", "built small": "limit"}
    return [Contestant(n, *steps[n], role=role, **how) for n, role in roles.items()]


STEPS = "mask", "packed mask", "keep_sparse", "prune", "rigl", "edge_popup"
# What is compiled, and for one chip or for four.
CASES: dict[str, tuple[Callable[[], list[Contestant]], Sequence[str]]] = {
    "top_k (5000, 500)": (
        lambda: chosen({"w": shaped((5000, 500))}, ["leaf"]),
        ["one", "auto"],
    ),
    "top_k 24 layers, d 1024": (
        lambda: chosen(stacked_layers(24, 1024), ["leaf", "layer", "global"]),
        ["one", "auto"],
    ),
    f"step {_case.named(WIDTHS)}": (lambda: training(STEPS), ["one", "auto"]),
    "256 packed masks, d 1024": (
        lambda: arithmetic(256, [(1024, 1024)] * 3),
        ["one"],
    ),
    f"{TASKS} packed masks, 784-300-100-100": (
        lambda: arithmetic(TASKS, packing.NETWORK),
        ["one"],
    ),
    f"an image's task of {TASKS}": (lambda: inference(TASKS), ["one"]),
    **{
        f"step of half of {name}": (functools.partial(halved, name), ["one", "auto"])
        for name in compaction.COMPILED
    },
}
QUICK = {
    "top_k (64, 32)": (lambda: chosen({"w": shaped((64, 32))}, ["leaf"]), ["one"]),
}


CHIPS = {"one": "1 chip", "auto": "4 chips"}
NAMES: dict[str, tuple[str, str | None]] = {name: (name, None) for name in CASES} | {
    f"{name}, {CHIPS[kind]}": (name, kind)
    for name, (_, kinds) in CASES.items()
    for kind in kinds
}


def measured(cases: Any = CASES) -> Iterator[list[_results.Line]]:
    """The lines of each case, in a process that compiles for TPUs."""
    shared = _results.environment() | {"device": _chips.V5E, "question": "tpu_compile"}
    for name, (contestants, kinds) in cases.items():
        for kind in kinds:
            mesh, found = _chips.mesh(kind), []
            for one in contestants():
                args = _chips.spread(one.args, mesh)
                if one.by_rows:
                    args = _by_rows(one.args, mesh)
                program = _chips.compiled(one.fn, *args, donate=one.donate)
                told = {"case": f"{name}, {CHIPS[kind]}", "contestant": one.name}
                found.append({**told, "role": one.role, **_facts(program), **shared})
            yield found


def _by_rows(args: tuple[Any, ...], mesh: Mesh) -> list[Any]:
    return [
        jax.tree.map(
            lambda x, spec=spec: x.update(sharding=NamedSharding(mesh, spec)), arg
        )
        for arg, spec in zip(args, (P(), *[P("x")] * len(args[1:])), strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser("python -m benchmarks.speed.tpu_compile")
    parser.add_argument(
        "--out", type=pathlib.Path, help="instead of benchmarks/results"
    )
    only = {"action": "append", "choices": sorted(NAMES), "metavar": "CASE"}
    help_ = "this one, or only its part of so many chips; may be repeated"
    parser.add_argument("--only", **only, help=help_)
    parser.add_argument("--quick", action="store_true", help="one small program")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not _chips.installed():
        print("libtpu is not installed: pip install -e '.[tpu]' (x86, Linux)")
        return 1
    if not options.inside:
        again = [sys.executable, "-m", "benchmarks.speed.tpu_compile", "--inside"]
        again += sys.argv[1:] if argv is None else argv
        return subprocess.run(again, env=_chips.environment(), check=False).returncode
    root = options.out or (None if options.quick else RESULTS)
    parts = {NAMES[name] for name in options.only or CASES}
    every = [(name, kind) for name, (_, kinds) in CASES.items() for kind in kinds]
    chosen = [(n, k) for n, k in every if {(n, k), (n, None)} & parts]
    wanted = {
        name: (make, [kind for n, kind in chosen if n == name])
        for name, (make, _) in CASES.items()
    }
    for lines in measured(QUICK if options.quick else wanted):
        if root is not None:
            _results.append(root / FOLDER / "tpu_compile.jsonl", lines)
        print(f"{_results.table(lines)}\n", flush=True)
    return 0


def _facts(program: _chips.Program) -> _results.Line:
    kinds = collections.Counter(kind for kind, _ in program.collectives)
    facts = program._asdict()
    facts |= {"bytes": int(facts.pop("nbytes")), "flops": int(facts["flops"])}
    facts["collectives"] = dict(kinds)
    facts["largest_collective"] = max(
        (max(sizes) for _, sizes in program.collectives), default=0
    )
    facts["compile_cpu_s"] = round(facts["compile_cpu_s"], 2)
    del facts["calls"]
    return facts


def _step(
    loss: Any, optimizer: Any, params: Any, rest: Any = None, *, has_aux: bool = False
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    member = jax.eval_shape(functools.partial(_train.begin, optimizer), params, rest)
    data = shaped([_network.BATCH, WIDTHS[0]]), shaped([_network.BATCH], "int32")
    return _train.descend(loss, optimizer, has_aux=has_aux), (member, *data)


def _masked(optimizer: Any, params: Any, make: Callable[[Any], Any]) -> Any:
    def loss(params, mask, x, y):
        return _network.loss(masking.apply(params, mask), x, y)

    mask = jax.eval_shape(lambda params: make(masking.everything(params)), params)
    return _step(loss, optimizer, params, mask)


def _edge_popup(optimizer: Any, params: Any) -> Any:
    how = {"density": DENSITY, "return_cutoff": True}

    def loss(scores, rest, x, y):
        weights, cutoffs = rest
        soft, cutoffs = edge_popup.soft_mask(scores, guess=cutoffs, **how)
        return _network.loss(masking.apply(weights, soft), x, y), (weights, cutoffs)

    def start(params):
        scores = edge_popup.init(params, key=jax.random.key(0))
        return scores, (params, edge_popup.mask(scores, **how)[1])

    return _step(loss, optimizer, *jax.eval_shape(start, params), has_aux=True)


def _stack(tree: Any, k: int) -> Any:
    def one(_):
        return bits.pack([jnp.zeros(leaf.shape, bool) for leaf in tree])

    return jax.eval_shape(jax.vmap(one), shaped([k]))


if __name__ == "__main__":
    sys.exit(main())
